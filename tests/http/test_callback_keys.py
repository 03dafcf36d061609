"""Signed callbacks: the headers on the wire, and keys that change while the worker runs."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.http.server import LOOPBACK, Server, answer_all, ignore, serving
from tests.servers import until
from worker.config import InvalidSettingsError, load
from worker.events import CallbackKeysLoaded, CallbackKeysRejected, Event
from worker.http.callbacks import open_callbacks
from worker.model import Callback
from worker.settings import Settings

NOW = 1_700_000_000


def settings(keys: Path) -> Settings:
    return load(LOOPBACK | {"callback_secret_file": str(keys)}).settings


def to(server: Server, body: bytes = b"result", host: str = "127.0.0.1") -> Callback:
    return Callback(f"http://{host}:{server.port}/", ((b"webhook-id", b"msg_1"),), body)


def headers(server: Server) -> dict[str, str]:
    """Return the headers of the last request."""
    lines = server.requests[-1].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


def signature(key: bytes, body: bytes = b"result") -> str:
    signed = f"msg_1.{NOW}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


@pytest.mark.parametrize("size", [6, 300_000], ids=["small", "large"])
async def test_post_with_keys_is_signed(tmp_path: Path, size: int) -> None:
    """A callback has the signatures of Standard Webhooks by each key, and OpenFaaS's by the first."""
    (tmp_path / "keys").write_text(f"first\nwhsec_{base64.b64encode(b'second' * 5).decode()}\n")
    body = b"r" * size
    async with (
        serving(answer_all) as server,
        open_callbacks(settings(tmp_path / "keys"), ignore, lambda: NOW + 0.9) as callbacks,
    ):
        assert await callbacks.post(to(server, body)) == 200
        found = headers(server)
    assert found["webhook-id"] == "msg_1"
    assert found["webhook-timestamp"] == str(NOW)
    assert found["webhook-signature"] == f"{signature(b'first', body)} {signature(b'second' * 5, body)}"
    assert found["X-Openfaas-Signature-256"] == f"sha256={hmac.new(b'first', body, hashlib.sha256).hexdigest()}"


async def test_post_to_a_receiver_without_keys_is_not_signed(tmp_path: Path) -> None:
    """A receiver that no line is for gets no signature, and the id in any case."""
    (tmp_path / "keys").write_text("*.example.com theirs")
    async with serving(answer_all) as server, open_callbacks(settings(tmp_path / "keys"), ignore) as callbacks:
        assert await callbacks.post(to(server)) == 200
        assert set(headers(server)) == {"Host", "webhook-id", "Content-Length"}


async def test_post_after_a_rotation_is_signed_with_the_new_keys(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A secret that Kubernetes replaces, by swapping a link to its directory, is used without a restart."""
    assert autojump_clock
    for number in ("1", "2"):
        (tmp_path / number).mkdir()
        (tmp_path / number / "keys").write_text(f"key{number}")
    (tmp_path / "data").symlink_to("1")
    events: list[Event] = []
    path = tmp_path / "data" / "keys"
    async with (
        serving(answer_all) as server,
        open_callbacks(settings(path), events.append, lambda: NOW) as callbacks,
    ):
        await callbacks.post(to(server))
        assert headers(server)["webhook-signature"] == signature(b"key1")
        (tmp_path / "new").symlink_to("2")
        (tmp_path / "new").rename(tmp_path / "data")
        await until(lambda: bool(events), "the change")
        assert events == [CallbackKeysLoaded(str(path), 1)]
        await callbacks.post(to(server))
        assert headers(server)["webhook-signature"] == signature(b"key2")


async def test_keys_that_become_unusable_change_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The last keys stay in use while the file is missing or malformed; each reason is reported once."""
    assert autojump_clock
    path = tmp_path / "keys"
    path.write_text("good")
    events: list[Event] = []
    async with serving(answer_all) as server, open_callbacks(settings(path), events.append, lambda: NOW) as callbacks:
        path.unlink()
        await until(lambda: len(events) == 1, "the missing file")
        path.write_text("")
        await until(lambda: len(events) == 2, "the empty file")
        await callbacks.post(to(server))
        assert headers(server)["webhook-signature"] == signature(b"good")
        path.write_text("good")
        await until(lambda: len(events) == 3, "the good file")
    assert events == [
        CallbackKeysRejected(str(path), "cannot be read: No such file or directory"),
        CallbackKeysRejected(str(path), "it has no signing key: write one a line"),
        CallbackKeysLoaded(str(path), 1),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "it has no signing key: write one a line"),
        ("whsec_***", "line 1: what follows whsec_ is not base64"),
    ],
)
def test_keys_that_cannot_be_used_at_the_start_are_an_error(tmp_path: Path, content: str | None, reason: str) -> None:
    """An empty, missing or malformed file is one problem with the settings, in one line."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSettingsError) as error:
        settings(path)
    assert str(error.value).splitlines()[1:] == [
        f"  callback_secret_file = '{path}' (environment callback_secret_file): {reason}"
    ]
