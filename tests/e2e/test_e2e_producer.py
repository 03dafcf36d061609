"""The producer and a worker together: chains of functions under one call id, and requests through the proxy."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.stack import Queue, StartWorker, Worker
from tests.functions import Functions, Reply
from tests.gateway import gateway_on
from tests.servers import run_program, wait_until


def test_callback_to_another_async_function_runs_it(
    queue: Queue, start: StartWorker, functions: Functions, tmp_path: Path
) -> None:
    """A callback to an asynchronous function, and a request that a function passes on with its id, are calls."""
    functions.answer("first", Reply(200, b"result of first"))
    worker = start()
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name) as gateway:
        following = f"{gateway.url}/async-function/second"
        assert gateway.queue("first", b"x", X_Call_Id="one", X_Callback_Url=following).status == 202
        (second,) = wait_until(lambda: functions.to("second"), "the second function to be invoked")
        queue.wait_empty()
        assert gateway.queue("third", second.body, X_Call_Id=second.call_id).status == 202  # as functions pass it on
        (third,) = wait_until(lambda: functions.to("third"), "the third function to be invoked")
        queue.wait_empty()
    assert (second.call_id, second.body) == ("one", b"result of first")
    assert (third.call_id, third.body) == ("one", b"result of first")
    assert len(worker.logged("Posted result")) == 1


def test_pipeline_of_five_steps_survives_failures_and_deaths(
    queue: Queue, start: StartWorker, functions: Functions, receiver: Functions, tmp_path: Path
) -> None:
    """Every step of every chain runs under its first call id, though steps fail, and gateway and workers are killed.

    The callback of each step is the call of the next one. The step after that one is in the header X-Callback-Url of
    the step's response, which the callback passes on.
    """
    calls = {f"chain-{number}" for number in range(10)}
    settings: dict[str, object] = {"ack_wait": "4s", "callback_retry_initial_wait": "100ms"}
    workers = [start(**settings) for _ in range(2)]
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name) as gateway:
        port = gateway.port
        following = [f"{gateway.url}/async-function/step-{number}" for number in range(2, 6)] + [f"{receiver.url}/end"]
        for number, after in enumerate([*following[1:], None], 1):
            headers = (("X-Callback-Url", after),) if after else ()
            done = Reply(200, f"result {number}".encode(), headers, after=0.05)
            functions.answer(f"step-{number}", *([Reply(503)] if number % 2 else []), done)
        for call in calls:
            assert gateway.queue("step-1", b"x", X_Call_Id=call, X_Callback_Url=following[0]).status == 202
        wait_until(lambda: len(functions.to("step-2")) > 3, "the second step to begin")
        gateway.kill()
        gateway.wait()
    workers[0].kill()
    wait_until(lambda: len(functions.to("step-1")) >= 2 * len(calls), "all first steps to run without the gateway")
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name, listen_port=port):
        wait_until(lambda: functions.to("step-4"), "the fourth step to begin")
        workers[1].kill()
        start(**settings)
        wait_until(lambda: {each.call_id for each in receiver.to("end")} == calls, "the end of all chains")
    for number in range(1, 6):
        bodies = {(each.call_id, each.body) for each in functions.to(f"step-{number}")}
        assert bodies == {(call, f"result {number - 1}".encode() if number > 1 else b"x") for call in calls}


def test_callback_repeated_to_an_async_function_runs_it_once(
    queue: Queue, start: StartWorker, functions: Functions, tmp_path: Path
) -> None:
    """A call that is sent again, whose invocation and callback are finished, runs neither function again."""
    start()
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name) as gateway:
        callback = f"{gateway.url}/async-function/second"
        for _ in range(3):
            assert gateway.queue("first", b"x", X_Call_Id="one", X_Callback_Url=callback).status == 202
            wait_until(lambda: functions.to("second"), "the second function to be invoked")
            queue.wait_empty()
    assert [request.name for request in functions.requests] == ["first", "second"]


def test_large_header_and_query_reach_the_function_through_the_producer_s_proxy(
    queue: Queue, functions: Functions, tmp_path: Path
) -> None:
    """Producer and submit store only what the producer's own proxy takes from the worker, and refuse the rest."""
    settings: dict[str, object] = {"nats_stream": queue.name, "gateway_url": functions.url}
    near, above = "@" * 63_000, "@" * 70_000
    with (
        gateway_on(queue.nats, tmp_path, **settings) as gateway,
        Worker(queue, tmp_path=tmp_path, gateway_url=gateway.url) as worker,
    ):
        worker.wait_ready()
        assert gateway.queue("saml", b"x", X_Saml=near).status == 202
        assert gateway.queue(f"query?{near}", b"x").status == 202
        submit = ("worker.cli", "submit", "sent", "--data", "x", "-H")
        settings |= {"nats_port": queue.nats.port}
        assert run_program(*submit, f"X-Saml: {near}", tmp_path=tmp_path, settings=settings)[0] == 0
        assert run_program(*submit, f"X-Saml: {above}", tmp_path=tmp_path, settings=settings)[0] == 2
        queue.wait_empty()
        worker.terminate()
        assert worker.wait() == 0
    assert sorted(request.name for request in functions.requests) == ["query", "saml", "sent"]
    assert [each["status"] for each in worker.logged("Invoked")] == [200] * 3
