"""Measure one, two and four workers on a real cluster of three: throughput, shares, and messages that run twice."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import NatsCluster
from tests.e2e.stack import Queue, Worker, message
from tests.functions import Functions, Reply

MESSAGES = 2_000
FUNCTIONS = 4
SECONDS = 0.1
"""Duration of an invocation (s): long enough that slots are the limit, not the machine's CPU."""
SLOTS = 10
"""Slots of each worker."""


@dataclass(frozen=True, slots=True)
class ScaleOut:
    """The figures of a number of workers."""

    workers: int
    seconds: float
    """From the first invocation to the last."""
    shares: tuple[int, ...]
    """Invocations of each worker."""
    num_repeated: int
    """Messages that ran more than once."""
    lost: int

    @property
    def off_even(self) -> float:
        """The largest deviation of a worker from an even share, as a part of that share."""
        even = sum(self.shares) / len(self.shares)
        return max(abs(each - even) for each in self.shares) / even

    @property
    def throughput(self) -> float:
        """Invocations a second."""
        return sum(self.shares) / self.seconds


def scale_out(workers: int, *, mode: str = "function", messages: int = MESSAGES) -> ScaleOut:
    """Run a backlog of a stream with three replicas.

    Args:
        workers: their number.
        mode: the ``scaling_mode``.
        messages: their number, among four functions.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = stack.enter_context(NatsCluster(directory / "nats"))
        functions = stack.enter_context(Functions())
        cluster.make_stream()
        nodes = [*cluster.nodes.values()]
        queue = Queue(nodes[0])
        names = [f"f{number}" for number in range(FUNCTIONS)]
        for name in names:
            functions.answer(name, Reply(after=SECONDS))
        running = [
            stack.enter_context(
                Worker(
                    Queue(nodes[number % len(nodes)]),
                    functions,
                    tmp_path=_make(directory / f"worker-{number}"),
                    scaling_mode=mode,
                    nats_stream_replicas=3,
                    max_inflight=SLOTS,
                    limiter_enabled="false",
                )
            )
            for number in range(workers)
        ]
        for worker in running:
            worker.wait_ready()
        queue.nats.publish_many(
            (
                f"{queue.name}.0.{names[number % FUNCTIONS]}.openfaas-fn",
                message(names[number % FUNCTIONS], f"call-{number}"),
                {},
            )
            for number in range(messages)
        )
        queue.wait_empty()
        calls = functions.calls()
        began = min(request.began for request in functions.requests)
        ended = max(request.ended or request.began for request in functions.requests)
        shares = tuple(int(worker.metric("queue_worker_messages_processed_total")) for worker in running)
    num_repeated = sum(count > 1 for count in calls.values())
    return ScaleOut(workers, ended - began, shares, num_repeated, messages - len(calls))


def _make(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def table() -> str:
    """Measure one, two and four workers, and return the table."""
    results = [scale_out(number) for number in (1, 2, 4)]
    rows = [
        f"| {each.workers} | {each.throughput:.0f} | {each.throughput / results[0].throughput:.2f} | "
        f"{', '.join(map(str, each.shares))} | {each.off_even:.1%} | {each.num_repeated} | {each.lost} |"
        for each in results
    ]
    head = "| workers | invocations a second | of one | invocations of each | off even | run twice | lost |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- | --- |", *rows]) + "\n"
