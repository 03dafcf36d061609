"""The story of one message in a life, from the records of functions, receivers, broker and workers."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from math import inf
from typing import Literal

from tests.explained import Run
from tests.world import Call, Message, Post, SimulatedWorker
from tests.world.simulation import Life, PlannedMessage
from tests.world.world import RecordedDelivery, RecordedSettlement
from worker.events import InvocationEnded, InvocationStarted, Redelivered
from worker.model import Ack, Delivery, Final, Interrupted, LeaseLost, Nak, Settlement, Term

from .expected import Policy, policy_of


class Handling:
    """A worker's handling of a message: from its first delivery to the settlement."""

    def __init__(self, worker: str, received_at: float, delivery: Delivery) -> None:
        self.worker, self.received_at, self.delivery = worker, received_at, delivery
        self.began = inf
        self.started: InvocationStarted | None = None
        self.call: Call | None = None
        self.ended_at = inf
        self.ended: InvocationEnded | None = None
        self.settled_at = inf
        self.settlement: Settlement | None = None
        """The settlement, or None without one."""

    @property
    def final(self) -> bool:
        """Whether its invocation ended with a final verdict."""
        return self.ended is not None and isinstance(self.ended.verdict, Final)

    def run(self) -> Run:
        """Return its invocation, for :func:`tests.explained.causes_of_repeat`."""
        assert self.call
        ended = self.ended_at if self.ended else self.call.ended
        assert ended is not None
        return Run(self.worker, self.began, ended, self._outcome(), self._result())

    def _outcome(self) -> Literal["final", "retry", "nakked", "lost", "killed"]:
        if self.ended is None:
            return "killed"
        if isinstance(self.ended.outcome, Interrupted):
            return "nakked"
        if isinstance(self.ended.outcome, LeaseLost):
            return "lost"
        return "retry" if isinstance(self.ended.verdict, Nak) else "final"

    def _result(self) -> Literal["settled", "nakked", "dead letter not stored", "nothing", "unknown"]:
        if not self.final:
            return "unknown"
        match self.settlement:
            case None:
                return "nothing"
            case Ack() | Term():
                return "settled"
            case Nak(0.0):
                return "nakked"
            case _:
                return "dead letter not stored"


class Story:
    """The story of one message."""

    def __init__(self, life: Life, planned: PlannedMessage, message: Message, handlings: list[Handling]) -> None:
        self.plan, self.planned, self.message = life.plan, planned, message
        self.policy: Policy = policy_of(life.plan, planned)
        self.calls = life.world.outside.calls_of(f"call-{message.id[0]}")
        self.posts: list[Post] = life.world.outside.posts_to(f"http://results/{message.id[0]}")
        self.handlings = sorted(handlings, key=lambda handling: handling.received_at)
        self.started = sorted(
            (handling for handling in handlings if handling.started), key=lambda handling: handling.began
        )
        """Holds with an invocation, in the order of their starts."""

    @cached_property
    def runs(self) -> list[Run]:
        """Its invocations, in order."""
        return [handling.run() for handling in self.started]

    @cached_property
    def runs_and_naks(self) -> list[Run]:
        """Its invocations, and its deliveries that were nakked unstarted."""
        return self.runs + [
            Run(handling.worker, handling.received_at, handling.settled_at, "nakked")
            for handling in self.handlings
            if isinstance(handling.settlement, Nak) and not handling.started
        ]

    @cached_property
    def num_drain_naks(self) -> int:
        """Number of times that a drain nakked it, with or without an invocation."""
        return sum(handling.settlement == Nak() for handling in self.handlings)


def stories_of(life: Life) -> list[Story]:
    """Return the story of each message, in the order of the plan."""
    handlings: defaultdict[int, list[Handling]] = defaultdict(list)
    for worker in life.workers:
        for handling in _handlings_of(life, worker):
            handlings[handling.delivery.id[0]].append(handling)
    return [
        Story(life, planned, message, handlings[message.id[0]])
        for planned, message in zip(life.plan.messages, life.messages, strict=True)
    ]


def _handlings_of(life: Life, worker: SimulatedWorker) -> list[Handling]:
    # Identities, not tokens: a server that lost state can give a delivery the token of an earlier one.
    known = {id(event.delivery) for event in worker.events_of(Redelivered)}
    settled_again = {id(event.delivery) for event in worker.events_of(Redelivered) if event.state != "running"}
    calls: defaultdict[int, list[Call]] = defaultdict(list)
    for call in reversed(life.world.outside.calls):
        if call.worker == worker.name:
            calls[_number(call.invocation.call_id)].append(call)
    handlings: list[Handling] = []
    newest: dict[int, Handling] = {}
    for at, each in worker.log:
        match each:
            case RecordedDelivery(delivery) if id(delivery) not in known:
                newest[delivery.id[0]] = Handling(worker.name, at, delivery)
                handlings.append(newest[delivery.id[0]])
            case RecordedSettlement(delivery, settlement) if id(delivery) not in settled_again:
                newest[delivery.id[0]].settled_at, newest[delivery.id[0]].settlement = at, settlement
            case InvocationStarted(invocation):
                handling = newest[number := _number(invocation.call_id)]
                handling.began, handling.started, handling.call = at, each, calls[number].pop()
            case InvocationEnded(invocation):
                handling = newest[_number(invocation.call_id)]
                handling.ended_at, handling.ended = at, each
    return handlings


def _number(call_id: str) -> int:
    return int(call_id.removeprefix("call-"))
