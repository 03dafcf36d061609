"""nats-py's client without a socket and without tasks, for bytes that are to be read at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription


@dataclass
class _Kept:
    """A message, and the callback that receives it."""

    hear: Callable[[Msg], None]
    messages: deque[Msg] = field(default_factory=deque)

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        self.messages.append(message)


class OurClient(Client):
    """nats-py's client, less what needs a socket or a task."""

    def __init__(self) -> None:
        super().__init__()
        self._status = Client.CONNECTED
        self._error_cb = self._note
        self.said: list[tuple[str, bytes, str]] = []
        self.noted: list[str] = []
        self._kept: dict[int, _Kept] = {}

    async def _note(self, error: object) -> None:
        self.noted.append(str(error))

    async def _process_err(self, err_msg: str) -> None:
        await self._note(err_msg)

    async def _send_command(self, cmd: bytes, *_: object) -> None:
        """PONG, UNSUB."""

    async def _flush_pending(self, *_: object) -> None:
        """There is no socket."""

    def new_inbox(self) -> str:
        return f"_INBOX.{self._sid}"

    async def subscribe(  # type: ignore[override]  # only what the worker uses
        self, subject: str, *, future: Any
    ) -> Subscription:
        self._sid += 1
        self._kept[self._sid] = kept = _Kept(future._on_message)  # noqa: SLF001 -- what it fails on must be seen here
        self._subs[self._sid] = Subscription(self, self._sid, subject, future=kept)  # type: ignore[arg-type]  # as the worker does
        return self._subs[self._sid]

    async def publish(  # type: ignore[override]  # the same
        self, subject: str, payload: bytes = b"", reply: str = ""
    ) -> None:
        self.said.append((subject, payload, reply))

    async def read(self, piece: bytes) -> bool:
        """Read *data*, call the subscriptions of its messages, and return whether nats-py could read it."""
        read = False
        try:
            await self._ps.parse(piece)
            read = True
        except Exception as error:  # noqa: BLE001 -- as its reading task, which ends; the client then connects again
            await self._note(type(error).__name__)
        for kept in list(self._kept.values()):
            while kept.messages:
                kept.hear(kept.messages.popleft())
        return read

    def begin_anew(self) -> None:
        """Forget the rest of the last connection."""
        self._ps.reset()

    def listens(self, sid: int) -> bool:
        return sid in self._subs


@dataclass
class Line:
    """A connection, for the consumer and the outbox."""

    client: OurClient = field(default_factory=OurClient)
    up: bool = True
    complaints: list[str] = field(default_factory=list)

    def report_failure(self, doing: str, error: object) -> None:
        self.complaints.append(f"{doing}: {error}")
