"""Authentication of callers: basic auth, as OpenFaaS's gateway checks it, or bearer tokens.

It protects what administers functions. OpenFaaS's gateway protects `/system/` and `/ui/` so, and leaves
`/function/` and `/async-function/` open: a function may authenticate its callers itself.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable
from pathlib import Path

from starlette.exceptions import HTTPException
from structlog.typing import FilteringBoundLogger

from ..settings import Settings
from .credentials import Credentials

_READ_AGAIN = 1.0
"""Seconds before the file of tokens is looked at again."""
_LONGEST_FILE = 64 * 1024
"""Most bytes of it that are read: a thousand tokens."""

Fields = list[tuple[bytes, bytes]]


class Authentication:
    """The check of callers, by user and password or by token. Without either in *settings* it checks nothing."""

    def __init__(
        self, settings: Settings, credentials: Credentials, now: Callable[[], float], log: FilteringBoundLogger
    ) -> None:
        self._credentials = credentials if settings.basic_auth else None
        self._tokens = _TokenFile(settings.api_token_file, now, log) if settings.api_token_file else None
        self.required = settings.basic_auth or settings.api_token_file is not None
        """Whether callers must authenticate."""

    def check(self, headers: Fields) -> None:
        """Check the credentials of a request.

        Raises:
            HTTPException: they are missing or wrong (401).
        """
        if self.required and not self._valid([value for name, value in headers if name == b"authorization"]):
            schemes = ['Basic realm="Restricted"'] if self._credentials else []
            schemes += ["Bearer"] if self._tokens else []
            text = "invalid credentials: " + " or ".join(
                ([] if self._credentials is None else ["user and password (basic auth)"])
                + ([] if self._tokens is None else ["a bearer token"])
            )
            raise HTTPException(401, f"{text} needed", {"WWW-Authenticate": ", ".join(schemes)})

    def _valid(self, given: list[bytes]) -> bool:
        if len(given) != 1:  # two servers could read two of them differently
            return False
        scheme, _, value = given[0].partition(b" ")
        match scheme.lower(), value.strip(b" "):
            case b"basic", pair if self._credentials:
                return self._valid_pair(pair, self._credentials.pair())
            case b"bearer", token if self._tokens:
                return _contains(self._tokens.read(), token)
        return False

    @staticmethod
    def _valid_pair(encoded: bytes, wanted: tuple[str, str] | None) -> bool:
        try:
            user, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
        except binascii.Error:
            return False
        if wanted is None or not colon:
            return False
        # Both are compared always, so that the time shows nothing about either.
        same = [hmac.compare_digest(one, other.encode()) for one, other in zip((user, password), wanted, strict=True)]
        return all(same)


def _contains(tokens: tuple[bytes, ...], token: bytes) -> bool:
    """Return whether *token* is one of *tokens*; the time shows only how many there are, and their lengths."""
    return sum(hmac.compare_digest(each, token) for each in tokens) > 0


class _TokenFile:
    """The tokens of a file, one a line, read again when it changes. While it cannot be read, the last ones count."""

    def __init__(self, path: str, now: Callable[[], float], log: FilteringBoundLogger) -> None:
        self._path, self._now, self._log = Path(path), now, log
        self._tokens: tuple[bytes, ...] = ()
        self._read_at = float("-inf")
        self._broken = False

    def read(self) -> tuple[bytes, ...]:
        """Return the tokens that count now."""
        if (now := self._now()) >= self._read_at + _READ_AGAIN:
            self._read_at = now
            try:
                with self._path.open("rb") as file:
                    found = tuple(filter(None, map(bytes.strip, file.read(_LONGEST_FILE).splitlines())))
                problem = "" if found else "it is empty"
            except OSError as error:
                found, problem = (), error.strerror or str(error)
            self._tokens = found or self._tokens
            if problem and not self._broken:
                self._log.warning(
                    "No tokens in api_token_file; the previous ones count", file=str(self._path), error=problem
                )
            self._broken = bool(problem)
        return self._tokens
