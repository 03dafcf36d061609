"""The private names of nats-py that the worker needs, and why. A test fails when a release moves one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription


def reader_died(client: Client) -> bool:
    """Return whether the read loop has ended, as a late PONG ends it, while ``is_connected`` stays true."""
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
    """Drop what waits to be sent. After a reconnect, a late nak would disturb another worker's invocation."""
    client._pending = []  # noqa: SLF001 -- no public name
    client._pending_data_size = 0  # noqa: SLF001 -- no public name


async def end_connecting(client: Client, first: asyncio.Future[None]) -> None:
    """End the *first* connecting, or the reconnecting, and let the client begin no other. Call it before ``close``.

    ``asyncio.wait_for`` of Python 3.11 drops a cancellation that coincides with its result. nats-py then goes on to
    connect, and ``close``, which cancels once, would leave a client that connects forever.
    """
    client.options["allow_reconnect"] = False
    for task in (first, client._reconnection_task):  # noqa: SLF001 -- no public name
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)


class _Callback:
    """A stand-in for the future that ``subscribe`` resolves with one message; it accepts any number."""

    def __init__(self, on_message: Callable[[Msg], None]) -> None:
        self._on_message = on_message

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        try:
            self._on_message(message)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it would end the read loop
            context = {"message": f"on {message.subject}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


async def listen(client: Client, subject: str, on_message: Callable[[Msg], None]) -> Subscription:
    """Subscribe, and call *on_message* as soon as a message is read.

    nats-py puts a queue and a task before its own callbacks: two more passes of the event loop for each message that
    arrives alone.
    """
    return await client.subscribe(subject, future=cast("asyncio.Future[Msg]", _Callback(on_message)))


async def end_interest(client: Client, subscription: Subscription) -> None:
    """Let the server send no more, but still read what is on its way; ``unsubscribe`` would drop that."""
    await client._send_unsubscribe(subscription._id)  # noqa: SLF001 -- no public name
