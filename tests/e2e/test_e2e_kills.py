"""At least once: if a worker or NATS is killed, no message is lost, and only messages that ran then run twice."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.e2e.stack import LEASE, Queue, StartWorker, Worker, go_url, message, wait_quietly
from tests.functions import Functions, Reply
from tests.servers import NatsServer, wait_until


def repeats(functions: Functions) -> int:
    """Return the number of invocations beyond the first of each call id."""
    return sum(functions.calls().values()) - len(functions.calls())


@pytest.fixture
def rng() -> random.Random:
    """Return a generator with another seed in each run; a failing test shows the seed in its captured output."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random moments by seed {seed}")  # noqa: T201 -- shown by pytest where the test fails
    return random.Random(seed)


@pytest.mark.parametrize("running", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_workers_repeat_only_running_messages(
    queue: Queue, functions: Functions, start: StartWorker, rng: random.Random, running: int
) -> None:
    """If workers are killed at random moments, every message runs, and only those that ran at a SIGKILL run again."""
    kills, each = 4, 12 * running
    functions.answer("echo", Reply(after=0.02))
    queue.nats.make_stream(queue.name)
    calls = queue.put_calls("echo", [f"call-{number}" for number in range(6 * each)])
    for _ in range(kills):
        victim = start(max_inflight=running, ack_wait=f"{LEASE}s")
        target = len(functions.requests) + rng.randrange(1, each)
        wait_until(lambda: len(functions.requests) >= target, "more invocations")  # noqa: B023 -- called here
        victim.kill()
        victim.process.wait()
    start(max_inflight=running, ack_wait=f"{LEASE}s")
    queue.wait_empty()
    assert set(functions.calls()) == set(calls)
    assert repeats(functions) <= kills * running
    assert max(functions.calls().values()) <= 1 + kills
    assert queue.dead_letters() == []


STATES = [
    "response sent",
    "dead letter stored",
    *(pytest.param(state, marks=pytest.mark.slow) for state in ("running", "callback")),
]


@pytest.mark.parametrize("state", [*STATES, "waiting for a retry"])
def test_worker_killed_in_each_state_loses_no_message(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, state: str
) -> None:
    """In each state, the killed worker's message is finished; its function runs at most twice; one dead letter."""
    url = go_url(f"{receiver.url}/callback")
    functions.answer("fails", Reply(500), Reply(500))
    functions.answer("held", Reply(held=True), Reply(200))
    functions.answer("flaky", Reply(500), Reply(200))
    receiver.answer("callback", Reply(held=state in ("callback", "dead letter stored")), Reply(200))
    settings = {"ack_wait": f"{LEASE}s", "initial_retry_wait": "2s", "max_retry_wait": "2s"}
    worker = start(**settings)
    once = {"com.openfaas.retry.attempts": "1"}
    match state:
        case "running":
            queue.put(message("held", "one"))
            wait_until(lambda: functions.running == 1, "the invocation to start")
        case "response sent":
            queue.put(message("echo", "one"))
            wait_until(lambda: functions.requests, "the invocation to start")
        case "callback":
            queue.put(message("echo", "one", CallbackUrl=url))
            wait_until(lambda: receiver.running == 1, "the callback to arrive")
        case "waiting for a retry":
            queue.put(message("flaky", "one"))
            wait_until(lambda: worker.lines_of("one"), "the first attempt to end")
        case "dead letter stored":  # the dead letter is stored, and the message not yet acked
            queue.put(message("fails", "one", CallbackUrl=url, Annotations=once))
            wait_until(lambda: receiver.running == 1 and queue.dead_letters(), "the dead letter to be stored")
    worker.kill()
    worker.process.wait()
    start(**settings)
    queue.wait_empty()
    assert 1 <= len(functions.of("one")) <= 2
    assert len(queue.dead_letters()) == (state == "dead letter stored")
    if state == "waiting for a retry":
        assert len(functions.of("one")) == 2
    if state in ("callback", "dead letter stored"):
        assert len(receiver.of("one")) == 2


@pytest.mark.parametrize("how", ["in order", "at once"])
def test_nats_restart_under_load_runs_each_message_once(
    own_nats: NatsServer, functions: Functions, tmp_path: Path, how: str
) -> None:
    """If NATS is stopped or killed under load, the worker reconnects, and runs every message exactly once."""
    queue = Queue(own_nats)
    functions.answer("echo", Reply(after=0.02))
    with Worker(queue, functions, tmp_path=tmp_path, max_inflight=10, ack_wait="30s") as worker:
        worker.wait_ready()
        calls = queue.put_calls("echo", [f"call-{number}" for number in range(500)])
        for restart, reached in enumerate((100, 250), 1):
            wait_until(lambda: len(functions.requests) >= reached, f"{reached} invocations")  # noqa: B023 -- called here
            own_nats.stop() if how == "in order" else own_nats.kill()
            wait_until(lambda: worker.get("/readyz")[0] == 503, "the worker to be not ready")
            assert worker.get("/healthz")[0] == 200
            own_nats.start()
            wait_until(lambda: worker.get("/readyz")[0] == 200, "the worker to be ready again")
            assert worker.metric("queue_worker_nats_reconnect_total") == restart
        calls += queue.put_calls("echo", ["after"])
        queue.wait_empty()
        assert functions.calls() == dict.fromkeys(calls, 1)
        assert functions.max_running <= 10
        assert not [request for request in functions.requests if request.disconnected]
        assert worker.metric("queue_worker_messages_processed_total") == len(calls)
        assert worker.process.poll() is None


@pytest.mark.parametrize("how", ["in order", "at once"])
def test_invocation_continues_while_nats_is_down(
    own_nats: NatsServer, functions: Functions, receiver: Functions, tmp_path: Path, how: str
) -> None:
    """An invocation continues while NATS is down; if it ends then, it is settled later; none runs twice."""
    queue = Queue(own_nats)
    for name in ("held", "short", "broken"):
        functions.answer(name, Reply(500 if name == "broken" else 200, held=True))
    with Worker(queue, functions, tmp_path=tmp_path) as worker:
        worker.wait_ready()
        url = go_url(f"{receiver.url}/callback")
        queue.put(message("held", "held"), message("short", "short", CallbackUrl=url))
        queue.put(message("broken", "broken", Annotations={"com.openfaas.retry.attempts": "1"}))
        wait_until(lambda: functions.running == 3, "all invocations to run")
        own_nats.stop() if how == "in order" else own_nats.kill()
        wait_until(lambda: worker.logged("Disconnected"), "the worker to log the lost connection")
        functions.release("short")
        functions.release("broken")
        wait_until(lambda: receiver.requests, "the callback, which needs no NATS")
        own_nats.start()
        wait_until(lambda: worker.logged("Reconnected"), "the worker to connect again")
        wait_until(lambda: queue.nats.state()["messages"] == 1, "the ended invocations to be settled")
        assert [letter.headers["X-Call-Id"] for letter in queue.dead_letters()] == ["broken"]
        functions.release("held")
        queue.wait_empty()
        assert functions.calls() == {"held": 1, "short": 1, "broken": 1}
        assert len(receiver.requests) == 1
        assert not [request for request in functions.requests if request.disconnected]


@pytest.mark.slow
def test_workers_and_nats_killed_by_turns_lose_no_message(
    own_nats: NatsServer, functions: Functions, tmp_path: Path, rng: random.Random
) -> None:
    """If workers and NATS are killed by turns at random moments, every message is invoked in the end."""
    queue, running, kills = Queue(own_nats), 6, 0
    functions.answer("echo", Reply(after=0.03))
    functions.answer("flaky", Reply(500, after=0.03), Reply(raw=b"", reset=True), Reply(200))
    own_nats.make_stream()
    calls = queue.put_calls("echo", [f"echo-{number}" for number in range(300)])
    calls += queue.put_calls("flaky", [f"flaky-{number}" for number in range(60)])
    settings = {"max_inflight": running, "ack_wait": f"{LEASE}s"}
    workers = [Worker(queue, functions, tmp_path=tmp_path, **settings) for _ in range(6)]
    for worker in workers[:-1]:
        with worker:
            target = len(functions.requests) + rng.randrange(20, 70)
            wait_until(lambda: len(functions.requests) >= target, "more invocations")  # noqa: B023 -- called here
            if rng.random() < 0.5:
                own_nats.kill()
                own_nats.start()
                target += rng.randrange(20)
                wait_until(lambda: len(functions.requests) >= target, "a few more invocations")  # noqa: B023 -- called here
            worker.process.send_signal(signal.SIGKILL)
            worker.process.wait()
            kills += 1
    with workers[-1] as worker:
        worker.wait_ready()
        queue.wait_empty()
    assert set(functions.calls()) == set(calls)
    assert queue.dead_letters() == []
    assert kills == 5


@pytest.mark.slow
def test_worker_frozen_past_its_lease_settles_nothing(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A worker that was frozen past its lease settles nothing, because another worker runs the message by then."""
    functions.answer("slow", Reply(500, held=True), Reply(200, held=True))
    # With a free slot it would have an open request, and receive the message again when it continues.
    frozen = start(ack_wait=f"{LEASE}s", max_inflight=1)
    queue.put_calls("slow", ["one"])
    wait_until(lambda: functions.running == 1, "the invocation to start")
    start(ack_wait=f"{LEASE}s")
    frozen.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: len(functions.requests) == 2, "the message to run on the other worker")
    frozen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: frozen.logged("Lease lost"), "the frozen worker to log the lost lease")
    wait_until(lambda: functions.requests[0].disconnected, "the frozen worker to close its request")
    wait_quietly(1.2 * LEASE)  # long enough for another redelivery, if the frozen worker had settled the message
    assert functions.calls() == {"one": 2}
    functions.release("slow")
    queue.wait_empty()
    assert functions.calls() == {"one": 2}
    assert frozen.get("/readyz")[0] == 200


@pytest.mark.slow
def test_nats_frozen_past_a_lease_cancels_the_invocation(
    own_nats: NatsServer, functions: Functions, tmp_path: Path
) -> None:
    """If NATS is frozen past a lease, the worker cancels the invocation, and runs it again when NATS continues."""
    queue = Queue(own_nats)
    functions.answer("slow", Reply(held=True), Reply(200))
    with Worker(queue, functions, tmp_path=tmp_path, ack_wait=f"{LEASE}s") as worker:
        worker.wait_ready()
        queue.put_calls("slow", ["one"])
        wait_until(lambda: functions.running == 1, "the invocation to start")
        own_nats.pause()
        wait_until(lambda: functions.requests[0].disconnected, "the invocation to be cancelled")
        own_nats.resume()
        queue.wait_empty()
        assert functions.calls() == {"one": 2}
        assert worker.metric("queue_worker_leases_lost_total") == 1
        assert worker.metric("queue_worker_function_invocation_inflight") == 0
