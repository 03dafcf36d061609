"""The layout of a queue, read from the server's list of its consumers. Nothing here waits.

A *layout* is ``function``, a consumer for each subject that holds messages, or ``static/<n>``, a shared consumer for
each of n partitions. The consumers show which one a queue is in. When the layout changes, a consumer of the old one is
*retired*: its filter is changed to match nothing. Consumers deliver in order. So a retired one *holds* every message
that its former filter covered, up to its *mark*, the last sequence that it had delivered. A new consumer may deliver
such a message, and it must not run twice. All have ended once the retired one has no pending ack.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from ..policy.names import covers
from .wire import ConsumerInfo

MODE = "queue-worker.mode"
"""The consumer's metadata that records the queue's scaling mode."""
PARTITIONS = "queue-worker.partitions"
"""The metadata that records the number of partitions."""
RETIRED = "retired"
"""The mode of a retired consumer, whose metadata also has the following."""
_MARK, _WAS, _FOR, _AT = "queue-worker.mark", "queue-worker.was", "queue-worker.for", "queue-worker.at"
_FROM = "queue-worker.from"
"""Of one that was retired without a pause, and has no mark yet: the last sequence that it had delivered before, and the
number of its deliveries."""
UNMARKED = 2**63 - 1
"""The mark of a retired consumer until its mark is known: it holds all messages."""
FUNCTION = "function"


def static(partitions: int) -> str:
    """Return the layout of shared consumers, one for each partition."""
    return f"static/{partitions}"


def partitions_of(layout: str) -> int:
    """Return the number of partitions of a static layout."""
    return _number(layout.partition("/")[2], 1)


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A consumer, as ``CONSUMER.INFO`` describes it."""

    name: str
    layout: str
    """``function``, ``static/<n>``, or ``retired``."""
    subjects: tuple[str, ...]
    """Its filter; of a retired one, its former filter. Empty where it covers all subjects."""
    last_delivered: int
    """The last sequence that it delivered for the first time."""
    num_ack_pending: int
    num_pending: int
    ack_wait: float
    """Seconds."""
    mark: int = 0
    """Of a retired one: the last sequence that it had delivered when it was retired."""
    retired_for: str = ""
    """Of a retired one: the layout that replaces it."""
    retired_at: int = 0
    """Of a retired one: when that was (ns since the epoch, the server's clock)."""

    def covers(self, subject: str) -> bool:
        """Return whether its present or former filter lets a subject through."""
        return not self.subjects or any(covers(each, subject) for each in self.subjects)


def overlap(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Return whether two sets of filters let a common subject through."""
    return not (some and others) or any(covers(one, other) or covers(other, one) for one in some for other in others)


def consumer_state(info: ConsumerInfo) -> ConsumerState:
    """Read a consumer's info."""
    metadata, filters = info.config.metadata, info.config.filters
    one = len(filters) == 1 and not {"*", ">"} & set(filters[0].split("."))
    mode = metadata.get(MODE) or (FUNCTION if one else "static")
    return ConsumerState(
        name=info.name,
        layout=static(_number(metadata.get(PARTITIONS), 1)) if mode == "static" else mode,
        subjects=tuple(json.loads(metadata.get(_WAS, "[]"))) if mode == RETIRED else filters,
        last_delivered=info.delivered.stream_seq,
        num_ack_pending=info.num_ack_pending,
        num_pending=info.num_pending,
        ack_wait=info.ack_wait,
        mark=_number(metadata.get(_MARK), 0),
        retired_for=metadata.get(_FOR, ""),
        retired_at=_number(metadata.get(_AT), 0),
    )


NO_FILTER: Mapping[str, Any] = {"filter_subject": None, "filter_subjects": None, "pause_until": None}
"""Changes of a configuration that remove a consumer's filter; and a pause, which ends by itself."""


def retirement(queue: str, info: ConsumerInfo, layout: str, now: int, *, paused: bool = True) -> dict[str, Any]:
    """Return the changes of a consumer's configuration that retire it.

    *info* was received while the consumer is *paused*, because its mark must not move any more; else it gets no mark
    yet. *layout* replaces it. *now* is the server's time (ns since the epoch).
    """
    found = consumer_state(info)
    marks = {MODE: RETIRED, _MARK: str(found.last_delivered), _WAS: json.dumps(found.subjects), _FOR: layout}
    if not paused:
        marks |= {_MARK: str(UNMARKED), _FROM: f"{info.delivered.stream_seq}/{info.delivered.consumer_seq}"}
    return {
        **NO_FILTER,
        "filter_subject": f"RETIRED.{queue}.{found.name}",
        "metadata": info.config.metadata | marks | {_AT: str(now)},
    }


def delivered_since(info: ConsumerInfo) -> tuple[int, int]:
    """Return from where on a retired consumer without a mark has delivered, and how often at most."""
    sequence, _, deliveries = info.config.metadata.get(_FROM, "").partition("/")
    return _number(sequence, 0), info.delivered.consumer_seq - _number(deliveries, 0)


def marked(info: ConsumerInfo, mark: int) -> dict[str, Any]:
    """Return the changes of a retired consumer's configuration that set its mark."""
    return {"metadata": info.config.metadata | {_MARK: str(mark)}}


@dataclass(frozen=True, slots=True)
class ConsumerSet:
    """All consumers of a stream."""

    live: tuple[ConsumerState, ...] = ()
    retired: tuple[ConsumerState, ...] = ()
    foreign: tuple[ConsumerState, ...] = ()
    """Consumers that were created by others for purposes of their own: they are left alone."""

    @classmethod
    def of(cls, infos: Iterable[ConsumerInfo], durable: str) -> ConsumerSet:
        """Sort the entries of ``CONSUMER.LIST``.

        A consumer belongs to the workers where its metadata record a mode, or where it has the name that the settings
        give: OpenFaaS's own worker created that one.
        """
        live, retired, foreign = list[ConsumerState](), list[ConsumerState](), list[ConsumerState]()
        for info in infos:
            known, found = MODE in info.config.metadata or info.name == durable, consumer_state(info)
            (foreign if not known else retired if found.layout == RETIRED else live).append(found)
        return cls(tuple(live), tuple(retired), tuple(foreign))

    @property
    def current(self) -> str | None:
        """The layout that the queue is in, or that the last change of layout was begun for; None without consumers."""
        if begun := [each for each in self.retired if each.retired_for]:
            return max(begun, key=lambda each: (each.retired_at, each.name)).retired_for
        shared = {each.layout for each in self.live if each.layout != FUNCTION}
        return max(shared) if shared else FUNCTION if self.live else None

    def is_held(self, subject: str, sequence: int, by: str) -> bool:
        """Return whether a message that the consumer *by* delivered is held by a consumer that was retired earlier."""
        before = next((each.retired_at for each in self.retired if each.name == by), inf)
        return any(sequence <= each.mark and each.retired_at < before and each.covers(subject) for each in self.retired)


def undelivered(consumers: ConsumerSet, stored: Mapping[str, int]) -> dict[str, int]:
    """Return for each live consumer how many of the *stored* messages it will not deliver, where there are some."""
    found = {}
    for each in consumers.live:
        literal = len(each.subjects) == 1 and not {"*", ">"} & {*each.subjects[0].split(".")}
        messages = (
            stored.get(each.subjects[0], 0)
            if literal
            else sum(number for subject, number in stored.items() if each.covers(subject))
        )
        if (missing := messages - each.num_pending - each.num_ack_pending) > 0:
            found[each.name] = missing
    return found


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else otherwise
