"""How the client is kept usable, on a real nats-server and a way to it that can be closed."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.chaos.proxy import Way
from tests.servers import NatsServer
from worker.config import load
from worker.events import BrokerTrouble, Event
from worker.nats.queue import open_queue


async def test_turned_away_at_first(tmp_path: Path) -> None:
    """A broker is waited for also where what stands before it takes connections, and resets them."""
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            way = Way(server.port)
            await nursery.start(way.serve)
            server.stop()
            async with open_queue(load({"nats_port": str(way.port)}).settings, events.append) as queue:
                nursery.start_soon(start_after, 2.0, server)  # eight looks at whether the client closed for good
                await queue.consume()
            nursery.cancel_scope.cancel()
    assert any(isinstance(event, BrokerTrouble) and "reset" in event.error for event in events)


async def start_after(seconds: float, server: NatsServer) -> None:
    """Start a server a while from now."""
    await trio.sleep(seconds)
    await trio.to_thread.run_sync(server.start)
