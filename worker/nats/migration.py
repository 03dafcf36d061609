"""From one layout to another, with a stream full of work, while workers that want either are alive.

Whoever wants another layout than the queue is in asks on a subject whether a worker that wants that one is alive. If
one answers, the layout stays, and we serve it; if nobody does, we retire what has no place in ours. Every step can be
done twice, and by several workers at once; where one dies in between, the next to look goes on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..config import Settings
from ..ports import BrokerUnavailableError, MisconfiguredError
from . import nats_internals, topology
from .connection import Connection, NoRespondersError
from .layout import (
    FUNCTION,
    RETIRED,
    ConsumerSet,
    ConsumerState,
    consumer_state,
    filters_of,
    overlap,
    retired_config,
    static,
)
from .wire import ApiError, ErrorCode

PAUSE = 10.0
"""Seconds that a consumer stands still at most, while it is being retired or deleted."""
_RESUMED = 0.2
"""Seconds until one goes on that is to: enough for three servers to agree on it before it has come."""
_MEANT = 6.0
"""Seconds after which what was seen of a consumer that stands still is not relied on any more."""
_FLUSHED = 0.3
"""Seconds after which nats-server has written what a consumer had handed out: it does so every 100 ms."""
_TAKEN_OFF = 0.5
"""Seconds that workers have to take off what they have just ended through a retired consumer (FinishedDeleter),
before it is deleted and others hand out what is there."""
_AT_ONCE = 16
"""Consumers that are retired at the same time."""
_REFUSED = 10.0
"""Seconds without a leader after which a consumer may be one that no server took on: an election takes a few."""
_ANSWER = 1.0
"""Seconds to wait for a worker's sign of life."""


class Migration:
    """Looks after the layout of a stream's consumers.

    Args:
        connection: to whom to talk.
        settings: with the stream's name as it is at the server.
    """

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.wanted = FUNCTION if settings.scaling_mode == FUNCTION else static(settings.queue_partitions)
        self._connection, self.settings = connection, settings
        self._sign: Subscription | None = None
        self._hidden = False
        self._answers: set[asyncio.Task[None]] = set()
        self._missing: dict[str, float] = {}
        """Consumers without a leader, and since when we have seen that."""

    # Who wants what.

    async def show(self) -> None:
        """Answer those who ask whether anyone wants our layout."""
        if self._sign is None and not self._hidden:
            self._sign = await nats_internals.listen(self._connection.client, self._subject(self.wanted), self._answer)

    async def hide(self) -> None:
        """Answer no more: we are about to end."""
        self._hidden = True
        if self._sign:
            sign, self._sign = self._sign, None
            with suppress(nats.errors.Error):
                await sign.unsubscribe()

    def _answer(self, message: Msg) -> None:
        if message.reply and self._sign:
            answer = asyncio.ensure_future(self._connection.client.publish(message.reply, b""))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    def _subject(self, layout: str) -> str:
        return f"queue-worker.{self.settings.nats_stream}.{layout.replace('/', '.')}"

    async def _is_wanted(self, layout: str) -> bool:
        try:
            await self._connection.client.request(self._subject(layout), b"", timeout=_ANSWER)
        except nats.errors.NoRespondersError:
            return False
        except (nats.errors.Error, TimeoutError, OSError):
            return True  # perhaps: it may stand still
        return True

    async def aim(self, layout: ConsumerSet) -> str:
        """Which layout is to be served now."""
        current = layout.current
        aim = self.wanted
        if current not in (None, aim) and await self._is_wanted(str(current)):
            aim = str(current)
        taken = {each.name for each in layout.retired}
        if aim != FUNCTION and any(name in taken for name in topology.shared_consumers(self.settings, aim)):
            return FUNCTION  # until the consumer of that name keeps nothing any more
        return aim

    # What there is.

    async def look(self) -> ConsumerSet:
        """All consumers.

        Raises:
            ApiError: the server said no.
            worker.ports.BrokerUnavailableError: it did not answer.
        """
        infos: list[dict[str, Any]] = []
        missing: list[str] = []
        while True:
            page = await self._connection.ask(f"CONSUMER.LIST.{self.settings.nats_stream}", {"offset": len(infos)})
            missing += page.get("missing") or []
            infos += page.get("consumers") or []
            if missing or not page.get("consumers") or len(infos) >= page.get("total", 0):
                break
        await self._remove_refused(missing, infos)
        if missing:
            raise BrokerUnavailableError(f"{len(missing)} consumers have no leader now")
        return ConsumerSet.of(infos, self.settings.nats_durable)

    async def _remove_refused(self, missing: list[str], infos: list[dict[str, Any]]) -> None:
        """Delete consumers that a cluster has on its list, and that no server of it took on.

        Of consumers that overlap, made at the same time, a cluster refuses all but one. Where it is in trouble just
        then, the others stay on its list for ever, without a leader (measured, 2.15.1). What overlaps with one that is
        there cannot be one of ours that will come back.
        """
        now = trio.current_time()
        self._missing = {name: self._missing.get(name, now) for name in missing}
        ours = [name for name, since in self._missing.items() if now - since >= _REFUSED and self._is_ours(name)]
        there = [filters_of(info) for info in infos]
        await asyncio.gather(*(self._remove_if_refused(name, there) for name in ours[:_AT_ONCE]))

    async def _remove_if_refused(self, name: str, there: list[tuple[str, ...]]) -> None:
        with suppress(ApiError, BrokerUnavailableError):  # a deletion of such a one is heeded and not always answered
            info = await self._connection.ask(f"CONSUMER.INFO.{self.settings.nats_stream}.{name}")
            if any(overlap(filters_of(info), each) for each in there):
                await self.delete(name)

    def _is_ours(self, name: str) -> bool:
        return name == self.settings.nats_durable or name.startswith(f"{self.settings.nats_durable}-")

    # What is done about it.

    async def retire(self, found: list[ConsumerState], aim: str) -> None:
        """Retire consumers. What stands in the way of that is raised; it is all to be done again then."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def retire(one: ConsumerState) -> None:
            async with room:
                await self._retire(one.name, aim)

        for done in await asyncio.gather(*map(retire, found), return_exceptions=True):
            if isinstance(done, BaseException):
                raise done

    async def _retire(self, name: str, aim: str) -> None:
        since = trio.current_time()
        if not await self.pause(name):
            raise MisconfiguredError(
                f"the consumer {name} cannot be paused: switching modes needs nats-server 2.11 or later"
            )
        await asyncio.sleep(_FLUSHED)
        info = await self._connection.ask(f"CONSUMER.INFO.{self.settings.nats_stream}.{name}")
        if consumer_state(info).layout != RETIRED and info.get("paused") and trio.current_time() - since < _MEANT:
            config = retired_config(self.settings.queue_name, info, aim, nanoseconds(info["ts"]))
            await self._connection.ask(
                f"CONSUMER.CREATE.{self.settings.nats_stream}.{name}",
                {"stream_name": self.settings.nats_stream, "config": config, "action": "update"},
            )
        await self.resume(name)

    async def pause(self, name: str, seconds: float = PAUSE) -> bool:
        """Have a consumer hand out nothing for a while. False: the server, before 2.11, cannot do that."""
        info = await self._connection.ask(f"CONSUMER.INFO.{self.settings.nats_stream}.{name}")
        until = _time(info["ts"]) + timedelta(seconds=seconds)
        body = {"pause_until": until.isoformat().replace("+00:00", "Z")}
        try:
            answer = await self._connection.ask(f"CONSUMER.PAUSE.{self.settings.nats_stream}.{name}", body)
        except NoRespondersError:
            return False
        return bool(answer.get("paused"))

    async def resume(self, name: str) -> None:
        """Let it go on, soon.

        A pause that is over wakes the requests that are open; one that is taken back does not: they wait for the next
        message, or for another request (measured, nats-server 2.15.1).
        """
        await self.pause(name, _RESUMED)

    async def clear(self, layout: ConsumerSet) -> bool:
        """Delete the retired consumers that keep nothing; whether there were any."""
        if layout.finished:
            await asyncio.sleep(_TAKEN_OFF)
        for each in layout.finished:
            try:
                now = consumer_state(
                    await self._connection.ask(f"CONSUMER.INFO.{self.settings.nats_stream}.{each.name}")
                )
            except ApiError as error:
                if error.err_code != ErrorCode.CONSUMER_NOT_FOUND:
                    raise
                continue
            if (now.layout, now.retired_at, now.num_ack_pending) != (each.layout, each.retired_at, 0):
                continue  # another worker has deleted it, and it was made anew
            await self.delete(each.name)
        return bool(layout.finished)

    async def delete(self, name: str) -> None:
        """Delete a consumer, if it is there."""
        try:
            await self._connection.ask(f"CONSUMER.DELETE.{self.settings.nats_stream}.{name}")
        except ApiError as error:
            if error.err_code != ErrorCode.CONSUMER_NOT_FOUND:
                raise

    async def unfilter(self, name: str) -> None:
        """Let a consumer that is the only one be for all, as it would have been made."""
        info = await self._connection.ask(f"CONSUMER.INFO.{self.settings.nats_stream}.{name}")
        left_out = ("filter_subject", "filter_subjects", "pause_until")
        config = {key: value for key, value in info["config"].items() if key not in left_out}
        if consumer_state(info).layout != RETIRED:
            await self._connection.ask(
                f"CONSUMER.CREATE.{self.settings.nats_stream}.{name}",
                {"stream_name": self.settings.nats_stream, "config": config, "action": "update"},
            )


def _time(text: str) -> datetime:
    """Of the server's, to the microsecond: it writes as many digits as there are."""
    head, _, tail = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}.{(tail + '000000')[:6]}").replace(tzinfo=UTC)


def nanoseconds(text: str) -> int:
    """A time as the server writes it, since the epoch; to the microsecond."""
    return int(_time(text).timestamp() * 1e6) * 1000
