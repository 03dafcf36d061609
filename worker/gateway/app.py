"""The gateway's HTTP interface, an ASGI application (contract, section 9).

The application routes by the request line as it was sent (``raw_path``). A framework's router gets the unescaped path,
in which ``%2F`` looks like a slash.
"""

from __future__ import annotations

import time
from uuid import uuid4

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from ..config import Settings
from ..ports import BrokerUnavailableError
from .http import BodyReader, CallerDisconnectedError, RequestRejectedError
from .message import canonical_headers, compose, split_target
from .publisher import MessageTooLargeError, Publisher

ASYNC = "/async-function/"
SYNC = "/function/"
_RETRY_AFTER = {"Retry-After": "1"}
"""Seconds: an election or a reconnect takes one or a few."""


class Gateway:
    """The application. *functions* is the application for ``/function/``."""

    def __init__(self, settings: Settings, publisher: Publisher, functions: ASGIApp, log: FilteringBoundLogger) -> None:
        self._settings = settings
        self._publisher = publisher
        self._functions = functions
        self._log = log
        self._body_reader = BodyReader()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = scope["raw_path"].decode("ascii")
        try:
            if target.startswith(SYNC):
                await self._functions(scope, receive, send)
                return
            response = await self._respond(target, scope, receive)
        except RequestRejectedError as rejection:
            self._log.debug("Refused", status=rejection.status, reason=rejection.text, path=target[:200])
            response = rejection.response()
        except CallerDisconnectedError:
            return
        await response(scope, receive, send)

    async def _respond(self, target: str, scope: Scope, receive: Receive) -> Response:
        if target.startswith(ASYNC):
            return await self._enqueue(target.removeprefix(ASYNC), scope, receive)
        if target == "/healthz":
            return PlainTextResponse("OK\n")
        if target == "/readyz":
            if not self._publisher.connected:
                raise RequestRejectedError(503, "not connected to NATS")
            return PlainTextResponse("OK\n")
        raise RequestRejectedError(404, f"no such path: POST to {ASYNC}<name>, or call {SYNC}<name>")

    async def _enqueue(self, below: str, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            raise RequestRejectedError(405, f"{ASYNC} takes POST only", {"Allow": "POST"})
        function, path = split_target(below)
        try:
            headers = canonical_headers(scope["headers"])
            draft = compose(
                function,
                headers,
                queue=self._settings.queue_name,
                namespace=self._settings.default_function_name,
                new_call_id=str(uuid4()),
                now=time.time_ns(),
                host=headers.get("Host", [""])[0],
                path=path,
                query=scope["query_string"].decode("latin-1"),
                partitions=self._settings.queue_partitions,
            )
        except ValueError as error:
            raise RequestRejectedError(400, str(error)) from None
        identity = {"X-Call-Id": draft.call_id, "X-Start-Time": draft.started}
        try:
            async with self._body_reader.read(scope, receive, self._publisher.max_body_bytes()) as body:
                is_duplicate = await self._publisher.publish(draft.message(body))
        except MessageTooLargeError as error:
            raise RequestRejectedError(413, f"too large for the queue: {error}") from None
        except BrokerUnavailableError as error:
            self._log.warning("Not queued", call_id=draft.call_id, function=function, error=str(error))
            text = f"not queued: {error}. Sent again with this X-Call-Id, it is queued once"
            raise RequestRejectedError(503, text, identity | _RETRY_AFTER) from None
        self._log.debug("Queued", call_id=draft.call_id, function=function, known=is_duplicate)
        return Response(status_code=202, headers=identity)
