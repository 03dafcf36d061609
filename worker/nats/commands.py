"""What an operator does to one function from the command line: a connection for a moment, and what is done over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import trio_asyncio
from trio_asyncio import aio_as_trio

from .. import __version__
from ..config import Settings, without_password
from ..events import BrokerFailure, Event
from ..policy.names import label_of
from ..ports import BrokerUnavailableError, MisconfiguredError
from . import topology
from .connection import Connection
from .function_state import FunctionStates, PauseState, encode, store, subject_for
from .jetstream import JetStream
from .layout import MODE
from .options import connect_options
from .wire import ApiError, ErrorCode

T = TypeVar("T")

_CONNECT_WITHIN = 5.0
"""Seconds for the connection: a person waits for it."""


class NotSupportedError(Exception):
    """It cannot be done to this queue. The text says what to do instead."""


@dataclass(frozen=True, slots=True)
class FunctionMessages:
    """What the queue holds of one function."""

    by_subject: dict[str, int]
    """Messages on each of its subjects, waiting or running."""
    untold: int
    """Messages on the bare subject, which tells no function."""

    @property
    def messages(self) -> int:
        """On all of its subjects."""
        return sum(self.by_subject.values())


@dataclass(frozen=True, slots=True)
class Session:
    """Where something is done."""

    connection: Connection
    settings: Settings
    stream: str
    """The queue's stream, by its name at the server."""


async def connected(settings: Settings, do: Callable[[Session], Awaitable[T]]) -> T | Exception:
    """Connect, do it, close; what went wrong is returned.

    That is a :class:`worker.ports.BrokerUnavailableError`, :class:`worker.ports.MisconfiguredError` or
    :class:`NotSupportedError`.
    """
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(lambda *_: None)  # a connection that ends badly is seen where it is used
        return await aio_as_trio(_connected)(settings, do)  # type: ignore[no-any-return]  # trio-asyncio has no types


async def _connected(settings: Settings, do: Callable[[Session], Awaitable[T]]) -> T | Exception:
    trouble = ""

    def hear(event: Event) -> None:
        nonlocal trouble
        if isinstance(event, BrokerFailure):
            trouble = f" ({event.error})"

    connection = Connection(connect_options(settings, name=f"queue-worker-command {__version__}"), hear)
    try:
        async with asyncio.timeout(_CONNECT_WITHIN):
            await connection.open()
        found = await topology.as_named(JetStream(connection), settings, hear)
        return await do(Session(connection, settings, found.nats_stream))
    except TimeoutError:
        servers = without_password(",".join(settings.nats_servers))
        return BrokerUnavailableError(
            f"no NATS at {servers} within {_CONNECT_WITHIN:g} s{trouble}:"
            " is it running, and do nats_host and nats_port, or nats_url, say where?"
        )
    except ApiError as error:
        return BrokerUnavailableError(f"NATS refuses: {error}")
    except (BrokerUnavailableError, MisconfiguredError, NotSupportedError) as error:
        return error
    finally:
        await connection.close()


async def pause(place: Session, label: str) -> dict[str, PauseState]:
    """Remember that the function *label* is paused; all that are.

    Raises:
        RequestRejectedError: the queue is in static mode.
    """
    await _must_be_in_function_mode(place)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return await _set(place, label, PauseState(paused=True, since=now))


async def resume(place: Session, label: str) -> dict[str, PauseState]:
    """Remember that it is not; all that are. Where nothing was ever remembered of it, nothing is."""
    if label not in (known := await _known(place)):
        return _paused(known)
    return await _set(place, label, PauseState(paused=False))


async def held(place: Session, label: str) -> FunctionMessages:
    """What the queue holds of the function *label*.

    Raises:
        MisconfiguredError: there is no such queue.
    """
    by_subject: dict[str, int] = {}
    while True:
        info = await _stream(place, {"subjects_filter": ">", "offset": len(by_subject)})
        page = info["state"].get("subjects") or {}
        by_subject |= page
        if not page or len(by_subject) >= info.get("total", 0):
            break
    queue, default = place.settings.queue_name, place.settings.default_function_name
    return FunctionMessages(
        {
            subject: count
            for subject, count in by_subject.items()
            if subject.startswith(f"{queue}.") and label in (told := label_of(queue, subject), f"{told}.{default}")
        },
        by_subject.get(queue, 0),
    )


async def purge(place: Session, label: str) -> int:
    """Delete all messages of the function *label*; how many they were."""
    purged = 0
    for subject in (await held(place, label)).by_subject:
        answer = await place.connection.ask(f"STREAM.PURGE.{place.stream}", {"filter": subject})
        purged += answer["purged"]
    return purged


async def _must_be_in_function_mode(place: Session) -> None:
    await _stream(place)
    modes, queue = await _modes(place), place.settings.queue_name
    if "static" in modes:
        why = f"the queue {queue} is in static mode"
    elif not modes and place.settings.scaling_mode == "static":
        why = f"the queue {queue} has no consumers, and scaling_mode is static"
    else:
        return
    raise NotSupportedError(
        f"{why}: there all functions share one consumer, and to hold back one of them would"
        " change the order of the others. Set scaling_mode=function for the workers and for this command"
    )


async def _modes(place: Session) -> set[str]:
    """In which modes the queue's consumers were made; one that does not say so, as OpenFaaS's own, is shared by all."""
    modes: set[str] = set()
    seen = 0
    while True:
        page = await place.connection.ask(f"CONSUMER.LIST.{place.stream}", {"offset": seen})
        consumers = page.get("consumers") or []
        modes |= {str((each["config"].get("metadata") or {}).get(MODE, "static")) for each in consumers}
        seen += len(consumers)
        if not consumers or seen >= page.get("total", 0):
            return modes


async def _stream(place: Session, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return await place.connection.ask(f"STREAM.INFO.{place.stream}", payload)
    except ApiError as error:
        if error.err_code != ErrorCode.STREAM_NOT_FOUND:
            raise
        raise MisconfiguredError(
            f"there is no stream {place.stream}: start a worker, which makes it, or check nats_stream"
        ) from None


async def _set(place: Session, label: str, control: PauseState) -> dict[str, PauseState]:
    await store(
        JetStream(place.connection), place.settings, subject_for(place.settings.queue_name, label), encode(control)
    )
    return _paused(await _known(place))


async def _known(place: Session) -> dict[str, PauseState]:
    controls = FunctionStates(JetStream(place.connection), place.settings)
    await controls.read_changes()
    return dict(controls.pauses)


def _paused(known: dict[str, PauseState]) -> dict[str, PauseState]:
    return {label: control for label, control in sorted(known.items()) if control.paused}
