"""The demo functions: ``python -m worker.dev.functions FD`` serves them on the listening socket that it inherits as FD.

============  ==========================================================================================
``fast``      answers at once
``slow``      answers after a second
``flaky``     answers 503 the first one or two times it sees a call id, by the id, and 200 from then on
``broken``    answers 500, always
``echo``      answers with the request's body; its method and target are in X-Echo-Method and X-Echo-Target
``receive``   takes callbacks; GET shows what came, ``?after=N`` only what came after the first N
``runs``      GET tells how often each call id has reached each function
============  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

_SLOW = 1.0
"""Seconds that ``slow`` takes."""
_REMEMBERED = 20_000
"""Calls and callbacks that are remembered; past that, all are forgotten. A demonstration has a few hundred."""
_LONGEST_BODY = 16 * 2**20
"""Bytes that ``echo`` and the others read."""


class DemoFunctions:
    """The ASGI application."""

    def __init__(self) -> None:
        self._runs: Counter[tuple[str, str]] = Counter()
        self._received: list[dict[str, Any]] = []
        self._handlers: dict[str, Callable[[Request, int], Awaitable[Response]]] = {
            "fast": _fast,
            "slow": _slow,
            "flaky": _flaky,
            "broken": _broken,
            "echo": _echo,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        parts = request.url.path.split("/")
        function = parts[2].partition(".")[0] if parts[1] == "function" and len(parts) > 2 else ""
        response = await self._answer(function, request)
        await response(scope, receive, send)

    async def _answer(self, function: str, request: Request) -> Response:
        if function == "receive":
            return self._show(request) if request.method == "GET" else self._take(request)
        if function == "runs":
            return JSONResponse([[call, name, runs] for (call, name), runs in self._runs.items()])
        if function not in self._handlers:
            return PlainTextResponse(f"no such function; there are {', '.join(self._handlers)}, receive, runs\n", 404)
        if len(self._runs) > _REMEMBERED:
            self._runs.clear()
        key = request.headers.get("x-call-id", ""), function
        self._runs[key] += 1
        return await self._handlers[function](request, self._runs[key])

    def _take(self, request: Request) -> Response:
        if len(self._received) >= _REMEMBERED:
            self._received.clear()
        names = ("x-call-id", "x-function-name", "x-function-status", "x-duration-seconds", "x-retry", "x-retry-max")
        self._received.append({name: request.headers[name] for name in names if name in request.headers})
        return Response(status_code=202)

    def _show(self, request: Request) -> Response:
        after = request.query_params.get("after", "0")
        return JSONResponse(self._received[int(after) if after.isdigit() else 0 :])


async def _fast(request: Request, run: int) -> Response:  # noqa: ARG001 -- all have one form
    return PlainTextResponse("done\n")


async def _slow(request: Request, run: int) -> Response:  # noqa: ARG001 -- all have one form
    await asyncio.sleep(_SLOW)
    return PlainTextResponse(f"done, after {_SLOW:g} s\n")


async def _flaky(request: Request, run: int) -> Response:
    fails = failures_of_flaky(request.headers.get("x-call-id", ""))
    if run <= fails:
        return PlainTextResponse(f"not yet: run {run}, and it takes {fails + 1}\n", 503)
    return PlainTextResponse(f"done, the {run}. time\n")


async def _broken(request: Request, run: int) -> Response:  # noqa: ARG001 -- all have one form
    return PlainTextResponse("broken, as always\n", 500)


async def _echo(request: Request, run: int) -> Response:  # noqa: ARG001 -- all have one form
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_BODY:
            return PlainTextResponse("too much to echo\n", 413)
    query = request.scope["query_string"]
    target = request.scope["raw_path"] + (b"?" + query if query else b"")
    headers = {"X-Echo-Method": request.method, "X-Echo-Target": target.decode("ascii")}
    return Response(bytes(body), headers=headers, media_type=request.headers.get("content-type"))


def failures_of_flaky(call_id: str) -> int:
    """How often ``flaky`` fails for this call id: once or twice, the same in every process."""
    return 1 + zlib.crc32(call_id.encode()) % 2


def main() -> None:
    """Serve on the inherited socket until SIGTERM."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(
        DemoFunctions(),
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # for when uvicorn is done, and raises again what it got
    asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main()
