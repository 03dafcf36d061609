"""The few private names of nats-py that we cannot do without, and why. A test says when a release moves one."""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription


def reader_died(client: Client) -> bool:
    """A PONG that comes after its flush was given up ends the read loop, while ``is_connected`` stays true."""
    return bool(client.is_connected and client._reading_task is not None and client._reading_task.done())  # noqa: SLF001 -- no public name


def abort(client: Client) -> None:
    """Drop the socket at once. A reconnect waits in ``wait_closed()`` as long as unsent bytes wait for a dead peer."""
    transport: Any = getattr(client._transport, "_io_writer", None)  # noqa: SLF001 -- no public name
    if transport is not None:
        transport.transport.abort()


def excuse_pings(client: Client) -> None:
    """Count no ping as unanswered. A PONG comes behind all that the server sent before, however long we read that."""
    client._pings_outstanding = 0  # noqa: SLF001 -- no public name


def forget_unsent(client: Client) -> None:
    """Drop what waits to be sent. Said late, after a reconnect, a stale NAK disturbs another worker's run."""
    client._pending = []  # noqa: SLF001 -- no public name
    client._pending_data_size = 0  # noqa: SLF001 -- no public name


async def end_interest(client: Client, subscription: Subscription) -> None:
    """Tell the server to send no more, but go on reading what is on its way; ``unsubscribe`` would drop that."""
    await client._send_unsubscribe(subscription._id)  # noqa: SLF001 -- no public name
