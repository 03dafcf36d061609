"""The gateway's HTTP interface, an ASGI application (contract, section 9).

The application routes by the request line as it was sent (``raw_path``). A framework's router gets the unescaped path,
in which ``%2F`` looks like a slash. A rejected request is an ``HTTPException`` with the text for the caller.
"""

from __future__ import annotations

import time
from uuid import uuid4

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from ..ports import BrokerUnavailableError
from ..settings import Settings
from .annotations import FunctionLookup
from .bounded_log import BoundedLog
from .large_bodies import RETRY_AFTER, BodyReader
from .message import RequestTooLargeError, canonical_headers, compose, split_target
from .overload import Limits
from .publish import MessageTooLargeError
from .publisher import CallIdReusedError, Publisher

ASYNC = "/async-function/"
SYNC = "/function/"
_NO_FUNCTION = {"X-OpenFaaS-Internal": "queue-worker"}
"""Marks an answer that is not the function's, so that a worker retries the invocation, and in the end keeps it."""
_REPLAYED = {"Idempotent-Replayed": "true"}
"""Marks the answer to a repeated call, which is not queued again."""


class Gateway:
    """The application. *functions* is the application for ``/function/``."""

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        functions: ASGIApp,
        log: FilteringBoundLogger,
        *,
        lookup: FunctionLookup,
        limits: Limits,
    ) -> None:
        self._settings, self._publisher, self._functions, self._log = settings, publisher, functions, log
        self._lookup, self._limits = lookup, limits
        self._body_reader = BodyReader()
        self._warnings = BoundedLog(log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = scope["raw_path"].decode("ascii")
        try:
            if target.startswith(SYNC):
                await self._functions(scope, receive, send)
                return
            if target.startswith(ASYNC):
                response = await self._enqueue(target.removeprefix(ASYNC), scope, receive)
            else:
                response = self._respond(target)
        except HTTPException as rejection:
            self._log.debug("Refused", status=rejection.status_code, reason=rejection.detail, path=target[:200])
            headers = dict(rejection.headers or {}) | (_NO_FUNCTION if target.startswith(SYNC) else {})
            response = PlainTextResponse(f"{rejection.detail}\n", rejection.status_code, headers)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    def _respond(self, target: str) -> Response:
        if target not in ("/healthz", "/readyz"):
            raise HTTPException(404, f"no such path: POST to {ASYNC}<name>, or call {SYNC}<name>")
        if target == "/readyz" and not self._publisher.connected:
            raise HTTPException(503, "not connected to NATS")
        return PlainTextResponse("OK\n")

    async def _enqueue(self, below: str, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            raise HTTPException(405, f"{ASYNC} takes POST only", {"Allow": "POST"})
        self._limits.check_caller(scope)
        function, path = split_target(below)
        try:
            record = await self._lookup.find(function, wait=self._publisher.answering)
            headers = canonical_headers(scope["headers"])
            message = compose(
                function,
                headers,
                queue=record.queue or self._settings.queue_name,
                namespace=self._settings.default_function_name,
                new_call_id=str(uuid4()),
                now=time.time_ns(),
                host=headers.get("Host", [""])[0],
                path=path,
                query=scope["query_string"].decode("latin-1"),
                annotations=record.annotations,
                partitions=self._settings.queue_partitions,
            )
        except RequestTooLargeError as error:
            raise HTTPException(error.status, str(error)) from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        identity = {"X-Call-Id": message.call_id, "X-Start-Time": message.started}
        try:
            self._publisher.check(message.request.QueueName)
            await self._limits.check(message)
            limit, room = self._settings.max_body_bytes, self._publisher.max_body_bytes()
            async with self._body_reader.read(scope, receive, limit, room) as body:
                message.request.Body, large = (body, None) if isinstance(body, bytes) else (b"", body)
                await self._limits.check(message)  # the counts are old after a slow body
                with self._limits.storing(message):
                    stored = await self._publisher.publish(message, large)
        except MessageTooLargeError as error:
            raise HTTPException(413, f"too large for the queue: {error}") from None
        except CallIdReusedError as error:
            raise HTTPException(422, f"not queued: {error}", {"X-Call-Id": message.call_id}) from None
        except BrokerUnavailableError as error:
            key = f"{type(error).__name__} {message.request.QueueName}"
            self._warnings.warning("Not queued", key, call_id=message.call_id, function=function, error=str(error))
            text = f"not queued: {error}. Sent again with this X-Call-Id, it is queued once"
            raise HTTPException(503, text, identity | RETRY_AFTER) from None
        self._log.debug("Queued", call_id=message.call_id, function=function, repeated=stored.repeated)
        identity["X-Start-Time"] = stored.started
        return Response(status_code=202, headers=identity | _REPLAYED if stored.repeated else identity)
