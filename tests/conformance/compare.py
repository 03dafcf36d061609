"""Scripts played on both brokers; differences are reported, and shrunk to small scripts.

A script is played again if the machine was late. A script with different traces on the two brokers is also played
again: a law shows every time, and a single difference is an undetected delay of the machine. If chance has
an influence on a trace (see :func:`.play_fake.play`), nothing is compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from . import play_fake, play_nats
from .script import Acknowledge, Action, ChangeAckWait, Publish, Pull, RecreateConsumer, Script, Unsubscribe
from .trace import Trace, side_by_side

DIFFERENCES = {
    "409 Server Shutdown": "A server that stops continues for about a second: a request can expire in that time."
    " The simulated one stops at once.",
}
"""Statuses after which an inbox is not compared, and why."""
MAX_ROUNDS = 5
"""Most times that a script is played when the machine is late."""
CONFIRMATIONS = 2
"""Repetitions in which a difference must occur again."""
MAX_STEPS = 15
"""Most steps in which a difference is shrunk: each takes the time of a script."""
MAX_CANDIDATES = 60
"""Most scripts played side by side."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A script with different traces on the two brokers."""

    script: Script
    fake: Trace
    real: Trace

    def __str__(self) -> str:
        return f"replay({self.script})\n\n{'':15}{'simulated':60} nats-server\n{side_by_side(self.fake, self.real)}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of some scripts."""

    compared: int
    """Number of scripts that were played on both brokers."""
    differences: list[Difference]
    """The scripts that differ every time."""


def expected_traces(script: Script) -> list[Trace]:
    """Return the possible traces of the simulated broker; none where chance decides."""
    mid_write = script.restart and script.restart.how == "mid-write"
    traces = [
        play_fake.play(script, loses_state=loses_state) for loses_state in ((True, False) if mid_write else (True,))
    ]
    return [] if None in traces else [trace for trace in traces if trace]


def compare(scripts: Iterable[Script]) -> Comparison:
    """Play all scripts on both brokers."""
    expectations = {script: traces for script in scripts if (traces := expected_traces(script))}
    seen = played = _play(list(expectations))
    for _ in range(CONFIRMATIONS):
        doubtful = [script for script, real in played.items() if _differs(expectations[script], real)]
        played = _play(doubtful)
    differences = [
        Difference(script, expectations[script][0], real)
        for script, real in played.items()
        if _differs(expectations[script], real)
    ]
    return Comparison(len(seen), differences)


def shrink(difference: Difference) -> Difference:
    """Shrink a difference: play all scripts that are one step smaller, until none of them differs."""
    for _ in range(MAX_STEPS):
        candidates = list(one_step_smaller(difference.script))[:MAX_CANDIDATES]
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
    """Yield the script without its end, one kind of actions or one action, or with one smaller action."""
    ticks = script.ticks
    yield from (replace(script, ticks=ticks[:number]) for number in range(1, len(ticks)))
    for kind in (Acknowledge, Unsubscribe, RecreateConsumer, ChangeAckWait, Publish):
        fewer = tuple(tuple(action for action in actions if not isinstance(action, kind)) for actions in ticks[1:])
        if fewer != ticks[1:]:
            yield replace(script, ticks=(ticks[0], *fewer))
    for number, actions in enumerate(ticks):
        for place, action in enumerate(actions):
            yield _with(script, number, (*actions[:place], *actions[place + 1 :]))
            if smaller := _smaller_action(action):
                yield _with(script, number, (*actions[:place], smaller, *actions[place + 1 :]))


def _smaller_action(action: Action) -> Action | None:
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
    """Play scripts on a nats-server, and return the traces of those during which the machine was not late."""
    seen: dict[Script, Trace] = {}
    for _ in range(MAX_ROUNDS):
        if left := [script for script in scripts if script not in seen]:
            seen |= trio.run(_play_once, left)
    return seen


async def _play_once(scripts: Sequence[Script]) -> dict[Script, Trace]:
    """Play scripts once, with a server for each kind of restart."""
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
    return all(trace.until_first(DIFFERENCES) != real.until_first(DIFFERENCES) for trace in expectations)
