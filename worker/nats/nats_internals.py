"""The few private names of nats-py that we cannot do without, and why. A test says when a release moves one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from nats.aio.client import Client
from nats.aio.msg import Msg
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


class _Heard:
    """What ``subscribe`` takes as the future of one answer, for any number of messages."""

    def __init__(self, hear: Callable[[Msg], None]) -> None:
        self._hear = hear

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        try:
            self._hear(message)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it would end the read loop
            context = {"message": f"on {message.subject}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


async def listen(client: Client, subject: str, hear: Callable[[Msg], None]) -> Subscription:
    """Subscribe; *hear* is called where a message is read.

    A callback of nats-py's has a queue and a task before it: two more passes of the event loop for each message that
    comes alone.
    """
    return await client.subscribe(subject, future=cast("asyncio.Future[Msg]", _Heard(hear)))


async def end_interest(client: Client, subscription: Subscription) -> None:
    """Tell the server to send no more, but go on reading what is on its way; ``unsubscribe`` would drop that."""
    await client._send_unsubscribe(subscription._id)  # noqa: SLF001 -- no public name
