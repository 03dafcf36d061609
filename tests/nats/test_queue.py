"""What the queue on NATS does beyond the laws of its port."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.servers import NatsServer
from worker.config import load
from worker.nats.queue import open_queue


async def test_the_ack_wait_may_be_changed_by_others(tmp_path: Path) -> None:
    """An ack wait that an operator changed counts as soon as the queue has been looked at again."""
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port)}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            assert consumer.ack_wait == 60.0
            config = server.api("CONSUMER.INFO.faas-request.faas-workers")["config"] | {"ack_wait": 2_000_000_000}
            server.api("CONSUMER.CREATE.faas-request.faas-workers", stream_name="faas-request", config=config)
            with trio.fail_after(15):
                await queue.backlog()
            assert consumer.ack_wait == 2.0
