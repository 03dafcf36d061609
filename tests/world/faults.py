"""Faults of a simulated life, and the record of their effects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass

import trio

from tests.explained import Trouble
from worker.events import DeadLetterNotStored

from .functions import brief
from .link import SAID, Pipe
from .world import Hired, World

HOUR = 3600.0
AT_ONCE = frozenset({"clock ahead", "clock back", "kill", "anew"})
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


class Swallowing(Collection[str]):
    """Kinds of messages that a pipe drops, each until a time of its own."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self.swallowed = 0

    def swallow(self, kinds: Collection[str], seconds: float) -> None:
        """Drop messages of these kinds for *seconds* from now."""
        for kind in kinds:
            self._until[kind] = max(self._until.get(kind, 0.0), trio.current_time() + seconds)

    def __contains__(self, kind: object) -> bool:
        now = trio.current_time()
        swallows = isinstance(kind, str) and now < self._until.get(kind, 0.0)
        self.swallowed += swallows
        return swallows

    def __iter__(self) -> Iterator[str]:
        return iter(self._until)

    def __len__(self) -> int:
        return len(self._until)


class Nemesis:
    """Injector of faults into a world, with a record of their effects."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.troubles: list[Trouble] = []
        self.effects: Counter[str] = Counter()
        """Kind -> number of faults that affected something."""
        self.killed: set[str] = set()
        """Names of the workers that were killed."""
        self.refusing = 0
        """Number of faults in force that refuse dead letters."""

    @property
    def refused(self) -> int:
        """Number of events about dead letters that were not stored."""
        return sum(len(worker.told(DeadLetterNotStored)) for worker in self.world.workers)

    async def bring(self, fault: Fault) -> None:
        """Inject a fault at its time, and record its effect."""
        await trio.sleep_until(fault.at)
        workers, now = self.world.workers, trio.current_time()
        worker = workers[fault.worker % len(workers)]
        lasts = 0.0 if fault.kind in AT_ONCE else fault.seconds
        if fault.kind in ONE:
            if worker.working:
                self.troubles.append(Trouble(fault.kind, now, now + lasts, worker.name))
                met = await ONE[fault.kind](self, fault, worker)
                self.effects[fault.kind] += met
        else:
            self.troubles.append(Trouble(fault.kind, now, now + lasts))
            met = await ALL[fault.kind](self, fault)
            self.effects[fault.kind] += met


async def _stall(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """Delay all messages in both directions until the end of the fault."""
    pipes = (worker.link.there, worker.link.down)
    for pipe in pipes:
        pipe.stands_until = max(pipe.stands_until, trio.current_time() + fault.seconds)
    await trio.sleep(fault.seconds * 0.999)  # just before the end, while the delayed messages are still in the pipe
    return any(pipe._air for pipe in pipes)


async def _cut(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """Cut the connection, with all messages in flight, until the end of the fault."""
    up = worker.link.up
    worker.link.cut(fault.seconds)
    return up


async def _late(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """Stall and cut a connection; the next one opens at once, and the server reads the old one's messages later."""
    pipe, stuck = worker.link.there, fault.seconds / 2
    pipe.stands_until = max(pipe.stands_until, trio.current_time() + stuck)
    await trio.sleep(stuck * 0.999)
    affected = any(sent.kind in SAID for sent in pipe._air)
    if worker.working:
        pipe.stands_until = trio.current_time()
        worker.link.cut(0.0, late=fault.seconds - stuck)
    return affected


async def _swallow(pipe: Pipe, kinds: Collection[str], seconds: float) -> bool:
    swallowing = pipe.swallows if isinstance(pipe.swallows, Swallowing) else Swallowing()
    pipe.swallows, before = swallowing, swallowing.swallowed
    swallowing.swallow(kinds, seconds)
    await trio.sleep(seconds)
    return swallowing.swallowed > before


async def _deaf(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """Drop all messages from the worker."""
    return await _swallow(worker.link.there, ("settlement", "extension", "request"), fault.seconds)


async def _mute(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """Drop all confirmations and answers to the worker."""
    return await _swallow(worker.link.down, ("confirmation", "answer"), fault.seconds)


async def _freeze(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """Suspend the worker's process, and nothing else."""
    await worker.stand_still(fault.seconds)
    return worker.working


async def _ahead(_: Nemesis, __: Fault, worker: Hired) -> bool:
    """Set the worker's wall clock an hour ahead."""
    worker.jumps.append((trio.current_time(), HOUR))
    return True


async def _back(_: Nemesis, __: Fault, worker: Hired) -> bool:
    """Set the worker's wall clock an hour back."""
    worker.jumps.append((trio.current_time(), -HOUR))
    return True


async def _kill(nemesis: Nemesis, _: Fault, worker: Hired) -> bool:
    """Kill the worker."""
    nemesis.killed.add(worker.name)
    worker.kill()
    return True


async def _anew(nemesis: Nemesis, _: Fault) -> bool:
    """Recreate the consumer, which loses its delivery counts, waits and pending messages."""
    known = nemesis.world.server.pending
    nemesis.world.server.make_anew()
    return known


def _connected(nemesis: Nemesis) -> bool:
    return any(worker.link.up and worker.working for worker in nemesis.world.workers)


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
        server.elect(fault.seconds, told=fault.worker == 0)
    return _connected(nemesis)


async def _no_letters(nemesis: Nemesis, fault: Fault) -> bool:
    """Refuse dead letters."""
    server, before = nemesis.world.server, nemesis.refused
    nemesis.refusing += 1
    server.refuses_letters = True
    await trio.sleep(fault.seconds)
    nemesis.refusing -= 1
    server.refuses_letters = nemesis.refusing > 0
    return nemesis.refused > before


async def _pause(nemesis: Nemesis, fault: Fault) -> bool:
    """Suspend the whole machine; afterwards everything that became due happens at once."""
    assert nemesis.world.clock
    nemesis.world.clock.jump(fault.seconds)
    return any(worker.working for worker in nemesis.world.workers)


ONE: dict[str, Callable[[Nemesis, Fault, Hired], Awaitable[bool]]] = {
    "stall": _stall,
    "cut": _cut,
    "late": _late,
    "deaf": _deaf,
    "mute": _mute,
    "freeze": _freeze,
    "clock ahead": _ahead,
    "clock back": _back,
    "kill": _kill,
}
"""Kind -> fault of one worker, which returns whether it affected something."""
ALL: dict[str, Callable[[Nemesis, Fault], Awaitable[bool]]] = {
    "anew": _anew,
    "restart": _restart,
    "crash": _crash,
    "elect": _elect,
    "no letters": _no_letters,
    "pause": _pause,
}
"""Kind -> fault of the broker or the machine, which returns whether it affected something."""
