"""The functions' annotations, read from the gateway: ``GET /system/function/<name>?namespace=<namespace>``.

A call waits for the gateway at most once, for :data:`_WAIT`. Whatever the gateway does, the call is then queued: with
the last copy, or without annotations. :mod:`worker.policy.function_records` decides which copies are used.
"""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import httpx
from starlette.exceptions import HTTPException
from structlog.typing import FilteringBoundLogger

from ..policy.freshness import Step
from ..policy.function_records import NO_FUNCTION, UNKNOWN, FunctionRecord, FunctionRecords, parse_record
from ..policy.names import is_name, parse_function
from ..policy.parse import without_password
from ..settings import Settings
from .bounded_log import BoundedLog
from .credentials import Credentials

_WAIT = 1.0
"""Seconds that a call waits for an answer."""
_TIMEOUT = 5.0
"""Seconds for an answer, also after the calls have stopped waiting: it counts for the next calls."""
_AT_ONCE = 8
"""Requests to the gateway at once."""
_MOST = 256
"""Functions with a request under way or waiting. Calls of further ones do not wait: callers may invent names."""
_MAX_ANSWER = 2**20
"""Bytes of an answer: a function's status has some kB."""
_GATEWAY_FAILED = frozenset({502, 503, 504})
"""Answers of a gateway that is away, or of a proxy before it: they mean no single function."""


class FunctionLookup:
    """Finds functions in the gateway. Settings decide whether it requests anything at all."""

    def __init__(self, settings: Settings, credentials: Credentials, log: FilteringBoundLogger) -> None:
        self._settings, self._credentials, self._log = settings, credentials, log
        self._wanted = settings.function_annotations or settings.function_check
        self._url = httpx.URL(settings.gateway_url).copy_with(userinfo=b"")
        limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE)
        self._transport = httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
        self._records = FunctionRecords()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._failures = BoundedLog(log)
        self.unknown = 0
        """Calls that were queued while nothing was known about their function."""
        self._unknown_before = 0

    async def close(self) -> None:
        """Cancel all requests, and close the connections."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._transport.aclose()

    async def find(self, function: str, *, wait: bool = True) -> FunctionRecord:
        """Return what the gateway has about a function, as far as that is known.

        Without *wait* nothing is requested: the call will be rejected in any case.

        Raises:
            ValueError: *function* is not a function's name.
            HTTPException: the gateway has no such function, and ``function_check`` is set (404); or the function's
                queue has an impossible name (503).
        """
        if not self._wanted:
            return UNKNOWN
        now = asyncio.get_running_loop().time()
        record, step = self._records.find(function, now)
        if wait and step is not Step.USE:
            parse_function(function, "any")
            request = self._request(function)
            if step is Step.WAIT and request:
                await asyncio.wait({request}, timeout=_WAIT)
                record, _ = self._records.find(function, asyncio.get_running_loop().time())
        if record is None:
            parse_function(function, "any")
            self.unknown += wait
            return UNKNOWN
        return self._checked(function, record)

    def _checked(self, function: str, record: FunctionRecord) -> FunctionRecord:
        if not record.exists:
            if self._settings.function_check:
                raise HTTPException(404, f"no function {function}: deploy it, or correct its name")
            return UNKNOWN
        if not self._settings.function_annotations:
            return UNKNOWN
        if record.queue and not is_name(record.queue):
            text = f"the annotation com.openfaas.queue of {function} names no queue: {record.queue[:80]!r}"
            self._failures.warning(text, function=function)
            raise HTTPException(503, f"not queued: {text}", {"Retry-After": "60"})
        return record

    def _request(self, function: str) -> asyncio.Task[None] | None:
        """Return the request for a function, the one that is under way or a new one; None if there are too many."""
        if (running := self._running.get(function)) is None and len(self._running) < _MOST:
            refresh = self._refresh(function, probe=self._records.in_outage)
            running = self._running[function] = asyncio.create_task(refresh)
            running.add_done_callback(lambda _: self._running.pop(function, None))
        return running

    async def _refresh(self, function: str, *, probe: bool) -> None:
        """Request one function, and store the answer or its failure; in an outage only as a *probe*."""
        now = asyncio.get_running_loop().time
        async with self._slots:
            if self._records.in_outage and not probe:
                return
            try:
                async with asyncio.timeout(_TIMEOUT):
                    status, body = await self._get(function)
            except (httpx.HTTPError, TimeoutError) as error:
                self._fail_all(str(error) or type(error).__name__)
                return
        if status in _GATEWAY_FAILED:
            self._fail_all(f"status {status}")
            return
        was_in_outage = self._records.in_outage
        try:
            record = NO_FUNCTION if status == 404 else _parse(status, body)
            self._records.store(function, record, now())
        except ValueError as error:
            self._records.fail(function, now())
            self._failures.warning(
                f"The gateway does not describe a function; {self._advice(status)}", error=str(error)
            )
        if was_in_outage:
            self._log.info("The gateway describes functions again", calls_without=self.unknown - self._unknown_before)

    async def _get(self, function: str) -> tuple[int, bytes]:
        name, namespace = parse_function(function, self._settings.default_function_name)
        headers = {"User-Agent": "queue-worker", "Accept": "application/json", "Accept-Encoding": "identity"}
        if authorization := self._credentials.authorization():
            headers["Authorization"] = authorization.decode()
        path = f"{self._url.path.rstrip('/')}/system/function/{quote(name)}"
        request = httpx.Request(
            "GET",
            self._url.copy_with(path=path, query=f"namespace={quote(namespace)}".encode()),
            headers=headers,
            extensions={"timeout": httpx.Timeout(_TIMEOUT).as_dict()},
        )
        response = await self._transport.handle_async_request(request)
        try:
            body = bytearray()  # many small chunks must not copy what came before each time
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _MAX_ANSWER:
                    return response.status_code, b""
            return response.status_code, bytes(body)
        finally:
            await response.aclose()

    def _fail_all(self, reason: str) -> None:
        if self._records.fail_all(asyncio.get_running_loop().time()):
            self._unknown_before = self.unknown
            self._log.warning(
                "The gateway does not describe functions; calls use the last annotations, or none",
                gateway_url=without_password(str(self._url)),
                error=reason,
            )

    @staticmethod
    def _advice(status: int) -> str:
        if status in (401, 403):
            return "set basic_auth_user_file and basic_auth_password_file to its credentials"
        return "check that gateway_url is OpenFaaS's gateway, or set function_annotations=false"


def _parse(status: int, body: bytes) -> FunctionRecord:
    if status != 200:
        raise ValueError(f"status {status}")
    return parse_record(body)
