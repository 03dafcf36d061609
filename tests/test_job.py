"""One job alone, with a limiter and quotas that record their calls."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.world import SimulatedWorker, World
from worker.events import AnnotationIgnored, InvocationEnded
from worker.job import Job
from worker.model import Crashed, Delivery, Invocation, Nak, Responded
from worker.policy.decide import decide
from worker.policy.flow import Flow
from worker.policy.retry import IgnoredAnnotation


@dataclass
class FakeParts:
    """A limiter, an admission and a function server in one; *outcome* is returned or raised after 1 s."""

    outcome: Responded | Exception = field(default_factory=lambda: Responded(200))
    probe_wait: float | None = None
    due: float = 99.0
    due_after_start: float = 99.0
    calls: list[Any] = field(default_factory=list)
    ignored: tuple[IgnoredAnnotation, ...] = ()

    def started(self, now: float) -> None:
        self.calls.append(("started", now))
        self.due = self.due_after_start

    def ended(self, began: float, now: float, status: int | None) -> float | None:
        self.calls.append(("ended", began, now, status))
        return self.probe_wait

    def limit_changed(self, flow: Flow) -> None:
        self.calls.append(("changed", flow.name))

    def observe(self, flow: Flow, annotations: Any, stored: int) -> tuple[IgnoredAnnotation, ...]:
        self.calls.append(("observe", flow.name, annotations, stored))
        return self.ignored

    async def invoke(self, _: Invocation) -> Responded:
        await trio.sleep(1)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


async def run(world: World, parts: FakeParts, flow: Flow, **fields: Any) -> SimulatedWorker:
    """Run the job of a message with these fields, which arrives at 2 s, and return its worker."""
    worker, fake = world.worker(), parts
    anything: Any = fake
    config = changed(worker.services.config, dead_letters=False)
    services = changed(worker.services, functions=anything, config=config)
    services.leases.set_ack_wait(30.0)
    await trio.sleep_until(2)
    payload = json.dumps({"Function": "a"} | fields).encode()
    delivery = Delivery((5, 77), "t5", 1, 2.0, "a", payload, "a")
    worker.queue.record_delivery(delivery)
    retry = services.config.retry
    job = Job(services.leases.add(delivery), 1, 0.0, flow, None, anything, services, retry, lambda *_: None)
    with trio.CancelScope() as scope:
        await job.run(scope)
    return worker


def limited(parts: FakeParts) -> Flow:
    """Return a flow with that limiter."""
    anything: Any = parts
    return Flow("a", limiter=anything)


@pytest.mark.parametrize("due_after_start", [99.0, 3.0])
async def test_job_reports_start_and_end_to_the_limiter(autojump_clock: MockClock, due_after_start: float) -> None:
    """The limiter gets an invocation's start and end, and a decision follows the end, and a start that set its time."""
    async with World(autojump_clock) as world:
        parts = FakeParts(Responded(404), due_after_start=due_after_start)
        await run(world, parts, limited(parts))
        start = [("started", 2.0), ("changed", "a")][: 2 if due_after_start == 3.0 else 1]
        assert parts.calls == [*start, ("ended", 2.0, 3.0, 404), ("changed", "a")]


async def test_job_of_a_malformed_message_is_unknown_to_the_limiter(autojump_clock: MockClock) -> None:
    """A message that is not invoked is no invocation of its function."""
    async with World(autojump_clock) as world:
        parts = FakeParts()
        await run(world, parts, limited(parts), Function="../etc")
        assert parts.calls == []


async def test_job_that_meets_a_bug_ends_once_for_the_limiter(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the decision ends the attempt a second time, and the invocation for the limiter once."""
    bugs = [KeyError("a bug")]

    def decide_or_fail(*arguments: Any, **named: Any) -> Any:
        if bugs:
            raise bugs.pop()
        return decide(*arguments, **named)

    monkeypatch.setattr("worker.job.decide", decide_or_fail)
    async with World(autojump_clock) as world:
        parts = FakeParts()
        worker = await run(world, parts, limited(parts))
        assert [call for call in parts.calls if call[0] == "ended"] == [("ended", 2.0, 3.0, 200)]
        (ended,) = worker.events_of(InvocationEnded)
        assert isinstance(ended.outcome, Crashed)


async def test_job_refused_as_a_probe_returns_after_the_limiters_wait(autojump_clock: MockClock) -> None:
    """A refusal that the limiter caused is no attempt, and its message returns after the limiter's wait."""
    async with World(autojump_clock) as world:
        parts = FakeParts(Responded(429), probe_wait=0.25)
        worker = await run(world, parts, limited(parts))
        assert [settlement for _, _, settlement in worker.queue.settlements] == [Nak(0.25)]
        assert [(event.verdict, event.counts) for event in worker.events_of(InvocationEnded)] == [(Nak(0.25), False)]


@pytest.mark.parametrize("function", ["", "a.fn"])
async def test_job_reports_every_ignored_annotation(autojump_clock: MockClock, function: str) -> None:
    """Invalid annotations of retries and of quotas are both reported; only a flow of one function has a quota."""
    async with World(autojump_clock) as world:
        parts = FakeParts(ignored=(IgnoredAnnotation("com.openfaas.queue.rate", "x", "not a rate"),))
        annotations = {"com.openfaas.retry.attempts": "many", "com.openfaas.queue.rate": "x"}
        worker = await run(world, parts, Flow("a", function), Annotations=annotations)
        found = [event.annotation for event in worker.events_of(AnnotationIgnored)]
        quotas = ["com.openfaas.queue.rate"] if function else []
        assert found == ["com.openfaas.retry.attempts", *quotas]
        assert parts.calls == ([("observe", "a", annotations, 77)] if function else [])
