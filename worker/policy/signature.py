"""Signatures of callbacks: Standard Webhooks (``webhook-signature``) and OpenFaaS's ``X-Openfaas-Signature-256``.

Standard Webhooks signs id, time and body, with each key, so that receivers can change theirs one after the other.
OpenFaaS's header has room for one signature, that of the body with the first key.
"""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode, b64encode
from collections import Counter
from dataclasses import dataclass, field

from ..model import Headers
from .receiver_patterns import ReceiverPattern, host_of, parse_pattern

WEBHOOK_ID = b"webhook-id"
OWN_HEADERS = frozenset({WEBHOOK_ID, b"webhook-timestamp", b"webhook-signature", b"x-openfaas-signature-256"})
"""Headers that only the worker may set: a function could pass a signature of another message for its own."""
MAX_SIZE = 65_536
"""Bytes of a file of signing keys."""
_MOST = 16
"""Keys for the same receivers: more than a rotation needs, and a header that each server takes."""
_PREFIX = "whsec_"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIZES = range(24, 65)
"""Bytes of a secret that Standard Webhooks recommends."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One line of the file."""

    secrets: tuple[bytes, ...] = field(repr=False)
    """The bytes that the line stands for. More than one where libraries read it differently."""
    pattern: ReceiverPattern | None = field(default=None, repr=False)  # it may be half of a secret with a space
    """The receivers for which it is used; None for all that no pattern matches."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """All keys."""

    keys: tuple[SigningKey, ...] = ()

    def secrets_for(self, host: str, port: int) -> tuple[bytes, ...]:
        """Return the secrets for a receiver: of the lines whose pattern matches it, else of those without one."""
        name, address = host_of(host)
        addresses = () if address is None else (address,)
        chosen = [
            key
            for key in self.keys
            if key.pattern and (key.pattern.matches_name(name, port) or key.pattern.matches_address(addresses, port))
        ]
        chosen = chosen or [key for key in self.keys if key.pattern is None]
        return tuple(secret for key in chosen for secret in key.secrets)


def parse_keys(content: bytes) -> SigningKeys:
    """Parse a file of signing keys. A ValueError names the line, and quotes nothing of it."""
    if len(content) > MAX_SIZE:
        raise ValueError(f"it is larger than {MAX_SIZE} bytes")
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    keys = tuple(_parse_line(number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
    if not keys:
        raise ValueError("it has no signing key: write one a line")
    receivers = Counter(key.pattern and (key.pattern.name, key.pattern.network, key.pattern.port) for key in keys)
    if (most := max(receivers.values())) > _MOST:
        text = f"it has {most} keys for the same receivers"
        raise ValueError(f"{text}: each callback is signed with all, so keep at most {_MOST}")
    return SigningKeys(keys)


def sign(secrets: tuple[bytes, ...], message_id: bytes, body: bytes, *, now: int) -> Headers:
    """Return the headers that sign a callback at time *now* (s since the epoch); none without secrets.

    A webhook id and a time contain no dot, so what is signed can be read in one way only.
    """
    if not secrets:
        return ()
    signer = BodySignatures(secrets, message_id, now=now)
    signer.update(body)
    return signer.headers()


class BodySignatures:
    """The signatures of a callback whose body is read part by part. See :func:`sign`; there is at least one secret."""

    def __init__(self, secrets: tuple[bytes, ...], message_id: bytes, *, now: int) -> None:
        self._now, start = now, b"%s.%d." % (message_id, now)
        self._webhooks = [hmac.new(secret, start, "sha256") for secret in secrets]
        self._body_only = hmac.new(secrets[0], b"", "sha256")

    def update(self, part: bytes) -> None:
        """Sign the next part of the body."""
        for each in (*self._webhooks, self._body_only):
            each.update(part)

    def headers(self) -> Headers:
        """Return the headers, after the last part."""
        return (
            (b"webhook-timestamp", b"%d" % self._now),
            (b"webhook-signature", b" ".join(b"v1," + b64encode(each.digest()) for each in self._webhooks)),
            (b"X-Openfaas-Signature-256", b"sha256=" + self._body_only.hexdigest().encode()),
        )


def _parse_line(number: int, words: list[str]) -> SigningKey:
    if len(words) > 2:
        raise ValueError(
            f"line {number} has {len(words)} words: write a secret, or a pattern of receivers and a secret"
        )
    if any(_CONTROL.search(word) for word in words):
        raise ValueError(f"line {number} has a control character: it is no text, or not in UTF-8")
    pattern = None
    if len(words) == 2:
        try:
            pattern = parse_pattern(words[0])
        except ValueError:  # its text quotes what may be a secret
            raise ValueError(
                f"line {number}: the first of two words is no pattern of receivers, such as *.example.com"
            ) from None
        if pattern.network is not None and pattern.network.num_addresses > 1:
            raise ValueError(f"line {number}: a network cannot choose a key; write a host, as callback URLs name it")
    secret = words[-1]
    if secret.startswith(_PREFIX):
        if not (decoded := _decode(secret.removeprefix(_PREFIX))):
            raise ValueError(f"line {number}: what follows {_PREFIX} is not base64")
        return SigningKey((decoded,), pattern)
    # Libraries of Standard Webhooks read a secret without the prefix as base64 too, OpenFaaS reads it as it is.
    decoded = _decode(secret)
    return SigningKey((secret.encode(), decoded) if len(decoded) in _SIZES else (secret.encode(),), pattern)


def _decode(text: str) -> bytes:
    """Return the bytes of base64, with or without its padding; none if it is not base64."""
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""
