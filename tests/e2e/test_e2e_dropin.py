"""Replacing OpenFaaS's own worker by changing the image only; and NATS over WebSockets."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.stack import Queue, Worker, message
from tests.functions import Functions
from tests.servers import NatsServer
from worker.dev.stack import free_port


def test_stream_created_by_openfaas_is_used(own_nats: NatsServer, functions: Functions, tmp_path: Path) -> None:
    """If nats_stream is <queue>, the worker uses the stream OF_<queue> of OpenFaaS's worker, and its messages."""
    openfaas_queue = Queue(own_nats, "OF_faas-request")
    own_nats.make_stream("OF_faas-request", "faas-request")
    own_nats.publish("faas-request", message("echo", "one"))
    own_nats.publish("faas-request", b"not a request")
    with Worker(None, functions, tmp_path=tmp_path, nats_port=own_nats.port, nats_stream="faas-request") as worker:
        worker.wait_ready()
        own_nats.publish("faas-request.0.echo.openfaas-fn", message("echo", "two"))
        openfaas_queue.wait_empty()
        assert sorted(request.call_id for request in functions.requests) == ["one", "two"]
        assert len(worker.logged("OF_faas-request has its subjects; it is used")) == 1
        assert [letter.data for letter in Queue(own_nats).dead_letters()] == [b"not a request"]
        worker.terminate()
        assert worker.wait() == 0


def test_nats_url_with_ws_connects_over_websockets(functions: Functions, tmp_path: Path) -> None:
    """The worker connects to NATS over WebSockets if nats_url begins with ws://."""
    port = free_port()
    with NatsServer(tmp_path, config=f'websocket {{ host: "127.0.0.1", port: {port}, no_tls: true }}') as nats:
        queue = Queue(nats)
        with Worker(None, functions, tmp_path=tmp_path, nats_url=f"ws://127.0.0.1:{port}") as worker:
            worker.wait_ready()
            calls = queue.put_calls("echo", [f"call-{number}" for number in range(200)])
            queue.wait_empty()
            assert sorted(request.call_id for request in functions.requests) == sorted(calls)
            worker.terminate()
            assert worker.wait() == 0
