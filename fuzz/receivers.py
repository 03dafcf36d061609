"""Rules about receivers are rejected in one line, or forbid the same machines however their addresses are written.

The input's lines are ``callback_allow``, ``callback_deny``, the host of a URL, and the addresses that it resolves to.
The readers of an address are the standard library's ``ipaddress`` and the system's ``inet_aton``.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address

from worker.policy.addresses import read_address
from worker.policy.callback_access import CallbackAccess
from worker.policy.receiver_patterns import ReceiverPatterns, parse_patterns
from worker.policy.signature import parse_keys

WORDS = (
    "*.",
    "example.com",
    "10.0.0.0/8",
    "127.0.0.1",
    "0x7f",
    "[::1]",
    "::ffff:",
    "64:ff9b::",
    "169.254.",
    ":80",
    "*",
)


def check(data: bytes) -> None:
    """Read *data* as rules and as signing keys, and check the law above."""
    _check_keys(data)
    lines = [*data.decode("utf-8", "replace").split("\n"), "", "", ""]
    allow, deny, host = read(lines[0]), read(lines[1]), lines[2]
    access = CallbackAccess(("http", "gateway", 80), allow or ReceiverPatterns(), deny or ReceiverPatterns())
    _check_written_address(host)
    for text in lines[3:]:
        try:
            address = ip_address(text)
        except ValueError:
            continue
        refusal = access.refusal(host, 80, address)
        mapped = IPv6Address(f"::ffff:{address}") if address.version == 4 else address
        assert (access.refusal(host, 80, mapped) is None) == (refusal is None), (host, address)
        inner = mapped.ipv4_mapped or mapped if isinstance(mapped, IPv6Address) else mapped
        if refusal is None and not access.allow.patterns:
            assert not any((inner.is_loopback, inner.is_link_local, inner.is_unspecified)), (host, address)


def read(text: str) -> ReceiverPatterns | None:
    """Return the patterns, which read the same again; None if they are rejected."""
    try:
        patterns = parse_patterns(text)
    except ValueError as error:
        reason = str(error)
    else:
        assert parse_patterns(str(patterns)) == patterns
        return patterns
    assert reason.isprintable(), reason
    assert 0 < len(reason) < 500
    return None


def _check_written_address(host: str) -> None:
    if not host.isascii() or any(character in host for character in "%[]: \t\r\f\v\0") or host.endswith("."):
        return
    try:
        expected = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return
    found = read_address(host)
    assert found is None or str(found) == expected, host
    assert found is not None or len(host) > 12, host  # longer numbers than any address needs


def _check_keys(data: bytes) -> None:
    try:
        keys = parse_keys(b"SECRET" + data)
    except ValueError as error:
        reason = str(error)
    else:
        assert all(secret for secret in keys.secrets_for("h", 80))
        assert "SECRET" not in repr(keys)
        return
    assert reason.isprintable(), reason
    assert "SECRET" not in reason
