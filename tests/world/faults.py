"""Faults of a simulated life, and the record of their effects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass

import trio

from tests.explained import ActiveFault
from worker.events import CallbackNotStored, DeadLetterNotStored

from .functions import brief
from .link import SETTLING, Pipe
from .world import SimulatedWorker, World

HOUR = 3600.0
INSTANT = frozenset({"clock ahead", "clock back", "kill", "recreate consumer"})
"""Faults without a duration."""


@dataclass(frozen=True, slots=True, repr=False)
class Fault:
    """One fault that begins at *at* (s) and lasts *seconds*. Its kinds are the keys of :data:`ONE` and :data:`ALL`."""

    kind: str
    at: float = 0.0
    seconds: float = 0.0
    worker: int = 0
    """Index of the affected worker, modulo their number. An ``elect`` with 0 notifies clients, others do not."""

    __repr__ = brief


class DroppedKinds(Collection[str]):
    """Kinds of messages that a pipe drops, each until a time of its own."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self.num_dropped = 0

    def drop(self, kinds: Collection[str], seconds: float) -> None:
        """Drop messages of these kinds for *seconds* from now."""
        for kind in kinds:
            self._until[kind] = max(self._until.get(kind, 0.0), trio.current_time() + seconds)

    def __contains__(self, kind: object) -> bool:
        now = trio.current_time()
        drops = isinstance(kind, str) and now < self._until.get(kind, 0.0)
        self.num_dropped += drops
        return drops

    def __iter__(self) -> Iterator[str]:
        return iter(self._until)

    def __len__(self) -> int:
        return len(self._until)


class Nemesis:
    """Injector of faults into a world, with a record of their effects."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.active_faults: list[ActiveFault] = []
        self.effects: Counter[str] = Counter()
        """Kind -> number of faults that affected something."""
        self.killed: set[str] = set()
        """Names of the workers that were killed."""
        self.num_refusing = 0
        """Number of faults in force that refuse dead letters."""

    @property
    def refused(self) -> int:
        """Number of events about dead letters that were not stored."""
        return sum(len(worker.events_of(DeadLetterNotStored)) for worker in self.world.workers)

    @property
    def not_stored(self) -> int:
        """Number of events about callbacks that were not stored."""
        return sum(len(worker.events_of(CallbackNotStored)) for worker in self.world.workers)

    async def inject(self, fault: Fault) -> None:
        """Inject a fault at its time, and record its effect."""
        await trio.sleep_until(fault.at)
        workers, now = self.world.workers, trio.current_time()
        worker = workers[fault.worker % len(workers)]
        duration = 0.0 if fault.kind in INSTANT else fault.seconds
        if fault.kind in ONE:
            if worker.is_running:
                self.active_faults.append(ActiveFault(fault.kind, now, now + duration, worker.name))
                affected = await ONE[fault.kind](self, fault, worker)
                self.effects[fault.kind] += affected
        else:
            self.active_faults.append(ActiveFault(fault.kind, now, now + duration))
            affected = await ALL[fault.kind](self, fault)
            self.effects[fault.kind] += affected


async def _stall(_: Nemesis, fault: Fault, worker: SimulatedWorker) -> bool:
    """Delay all messages in both directions until the end of the fault."""
    pipes = (worker.link.to_broker, worker.link.from_broker)
    for pipe in pipes:
        pipe.stalled_until = max(pipe.stalled_until, trio.current_time() + fault.seconds)
    await trio.sleep(fault.seconds * 0.999)  # just before the end, while the delayed messages are still in the pipe
    return any(pipe._in_flight for pipe in pipes)


async def _cut(_: Nemesis, fault: Fault, worker: SimulatedWorker) -> bool:
    """Cut the connection, with all messages in flight, until the end of the fault."""
    up = worker.link.up
    worker.link.cut(fault.seconds)
    return up


async def _deliver_late(_: Nemesis, fault: Fault, worker: SimulatedWorker) -> bool:
    """Stall and cut a connection; the next one opens at once, and the server reads the old one's messages later."""
    pipe, stuck = worker.link.to_broker, fault.seconds / 2
    pipe.stalled_until = max(pipe.stalled_until, trio.current_time() + stuck)
    await trio.sleep(stuck * 0.999)
    affected = any(sent.kind in SETTLING for sent in pipe._in_flight)
    if worker.is_running:
        pipe.stalled_until = trio.current_time()
        worker.link.cut(0.0, late=fault.seconds - stuck)
    return affected


async def _drop(pipe: Pipe, kinds: Collection[str], seconds: float) -> bool:
    dropped = pipe.dropped_kinds if isinstance(pipe.dropped_kinds, DroppedKinds) else DroppedKinds()
    pipe.dropped_kinds, before = dropped, dropped.num_dropped
    dropped.drop(kinds, seconds)
    await trio.sleep(seconds)
    return dropped.num_dropped > before


async def _drop_from_worker(_: Nemesis, fault: Fault, worker: SimulatedWorker) -> bool:
    """Drop all messages from the worker."""
    return await _drop(worker.link.to_broker, ("settlement", "extension", "request"), fault.seconds)


async def _drop_to_worker(_: Nemesis, fault: Fault, worker: SimulatedWorker) -> bool:
    """Drop all confirmations and answers to the worker."""
    return await _drop(worker.link.from_broker, ("confirmation", "answer"), fault.seconds)


async def _suspend_worker(_: Nemesis, fault: Fault, worker: SimulatedWorker) -> bool:
    """Suspend the worker's process, and nothing else."""
    await worker.suspend(fault.seconds)
    return worker.is_running


async def _clock_ahead(_: Nemesis, __: Fault, worker: SimulatedWorker) -> bool:
    """Set the worker's wall clock an hour ahead."""
    worker.jumps.append((trio.current_time(), HOUR))
    return True


async def _clock_back(_: Nemesis, __: Fault, worker: SimulatedWorker) -> bool:
    """Set the worker's wall clock an hour back."""
    worker.jumps.append((trio.current_time(), -HOUR))
    return True


async def _kill(nemesis: Nemesis, _: Fault, worker: SimulatedWorker) -> bool:
    """Kill the worker."""
    nemesis.killed.add(worker.name)
    worker.kill()
    return True


async def _recreate_consumer(nemesis: Nemesis, _: Fault) -> bool:
    """Recreate the consumer, which loses its delivery counts, waits and pending messages."""
    pending = nemesis.world.server.pending
    nemesis.world.server.recreate_consumers()
    return pending


def _connected(nemesis: Nemesis) -> bool:
    return any(worker.link.up and worker.is_running for worker in nemesis.world.workers)


async def _restart(nemesis: Nemesis, fault: Fault) -> bool:
    """Stop the broker in order, and start it after the fault's time."""
    connected = _connected(nemesis)
    nemesis.world.server.restart(fault.seconds)
    return connected


async def _crash(nemesis: Nemesis, fault: Fault) -> bool:
    """Kill the broker, and start it after the fault's time, without the state that it had not written."""
    connected = _connected(nemesis)
    nemesis.world.server.crash(fault.seconds)
    return connected


async def _elect(nemesis: Nemesis, fault: Fault) -> bool:
    """Take the consumer's leader away, unless it has none; the next one does not always notify its clients."""
    server = nemesis.world.server
    if server.answers:
        server.elect(fault.seconds, notifies=fault.worker == 0)
    return _connected(nemesis)


async def _refuse_dead_letters(nemesis: Nemesis, fault: Fault) -> bool:
    """Refuse dead letters."""
    server, before = nemesis.world.server, nemesis.refused
    nemesis.num_refusing += 1
    server.refuses_dead_letters = True
    await trio.sleep(fault.seconds)
    nemesis.num_refusing -= 1
    server.refuses_dead_letters = nemesis.num_refusing > 0
    return nemesis.refused > before


async def _refuse_callbacks(nemesis: Nemesis, fault: Fault) -> bool:
    """Refuse to store callbacks; one such fault in force at a time counts."""
    server, before = nemesis.world.server, nemesis.not_stored
    server.refuses_callbacks = True
    await trio.sleep(fault.seconds)
    server.refuses_callbacks = False
    return nemesis.not_stored > before


async def _suspend_machine(nemesis: Nemesis, fault: Fault) -> bool:
    """Suspend the whole machine; afterwards everything that became due happens at once."""
    assert nemesis.world.clock
    nemesis.world.clock.jump(fault.seconds)
    return any(worker.is_running for worker in nemesis.world.workers)


ONE: dict[str, Callable[[Nemesis, Fault, SimulatedWorker], Awaitable[bool]]] = {
    "stall": _stall,
    "cut": _cut,
    "deliver late": _deliver_late,
    "drop from worker": _drop_from_worker,
    "drop to worker": _drop_to_worker,
    "suspend worker": _suspend_worker,
    "clock ahead": _clock_ahead,
    "clock back": _clock_back,
    "kill": _kill,
}
"""Kind -> fault of one worker, which returns whether it affected something."""
ALL: dict[str, Callable[[Nemesis, Fault], Awaitable[bool]]] = {
    "recreate consumer": _recreate_consumer,
    "restart": _restart,
    "crash": _crash,
    "elect": _elect,
    "refuse dead letters": _refuse_dead_letters,
    "refuse callbacks": _refuse_callbacks,
    "suspend machine": _suspend_machine,
}
"""Kind -> fault of the broker or the machine, which returns whether it affected something."""
