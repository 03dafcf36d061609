"""The demo functions: ``python -m worker.dev.functions FD`` serves them on the inherited listening socket FD.

- ``fast`` answers at once.
- ``slow`` answers after a second.
- ``flaky`` answers 503 to the first one or two requests with a call id, and 200 to later ones.
- ``broken`` answers 500.
- ``echo`` answers with the request's body, its method in X-Echo-Method and its target in X-Echo-Target.
- ``receive`` stores callbacks. GET lists them; with ``?after=N`` without the first N.
- ``runs`` lists how many requests with each call id have reached each function.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import zlib
from collections import Counter

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ..policy.parse import whole_number

_FUNCTIONS = ("fast", "slow", "flaky", "broken", "echo")
_SLOW = 1.0
"""Seconds before ``slow`` answers."""
_MAX_RECORDS = 20_000
"""Calls, and callbacks, that are kept in memory before all are dropped. A demonstration has a few hundred."""
_MAX_BODY = 16 * 2**20
"""Bytes of a body that ``echo`` reads."""


class DemoFunctions:
    """The ASGI application."""

    def __init__(self) -> None:
        self._runs: Counter[tuple[str, str]] = Counter()
        self._received: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        parts = request.url.path.split("/")
        function = parts[2].partition(".")[0] if parts[1] == "function" and len(parts) > 2 else ""
        response = await self._respond(function, request)
        await response(scope, receive, send)

    async def _respond(self, function: str, request: Request) -> Response:
        if function == "receive" and request.method == "GET":
            return JSONResponse(self._received[whole_number(request.query_params.get("after", "")) :])
        if function == "receive":
            return self._store_callback(request)
        if function == "runs":
            return JSONResponse([[call, name, runs] for (call, name), runs in self._runs.items()])
        if function not in _FUNCTIONS:
            return PlainTextResponse(f"no such function; there are {', '.join(_FUNCTIONS)}, receive, runs\n", 404)
        if len(self._runs) > _MAX_RECORDS:
            self._runs.clear()
        call_id = request.headers.get("x-call-id", "")
        self._runs[call_id, function] += 1
        return await _invoke(function, request, call_id, self._runs[call_id, function])

    def _store_callback(self, request: Request) -> Response:
        if len(self._received) >= _MAX_RECORDS:
            self._received.clear()
        names = ("x-call-id", "x-function-name", "x-function-status", "x-duration-seconds", "x-retry", "x-retry-max")
        self._received.append({name: request.headers[name] for name in names if name in request.headers})
        return Response(status_code=202)


async def _invoke(function: str, request: Request, call_id: str, run: int) -> Response:
    match function:
        case "slow":
            await asyncio.sleep(_SLOW)
            return PlainTextResponse(f"done, after {_SLOW:g} s\n")
        case "flaky" if run <= (failures := failures_of_flaky(call_id)):
            return PlainTextResponse(f"not yet: run {run}, and it takes {failures + 1}\n", 503)
        case "flaky":
            return PlainTextResponse(f"done, the {run}. time\n")
        case "broken":
            return PlainTextResponse("broken, as always\n", 500)
        case "echo":
            return await _echo(request)
    return PlainTextResponse("done\n")


async def _echo(request: Request) -> Response:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            return PlainTextResponse("too much to echo\n", 413)
    query = request.scope["query_string"]
    target = request.scope["raw_path"] + (b"?" + query if query else b"")
    headers = {"X-Echo-Method": request.method, "X-Echo-Target": target.decode("ascii")}
    return Response(bytes(body), headers=headers, media_type=request.headers.get("content-type"))


def failures_of_flaky(call_id: str) -> int:
    """Return how often ``flaky`` fails for this call id: once or twice, the same in every process."""
    return 1 + zlib.crc32(call_id.encode()) % 2


if __name__ == "__main__":
    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(
        DemoFunctions(), ws="none", lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again when it has stopped
    asyncio.run(uvicorn.Server(config).serve([listener]))
