"""The messages between workers about a change of layout.

The queue's consumers show its layout. A worker that wants another one asks on a subject whether a live worker wants the
present one. If one answers, the layout stays, and this worker serves it; if none does, this worker changes it. How, is
in :mod:`worker.nats.reconcile`.

A worker that is about to retire consumers announces their names, because every worker must delete the messages that end
through a retired consumer (:mod:`worker.nats.retired_consumers`) from the first moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..ports import BrokerUnavailableError
from . import nats_internals
from .connection import Connection, NoRespondersError
from .retired_consumers import RetiredConsumers

_NAMES = 1_000
"""Names in one announcement: a tenth of the megabyte that a message may have."""
_LONGEST = 255
"""Characters of a consumer's name."""
_ANSWER = 1.0
"""Seconds to wait for the answer of a worker."""


class Migration:
    """This worker's messages to other workers, and theirs. *layout* is the one that this worker wants."""

    def __init__(self, connection: Connection, stream: str, layout: str, retired: RetiredConsumers) -> None:
        self._connection, self._stream, self._layout, self._retired = connection, stream, layout, retired
        self._presence: Subscription | None = None
        self._left = False
        self._answers: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Subscribe to the questions and announcements of other workers; without effect where that is done."""
        if self._presence is None:
            client = self._connection.client
            await nats_internals.listen(client, self._subject("retiring"), self._on_announced)
            self._presence = await nats_internals.listen(client, self._subject(self._layout), self._on_question)

    async def leave(self) -> None:
        """Answer no more questions: a worker that drains does not keep its layout alive."""
        self._left = True
        if self._presence:
            with suppress(nats.errors.Error):
                await self._presence.unsubscribe()

    async def is_wanted(self, layout: str) -> bool:
        """Return whether a live worker wants a layout; also where none answers, but some may be too slow to."""
        try:
            await self._connection.request(self._subject(layout), within=_ANSWER)
        except NoRespondersError:
            return False
        except BrokerUnavailableError:
            pass  # a worker that subscribes may be suspended
        return True

    async def announce(self, names: Sequence[str]) -> None:
        """Notify all workers of consumers that are about to be retired; it arrives before the first one is.

        Raises:
            worker.ports.BrokerUnavailableError: the message cannot be sent now.
        """
        self._retired.expect(names)
        for at in range(0, len(names), _NAMES):
            text = "\n".join(names[at : at + _NAMES]).encode()
            try:
                await self._connection.client.publish(self._subject("retiring"), text)
            except (nats.errors.Error, OSError) as error:
                raise BrokerUnavailableError(f"notifying other workers: {error}") from None

    def _subject(self, last: str) -> str:
        return f"queue-worker.{self._stream}.{last.replace('/', '.')}"

    def _on_question(self, message: Msg) -> None:
        if not self._left and self._connection.is_inbox(message.reply):
            answer = asyncio.ensure_future(self._connection.client.publish(message.reply, b""))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    def _on_announced(self, message: Msg) -> None:
        names = message.data.decode(errors="replace").split("\n", _NAMES)[:_NAMES]
        self._retired.expect(name for name in names if 0 < len(name) <= _LONGEST)
