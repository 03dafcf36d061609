"""How a queue is divided among consumers, read from what the server lists. Values in, values out; nothing here waits.

A *layout* is ``function``, a consumer for each subject that holds messages, or ``static/<n>``, a shared consumer for
each of n partitions. Which one a queue is in is told by its consumers. One that belongs to another layout than is
wanted is *retired*: its filter is changed to match nothing, so that it hands out nothing new, while it keeps what it
has handed out: what runs is acknowledged and extended through it, back-offs and counts are kept, and what has to be
attempted again comes from it. Once it keeps nothing it is deleted.

Consumers hand out in order. So all that is stored up to a retired consumer's *mark*, the last sequence that it had
handed out, and was covered by its filters, is its business alone, whatever the new consumers hand out of it; and when
it keeps nothing, all of that is over. (JetStream does not take a message off a work queue when one consumer has its
acknowledgement and another one covers it: :mod:`worker.nats.finished_deleter` does.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from ..policy.names import covers

MODE = "queue-worker.mode"
"""The consumer's metadata that records the queue's scaling mode."""
PARTITIONS = "queue-worker.partitions"
"""The same, into how many partitions the queue is divided."""
RETIRED = "retired"
"""The mode of a retired consumer, whose metadata also tells the following."""
_MARK, _WAS, _FOR, _AT = "queue-worker.mark", "queue-worker.was", "queue-worker.for", "queue-worker.at"
FUNCTION = "function"


def static(partitions: int) -> str:
    """The layout of shared consumers."""
    return f"static/{partitions}"


def partitions_of(layout: str) -> int:
    """Return the number of partitions of a static layout."""
    return _number(layout.partition("/")[2], 1)


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A consumer, as the server tells of it."""

    name: str
    layout: str
    """To which it belongs: ``function``, ``static/<n>``, or ``retired``."""
    subjects: tuple[str, ...]
    """Subjects that it is for, or was; none where it is for all."""
    last_delivered: int
    """The last sequence that it has handed out for the first time."""
    num_ack_pending: int
    """Messages that it has handed out, and that are not over."""
    num_pending: int
    """Messages that it has never handed out."""
    ack_wait: float
    mark: int = 0
    """Of a retired one: the last sequence that it had handed out when it was retired."""
    retired_for: str = ""
    """Of a retired one: the layout for which it was."""
    retired_at: int = 0
    """When it was (ns since the epoch, the server's clock)."""
    has_mode: bool = False
    """Whether its metadata tell of a mode, so that it is a worker's."""

    def covers(self, subject: str) -> bool:
        """Whether it covers, or covered, a subject."""
        return not self.subjects or any(covers(each, subject) for each in self.subjects)

    def overlaps(self, other: ConsumerState) -> bool:
        """Whether there may be a subject that both cover, or covered."""
        return overlap(self.subjects, other.subjects)


def filters_of(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The subjects that a consumer is for now; none where it is for all."""
    config = info["config"]
    return tuple(config.get("filter_subjects") or filter(None, [config.get("filter_subject")]))


def overlap(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether filters let a subject through that others do, too."""
    return not (some and others) or any(covers(one, other) or covers(other, one) for one in some for other in others)


def consumer_state(info: Mapping[str, Any]) -> ConsumerState:
    """From an answer of ``CONSUMER.INFO``, or an entry of ``CONSUMER.LIST``."""
    config = info["config"]
    metadata = config.get("metadata") or {}
    filters = filters_of(info)
    one = len(filters) == 1 and not {"*", ">"} & set(filters[0].split("."))
    mode = metadata.get(MODE) or (FUNCTION if one else "static")
    found = ConsumerState(
        name=info["name"],
        layout=static(_number(metadata.get(PARTITIONS), 1)) if mode == "static" else mode,
        subjects=filters,
        last_delivered=info["delivered"]["stream_seq"],
        num_ack_pending=info["num_ack_pending"],
        num_pending=info["num_pending"],
        ack_wait=config["ack_wait"] / 1e9,
        has_mode=MODE in metadata,
    )
    if mode != RETIRED:
        return found
    was = json.loads(metadata.get(_WAS, "[]"))
    return ConsumerState(
        found.name,
        RETIRED,
        tuple(was),
        found.last_delivered,
        found.num_ack_pending,
        found.num_pending,
        found.ack_wait,
        _number(metadata.get(_MARK), 0),
        metadata.get(_FOR, ""),
        _number(metadata.get(_AT), 0),
    )


def retired_config(queue: str, info: Mapping[str, Any], layout: str, now: int) -> dict[str, Any]:
    """The configuration that retires a consumer, which must stand still.

    Args:
        queue: its name.
        info: an answer of ``CONSUMER.INFO``, got since the consumer stands still.
        layout: the one that is wanted instead.
        now: ns since the epoch.
    """
    found = consumer_state(info)
    config = {
        key: value
        for key, value in info["config"].items()
        if key not in ("filter_subject", "filter_subjects", "pause_until")
    }
    return config | {
        "filter_subject": f"RETIRED.{queue}.{found.name}",
        "metadata": (config.get("metadata") or {})
        | {
            MODE: RETIRED,
            _MARK: str(found.last_delivered),
            _WAS: json.dumps(found.subjects),
            _FOR: layout,
            _AT: str(now),
        },
    }


@dataclass(frozen=True, slots=True)
class ConsumerSet:
    """All consumers of a stream."""

    live: tuple[ConsumerState, ...] = ()
    retired: tuple[ConsumerState, ...] = ()
    foreign: tuple[ConsumerState, ...] = ()
    """What others made for purposes of their own: it is left alone."""

    @classmethod
    def of(cls, infos: Iterable[Mapping[str, Any]], durable: str) -> ConsumerSet:
        """From the entries of ``CONSUMER.LIST``.

        Ours are those that say so, and what is named as the settings have it: OpenFaaS's own worker made that.
        """
        live, retired, foreign = list[ConsumerState](), list[ConsumerState](), list[ConsumerState]()
        for info in infos:
            found = consumer_state(info)
            ours = MODE in (info["config"].get("metadata") or {}) or found.name == durable
            (foreign if not ours else retired if found.layout == RETIRED else live).append(found)
        return cls(tuple(live), tuple(retired), tuple(foreign))

    @property
    def current(self) -> str | None:
        """The layout that the queue is in, or was last begun to be brought into; None where it is in none."""
        if begun := [each for each in self.retired if each.retired_for]:
            return max(begun, key=lambda each: (each.retired_at, each.name)).retired_for
        shared = {each.layout for each in self.live if each.layout != FUNCTION}
        return max(shared) if shared else FUNCTION if self.live else None

    def is_held(self, subject: str, sequence: int, by: str) -> bool:
        """Whether a message, handed out *by* one consumer, is the business of another one, that was retired before."""
        before = next((each.retired_at for each in self.retired if each.name == by), inf)
        return any(sequence <= each.mark and each.retired_at < before and each.covers(subject) for each in self.retired)

    @property
    def finished(self) -> list[ConsumerState]:
        """The retired consumers that can be deleted: they keep nothing, and nothing theirs is an older one's."""
        return [
            each
            for each in self.retired
            if not each.num_ack_pending
            and not any(
                other.num_ack_pending and other.retired_at <= each.retired_at and each.overlaps(other)
                for other in self.retired
            )
        ]

    def misplaced(self, layout: str, durable: str, queue: str) -> list[ConsumerState]:
        """The live consumers that have no place in a layout. Those that are no worker's are none of our business.

        Args:
            layout: the one.
            durable: the name of the shared consumer.
            queue: the queue's name.
        """
        ours = [
            each for each in self.live if each.has_mode or each.name == durable or each.name.startswith(f"{durable}-")
        ]
        if layout == FUNCTION:
            return [each for each in ours if each.layout != FUNCTION]
        if layout == static(1):
            return [each for each in ours if each.name != durable]
        taken = [queue, *(f"{queue}.{part}.>" for part in range(_number(layout.partition("/")[2], 1)))]
        return [
            each
            for each in ours
            if each.layout != layout
            and not (each.layout == FUNCTION and not any(covers(one, each.subjects[0]) for one in taken))
        ]


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else otherwise
