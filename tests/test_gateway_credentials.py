"""The producer's credentials for the gateway behind it."""

from __future__ import annotations

from pathlib import Path

from worker.config import load
from worker.gateway.credentials import Credentials

ADMIN_SECRET = b"Basic YWRtaW46c2VjcmV0"
"""``admin:secret`` in base64."""


def credentials(clock: list[float], **environment: str) -> Credentials:
    """Return the credentials of these settings, at the time in *clock*."""
    return Credentials(load(environment).settings, lambda: clock[0])


def test_credentials_without_settings_are_none() -> None:
    """Without files, and without a user in ``gateway_url``, no header is sent."""
    found = credentials([0.0])
    assert (found.pair(), found.authorization()) == (None, None)


def test_credentials_in_gateway_url_are_decoded() -> None:
    """User and password in ``gateway_url`` may have escapes, and the password may be missing."""
    assert credentials([0.0], gateway_url="http://admin:secret@gateway:8080").authorization() == ADMIN_SECRET
    assert credentials([0.0], gateway_url="http://a%40b:p%3Aq@gateway").pair() == ("a@b", "p:q")
    assert credentials([0.0], gateway_url="http://admin@gateway").pair() == ("admin", "")


def test_credentials_in_files_are_read_again_after_a_rotation(tmp_path: Path) -> None:
    """Rotated files count a second later; an unreadable or empty one leaves the last pair."""
    user, password, clock = tmp_path / "user", tmp_path / "password", [0.0]
    user.write_text("admin\n")
    password.write_text("secret\n")
    found = credentials(
        clock,
        gateway_url="http://x:y@gateway",
        basic_auth_user_file=str(user),
        basic_auth_password_file=str(password),
    )
    assert found.authorization() == ADMIN_SECRET
    password.write_text("new")
    assert found.pair() == ("admin", "secret")
    clock[0] = 1.0
    assert found.pair() == ("admin", "new")
    for content in (b"", b"\xff"):
        clock[0] += 1.0
        password.write_bytes(content)
        assert found.pair() == ("admin", "new")
    clock[0] += 1.0
    password.unlink()
    assert found.pair() == ("admin", "new")
