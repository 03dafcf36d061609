"""Measure the limiter on real processes: a worker, nats-server and a function server with a capacity."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.stack import Queue, Worker, message
from tests.functions import Functions, Reply
from tests.servers import NatsServer

CAPACITY = 20
MESSAGES = 10_000
SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of the run."""

    seconds: float
    """From the first request to the last answer."""
    rejections: int

    @property
    def of_ideal(self) -> float:
        """The time divided by the shortest possible time."""
        return self.seconds / (MESSAGES * SECONDS / CAPACITY)


def run() -> Result:
    """Run a worker with a backlog on a function of steady capacity."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats = stack.enter_context(NatsServer(directory / "nats"))
        functions = stack.enter_context(Functions())
        functions.limit("steady", CAPACITY)
        functions.answer("steady", Reply(after=SECONDS))
        nats.make_stream()
        queue = Queue(nats)
        subject = f"{queue.name}.0.steady.openfaas-fn"
        nats.publish_many((subject, message("steady", f"call-{number}"), {}) for number in range(MESSAGES))
        settings = {"scaling_mode": "function", "max_inflight": 100}
        worker = stack.enter_context(Worker(queue, functions, tmp_path=directory, **settings))
        worker.wait_ready()
        queue.wait_empty()
        began = min(request.began for request in functions.requests)
        ended = max(request.ended or request.began for request in functions.requests)
        refused = sum(request.reply is not None and request.reply.status == 429 for request in functions.requests)
        return Result(ended - began, refused)
