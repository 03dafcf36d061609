"""What became of one message in a life, gathered from all that saw it: functions, receivers, broker and workers."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from math import inf
from typing import Literal

from tests.explained import Run
from tests.world import Call, Hired, Message, Post
from tests.world.simulation import Life, Planned
from tests.world.world import Said, Taken
from worker.events import InvocationEnded, InvocationStarted, Redelivered
from worker.model import Ack, Delivery, Final, Interrupted, LeaseLost, Nak, Settlement, Term

from .expected import Policy, policy_of


class Hold:
    """A worker's hold on a message: from a delivery that it had not known to the settlement."""

    def __init__(self, worker: str, taken_at: float, delivery: Delivery) -> None:
        self.worker, self.taken_at, self.delivery = worker, taken_at, delivery
        self.began = inf
        self.started: InvocationStarted | None = None
        self.call: Call | None = None
        self.ended_at = inf
        self.ended: InvocationEnded | None = None
        self.said_at = inf
        self.said: Settlement | None = None
        """None where nothing was."""

    @property
    def final(self) -> bool:
        """Whether its invocation ended with a final verdict."""
        return self.ended is not None and isinstance(self.ended.verdict, Final)

    def run(self) -> Run:
        """Its invocation, as :func:`tests.explained.explained` takes it."""
        assert self.call
        ended = self.ended_at if self.ended else self.call.ended
        assert ended is not None
        return Run(self.worker, self.began, ended, self._how(), self._then())

    def _how(self) -> Literal["final", "retry", "given back", "lost", "died"]:
        if self.ended is None:
            return "died"
        if isinstance(self.ended.outcome, Interrupted):
            return "given back"
        if isinstance(self.ended.outcome, LeaseLost):
            return "lost"
        return "retry" if isinstance(self.ended.verdict, Nak) else "final"

    def _then(self) -> Literal["settled", "given back", "buried not", "nothing", "unknown"]:
        if not self.final:
            return "unknown"
        match self.said:
            case None:
                return "nothing"
            case Ack() | Term():
                return "settled"
            case Nak(0.0):
                return "given back"
            case _:
                return "buried not"


class Story:
    """One message's."""

    def __init__(self, life: Life, planned: Planned, message: Message, holds: list[Hold]) -> None:
        self.plan, self.planned, self.message = life.plan, planned, message
        self.policy: Policy = policy_of(life.plan, planned)
        self.calls = life.world.outside.calls_of(f"call-{message.id[0]}")
        self.posts: list[Post] = life.world.outside.posts_to(f"http://results/{message.id[0]}")
        self.holds = sorted(holds, key=lambda hold: hold.taken_at)
        self.started = sorted((hold for hold in holds if hold.started), key=lambda hold: hold.began)
        """Those that came to an invocation."""

    @cached_property
    def runs(self) -> list[Run]:
        """Its invocations, in order."""
        return [hold.run() for hold in self.started]

    @cached_property
    def had(self) -> list[Run]:
        """The same, and what was given back unstarted."""
        return self.runs + [
            Run(hold.worker, hold.taken_at, hold.said_at, "given back")
            for hold in self.holds
            if isinstance(hold.said, Nak) and not hold.started
        ]

    @cached_property
    def given_back(self) -> int:
        """How often a drain gave it back, run or not."""
        return sum(hold.said == Nak() for hold in self.holds)


def stories_of(life: Life) -> list[Story]:
    """One a message, in the order of the plan."""
    holds: defaultdict[int, list[Hold]] = defaultdict(list)
    for worker in life.workers:
        for hold in _holds_of(life, worker):
            holds[hold.delivery.id[0]].append(hold)
    return [
        Story(life, planned, message, holds[message.id[0]])
        for planned, message in zip(life.plan.messages, life.messages, strict=True)
    ]


def _holds_of(life: Life, worker: Hired) -> list[Hold]:
    # The very objects: a server that has lost its memory gives a delivery the token of an earlier one.
    known = {id(told.delivery) for told in worker.told(Redelivered)}
    settled_anew = {id(told.delivery) for told in worker.told(Redelivered) if told.state != "running"}
    calls: defaultdict[int, list[Call]] = defaultdict(list)
    for call in reversed(life.world.outside.calls):
        if call.worker == worker.name:
            calls[_number(call.invocation.call_id)].append(call)
    holds: list[Hold] = []
    newest: dict[int, Hold] = {}
    for at, each in worker.log:
        match each:
            case Taken(delivery) if id(delivery) not in known:
                newest[delivery.id[0]] = Hold(worker.name, at, delivery)
                holds.append(newest[delivery.id[0]])
            case Said(delivery, settlement) if id(delivery) not in settled_anew:
                newest[delivery.id[0]].said_at, newest[delivery.id[0]].said = at, settlement
            case InvocationStarted(invocation):
                hold = newest[number := _number(invocation.call_id)]
                hold.began, hold.started, hold.call = at, each, calls[number].pop()
            case InvocationEnded(invocation):
                hold = newest[_number(invocation.call_id)]
                hold.ended_at, hold.ended = at, each
    return holds


def _number(call_id: str) -> int:
    return int(call_id.removeprefix("call-"))
