"""Scripts played on the in-memory broker, on a virtual clock."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from tests.world.link import Link
from tests.world.requests import Client, HandedOut
from tests.world.server import Server
from worker.model import Ack, Nak, Settlement, Term

from .script import (
    LAST,
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

LATENCY = 0.001
"""Seconds that everything takes to be heard."""


def play(script: Script, *, forgetful: bool = True) -> Trace:
    """What is seen. *forgetful*: a server that is killed knows no more than what was surely written."""
    return trio.run(_Play(script, forgetful=forgetful).run, clock=MockClock(autojump_threshold=0))


@dataclass(slots=True)
class _Play:
    script: Script
    forgetful: bool
    trace: Trace = field(default_factory=Trace)
    server: Server = field(init=False)
    clients: list[Client] = field(default_factory=list)
    tokens: list[tuple[int, str]] = field(default_factory=list)
    """Of each delivery, in the order in which the server sent them."""
    pulls: int = 0
    said: int = 0

    async def run(self) -> Trace:
        self.server = Server(lasting(self.script.ack_wait))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.server.run)
            for _ in range(2):
                link = Link(0.0)
                client = Client(link, self._delivered, lambda _: None, status=self._status)
                nursery.start_soon(link.run)
                self.server.join(client)
                self.clients.append(client)
            if self.script.restart:
                nursery.start_soon(self._restart, self.script.restart)
            for at, action in self.script.timetable():
                await trio.sleep_until(at + LATENCY)
                self._do(action)
            await trio.sleep_until(LAST * TICK)
            nursery.cancel_scope.cancel()
        return self.trace

    async def _restart(self, restart: Restart) -> None:
        await trio.sleep_until(restart.time)
        down = restart.back - trio.current_time()
        if restart.how == "stop":
            self.server.restart(down)
        else:
            self.server.crash(down, forgets=self.forgetful)

    def _do(self, action: Action | None) -> None:
        server = self.server
        match action:
            case None:
                self.trace.look(trio.current_time(), server.numbers())
            case Publish(count):
                for _ in range(count):
                    server.publish(b"")
            case Pull(batch, lasts, client):
                self.pulls += 1
                reader = self.clients[client]
                server.pull(reader, reader.session, batch, lasting(lasts), f"pull-{self.pulls}")
            case Say(verb, about, delay):
                self._say(about, _settlement(verb, delay))
            case Leave(client):
                server.withdraw(self.clients[client])
            case MakeAnew():
                server.make_anew()
            case ChangeAckWait(ack_wait):
                server.configure(lasting(ack_wait))

    def _say(self, about: int, settlement: Settlement | None) -> None:
        if about < len(self.tokens):
            self.said += 1
            if self.server.say(self.tokens[-1 - about][1], settlement):
                self.trace.note(f"said-{self.said}", trio.current_time(), "answered")

    def _delivered(self, handed: HandedOut) -> None:
        insort(self.tokens, (int(handed.token.rpartition(".")[2]), handed.token))
        self.trace.note(handed.inbox, trio.current_time(), f"message {handed.id[0]}, delivery {handed.count}")

    def _status(self, inbox: str, status: str) -> None:
        self.trace.note(inbox, trio.current_time(), status)


def _settlement(verb: str, delay: int | None) -> Settlement | None:
    match verb:
        case "+ACK":
            return Ack()
        case "+TERM":
            return Term("")
        case "-NAK":
            return Nak(0.0 if delay is None else lasting(delay))
    return None
