"""The story of one message in a life, from the records of functions, receivers, broker and workers."""

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
    """A worker's hold on a message: from its first delivery to the settlement."""

    def __init__(self, worker: str, taken_at: float, delivery: Delivery) -> None:
        self.worker, self.taken_at, self.delivery = worker, taken_at, delivery
        self.began = inf
        self.started: InvocationStarted | None = None
        self.call: Call | None = None
        self.ended_at = inf
        self.ended: InvocationEnded | None = None
        self.said_at = inf
        self.said: Settlement | None = None
        """The settlement, or None without one."""

    @property
    def final(self) -> bool:
        """Whether its invocation ended with a final verdict."""
        return self.ended is not None and isinstance(self.ended.verdict, Final)

    def run(self) -> Run:
        """Return its invocation, for :func:`tests.explained.explained`."""
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

    def _then(self) -> Literal["settled", "given back", "dead letter not stored", "nothing", "unknown"]:
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
                return "dead letter not stored"


class Story:
    """The story of one message."""

    def __init__(self, life: Life, planned: Planned, message: Message, holds: list[Hold]) -> None:
        self.plan, self.planned, self.message = life.plan, planned, message
        self.policy: Policy = policy_of(life.plan, planned)
        self.calls = life.world.outside.calls_of(f"call-{message.id[0]}")
        self.posts: list[Post] = life.world.outside.posts_to(f"http://results/{message.id[0]}")
        self.holds = sorted(holds, key=lambda hold: hold.taken_at)
        self.started = sorted((hold for hold in holds if hold.started), key=lambda hold: hold.began)
        """Holds with an invocation, in the order of their starts."""

    @cached_property
    def runs(self) -> list[Run]:
        """Its invocations, in order."""
        return [hold.run() for hold in self.started]

    @cached_property
    def had(self) -> list[Run]:
        """Its invocations, and its deliveries that were nakked unstarted."""
        return self.runs + [
            Run(hold.worker, hold.taken_at, hold.said_at, "given back")
            for hold in self.holds
            if isinstance(hold.said, Nak) and not hold.started
        ]

    @cached_property
    def given_back(self) -> int:
        """Number of times that a drain nakked it, with or without an invocation."""
        return sum(hold.said == Nak() for hold in self.holds)


def stories_of(life: Life) -> list[Story]:
    """Return the story of each message, in the order of the plan."""
    holds: defaultdict[int, list[Hold]] = defaultdict(list)
    for worker in life.workers:
        for hold in _holds_of(life, worker):
            holds[hold.delivery.id[0]].append(hold)
    return [
        Story(life, planned, message, holds[message.id[0]])
        for planned, message in zip(life.plan.messages, life.messages, strict=True)
    ]


def _holds_of(life: Life, worker: Hired) -> list[Hold]:
    # Identities, not tokens: a server that lost state can give a delivery the token of an earlier one.
    known = {id(event.delivery) for event in worker.told(Redelivered)}
    settled_again = {id(event.delivery) for event in worker.told(Redelivered) if event.state != "running"}
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
            case Said(delivery, settlement) if id(delivery) not in settled_again:
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
