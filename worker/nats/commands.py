"""The commands that act on one function: pause, resume and purge, each over a connection of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from .. import __version__
from ..policy.names import label_of
from ..ports import BrokerUnavailableError, MisconfiguredError
from ..settings import Settings
from . import topology
from .connection import connected
from .function_state import FunctionStates, PauseState
from .jetstream import JetStream
from .layout import MODE
from .presence import WorkerReport, ask_workers
from .wire import ApiError, ErrorCode


class NotSupportedError(Exception):
    """The queue's mode rules the command out. The text names the remedy."""


@dataclass(frozen=True, slots=True)
class FunctionMessages:
    """The messages that the queue stores for one function."""

    by_subject: dict[str, int]
    """Messages on each of the function's subjects, waiting or running."""
    on_bare_subject: int
    """Messages on the bare subject, which may be of any function."""

    @property
    def total(self) -> int:
        """The messages on all of the function's subjects."""
        return sum(self.by_subject.values())


@dataclass(frozen=True, slots=True)
class Session:
    """A connection for one command."""

    jetstream: JetStream
    settings: Settings
    stream: str
    """The name that the queue's stream has at the server."""
    states: FunctionStates


@asynccontextmanager
async def session(settings: Settings) -> AsyncIterator[Session]:
    """Connect for the block.

    Raises:
        worker.ports.BrokerUnavailableError: there is no connection, no answer, or JetStream answers with an error.
        worker.ports.MisconfiguredError: the server refuses the credentials, or there is no such queue.
    """
    async with connected(settings, f"queue-worker-command {__version__}") as connection:
        jetstream = JetStream(connection)
        try:
            found = await topology.as_named(jetstream, settings, lambda _: None)
            yield Session(jetstream, settings, found.nats_stream, FunctionStates(jetstream, settings))
        except ApiError as error:
            if error.err_code == ErrorCode.STREAM_NOT_FOUND:
                raise MisconfiguredError(
                    f"there is no stream {settings.nats_stream}: start a worker, which makes it, or check nats_stream"
                ) from None
            raise BrokerUnavailableError(f"NATS refuses: {error}") from None


@dataclass(frozen=True, slots=True)
class StoredPauses:
    """The result of a pause or resume, which is stored."""

    paused: dict[str, PauseState]
    """The state of each paused function."""
    workers: WorkerReport


async def pause(opened: Session, label: str) -> StoredPauses:
    """Store that *label* is paused, and let the workers confirm that. Static mode raises NotSupportedError."""
    await _require_function_mode(opened)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    await opened.states.store(label, PauseState(paused=True, since=now))
    return await _read_and_confirm(opened, f"{label} is stored as paused")


async def resume(opened: Session, label: str) -> StoredPauses:
    """Store that the function is not paused, if it ever was, and let the workers confirm that."""
    await opened.states.read_changes()
    if label in opened.states.pauses:
        await opened.states.store(label, PauseState(paused=False))
    return await _read_and_confirm(opened, f"{label} is stored as not paused")


async def find_messages(opened: Session, label: str) -> FunctionMessages:
    """Count the messages that the queue stores for the function *label*."""
    by_subject = (await opened.jetstream.stream_with_subjects(opened.stream)).state.subjects
    queue, default = opened.settings.queue_name, opened.settings.default_function_name
    own = {
        subject: count
        for subject, count in by_subject.items()
        if subject.startswith(f"{queue}.") and label in (found := label_of(queue, subject), f"{found}.{default}")
    }
    return FunctionMessages(own, by_subject.get(queue, 0))


async def purge(opened: Session, label: str) -> int:
    """Delete all messages of the function *label*; return their number."""
    found = await find_messages(opened, label)
    return sum([await opened.jetstream.purge(opened.stream, subject) for subject in found.by_subject])


async def _require_function_mode(opened: Session) -> None:
    consumers, _ = await opened.jetstream.consumers(opened.stream)
    # A consumer without a recorded mode, such as OpenFaaS's own, is shared by all functions.
    modes = {consumer.config.metadata.get(MODE, "static") for consumer in consumers}
    queue = opened.settings.queue_name
    if "static" in modes:
        reason = f"the queue {queue} is in static mode"
    elif not modes and opened.settings.scaling_mode == "static":
        reason = f"the queue {queue} has no consumers, and scaling_mode is static"
    else:
        return
    raise NotSupportedError(
        f"{reason}: there all functions share one consumer, and to hold back one of them would"
        " change the order of the others. Set scaling_mode=function for the workers and for this command"
    )


async def _read_and_confirm(opened: Session, stored: str) -> StoredPauses:
    try:
        await opened.states.read_changes()
    except BrokerUnavailableError as error:
        raise BrokerUnavailableError(f"{stored}, but whether workers have applied it is not known: {error}") from None
    paused = {label: state for label, state in sorted(opened.states.pauses.items()) if state.paused}
    return StoredPauses(paused, await ask_workers(opened.jetstream.connection, opened.settings.queue_name))
