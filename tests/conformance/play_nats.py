"""Scripts played on a real nats-server, many at the same time: each has a stream and a consumer of its own.

They begin on a whole second of the wall clock, since a server that restarts counts in those.
"""

from __future__ import annotations

import json
import time
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from pathlib import Path

import trio

from tests.servers import NatsServer

from .connection import Came, Connection
from .script import (
    LAST,
    LATE,
    SLOT,
    TICK,
    Action,
    ChangeAckWait,
    Leave,
    MakeAnew,
    Publish,
    Pull,
    Restart,
    Say,
    Script,
    lasting,
)
from .trace import Trace

APART = 0.6 * SLOT
"""Least time (s) between two actions: they go over different connections, and the second can be about
a delivery of the first."""


async def play(scripts: Sequence[Script], directory: Path) -> list[Trace | None]:
    """Play scripts on a nats-server and return their traces; None for each during which the machine was late.

    All must have the same restart.
    """
    (restart,) = {script.restart for script in scripts}
    server = NatsServer(directory)
    stages = [_Stage(f"s{number}", script) for number, script in enumerate(scripts)]
    try:
        await trio.to_thread.run_sync(server.start)
        await _Theatre(server, stages, restart).run()
    finally:
        server.kill()
    return [None if stage.late > LATE else stage.trace for stage in stages]


@dataclass(slots=True)
class _Stage:
    """A stream for one script, and its trace."""

    name: str
    script: Script
    trace: Trace = field(default_factory=Trace)
    acks: list[tuple[int, int, str]] = field(default_factory=list)
    """The ack subject of each delivery, in the order in which the server sent them, over two connections."""
    era: int = 0
    """Number of times that the server began to count deliveries again."""
    inboxes: list[tuple[int, str]] = field(default_factory=list)
    """Client and subscription of each pull."""
    said: int = 0
    ack_wait: int = 0
    late: float = 0.0
    """Greatest delay (s) of an action or an answer."""

    def config(self) -> dict[str, object]:
        """Of the consumer, as the worker makes it."""
        return {
            "durable_name": "c",
            "ack_policy": "explicit",
            "ack_wait": round(lasting(self.ack_wait) * 1e9),
            "deliver_policy": "all",
            "max_deliver": -1,
            "max_ack_pending": -1,
        }


class _Theatre:
    def __init__(self, server: NatsServer, stages: Sequence[_Stage], restart: Restart | None) -> None:
        self._server, self._stages, self._restart = server, stages, restart
        self._clients: list[Connection] = []
        self._start = 0.0
        self._there = trio.Event()

    async def run(self) -> None:
        with trio.move_on_after(2 * LAST * TICK + 10) as in_time:
            await self._run()
        if in_time.cancelled_caught:
            self._all_late()

    def _all_late(self) -> None:
        for stage in self._stages:
            stage.late = inf

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            await self._connect(nursery)
            async with trio.open_nursery() as making:
                for stage in self._stages:
                    making.start_soon(self._make, stage)
            self._start = ceil(time.time() + 0.05)
            async with trio.open_nursery() as playing:
                for stage in self._stages:
                    playing.start_soon(self._play, stage)
                if self._restart:
                    await self._end_and_begin(self._restart, nursery)
            await self._until(LAST * TICK)
            nursery.cancel_scope.cancel()

    async def _connect(self, nursery: trio.Nursery) -> None:
        """Two clients, and one more for the API."""
        self._clients = []
        for _ in range(3):
            connection = Connection(await trio.open_tcp_stream("127.0.0.1", self._server.port))
            self._clients.append(connection)
            nursery.start_soon(connection.run)
            await connection.flush()
        self._there.set()

    async def _end_and_begin(self, restart: Restart, nursery: trio.Nursery) -> None:
        await self._until(restart.time)
        self._there = trio.Event()
        for stage in self._stages:
            stage.era += 1
        end = self._server.stop if restart.how == "stop" else self._server.kill
        await trio.to_thread.run_sync(end)
        await self._until(restart.back - 0.48 * TICK)
        await trio.to_thread.run_sync(self._server.start)
        await self._connect(nursery)
        if self._now() > restart.back + 0.48 * TICK:
            self._all_late()

    def _now(self) -> float:
        return time.time() - self._start

    async def _until(self, at: float) -> None:
        while (left := at - self._now()) > 0:  # noqa: ASYNC110 -- the wall clock's time, which Trio does not know
            await trio.sleep(left)

    async def _make(self, stage: _Stage) -> None:
        name, stage.ack_wait = stage.name, stage.script.ack_wait
        api = self._clients[2]
        config = {"name": name, "subjects": [name], "retention": "workqueue", "storage": "file"}
        await api.request(f"$JS.API.STREAM.CREATE.{name}", config)
        await self._consumer(stage, "create")

    async def _consumer(self, stage: _Stage, action: str) -> None:
        body = {"stream_name": stage.name, "action": action, "config": stage.config()}
        await self._clients[2].request(f"$JS.API.CONSUMER.CREATE.{stage.name}.c", body)

    async def _play(self, stage: _Stage) -> None:
        before = -inf
        for at, action in stage.script.timetable():
            await self._until(at)
            await self._there.wait()
            now = self._now()
            cut_short = self._restart and at < self._restart.time <= now
            stage.late = max(stage.late, inf if cut_short or now - before < APART else now - at)
            await self._do(stage, action)
            before = now

    async def _do(self, stage: _Stage, action: Action | None) -> None:
        match action:
            case None:
                await self._look(stage)
            case Pull():
                self._pull(stage, action)
            case Say():
                self._say(stage, action)
            case Leave(client):
                for subscription in [subscription for owner, subscription in stage.inboxes if owner == client]:
                    self._clients[client].unsubscribe(subscription)
            case _:
                await self._administer(stage, action)
        for connection in self._clients:
            await connection.flush()

    async def _administer(self, stage: _Stage, action: Publish | MakeAnew | ChangeAckWait) -> None:
        match action:
            case Publish(count):
                api = self._clients[2]
                for _ in range(count):
                    api.publish(stage.name, api.expect(lambda _: None))
            case MakeAnew():
                stage.era += 1
                await self._clients[2].request(f"$JS.API.CONSUMER.DELETE.{stage.name}.c")
                await self._consumer(stage, "create")
            case ChangeAckWait(ack_wait):
                stage.ack_wait = ack_wait
                await self._consumer(stage, "update")

    def _pull(self, stage: _Stage, pull: Pull) -> None:
        client, where = self._clients[pull.client], f"pull-{len(stage.inboxes) + 1}"

        def hear(came: Came) -> None:
            if came.reply:
                _, _, _, _, count, sequence, number, *_ = came.reply.split(".")
                insort(stage.acks, (stage.era, int(number), came.reply))
                what = f"message {sequence}, delivery {count}"
            else:
                what = came.status
            stage.trace.note(where, came.at - self._start, what)

        inbox, subscription = client.subscribe(hear)
        stage.inboxes.append((pull.client, subscription))
        body = {"batch": pull.batch, "expires": round(lasting(pull.lasts) * 1e9)}
        client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stage.name}.c", inbox, json.dumps(body).encode())

    def _say(self, stage: _Stage, say: Say) -> None:
        if say.about >= len(stage.acks):
            return
        stage.said += 1
        where = f"said-{stage.said}"

        sent = self._now()

        def hear(came: Came) -> None:
            stage.late = max(stage.late, came.at - self._start - sent)
            stage.trace.note(where, came.at - self._start, came.status or "answered")

        client = self._clients[say.client]
        payload = say.verb.encode()
        if say.delay is not None:
            payload += b' {"delay": %d}' % round(lasting(say.delay) * 1e9)
        client.publish(stage.acks[-1 - say.about][2], client.expect(hear), payload)

    async def _look(self, stage: _Stage) -> None:
        api, at = self._clients[2], self._now()
        stream = await api.request(f"$JS.API.STREAM.INFO.{stage.name}")
        consumer = await api.request(f"$JS.API.CONSUMER.INFO.{stage.name}.c")
        numbers = {name: consumer[name] for name in ("num_pending", "num_ack_pending", "num_redelivered")}
        stage.trace.look(at, {"messages": stream["state"]["messages"], **numbers})
        stage.late = max(stage.late, self._now() - at)
