"""What goes wrong in a life, and what is noted of it."""

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
"""Faults that do not last."""


@dataclass(frozen=True, slots=True, repr=False)
class Fault:
    """What goes wrong at *at* (s), for so many seconds. Its kinds are the keys of :data:`ONE` and :data:`ALL`."""

    kind: str
    at: float = 0.0
    seconds: float = 0.0
    worker: int = 0
    """Whom it befalls, if one: which of the workers, counted round. An ``elect`` of 0 is told, others are silent."""

    __repr__ = brief


class Swallowing(Collection[str]):
    """What a pipe swallows, each kind of message until some time."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self.swallowed = 0

    def swallow(self, kinds: Collection[str], seconds: float) -> None:
        """Swallow these for so long from now."""
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
    """Brings faults about in a world, and notes what it did."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.troubles: list[Trouble] = []
        self.effects: Counter[str] = Counter()
        """How many faults of each kind met something that they could spoil."""
        self.killed: set[str] = set()
        """Workers."""
        self.refusing = 0
        """Faults in force that refuse dead letters."""

    @property
    def refused(self) -> int:
        """Dead letters that were not stored, as the workers tell."""
        return sum(len(worker.told(DeadLetterNotStored)) for worker in self.world.workers)

    async def bring(self, fault: Fault) -> None:
        """Bring it about in its time."""
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
    """Nothing arrives, either way, and then all of it."""
    pipes = (worker.link.there, worker.link.down)
    for pipe in pipes:
        pipe.stands_until = max(pipe.stands_until, trio.current_time() + fault.seconds)
    await trio.sleep(fault.seconds * 0.999)  # just before the end, when all that it kept back is still there
    return any(pipe._air for pipe in pipes)


async def _cut(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """The connection is lost, with what was in the air, and comes again."""
    up = worker.link.up
    worker.link.cut(fault.seconds)
    return up


async def _late(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """The connection stands still and is lost; the next is there at once; what the old one brought is read later."""
    pipe, stuck = worker.link.there, fault.seconds / 2
    pipe.stands_until = max(pipe.stands_until, trio.current_time() + stuck)
    await trio.sleep(stuck * 0.999)
    said = any(sent.kind in SAID for sent in pipe._air)
    if worker.working:
        pipe.stands_until = trio.current_time()
        worker.link.cut(0.0, late=fault.seconds - stuck)
    return said


async def _swallow(pipe: Pipe, kinds: Collection[str], seconds: float) -> bool:
    swallowing = pipe.swallows if isinstance(pipe.swallows, Swallowing) else Swallowing()
    pipe.swallows, before = swallowing, swallowing.swallowed
    swallowing.swallow(kinds, seconds)
    await trio.sleep(seconds)
    return swallowing.swallowed > before


async def _deaf(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """What the worker says is lost."""
    return await _swallow(worker.link.there, ("settlement", "extension", "request"), fault.seconds)


async def _mute(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """What confirms or answers it is lost."""
    return await _swallow(worker.link.down, ("confirmation", "answer"), fault.seconds)


async def _freeze(_: Nemesis, fault: Fault, worker: Hired) -> bool:
    """The worker's process stands still; all else goes on."""
    await worker.stand_still(fault.seconds)
    return worker.working


async def _ahead(_: Nemesis, __: Fault, worker: Hired) -> bool:
    """The worker's wall clock jumps an hour ahead."""
    worker.jumps.append((trio.current_time(), HOUR))
    return True


async def _back(_: Nemesis, __: Fault, worker: Hired) -> bool:
    """The worker's wall clock jumps an hour back."""
    worker.jumps.append((trio.current_time(), -HOUR))
    return True


async def _kill(nemesis: Nemesis, _: Fault, worker: Hired) -> bool:
    """The worker is killed."""
    nemesis.killed.add(worker.name)
    worker.kill()
    return True


async def _anew(nemesis: Nemesis, _: Fault) -> bool:
    """The consumer is deleted and made anew: counts, waits and who has what are forgotten."""
    known = nemesis.world.server.pending
    nemesis.world.server.make_anew()
    return known


def _connected(nemesis: Nemesis) -> bool:
    return any(worker.link.up and worker.working for worker in nemesis.world.workers)


async def _restart(nemesis: Nemesis, fault: Fault) -> bool:
    """The broker ends in order, and is back after so long."""
    connected = _connected(nemesis)
    nemesis.world.server.restart(fault.seconds)
    return connected


async def _crash(nemesis: Nemesis, fault: Fault) -> bool:
    """The broker is killed, and is back after so long, without what it has not yet written."""
    connected = _connected(nemesis)
    nemesis.world.server.crash(fault.seconds)
    return connected


async def _elect(nemesis: Nemesis, fault: Fault) -> bool:
    """The consumer loses its leader for so long; the next one does not always tell. There is none to lose before."""
    server = nemesis.world.server
    if server.answers:
        server.elect(fault.seconds, told=fault.worker == 0)
    return _connected(nemesis)


async def _no_letters(nemesis: Nemesis, fault: Fault) -> bool:
    """Dead letters are refused."""
    server, before = nemesis.world.server, nemesis.refused
    nemesis.refusing += 1
    server.refuses_letters = True
    await trio.sleep(fault.seconds)
    nemesis.refusing -= 1
    server.refuses_letters = nemesis.refusing > 0
    return nemesis.refused > before


async def _pause(nemesis: Nemesis, fault: Fault) -> bool:
    """The whole machine stands still, and then all that fell due meanwhile happens at once."""
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
"""Faults of one worker. Each tells whether it could spoil something."""
ALL: dict[str, Callable[[Nemesis, Fault], Awaitable[bool]]] = {
    "anew": _anew,
    "restart": _restart,
    "crash": _crash,
    "elect": _elect,
    "no letters": _no_letters,
    "pause": _pause,
}
"""Faults of the broker, and of the machine. Each tells whether it could spoil something."""
