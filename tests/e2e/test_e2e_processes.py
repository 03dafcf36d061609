"""Several processes as one worker (`processes`): their metrics, health, signals and messages."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import LEASE, Queue, StartWorker, Worker
from tests.functions import Functions, Reply
from tests.servers import NatsServer, wait_until

COUNTS = re.compile(r"(?m)^(\w+_(?:total|count|sum|bucket)(?:\{.*\})?) (\S+)$")


def children(parent: int) -> list[int]:
    """Return the child processes of *parent*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = path.read_text().rpartition(") ")[2].split(" ")[:2]
        except OSError:  # it has just ended
            continue
        if int(ppid) == parent and state != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def ended(pids: list[int]) -> bool:
    """Return whether all of these processes have ended; a zombie counts as ended."""
    states = [path.read_text().rpartition(") ")[2][0] for pid in pids if (path := Path(f"/proc/{pid}/stat")).exists()]
    return set(states) <= {"Z"}


def hold(queue: Queue, functions: Functions, *calls: str, running: int) -> None:
    """Publish calls that run until they are released, and wait until *running* of them do."""
    functions.answer("held", Reply(held=True))
    queue.put_calls("held", calls)
    wait_until(lambda: functions.running == running, f"{running} invocations to run")


@pytest.fixture
def seven_calls() -> list[str]:
    return [f"call-{number}" for number in range(7)]


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Continue at the test's end all processes that it has stopped, so that they can end."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


def test_processes_act_as_one_worker(
    queue: Queue, functions: Functions, start: StartWorker, seven_calls: list[str]
) -> None:
    """Two processes run `max_inflight` messages in all, merge their metrics, and drain after one SIGTERM; exit 0."""
    worker = start(processes=2, max_inflight=5)
    assert len(children(worker.pid)) == 2
    hold(queue, functions, *seven_calls, running=5)
    assert {line["process"] for line in worker.lines() if line["event"] == "Consuming"} == {1, 2}
    running = "queue_worker_function_invocation_inflight"
    wait_until(lambda: worker.metric(running) == 5, "five running invocations in the metrics")
    assert worker.metric("queue_worker_processes") == 2
    assert worker.metric("queue_worker_nats_connected") == 1
    assert worker.metric("queue_worker_build_info") == 1
    wait_until(lambda: worker.get("/healthz") == (200, "ok\n"), "all processes to answer")
    worker.terminate()
    wait_until(lambda: len(worker.logged("^Draining$")) == 2, "both processes to drain")
    wait_until(
        lambda: worker.get("/readyz") == (503, "not ready: draining\n"), "all processes to report that they drain"
    )
    wait_until(lambda: worker.get("/healthz") == (200, "ok\n"), "all processes to answer")
    wait_until(lambda: worker.metric("queue_worker_draining") == 1, "the drain in the metrics")
    assert functions.max_running == 5
    functions.release("held")
    assert worker.wait() == 0
    assert worker.stderr == ""
    assert len(functions.requests) == 5
    info = queue.consumer()
    assert (info["num_ack_pending"], info["num_pending"], info["num_redelivered"]) == (0, 2, 0)
    assert {line["process"] for line in worker.lines()} == {0, 1, 2}
    start(processes=3)
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(seven_calls, 1)


def test_second_signal_makes_all_processes_return_messages(
    queue: Queue, functions: Functions, start: StartWorker, seven_calls: list[str]
) -> None:
    """After a second signal, of either kind, every process returns its messages at once; exit 0."""
    worker = start(processes=2, max_inflight=6, shutdown_timeout="10m")
    hold(queue, functions, *seven_calls, running=6)
    worker.terminate()
    wait_until(lambda: len(worker.logged("^Draining$")) == 2, "both processes to drain")
    worker.interrupt()
    assert worker.wait() == 0
    assert worker.stderr == ""
    wait_until(
        lambda: [request.disconnected for request in functions.requests] == [True] * 6, "the requests to be cancelled"
    )
    functions.release("held")
    start()
    queue.wait_empty()
    assert set(functions.calls()) == set(seven_calls)


def test_killed_process_is_restarted(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A killed process is restarted: its messages run again, no message is lost, and no counter decreases."""
    worker = start(processes=2, max_inflight=4, ack_wait=f"{LEASE}s")
    queue.put_calls("echo", [f"before-{number}" for number in range(50)])
    queue.wait_empty()
    hold(queue, functions, "one", "two", "three", "four", running=4)
    before = dict(COUNTS.findall(worker.get("/metrics")[1]))
    victim, _ = children(worker.pid)
    os.kill(victim, signal.SIGKILL)
    line = worker.wait_for('{[^\n]*"A process ended; starting it again"[^\n]*}')[0]
    assert '"how":"was killed by SIGKILL"' in line
    after = dict(COUNTS.findall(worker.get("/metrics")[1]))
    assert before.keys() <= after.keys()
    assert not {name for name in before if float(after[name]) < float(before[name])}
    functions.release("held")
    wait_until(lambda: worker.metric("queue_worker_process_restarts_total") == 1, "a restart to be counted")
    worker.wait_ready()
    queue.wait_empty()
    assert set(functions.calls()) == {*(f"before-{number}" for number in range(50)), "one", "two", "three", "four"}
    assert worker.metric("queue_worker_processes") == 2
    assert victim not in children(worker.pid)
    queue.put_calls("held", ["more-1", "more-2"])
    queue.wait_empty()
    worker.terminate()
    assert worker.wait() == 0


def test_hanging_process_fails_the_health_pages(queue: Queue, start: StartWorker, stopped: list[int]) -> None:
    """The metrics page has the last values of a hanging process; both health pages fail, and name the process."""
    worker = start(processes=2, max_inflight=2)
    queue.put_calls("echo", [f"call-{number}" for number in range(20)])
    queue.wait_empty()
    wait_until(lambda: worker.metric("queue_worker_messages_processed_total") == 20, "all messages to be counted")
    stopped += children(worker.pid)[:1]
    os.kill(stopped[0], signal.SIGSTOP)
    assert worker.metric("queue_worker_messages_processed_total") == 20
    for page, missing in (("/healthz", "alive"), ("/readyz", "ready")):  # on a busy machine the other may be late too
        pattern = rf"not {missing}: process [12] does not answer\n"
        wait_until(lambda: re.fullmatch(pattern, worker.get(page)[1]), pattern)  # noqa: B023 -- called here
        assert worker.get(page)[0] == 503
    os.kill(stopped[0], signal.SIGCONT)
    worker.wait_ready()
    wait_until(lambda: worker.get("/healthz")[0] == 200, "the worker to be alive")


def test_processes_without_the_parent_drain(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """If the parent is killed, each process drains: it finishes its invocations, takes no new message, and ends."""
    worker = start(processes=2, max_inflight=4)
    hold(queue, functions, "one", "two", "three", "four", running=4)
    orphans = children(worker.pid)
    worker.kill()
    wait_until(lambda: len(worker.logged("^Draining$")) == 2, "both processes to drain")
    queue.put_calls("held", ["late"])
    assert not ended(orphans[:1])
    assert not ended(orphans[1:])
    functions.release("held")
    wait_until(lambda: ended(orphans), "both processes to end")
    assert functions.calls() == dict.fromkeys(("one", "two", "three", "four"), 1)
    assert queue.nats.state(queue.name)["messages"] == 1


def test_sigterm_during_the_start_ends_all_processes(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """After a SIGTERM during the start all processes end, with exit 0 and an empty standard error."""
    with Worker(queue, functions, tmp_path=tmp_path, processes=3) as worker:
        wait_until(lambda: children(worker.pid), "a process to be started")
        worker.terminate()
        assert worker.wait() == 0
        assert worker.stderr == ""
        assert "starting it again" not in worker.stdout


def test_refused_credentials_end_all_processes(tmp_path: Path, functions: Functions) -> None:
    """Refused credentials are exit 1 with one line, the same for one process and for several."""
    with NatsServer(tmp_path, config='authorization { token: "s3cret" }', connect={"auth_token": "s3cret"}) as nats:
        one, three = (
            Worker(Queue(nats), functions, tmp_path=tmp_path, processes=processes, nats_token="wrong")
            for processes in (1, 3)
        )
        with one, three:
            assert (one.wait(), three.wait()) == (1, 1)
            assert len(one.stderr.splitlines()) == 1
            assert three.stderr == one.stderr


def test_setting_invalid_at_a_restart_ends_all_processes(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """A restarted process whose settings have become invalid ends all processes in order: exit 2, with a message."""
    token = tmp_path / "token"
    token.write_text("anything")
    worker = start(processes=2, nats_token_file=token)
    hold(queue, functions, "one", running=1)
    token.unlink()
    for victim in children(worker.pid)[:1]:
        os.kill(victim, signal.SIGKILL)
    worker.wait_for("nats_token_file")
    functions.release("held")
    assert worker.wait() == 2
    assert "Traceback" not in worker.output
