"""Proxy for everything that is not the producer's own (``proxy_all``): OpenFaaS's ``/system/`` and ``/ui/``.

Which paths administer functions is for the gateway to decide, and it decodes and cleans paths before it does. So there
is no list of protected paths here, which a caller could write in another way: all of them are protected.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from ..settings import Settings
from .authentication import Authentication
from .credentials import Credentials
from .functions import FunctionProxy
from .message import check_path

MAX_CONNECTIONS = 100
"""Concurrent requests, streams of logs included. They are apart from those to functions, which they cannot delay."""
OWN = ("/async-function", "/function")
"""Paths that are not passed on here, however they are escaped."""
_OPEN = "/"
"""The only path without authentication: OpenFaaS's gateway redirects it to ``/ui/``."""


class ApiProxy(FunctionProxy):
    """The application for these paths. A response may take forever: logs are followed so."""

    called = "the gateway"

    def __init__(
        self,
        settings: Settings,
        authentication: Authentication,
        credentials: Credentials,
        log: FilteringBoundLogger,
    ) -> None:
        super().__init__(settings, log, at_once=MAX_CONNECTIONS, endless=True)
        self._authentication, self._credentials = authentication, credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with the producer's own credentials only if the caller was authenticated."""
        path = scope["raw_path"].decode("ascii")
        check_api_path(path)
        if self._authentication.required and path != _OPEN:
            self._authentication.check(scope["headers"])
            own = self._credentials.authorization()
            headers = [field for field in scope["headers"] if field[0] != b"authorization"]
            scope = {**scope, "headers": [*headers, *([(b"authorization", own)] if own else ())]}
        await self.pass_on(scope, receive, send)


def check_api_path(path: str) -> None:
    """Check that the gateway cannot read *path*, as in a request line, as another one.

    Raises:
        HTTPException: it can (400).
    """
    try:
        check_path(path)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    decoded = unquote_to_bytes(path)
    segments = decoded.split(b"/")
    if not decoded.startswith(b"/") or b"" in segments[1:-1]:
        raise HTTPException(400, "the path has an empty segment (//, or an escaped slash beside one): write one slash")
    if min(decoded) < 0x20 or 0x7F in decoded:
        raise HTTPException(400, "the path has a control character")
    if decoded.startswith(tuple(f"{each}/".encode() for each in OWN)) or decoded.decode("latin-1") in OWN:
        raise HTTPException(400, f"write {OWN[0]}/<name> and {OWN[1]}/<name> without escapes")
