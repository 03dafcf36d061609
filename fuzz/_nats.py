"""nats-py's client without a socket and without tasks, which reads bytes at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription


@dataclass
class _Queue:
    """Messages of a subscription, and the callback that receives them."""

    callback: Callable[[Msg], None]
    messages: deque[Msg] = field(default_factory=deque)

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        self.messages.append(message)


class OfflineClient(Client):
    """nats-py's client without its parts that need a socket or a task."""

    def __init__(self) -> None:
        super().__init__()
        self._status = Client.CONNECTED
        self._error_cb = self._record_error
        self.published: list[tuple[str, bytes, str]] = []
        self.errors: list[str] = []
        self._queues: dict[int, _Queue] = {}

    async def _record_error(self, error: object) -> None:
        self.errors.append(str(error))

    async def _process_err(self, err_msg: str) -> None:
        await self._record_error(err_msg)

    async def _send_command(self, cmd: bytes, *_: object) -> None:
        """Drop PONG and UNSUB."""

    async def _flush_pending(self, *_: object) -> None:
        """Do nothing, because there is no socket."""

    def new_inbox(self) -> str:
        return f"_INBOX.{self._sid}"

    async def subscribe(  # type: ignore[override]  # only what the worker uses
        self, subject: str, *, future: Any
    ) -> Subscription:
        self._sid += 1
        self._queues[self._sid] = queue = _Queue(future._on_message)  # noqa: SLF001 -- its exceptions must be raised here
        self._subs[self._sid] = Subscription(self, self._sid, subject, future=queue)  # type: ignore[arg-type]  # as the worker does
        return self._subs[self._sid]

    async def publish(  # type: ignore[override]  # the same
        self, subject: str, payload: bytes = b"", reply: str = ""
    ) -> None:
        self.published.append((subject, payload, reply))

    async def read(self, piece: bytes) -> bool:
        """Read *piece*, call the subscriptions of its messages, and return whether nats-py could read it."""
        read = False
        try:
            await self._ps.parse(piece)
            read = True
        except Exception as error:  # noqa: BLE001 -- as in its reading task, which ends; the client then reconnects
            await self._record_error(type(error).__name__)
        for queue in list(self._queues.values()):
            while queue.messages:
                queue.callback(queue.messages.popleft())
        return read

    def reset(self) -> None:
        """Drop the unparsed bytes of the last connection."""
        self._ps.reset()

    def is_subscribed(self, sid: int) -> bool:
        return sid in self._subs


@dataclass
class FakeConnection:
    """A connection for the consumer and the outbox."""

    client: OfflineClient = field(default_factory=OfflineClient)
    up: bool = True
    failures: list[str] = field(default_factory=list)

    def report_failure(self, doing: str, error: object) -> None:
        self.failures.append(f"{doing}: {error}")
