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
from worker.model import CALLBACKS, Delivery, Settlement, StoredBody
from worker.policy.callback_schedule import CallbackSchedule
from worker.policy.flow import Flow
from worker.policy.ledger import Ledger
from worker.policy.limiter import Limiter
from worker.policy.names import label_of
from worker.policy.receivers import Receivers
from worker.policy.retry import Backoff, Retry
from worker.run import run
from worker.services import CoreConfig, Services
from worker.timers import Timers

from .functions import Answer, FakeClients, Outside, Reply
from .link import Link
from .queue import FakeQueue
from .quotas import AgreedQuotas
from .server import EPOCH, STREAM, Message, Server
from .suspension import Process

T = TypeVar("T")

LONGEST = 200_000.0
"""Longest time (s) of a world on a virtual clock, after which a test that waits for nothing fails.

It is above any life's: five attempts an hour apart, and as many again for each of six faults."""


def ms(seconds: float) -> int:
    """Convert a time of the virtual clock to whole milliseconds."""
    return round(seconds * 1000)


@dataclass(frozen=True, slots=True)
class RecordedDelivery:
    """A delivery that a worker received."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class RecordedSettlement:
    """A settlement that a worker passed to its queue."""

    delivery: Delivery
    settlement: Settlement


def _flow_of(name: str, slots: int, *, adaptive: bool) -> Flow:
    if not name.startswith(f"{STREAM}."):
        return Flow(name)
    return Flow(name, label_of(STREAM, name), Limiter(slots) if adaptive else None)


class RecordingQueue(FakeQueue):
    """A queue that records its deliveries and settlements."""

    def __init__(
        self,
        server: Server,
        link: Link,
        violated: Callable[[str], None],
        record: Callable[[RecordedDelivery | RecordedSettlement], None],
    ) -> None:
        super().__init__(server, link, violated)
        self._record = record

    def record_delivery(self, delivery: Delivery) -> None:
        super().record_delivery(delivery)
        if delivery.flow != CALLBACKS:
            self._record(RecordedDelivery(delivery))

    def settle(
        self, delivery: Delivery, settlement: Settlement, *, before: float, body: StoredBody | None = None
    ) -> None:
        super().settle(delivery, settlement, before=before, body=body)
        if delivery.flow != CALLBACKS:
            self._record(RecordedSettlement(delivery, settlement))


class SimulatedWorker:
    """One worker: its parts, its events, and methods to stop and kill it."""

    def __init__(
        self,
        world: World,
        link: Link,
        config: CoreConfig,
        *,
        shutdown_timeout: float,
        rng: float | Callable[[], float],
    ) -> None:
        self.name = name = f"worker-{len(world.workers) + 1}"
        self.link = link
        self.process = Process()
        self.jumps: list[tuple[float, float]] = []
        """Jumps of its wall clock: time (s) and distance (s)."""
        self.log: list[tuple[float, Event | RecordedDelivery | RecordedSettlement]] = []
        """Its events, deliveries and settlements, with their times (s), in order."""
        self.queue = RecordingQueue(
            world.server, link, lambda what: world.violations.append(f"{name}: {what}"), self._emit
        )
        self.started = False
        self.ended = trio.Event()
        self.drain_seconds = 0.0
        """Seconds that its drain took; 0 until then."""
        self._scope = trio.CancelScope()
        self._signal, self._signals = trio.open_memory_channel[None](2)
        clients = FakeClients(world.outside, name)
        self.services = Services(
            queue=self.queue,
            quotas=world.quotas.join(self.queue),
            functions=clients,
            callbacks=clients,
            emit=self._emit,
            leases=Leases(self.queue, self._emit),
            ledger=Ledger(),
            receivers=Receivers(10.0),
            schedule=CallbackSchedule(config.callback_retry, config.callback_max_age),
            timers=Timers(),
            drain=Drain(shutdown_timeout, self._emit),
            config=config,
            rng=rng if callable(rng) else lambda: rng,
            utc_now=lambda: self.wall_at(trio.current_time()),
        )

    @property
    def is_running(self) -> bool:
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
        self.process.resume()
        self._scope.cancel()

    async def suspend(self, seconds: float) -> None:
        """Suspend its process for *seconds*, as SIGSTOP does; messages of that time arrive afterwards.

        This takes :class:`tests.world.suspension.Gates` among the run's instruments.
        """
        self.process.stop()
        self.link.from_broker.stalled_until = trio.current_time() + seconds
        await trio.sleep(seconds)
        self.process.resume()

    @property
    def credit(self) -> int:
        """Number of messages that it has requested and not received."""
        assert self.queue.consumer
        return self.queue.consumer.total_credit

    @property
    def events(self) -> list[tuple[float, Event]]:
        """Its events, with their times (s)."""
        return [(at, each) for at, each in self.log if not isinstance(each, RecordedDelivery | RecordedSettlement)]

    @property
    def deliveries(self) -> list[tuple[float, Delivery]]:
        """Its deliveries, with their times (s)."""
        return [(at, each.delivery) for at, each in self.log if isinstance(each, RecordedDelivery)]

    def events_of(self, kind: type[T]) -> list[T]:
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
                self.drain_seconds = trio.current_time() - self.services.drain.started_at
        finally:
            self.link.cut(float("inf"))
            self.ended.set()
        connection.cancel()

    def _emit(self, event: Event | RecordedDelivery | RecordedSettlement) -> None:
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
        self.quotas = AgreedQuotas(self.server)
        self.latency = latency
        self.workers: list[SimulatedWorker] = []
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
        timed_out = self.nursery.cancel_scope.cancel_called
        self.nursery.cancel_scope.cancel()
        # The test's own error must not be raised in a group with the cancellations of this nursery.
        raised = (None, None, None) if isinstance(error, Exception) else (kind, error, trace)
        await self._open.__aexit__(*raised)
        assert not timed_out, "the test exceeded LONGEST: it waits for an event that does not happen"
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
        number = self.server.last_sequence + 1
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
        callback_durable: bool = False,
        callback_max_age: float = 86_400.0,
        callback_retry: Backoff | None = None,
        dead_letters: bool = True,
        shutdown_timeout: float = 25.0,
        settle_within: float = 5.0,
        connected: bool = True,
        adaptive: bool = False,
        rng: float | Callable[[], float] = 0.5,
    ) -> SimulatedWorker:
        """Create a worker without starting it.

        *connected*: whether the broker can be reached; *adaptive*: whether it limits each function's concurrency
        adaptively; *rng*: its random number, or a function that draws them; the others are as in the settings.
        """
        config = CoreConfig(
            slots=slots,
            retry=retry or Retry(),
            callback_attempts=callback_attempts,
            callback_backoff=callback_backoff or Backoff(1.0, 5.0),
            callback_durable=callback_durable,
            callback_max_age=callback_max_age,
            callback_retry=callback_retry or Backoff(1.0, 600.0),
            dead_letters=dead_letters,
            settle_within=settle_within,
            namespace="openfaas-fn",
            user_agent="queue-worker/test",
            make_flow=partial(_flow_of, slots=slots, adaptive=adaptive),
        )
        worker = SimulatedWorker(
            self, Link(self.latency, up=connected), config, shutdown_timeout=shutdown_timeout, rng=rng
        )
        self.workers.append(worker)
        return worker

    def start(self, worker: SimulatedWorker) -> SimulatedWorker:
        """Start a worker."""
        worker.started = True
        self.nursery.start_soon(worker.work, name=worker.name)
        return worker

    # Results.

    def starts(self, message: Message) -> list[int]:
        """Return the times (ms) at which a message's invocations began."""
        return [ms(call.began) for call in self.outside.calls_of(f"call-{message.id[0]}")]

    def verbs_of(self, message: Message) -> list[tuple[int, Settlement | None]]:
        """Return the settlements of a message that the broker applied, with their times (ms); None is an extension."""
        return [(ms(verb.at), verb.settlement) for verb in self.server.applied if verb.sequence == message.id[0]]
