"""Pauses on running workers: a pause is in effect when the command returns, or the command reports that it is not."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Queue, StartWorker, Worker, message, wait_quietly
from tests.e2e.test_e2e_functions import put
from tests.functions import Functions, Reply
from tests.servers import NatsServer, Program, run_program, wait_until

LABEL = "echo.openfaas-fn"


def command(queue: Queue, tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command on a test's queue; return exit code, standard output and standard error."""
    given = {"nats_port": queue.nats.port, "nats_stream": queue.name, "scaling_mode": "function"}
    found: Any = run_program("worker.cli", *arguments, tmp_path=tmp_path, settings=given)
    code, out, errors = found
    return code, out, errors


@pytest.mark.parametrize("processes", [[1], [1, 1], [2]], ids=["one worker", "two workers", "two processes"])
def test_pause_is_in_effect_when_the_command_returns(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path, processes: list[int]
) -> None:
    """After the command has returned, no slot that becomes free starts another invocation; after a resume all run."""
    functions.answer("echo", Reply(held=True))
    for each in processes:
        start(scaling_mode="function", max_inflight=4, limiter_enabled="false", processes=each)
    slots = 4 * len(processes)
    calls = put(queue, "echo", 30)
    wait_until(lambda: functions.running == slots, "all slots to be used")
    code, out, errors = command(queue, tmp_path, "pause", "echo")
    assert (code, errors) == (0, "")
    number = "1 worker" if sum(processes) == 1 else "2 workers"
    assert out.startswith(f"{LABEL} is paused: confirmed by {number}\n")
    functions.release("echo")
    wait_until(lambda: functions.running == 0, "the running invocations to end")
    wait_quietly()
    assert len(functions.requests) == slots
    code, out, _ = command(queue, tmp_path, "resume", "echo")
    assert code == 0
    assert out.startswith(f"{LABEL} is not paused: confirmed by {number}\n")
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)


def test_pause_names_a_worker_that_does_not_answer(queue: Queue, start: StartWorker, tmp_path: Path) -> None:
    """A suspended worker that another one knows is named, with exit code 4; after it continues, all confirm."""
    workers = [start(scaling_mode="function") for _ in range(2)]
    queue.nats.publish(f"{queue.name}.0.other.openfaas-fn", message("other"))
    queue.wait_empty()
    wait_until(lambda: command(queue, tmp_path, "pause", "other")[1].count("confirmed by 2 workers") == 1, "both")
    frozen = workers[0]
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        code, out, errors = command(queue, tmp_path, "pause", "echo")
        assert code == 4
        assert out.startswith(f"{LABEL} is stored as paused: confirmed by 1 worker, but not by all\n")
        assert re.search(rf"no answer from \S+/{frozen.process.pid}/\w+ within 5 s\. .*Run the command again", errors)
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: command(queue, tmp_path, "pause", "echo")[0] == 0, "both workers to confirm")


def test_pause_with_one_suspended_worker_does_not_claim_that_none_runs(
    queue: Queue, start: StartWorker, tmp_path: Path
) -> None:
    """Where the only worker does not answer, its name is not known, but its subscription is."""
    worker = start(scaling_mode="function")
    worker.process.send_signal(signal.SIGSTOP)
    try:
        code, out, errors = command(queue, tmp_path, "pause", "echo")
    finally:
        worker.process.send_signal(signal.SIGCONT)
    assert code == 4
    assert out.startswith(f"{LABEL} is stored as paused: confirmed by 0 workers, but not by all\n")
    assert "at least one worker is connected, but none has answered within 5 s" in errors


def test_pause_after_a_drain_expects_no_answer_of_the_worker_that_left(
    queue: Queue, start: StartWorker, functions: Functions, tmp_path: Path
) -> None:
    """A worker that drains starts nothing, so that the command neither counts nor awaits it."""
    leaving, _ = start(scaling_mode="function", shutdown_timeout="10m"), start(scaling_mode="function")
    functions.answer("held", Reply(held=True))
    put(queue, "held", 20)
    wait_until(lambda: functions.running >= 2, "invocations to run")
    leaving.terminate()
    leaving.wait_for('"event":"Draining"')
    wait_until(
        lambda: "is paused: confirmed by 1 worker\n" in command(queue, tmp_path, "pause", "echo")[1], "one confirmation"
    )
    assert command(queue, tmp_path, "pause", "echo")[0] == 0
    functions.release("held")


def test_pause_while_nats_dies_reports_that_it_is_not_confirmed(
    own_nats: NatsServer, functions: Functions, tmp_path: Path
) -> None:
    """If NATS ends while the command waits for confirmations, the pause is stored, and the exit code is 4."""
    queue = Queue(own_nats, "dying")
    settings = {"nats_port": own_nats.port, "nats_stream": queue.name, "scaling_mode": "function"}
    with Worker(queue, functions, tmp_path=tmp_path, scaling_mode="function") as worker:
        worker.wait_ready()
        worker.process.send_signal(signal.SIGSTOP)  # so that the command waits
        try:
            with Program("worker.cli", "pause", "echo", tmp_path=tmp_path, settings=settings) as pausing:
                wait_until(lambda: own_nats.state("dying-functions").get("messages") == 1, "the pause to be stored")
                wait_quietly()
                own_nats.kill()
                assert pausing.wait() == 4
                assert "queue-worker: the connection to NATS was lost" in pausing.stderr
        finally:
            worker.process.send_signal(signal.SIGCONT)
        own_nats.restart()
        assert queue.nats.state("dying-functions")["messages"] == 1
