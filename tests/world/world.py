"""The simulated world, and its workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import trio
from trio.testing import MockClock

from worker.drain import Drain
from worker.events import Event
from worker.heartbeat import Leases
from worker.job import CoreConfig, Services
from worker.model import Delivery, Settlement
from worker.policy.backoff import Backoff
from worker.policy.flow import Flow
from worker.policy.ledger import Ledger
from worker.policy.limiter import Limiter
from worker.policy.names import label_of
from worker.policy.retry import Retry
from worker.run import run
from worker.timers import Timers

from .functions import Answer, Outside, Reach, Reply
from .link import Link
from .queue import FakeQueue
from .quotas import Agreed
from .server import EPOCH, STREAM, Message, Server
from .standstill import Process

T = TypeVar("T")

LONGEST = 200_000.0
"""Longest time (s) of a world on a virtual clock, after which a test that waits for nothing fails.

It is above any life's: five attempts an hour apart, and as many again for each of six faults."""


def ms(seconds: float) -> int:
    """Convert a time of the virtual clock to whole milliseconds."""
    return round(seconds * 1000)


@dataclass(frozen=True, slots=True)
class Taken:
    """A delivery that a worker received."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Said:
    """A settlement that a worker passed to its queue."""

    delivery: Delivery
    settlement: Settlement


def _flow_of(name: str, slots: int, *, learns: bool) -> Flow:
    if not name.startswith(f"{STREAM}."):
        return Flow(name)
    return Flow(name, label_of(STREAM, name), Limiter(slots) if learns else None)


class Witnessed(FakeQueue):
    """A queue that records its deliveries and settlements."""

    def __init__(
        self, server: Server, link: Link, violated: Callable[[str], None], note: Callable[[Taken | Said], None]
    ) -> None:
        super().__init__(server, link, violated)
        self._note_down = note

    def handed_out(self, delivery: Delivery) -> None:
        super().handed_out(delivery)
        self._note_down(Taken(delivery))

    def settle(self, delivery: Delivery, settlement: Settlement, *, before: float) -> None:
        super().settle(delivery, settlement, before=before)
        self._note_down(Said(delivery, settlement))


class Hired:
    """One worker: its parts, its events, and methods to stop and kill it."""

    def __init__(
        self,
        world: World,
        link: Link,
        config: CoreConfig,
        *,
        shutdown_timeout: float,
        dice: float | Callable[[], float],
    ) -> None:
        self.name = name = f"worker-{len(world.workers) + 1}"
        self.link = link
        self.process = Process()
        self.jumps: list[tuple[float, float]] = []
        """Jumps of its wall clock: time (s) and distance (s)."""
        self.log: list[tuple[float, Event | Taken | Said]] = []
        """Its events, deliveries and settlements, with their times (s), in order."""
        self.queue = Witnessed(world.server, link, lambda what: world.violations.append(f"{name}: {what}"), self._emit)
        self.started = False
        self.ended = trio.Event()
        self.took = 0.0
        """Seconds that its drain took; 0 until then."""
        self._scope = trio.CancelScope()
        self._signal, self._signals = trio.open_memory_channel[None](2)
        reach = Reach(world.outside, name)
        self.services = Services(
            queue=self.queue,
            quotas=world.agreed.join(self.queue),
            functions=reach,
            callbacks=reach,
            emit=self._emit,
            leases=Leases(self.queue, self._emit),
            ledger=Ledger(),
            timers=Timers(),
            drain=Drain(shutdown_timeout, self._emit),
            config=config,
            rng=dice if callable(dice) else lambda: dice,
            utc_now=lambda: self.wall_at(trio.current_time()),
        )

    @property
    def working(self) -> bool:
        """Whether it has started and not ended."""
        return self.started and not self.ended.is_set()

    def wall_at(self, now: float) -> float:
        """Return the time (s since the epoch) of its wall clock."""
        return EPOCH + now + sum(jump for at, jump in self.jumps if at <= now)

    def walls_at(self, now: float) -> list[float]:
        """Return all times (s since the epoch) of its wall clock at a moment, before and after each jump."""
        before = [jump for at, jump in self.jumps if at < now]
        then = [jump for at, jump in self.jumps if at == now]
        return [EPOCH + now + sum(before) + sum(then[:number]) for number in range(len(then) + 1)]

    def signal(self) -> None:
        """Send a signal to stop; the second one cancels what still runs."""
        self._signal.send_nowait(None)

    def kill(self) -> None:
        """End it at once, as SIGKILL does, also while it is suspended."""
        self.link.cut(float("inf"))
        self.process.go_on()
        self._scope.cancel()

    async def stand_still(self, seconds: float) -> None:
        """Suspend its process for *seconds*, as SIGSTOP does; messages of that time arrive afterwards.

        This takes :class:`tests.world.standstill.Gates` among the run's instruments.
        """
        self.process.stop()
        self.link.down.stands_until = trio.current_time() + seconds
        await trio.sleep(seconds)
        self.process.go_on()

    @property
    def wanted(self) -> int:
        """Number of messages that it has requested and not received."""
        assert self.queue.consumer
        return self.queue.consumer.wanted

    @property
    def events(self) -> list[tuple[float, Event]]:
        """Its events, with their times (s)."""
        return [(at, each) for at, each in self.log if not isinstance(each, Taken | Said)]

    @property
    def taken(self) -> list[tuple[float, Delivery]]:
        """Its deliveries, with their times (s)."""
        return [(at, each.delivery) for at, each in self.log if isinstance(each, Taken)]

    def told(self, kind: type[T]) -> list[T]:
        """Return its events of one kind."""
        return [event for _, event in self.log if isinstance(event, kind)]

    def times(self, kind: type[Event]) -> list[int]:
        """Return the times (ms) of its events of one kind."""
        return [ms(at) for at, event in self.log if isinstance(event, kind)]

    async def work(self) -> None:
        """Run the worker and its connection to the end.

        Raises:
            worker.ports.MisconfiguredError: in an exception group, as :func:`worker.run.run` does.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.link.run)
            with self.process.starting():
                nursery.start_soon(self.queue.run)
                nursery.start_soon(self._run, nursery.cancel_scope)

    async def _run(self, connection: trio.CancelScope) -> None:
        try:
            with self._scope:
                await run(self.services, self._signals)
                self.took = trio.current_time() - self.services.drain.started_at
        finally:
            self.link.cut(float("inf"))
            self.ended.set()
        connection.cancel()

    def _emit(self, event: Event | Taken | Said) -> None:
        self.log.append((trio.current_time(), event))


class World:
    """A broker, functions, and workers. Leaving it kills the workers and raises their violations.

    Args:
        clock: the virtual clock that it runs on; None for the real one.
        ack_wait: of the consumer (s).
        latency: of each message to and from the broker (s).
        by_function: whether the queue is in function mode.

    Raises:
        AssertionError: on leaving it, if a worker violated a rule of its ports.
    """

    def __init__(
        self,
        clock: MockClock | None,
        *,
        ack_wait: float = 30.0,
        latency: float = 0.001,
        by_function: bool = False,
    ) -> None:
        self.clock = clock
        self.server = Server(ack_wait, by_function=by_function)
        self.outside = Outside()
        self.agreed = Agreed(self.server)
        self.latency = latency
        self.workers: list[Hired] = []
        self.violations: list[str] = []
        self._open: AbstractAsyncContextManager[trio.Nursery]
        self.nursery: trio.Nursery

    async def __aenter__(self) -> Self:
        self._open = trio.open_nursery()
        self.nursery = await self._open.__aenter__()
        if self.clock:
            self.nursery.cancel_scope.deadline = trio.current_time() + LONGEST
        self.nursery.start_soon(self.server.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        late = self.nursery.cancel_scope.cancel_called
        self.nursery.cancel_scope.cancel()
        # The test's own error must not be raised in a group with the cancellations of this nursery.
        mine = (None, None, None) if isinstance(error, Exception) else (kind, error, trace)
        await self._open.__aexit__(*mine)
        assert not late, "the world's time is over: the test waits for something that does not happen"
        if error is None:
            assert not self.violations, self.violations

    def publish(
        self,
        *script: Reply,
        function: str = "echo",
        callback: list[Answer] | None = None,
        annotations: Mapping[str, str] | None = None,
        payload: bytes | None = None,
    ) -> Message:
        """Store a message.

        Args:
            script: replies to its attempts; the last one is repeated.
            function: the function that it invokes.
            callback: answers to its callback, in the same way; None: it has no callback.
            annotations: annotations of the function.
            payload: payload instead of a request.
        """
        number = self.server.taken + 1
        url = f"http://results/{number}"
        self.outside.scripts[f"call-{number}"] = script
        request = {
            "Function": function,
            "Header": {"X-Call-Id": [f"call-{number}"]},
            "Annotations": annotations or {},
        }
        if callback is not None:
            self.outside.answers[url] = callback
            request["CallbackUrl"] = url
        body = json.dumps(request).encode() if payload is None else payload
        return self.server.publish(body, f"{STREAM}.0.{function}.openfaas-fn" if self.server.by_function else STREAM)

    def worker(
        self,
        *,
        slots: int = 10,
        retry: Retry | None = None,
        callback_attempts: int = 3,
        callback_backoff: Backoff | None = None,
        dead_letters: bool = True,
        shutdown_timeout: float = 25.0,
        settle_within: float = 5.0,
        connected: bool = True,
        learns: bool = False,
        dice: float | Callable[[], float] = 0.5,
    ) -> Hired:
        """Create a worker without starting it.

        *connected*: whether the broker can be reached; *learns*: whether it limits each function's concurrency
        adaptively; *dice*: its random number, or a function that draws them; the others are as in the settings.
        """
        config = CoreConfig(
            slots=slots,
            retry=retry or Retry(),
            callback_attempts=callback_attempts,
            callback_backoff=callback_backoff or Backoff(1.0, 5.0),
            dead_letters=dead_letters,
            settle_within=settle_within,
            namespace="openfaas-fn",
            user_agent="queue-worker/test",
            make_flow=partial(_flow_of, slots=slots, learns=learns),
        )
        hired = Hired(self, Link(self.latency, up=connected), config, shutdown_timeout=shutdown_timeout, dice=dice)
        self.workers.append(hired)
        return hired

    def start(self, worker: Hired) -> Hired:
        """Start a worker."""
        worker.started = True
        self.nursery.start_soon(worker.work, name=worker.name)
        return worker

    # Results.

    def starts(self, message: Message) -> list[int]:
        """Return the times (ms) at which a message's invocations began."""
        return [ms(call.began) for call in self.outside.calls_of(f"call-{message.id[0]}")]

    def heard(self, message: Message) -> list[tuple[int, Settlement | None]]:
        """Return the settlements of a message that the broker applied, with their times (ms); None is an extension."""
        return [(ms(heard.at), heard.settlement) for heard in self.server.heard if heard.sequence == message.id[0]]
