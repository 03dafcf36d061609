"""Scripts played on both brokers; differences are reported, and made small.

A script during which the machine was late is played again. A script with different traces on the two brokers is played
again, too: a law shows every time, and a single difference is an unnoticed delay of the machine. Where chance has
a hand in a trace (see :func:`.play_fake.play`), nothing is compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from . import play_fake, play_nats
from .script import Action, ChangeAckWait, Leave, MakeAnew, Publish, Pull, Say, Script
from .trace import Trace, side_by_side

DIFFERENCES = {
    "409 Server Shutdown": "A server that stops goes on for about a second after that: a request can expire meanwhile."
    " The simulated one is gone at once.",
}
"""Answers after which an inbox is not compared, and why."""
ROUNDS = 5
"""Most times that a script is played when the machine is late."""
BELIEVED = 2
"""Repetitions in which a difference must show again."""
STEPS = 15
"""Most steps in which one is made smaller: each takes the time of a script."""
SMALLER = 60
"""Most scripts played side by side."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A script of which the brokers make different things."""

    script: Script
    fake: Trace
    real: Trace

    def __str__(self) -> str:
        return f"replay({self.script})\n\n{'':15}{'simulated':60} nats-server\n{side_by_side(self.fake, self.real)}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of some scripts."""

    compared: int
    """Number of scripts that were played on both."""
    differences: list[Difference]
    """The scripts that differ every time."""


def expected(script: Script) -> list[Trace]:
    """Return the possible traces of the simulated broker; none where chance decides."""
    short = script.restart and script.restart.how == "cut short"
    traces = [play_fake.play(script, forgetful=forgetful) for forgetful in ((True, False) if short else (True,))]
    return [] if None in traces else [trace for trace in traces if trace]


def compare(scripts: Iterable[Script]) -> Comparison:
    """Play them all on both."""
    expectations = {script: traces for script in scripts if (traces := expected(script))}
    seen = played = _play(list(expectations))
    for _ in range(BELIEVED):
        doubtful = [script for script, real in played.items() if _differs(expectations[script], real)]
        played = _play(doubtful)
    differences = [
        Difference(script, expectations[script][0], real)
        for script, real in played.items()
        if _differs(expectations[script], real)
    ]
    return Comparison(len(seen), differences)


def smallest(difference: Difference) -> Difference:
    """Make a difference smaller: play all scripts that are one step smaller, until none of them differs."""
    for _ in range(STEPS):
        candidates = list(one_step_smaller(difference.script))[:SMALLER]
        if not (smaller := compare(candidates).differences):
            break
        difference = min(smaller, key=lambda each: _size(each.script))
    return difference


def replay(script: Script) -> None:
    """Play one script on both brokers.

    Raises:
        AssertionError: they differ.
    """
    assert not (differences := compare([script]).differences), str(differences[0])


def one_step_smaller(script: Script) -> Iterable[Script]:
    """Yield the script without its end, without one kind of actions, without one action, or with a smaller one."""
    ticks = script.ticks
    yield from (replace(script, ticks=ticks[:number]) for number in range(1, len(ticks)))
    for kind in (Say, Leave, MakeAnew, ChangeAckWait, Publish):
        fewer = tuple(tuple(action for action in actions if not isinstance(action, kind)) for actions in ticks[1:])
        if fewer != ticks[1:]:
            yield replace(script, ticks=(ticks[0], *fewer))
    for number, actions in enumerate(ticks):
        for place, action in enumerate(actions):
            yield _with(script, number, (*actions[:place], *actions[place + 1 :]))
            if less := _less(action):
                yield _with(script, number, (*actions[:place], less, *actions[place + 1 :]))


def _less(action: Action) -> Action | None:
    match action:
        case Publish(count) if count > 1:
            return Publish(count - 1)
        case Pull(batch) if batch > 1:
            return replace(action, batch=batch - 1)
    return None


def _with(script: Script, number: int, actions: tuple[Action, ...]) -> Script:
    return replace(script, ticks=(*script.ticks[:number], actions, *script.ticks[number + 1 :]))


def _size(script: Script) -> int:
    counts = [action.count if isinstance(action, Publish) else 1 for actions in script.ticks for action in actions]
    return sum(counts)


def _play(scripts: Sequence[Script]) -> dict[Script, Trace]:
    """Play scripts on a nats-server, and return the traces of those for which the machine kept time."""
    seen: dict[Script, Trace] = {}
    for _ in range(ROUNDS):
        if left := [script for script in scripts if script not in seen]:
            seen |= trio.run(_play_once, left)
    return seen


async def _play_once(scripts: Sequence[Script]) -> dict[Script, Trace]:
    """Each kind of restart has a server of its own."""
    seen: dict[Script, Trace] = {}

    async def play(group: Sequence[Script]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            traces = await play_nats.play(group, Path(directory))
        seen.update({script: trace for script, trace in zip(group, traces, strict=True) if trace})

    async with trio.open_nursery() as nursery:
        for restart in {script.restart for script in scripts}:
            nursery.start_soon(play, [script for script in scripts if script.restart == restart])
    return seen


def _differs(expectations: Sequence[Trace], real: Trace) -> bool:
    return all(trace.without(DIFFERENCES) != real.without(DIFFERENCES) for trace in expectations)
