"""Scripts played on a real nats-server, many at the same time: each has a stream and a consumer of its own.

They begin at a whole second of the wall clock, because a server that restarts counts in whole seconds.
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

from .connection import Connection, ReceivedMessage
from .script import (
    END,
    MAX_DELAY,
    STEP,
    TICK,
    Acknowledge,
    Action,
    ChangeAckWait,
    Publish,
    Pull,
    RecreateConsumer,
    Restart,
    Script,
    Unsubscribe,
    duration,
)
from .trace import Trace

MIN_INTERVAL = 0.6 * STEP
"""Least time (s) between two actions: they use different connections, and the second may concern
a delivery of the first."""


async def play(scripts: Sequence[Script], directory: Path) -> list[Trace | None]:
    """Play scripts on a nats-server and return their traces; None for each during which the machine was late.

    All must have the same restart.
    """
    (restart,) = {script.restart for script in scripts}
    server = NatsServer(directory)
    runs = [_ScriptRun(f"s{number}", script) for number, script in enumerate(scripts)]
    try:
        await trio.to_thread.run_sync(server.start)
        await _Player(server, runs, restart).run()
    finally:
        server.kill()
    return [None if run.delay > MAX_DELAY else run.trace for run in runs]


@dataclass(slots=True)
class _ScriptRun:
    """A stream for one script, and its trace."""

    name: str
    script: Script
    trace: Trace = field(default_factory=Trace)
    acks: list[tuple[int, int, str]] = field(default_factory=list)
    """The ack subject of each delivery, in the order in which the server sent them, over two connections."""
    epoch: int = 0
    """Number of times that the server began again to count deliveries."""
    inboxes: list[tuple[int, str]] = field(default_factory=list)
    """Client and subscription of each pull request."""
    num_acks: int = 0
    ack_wait: int = 0
    delay: float = 0.0
    """Greatest delay (s) of an action or a response."""

    def config(self) -> dict[str, object]:
        """Return the configuration of the consumer, as the worker creates it."""
        return {
            "durable_name": "c",
            "ack_policy": "explicit",
            "ack_wait": round(duration(self.ack_wait) * 1e9),
            "deliver_policy": "all",
            "max_deliver": -1,
            "max_ack_pending": -1,
        }


class _Player:
    def __init__(self, server: NatsServer, runs: Sequence[_ScriptRun], restart: Restart | None) -> None:
        self._server, self._runs, self._restart = server, runs, restart
        self._clients: list[Connection] = []
        self._start = 0.0
        self._connected = trio.Event()

    async def run(self) -> None:
        with trio.move_on_after(2 * END * TICK + 10) as in_time:
            await self._run()
        if in_time.cancelled_caught:
            self._mark_all_late()

    def _mark_all_late(self) -> None:
        for run in self._runs:
            run.delay = inf

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            await self._connect(nursery)
            async with trio.open_nursery() as creating:
                for run in self._runs:
                    creating.start_soon(self._create, run)
            self._start = ceil(time.time() + 0.05)
            async with trio.open_nursery() as playing:
                for run in self._runs:
                    playing.start_soon(self._play, run)
                if self._restart:
                    await self._restart_server(self._restart, nursery)
            await self._until(END * TICK)
            nursery.cancel_scope.cancel()

    async def _connect(self, nursery: trio.Nursery) -> None:
        """Open the connections of two clients, and one more for the API."""
        self._clients = []
        for _ in range(3):
            connection = Connection(await trio.open_tcp_stream("127.0.0.1", self._server.port))
            self._clients.append(connection)
            nursery.start_soon(connection.run)
            await connection.flush()
        self._connected.set()

    async def _restart_server(self, restart: Restart, nursery: trio.Nursery) -> None:
        await self._until(restart.time)
        self._connected = trio.Event()
        for run in self._runs:
            run.epoch += 1
        end = self._server.stop if restart.how == "stop" else self._server.kill
        await trio.to_thread.run_sync(end)
        await self._until(restart.back - 0.48 * TICK)
        await trio.to_thread.run_sync(self._server.start)
        await self._connect(nursery)
        if self._now() > restart.back + 0.48 * TICK:
            self._mark_all_late()

    def _now(self) -> float:
        return time.time() - self._start

    async def _until(self, at: float) -> None:
        while (left := at - self._now()) > 0:  # noqa: ASYNC110 -- the wall clock's time, which is not Trio's
            await trio.sleep(left)

    async def _create(self, run: _ScriptRun) -> None:
        name, run.ack_wait = run.name, run.script.ack_wait
        api = self._clients[2]
        config = {"name": name, "subjects": [name], "retention": "workqueue", "storage": "file"}
        await api.request(f"$JS.API.STREAM.CREATE.{name}", config)
        await self._consumer(run, "create")

    async def _consumer(self, run: _ScriptRun, action: str) -> None:
        body = {"stream_name": run.name, "action": action, "config": run.config()}
        await self._clients[2].request(f"$JS.API.CONSUMER.CREATE.{run.name}.c", body)

    async def _play(self, run: _ScriptRun) -> None:
        before = -inf
        for at, action in run.script.timetable():
            await self._until(at)
            await self._connected.wait()
            now = self._now()
            cut_short = self._restart and at < self._restart.time <= now
            run.delay = max(run.delay, inf if cut_short or now - before < MIN_INTERVAL else now - at)
            await self._do(run, action)
            before = now

    async def _do(self, run: _ScriptRun, action: Action | None) -> None:
        match action:
            case None:
                await self._read_numbers(run)
            case Pull():
                self._pull(run, action)
            case Acknowledge():
                self._acknowledge(run, action)
            case Unsubscribe(client):
                for subscription in [subscription for owner, subscription in run.inboxes if owner == client]:
                    self._clients[client].unsubscribe(subscription)
            case _:
                await self._administer(run, action)
        for connection in self._clients:
            await connection.flush()

    async def _administer(self, run: _ScriptRun, action: Publish | RecreateConsumer | ChangeAckWait) -> None:
        match action:
            case Publish(count):
                api = self._clients[2]
                for _ in range(count):
                    api.publish(run.name, api.new_reply_subject(lambda _: None))
            case RecreateConsumer():
                run.epoch += 1
                await self._clients[2].request(f"$JS.API.CONSUMER.DELETE.{run.name}.c")
                await self._consumer(run, "create")
            case ChangeAckWait(ack_wait):
                run.ack_wait = ack_wait
                await self._consumer(run, "update")

    def _pull(self, run: _ScriptRun, pull: Pull) -> None:
        client, where = self._clients[pull.client], f"pull-{len(run.inboxes) + 1}"

        def on_message(message: ReceivedMessage) -> None:
            if message.reply:
                _, _, _, _, count, sequence, number, *_ = message.reply.split(".")
                insort(run.acks, (run.epoch, int(number), message.reply))
                what = f"message {sequence}, delivery {count}"
            else:
                what = message.status
            run.trace.note(where, message.at - self._start, what)

        inbox, subscription = client.subscribe(on_message)
        run.inboxes.append((pull.client, subscription))
        body = {"batch": pull.batch, "expires": round(duration(pull.expires) * 1e9)}
        client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{run.name}.c", inbox, json.dumps(body).encode())

    def _acknowledge(self, run: _ScriptRun, ack: Acknowledge) -> None:
        if ack.delivery_index >= len(run.acks):
            return
        run.num_acks += 1
        where = f"ack-{run.num_acks}"

        sent = self._now()

        def on_message(message: ReceivedMessage) -> None:
            run.delay = max(run.delay, message.at - self._start - sent)
            run.trace.note(where, message.at - self._start, message.status or "confirmed")

        client = self._clients[ack.client]
        payload = ack.verb.encode()
        if ack.delay is not None:
            payload += b' {"delay": %d}' % round(duration(ack.delay) * 1e9)
        client.publish(run.acks[-1 - ack.delivery_index][2], client.new_reply_subject(on_message), payload)

    async def _read_numbers(self, run: _ScriptRun) -> None:
        api, at = self._clients[2], self._now()
        stream = await api.request(f"$JS.API.STREAM.INFO.{run.name}")
        consumer = await api.request(f"$JS.API.CONSUMER.INFO.{run.name}.c")
        numbers = {name: consumer[name] for name in ("num_pending", "num_ack_pending", "num_redelivered")}
        run.trace.note_numbers(at, {"messages": stream["state"]["messages"], **numbers})
        run.delay = max(run.delay, self._now() - at)
