"""Properties of the queue on NATS that tests/conformance does not cover."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from tests.chaos.proxy import Proxy
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, until
from worker.config import load
from worker.model import Delivery
from worker.nats.credit import DEFAULT_BATCH, MAX_REQUESTS
from worker.nats.queue import open_queue


async def test_queue_ack_wait_changed_by_an_operator_is_applied(tmp_path: Path) -> None:
    """An ack wait that an operator changed is applied as soon as the consumers are read again."""
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port)}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            assert consumer.ack_wait == 60.0
            config = server.api("CONSUMER.INFO.faas-request.faas-workers")["config"] | {"ack_wait": 2_000_000_000}
            server.api("CONSUMER.CREATE.faas-request.faas-workers", stream_name="faas-request", config=config)
            await until(lambda: consumer.ack_wait == 2.0, "the changed ack wait")


async def test_queue_with_large_credit_limits_unread_deliveries(tmp_path: Path) -> None:
    """With credit for 10,000, the server sends at most MAX_REQUESTS * DEFAULT_BATCH messages that are not yet read."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            proxy = Proxy(server.port)
            await nursery.start(proxy.serve)
            async with open_queue(load({"nats_port": str(proxy.port)}).settings, lambda _: None) as queue:
                consumer = await queue.consume()
                consumer.add_credit(10_000, "")
                state = partial(server.api, "CONSUMER.INFO.faas-request.faas-workers")
                await until(lambda: state()["num_waiting"] == MAX_REQUESTS, "MAX_REQUESTS open requests")
                proxy.stall()
                server.publish_many(("faas-request", b"one", {}) for _ in range(2 * MAX_REQUESTS * DEFAULT_BATCH))
                await until(lambda: not state()["num_waiting"], "the requests to be answered")
                assert state()["num_ack_pending"] == MAX_REQUESTS * DEFAULT_BATCH
                proxy.resume()
                delivered = 0
                while delivered < 2 * MAX_REQUESTS * DEFAULT_BATCH:
                    with trio.fail_after(LAST_RESORT):
                        delivered += sum(isinstance(each, Delivery) for each in await consumer.receive())
            nursery.cancel_scope.cancel()
