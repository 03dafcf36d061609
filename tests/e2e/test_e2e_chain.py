"""Chains of asynchronous functions: a callback to ``/async-function/...`` is the next call, under the same call id."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.stack import Queue, StartWorker
from tests.functions import Functions, Reply
from tests.gateway import gateway_on
from tests.servers import wait_until


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
