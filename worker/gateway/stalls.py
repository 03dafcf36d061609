"""Stalls: times in which the NATS server, or one stream, confirms nothing.

The first call in a stall waits for its confirmation as long as any call. From then on calls are rejected at once, until
a probe beside them is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..nats.wire import ApiError
from ..ports import BrokerUnavailableError

_PROBE_WITHIN = 1.0
"""Seconds for the answer to a probe, and between two."""
_LONGEST = 10.0
"""Seconds after which calls are tried again if the server answers, and the probe of the stream alone fails: the
program may have no permission for it."""

Probe = Callable[[], Awaitable[object]]


class Stalls:
    """The stalls of one connection, by queue."""

    def __init__(self, probe_server: Probe) -> None:
        self._probe_server = probe_server
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._server_silent = False

    def check(self, queue: str) -> None:
        """Raise BrokerUnavailableError in a stall."""
        if self._server_silent:
            raise BrokerUnavailableError("NATS does not answer: calls are taken again when it does")
        if queue in self._tasks:
            raise BrokerUnavailableError(f"the stream of the queue {queue} does not confirm: calls wait for its answer")

    def begin(self, queue: str, probe_stream: Probe) -> None:
        """Begin a stall, if it has not begun, because a message to the queue was not confirmed."""
        if queue not in self._tasks:
            self._tasks[queue] = task = asyncio.create_task(self._wait(probe_stream))
            task.add_done_callback(lambda _: self._tasks.pop(queue, None))

    def close(self) -> None:
        """End all stalls: the connection is closed."""
        for task in self._tasks.values():
            task.cancel()

    async def _wait(self, probe_stream: Probe) -> None:
        """Return when the server and the stream answer."""
        loop = asyncio.get_running_loop()
        silent_since = loop.time()
        try:
            while True:
                if await _answers(self._probe_server):
                    self._server_silent = False
                    if await _answers(probe_stream) or loop.time() - silent_since > _LONGEST:
                        return
                else:
                    self._server_silent, silent_since = True, loop.time()
                await asyncio.sleep(_PROBE_WITHIN)
        finally:
            self._server_silent = False


async def _answers(probe: Probe) -> bool:
    """Return whether a probe succeeds in time. An error is none: a stream without a leader answers one."""
    with suppress(TimeoutError, ConnectionError, BrokerUnavailableError, ApiError):
        async with asyncio.timeout(_PROBE_WITHIN):
            await probe()
            return True
    return False
