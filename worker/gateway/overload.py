"""Limits of what callers may queue: messages in a queue, of a function, and calls of one address.

:mod:`worker.policy.queue_counts` and :mod:`worker.policy.caller_rates` decide; the counts are read here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import ceil

from starlette.exceptions import HTTPException
from starlette.types import Scope
from structlog.typing import FilteringBoundLogger

from ..nats.wire import ApiError
from ..policy.caller_rates import CallerRates, caller_of, client_address, parse_networks
from ..policy.freshness import Step
from ..policy.queue_counts import QueueCounts
from ..policy.quota import write_rate
from ..ports import BrokerUnavailableError
from ..settings import Settings
from .bounded_log import BoundedLog
from .message import Message
from .publish import UnconfirmedError
from .publisher import Publisher

_COUNT_WAIT = 0.25
"""Seconds that a call waits for the counts, where none are known. A reading takes some milliseconds."""
_COUNT_TIMEOUT = 1.0
"""Seconds for a reading."""
LIMITS = ("max_queued", "max_queued_per_function", "caller_rate")
"""The settings that are limits."""
_MOST_QUEUES = 1_000
"""Queues whose counts are kept."""


class Limits:
    """The limits of one producer. A rejection is an HTTPException with status 429 and Retry-After."""

    def __init__(self, settings: Settings, publisher: Publisher, log: FilteringBoundLogger) -> None:
        self._settings, self._publisher, self._log = settings, publisher, BoundedLog(log)
        self._has_counts = settings.max_queued is not None or settings.max_queued_per_function is not None
        self._queues: dict[str, QueueCounts] = {}
        self._readings: dict[str, asyncio.Task[None]] = {}
        self._rates = CallerRates(settings.caller_rate) if settings.caller_rate else None
        self._trusted = parse_networks(settings.trusted_proxies) if settings.trusted_proxies else ()
        self.rejected: Counter[str] = Counter()
        """Number of calls that were rejected, by limit: the name of its setting."""

    def check_caller(self, scope: Scope) -> None:
        """Count a call of this address, and reject it above the rate."""
        if self._rates is None or self._settings.caller_rate is None:
            return
        peer = (scope.get("client") or ("",))[0]
        if self._trusted:
            forwarded = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
            peer = client_address(peer, forwarded, self._trusted)
        caller = caller_of(peer)
        if wait := self._rates.take(caller, asyncio.get_running_loop().time()):
            rate = write_rate(self._settings.caller_rate)
            self._log.warning(_LINES["caller_rate"], limit=rate)
            self.rejected["caller_rate"] += 1
            raise _too_many(f"more than {rate} calls of one address (caller_rate)", ceil(wait))

    async def check(self, message: Message) -> None:
        """Reject a call if its queue is full; wait for the counts only if there are none that can be used."""
        if not self._has_counts:
            return
        counts = self._counts(message.request.QueueName)
        step = counts.step(asyncio.get_running_loop().time())
        if step is not Step.USE:
            reading = self._reading(message.request.QueueName, counts)
            if step is Step.WAIT:
                await asyncio.wait({reading}, timeout=_COUNT_WAIT)
        self._check_full(counts, message)

    def storing(self, message: Message) -> AbstractContextManager[None]:
        """Count the message that the block stores, or reject it: others may have been stored since :meth:`check`."""
        return self._counted(message) if self._has_counts else _UNCOUNTED

    @contextmanager
    def _counted(self, message: Message) -> Iterator[None]:
        counts = self._counts(message.request.QueueName)
        self._check_full(counts, message)
        counts.begin(message.subject)
        stored = False
        try:
            yield
            stored = True
        except UnconfirmedError:
            stored = True  # it may be
            raise
        finally:
            counts.end(message.subject, stored=stored)

    async def close(self) -> None:
        """Cancel the readings."""
        for task in self._readings.values():
            task.cancel()
        await asyncio.gather(*self._readings.values(), return_exceptions=True)

    def _check_full(self, counts: QueueCounts, message: Message) -> None:
        if full := counts.full(message.subject, asyncio.get_running_loop().time()):
            queue = message.request.QueueName
            what = f"the queue {queue}" if full.limit == "max_queued" else f"the function {message.label}"
            limit = getattr(self._settings, full.limit)
            fields = {"queue": queue, "limit": limit, "messages": full.count, "retry_after": full.retry_after}
            self._log.warning(_LINES[full.limit], queue, **fields)
            self.rejected[full.limit] += 1
            raise _too_many(f"{what} has {full.count} messages, and may have {limit} ({full.limit})", full.retry_after)

    def _counts(self, queue: str) -> QueueCounts:
        if (counts := self._queues.get(queue)) is None:
            if len(self._queues) >= _MOST_QUEUES:
                del self._queues[next(iter(self._queues))]
            limits = self._settings.max_queued, self._settings.max_queued_per_function
            counts = self._queues[queue] = QueueCounts(*limits)
        return counts

    def _reading(self, queue: str, counts: QueueCounts) -> asyncio.Task[None]:
        """Return the reading of a queue's counts that is under way, or begin one."""
        if (task := self._readings.get(queue)) is None:
            task = self._readings[queue] = asyncio.create_task(self._read(queue, counts))
            task.add_done_callback(lambda _: self._readings.pop(queue, None))
        return task

    async def _read(self, queue: str, counts: QueueCounts) -> None:
        now = asyncio.get_running_loop().time
        counts.begin_reading(now())
        try:
            async with asyncio.timeout(_COUNT_TIMEOUT):
                by_subject = self._settings.max_queued_per_function is not None
                state = await self._publisher.count(queue, by_subject=by_subject)
        except (TimeoutError, BrokerUnavailableError, ApiError) as error:
            counts.fail_reading(now())
            self._log.warning(_LINES["count"], queue, queue=queue, error=str(error) or type(error).__name__)
        else:
            counts.read(now(), state.messages, state.last_seq, state.subjects)


_UNCOUNTED = nullcontext()
_FULL = "The queue has as many messages as it may; calls get 429 until workers have finished some"
_LINES = {
    "max_queued": _FULL,
    "max_queued_per_function": "A function has as many messages as it may; its calls get 429 until some are finished",
    "caller_rate": "An address calls more often than it may; further calls of it get 429",
    "count": "The messages of a queue cannot be counted; its limits do not hold until they are",
}


def _too_many(text: str, retry_after: int) -> HTTPException:
    return HTTPException(429, f"not queued: {text}: try again later", {"Retry-After": str(max(1, retry_after))})
