"""Decides what to change about a stream's consumers. Values in, actions out; nothing here waits.

One call looks at one observation. A change to a consumer makes the observation stale, so the list ends there: the
caller applies it, observes again, and calls again, until a list has :class:`Serve` in it. Every step may be applied
twice, by several workers at once, or be cut off by the death of a worker: the next observation shows what is still to
be done.

The order of the steps is what keeps messages safe when the layout changes:

1. *Retire* the consumers that have no place in the new layout. Before, their names are announced, so that every worker
   deletes what it ends through them. The most recent retirement names the new layout, so that a worker that dies
   half-way has decided it.
2. *Delete* the retired ones that hold nothing.
3. *Serve* the layout: bind the shared consumer, or find subjects and create a consumer for each on demand.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, count

from msgspec import Struct

from ..policy.names import covers
from .layout import FUNCTION, UNMARKED, ConsumerSet, ConsumerState, overlap, partitions_of, static

REFUSED = 10.0
"""Seconds without a leader after which a consumer may be one that no server accepted: an election takes a few."""
AT_A_TIME = 500
"""Idle consumers that are deleted in one go: until they are, nothing else about the consumers is looked at."""


class Wanted(Struct, frozen=True):
    """The settings that decide about consumers."""

    layout: str
    queue: str
    durable: str
    partition: int = 0

    def shared_names(self, layout: str) -> list[str]:
        """Return the names of all shared consumers of a static layout, one for each partition."""
        if layout == static(1):
            return [self.durable]
        return [f"{self.durable}-p{part}" for part in range(partitions_of(layout))]

    def is_named(self, name: str) -> bool:
        """Return whether a consumer has a name that workers of this queue give."""
        return name == self.durable or name.startswith(f"{self.durable}-")


class Observed(Struct, frozen=True):
    """The state of a stream's consumers, and of this worker."""

    consumers: ConsumerSet = ConsumerSet()
    leaderless: Mapping[str, float] = {}
    """Seconds for which a consumer has had no leader, by its name."""
    current_is_wanted: bool = False
    """Whether a live worker wants the layout that the queue is in, where that is not the one this worker wants."""
    served: str | None = None
    """The layout that this worker serves."""
    bound: bool = False
    """Whether this worker pulls from a shared consumer of that layout."""


class Retire(Struct, frozen=True):
    """Announce that consumers retire for a layout; then let each deliver nothing new, and record the layout."""

    names: tuple[str, ...]
    layout: str


class DeleteRetired(Struct, frozen=True):
    """Delete retired consumers, unless they hold messages again, or others have their names."""

    consumers: tuple[ConsumerState, ...]


class DeleteRefused(Struct, frozen=True):
    """Delete consumers without a leader whose filters overlap with those of consumers that have one."""

    names: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]


class Unfilter(Struct, frozen=True):
    """Remove the filter of the shared consumer, which is the only consumer now."""

    name: str


class Serve(Struct, frozen=True):
    """End the flows of any other layout, and find subjects where this one has consumers for them."""

    layout: str


class BindShared(Struct, frozen=True):
    """Find or create this worker's shared consumer, and pull from it."""

    name: str
    layout: str
    alone: bool
    """Whether it is the only consumer. Beside others the server accepts none without filters."""


Change = Retire | DeleteRetired | DeleteRefused | Unfilter
Action = Change | Serve | BindShared


def reconcile(observed: Observed, wanted: Wanted) -> list[Action]:
    """Return what to do next about the consumers; see the module."""
    consumers = observed.consumers
    if observed.leaderless:
        return [*_delete_refused(observed, wanted)]
    layout = _layout_to_serve(observed, wanted)
    if misplaced := tuple(each.name for each in consumers.live if _is_misplaced(each, layout, wanted)):
        return [Retire(misplaced, layout)]
    if unmarked := tuple(each.name for each in consumers.retired if each.mark == UNMARKED):
        return [Retire(unmarked, layout)]  # the worker that retired them has died before it set their mark
    if finished := _finished(consumers.retired):
        return [DeleteRetired(finished)]
    if layout == FUNCTION:
        return [Serve(layout)]
    return _share(observed, layout, wanted)


def _delete_refused(observed: Observed, wanted: Wanted) -> list[DeleteRefused]:
    """Return the deletion of consumers that a cluster lists, and that none of its servers accepted.

    Of overlapping consumers that are created at the same time, a cluster refuses all but one. Where the cluster is in
    trouble just then, the others stay on its list forever, without a leader (measured, nats-server 2.15.1). A consumer
    that overlaps with one that has a leader is such a leftover; any other one may still elect its leader.
    """
    names = tuple(name for name, age in observed.leaderless.items() if age >= REFUSED and wanted.is_named(name))
    others = tuple(each.subjects for each in (*observed.consumers.live, *observed.consumers.foreign))
    return [DeleteRefused(names, others)] if names else []


def _layout_to_serve(observed: Observed, wanted: Wanted) -> str:
    layout = wanted.layout
    if observed.current_is_wanted:
        # Workers of both layouts are alive, as in a rolling update: the layout changes once, after the last old one.
        layout = observed.consumers.current or layout
    retired = {each.name for each in observed.consumers.retired}
    if layout != FUNCTION and retired & {*wanted.shared_names(layout)}:
        # A shared consumer's name is still in use by its retired predecessor. Until that one is deleted, subjects have
        # consumers of their own, whose names can be numbered.
        return FUNCTION
    return layout


def _is_misplaced(consumer: ConsumerState, layout: str, wanted: Wanted) -> bool:
    """Return whether a live consumer of the workers would overlap with those of a layout."""
    if layout == FUNCTION:
        return consumer.layout != FUNCTION
    if layout == static(1):
        return consumer.name != wanted.durable
    if consumer.layout == FUNCTION:
        # Partitions cover the bare subject and those that begin with their number. Subjects that another producer
        # made up are covered by no partition, so they keep consumers of their own.
        partitions = range(partitions_of(layout))
        taken = chain([wanted.queue], (f"{wanted.queue}.{part}.>" for part in partitions))
        return any(covers(pattern, consumer.subjects[0]) for pattern in taken)
    return consumer.layout != layout


def _finished(retired: tuple[ConsumerState, ...]) -> tuple[ConsumerState, ...]:
    """Return the retired consumers that hold nothing, and nothing of whose messages an older one holds."""
    busy = [each for each in retired if each.num_ack_pending]
    return tuple(
        each
        for each in retired
        if not each.num_ack_pending
        and not any(older.retired_at <= each.retired_at and overlap(each.subjects, older.subjects) for older in busy)
    )


def _share(observed: Observed, layout: str, wanted: Wanted) -> list[Action]:
    consumers = observed.consumers
    names = wanted.shared_names(layout)
    name = names[wanted.partition % len(names)]
    there = {each.name: each for each in (*consumers.live, *consumers.retired, *consumers.foreign)}
    alone = not there.keys() - {name}
    actions: list[Action] = []
    if layout == static(1) and alone and name in there:
        # It was created with filters, because other consumers were there. Once it is the only one it becomes what
        # it would have been: other subjects of the stream are then delivered, too.
        every = {wanted.queue, f"{wanted.queue}.>"}
        actions += [Unfilter(name)] if {*there[name].subjects} == every else []
    actions.append(Serve(layout))
    if not observed.bound or observed.served != layout or name not in there:
        actions.append(BindShared(name, layout, alone))
    return actions


# Function mode.


class Idle(Struct, frozen=True):
    """A subject's consumer that has nothing to deliver and nothing pending."""

    name: str
    subject: str
    since: float
    last_delivered: int


def idle_consumers(consumers: ConsumerSet, before: Mapping[str, Idle], now: float) -> dict[str, Idle]:
    """Return the consumers of subjects without messages, by name. One that delivered since is idle only from now on."""
    idle: dict[str, Idle] = {}
    for each in consumers.live:
        if each.layout == FUNCTION and not each.num_ack_pending and not each.num_pending:
            known = before.get(each.name)
            same = known is not None and known.last_delivered == each.last_delivered
            idle[each.name] = known if known and same else Idle(each.name, each.subjects[0], now, each.last_delivered)
    return idle


def delete_idle(idle: Mapping[str, Idle], threshold: float, now: float, *, crowded: bool) -> list[Idle]:
    """Return the consumers to delete, if they still are idle: those that have been for the *threshold* (s).

    In a *crowded* stream, which may have no more consumers, other subjects wait for one. There, what was idle at an
    earlier observation is deleted at once.
    """
    due = [each for each in idle.values() if now - each.since >= threshold or (crowded and now > each.since)]
    return due[:AT_A_TIME]


def name_for_subject(consumers: ConsumerSet, subject: str, usual: str) -> str:
    """Return the name under which a subject's consumer is to be found or created.

    Another worker may have created it under another name, because a retired consumer had the *usual* one then. Where
    a retired consumer has it now, a number is added.
    """
    for each in consumers.live:
        if each.layout == FUNCTION and each.subjects[0] == subject:
            return each.name
    retired = {each.name for each in consumers.retired}
    numbered = (usual if number == 1 else f"{usual}-{number}" for number in count(1))
    return next(each for each in numbered if each not in retired)
