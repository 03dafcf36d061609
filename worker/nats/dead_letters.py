"""The stream of dead letters."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import Settings
from ..model import DeadLetter
from ..policy.report import dead_letter_headers
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .jetstream import JetStream
from .wire import ApiError

_HEADER_ROOM = 8_192
"""Bytes of a message that are left for a dead letter's headers: nine, each at most a kilobyte, most far below."""


class DeadLetters:
    """Stores dead letters. *stream* is the queue's stream, by its name at the server."""

    def __init__(self, jetstream: JetStream, settings: Settings, stream: str, emit: Emit) -> None:
        self._jetstream, self._settings, self._stream, self._emit = jetstream, settings, stream, emit

    async def store(self, letter: DeadLetter) -> None:
        """See :meth:`worker.ports.Queue.store_dead_letter`."""
        subject = f"DEAD-LETTERS.{self._settings.queue_name}.{letter.function or 'undecodable'}"
        try:
            for body, headers in self._parts(letter):
                try:
                    await self._jetstream.publish(subject, body, headers)
                except (BrokerUnavailableError, ApiError):
                    # Most likely this is the first one, and there is no stream. The message id prevents a second copy.
                    await topology.create_dead_letters(self._jetstream, self._settings, self._emit)
                    await self._jetstream.publish(subject, body, headers)
        except (ApiError, MisconfiguredError) as error:
            stream = topology.dead_letter_stream(self._settings)
            raise BrokerUnavailableError(f"the stream {stream} did not store it: {error}") from None

    def _parts(self, letter: DeadLetter) -> Iterator[tuple[bytes, dict[str, str]]]:
        """Yield the messages of a dead letter: one, or more where its size leaves no room for headers in one."""
        headers, payload = dead_letter_headers(letter, stream=self._stream), letter.delivery.payload
        room = max(1, self._jetstream.connection.client.max_payload - _HEADER_ROOM)
        bodies = [payload[at : at + room] for at in range(0, len(payload), room)] or [b""]
        sequence, stored_at = letter.delivery.id
        for number, body in enumerate(bodies, 1):
            part = {"X-Dead-Letter-Part": f"{number}/{len(bodies)}"} if len(bodies) > 1 else {}
            yield body, headers | {"Nats-Msg-Id": f"{self._stream}.{sequence}.{stored_at}.{number}"} | part
