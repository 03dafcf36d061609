"""Consumers that a cluster lists, and that none of its servers took on, are taken away: else we waited for ever.

Seen in `make chaos` on three servers, of which one had a full disk: workers of both modes made their consumers at once.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio_asyncio
from trio_asyncio import aio_as_trio

from worker.config import load
from worker.nats import migration
from worker.nats.connection import Connection
from worker.nats.migration import Migration
from worker.ports import BrokerUnavailableError


def info(name: str, *subjects: str) -> dict[str, Any]:
    """A consumer, as a server tells of it."""
    config = {"filter_subjects": list(subjects), "ack_wait": 30 * 10**9, "metadata": {"queue-worker.mode": "function"}}
    return {"name": name, "config": config, "delivered": {"stream_seq": 0}, "num_ack_pending": 0, "num_pending": 0}


class Cluster:
    """Lists consumers; *missing* have no leader. It heeds deletions, and does not answer them."""

    def __init__(self, there: list[dict[str, Any]], missing: list[dict[str, Any]]) -> None:
        self.there = there
        self.missing = {each["name"]: each for each in missing}
        self.client = SimpleNamespace()

    async def ask(self, subject: str, _: object = None) -> dict[str, Any]:
        verb, _, name = subject.removeprefix("CONSUMER.").partition(".faas-request")
        if verb == "LIST":
            return {"consumers": self.there, "missing": [*self.missing], "total": len(self.there) + len(self.missing)}
        if verb == "INFO":
            return self.missing[name.removeprefix(".")]
        assert verb == "DELETE"
        del self.missing[name.removeprefix(".")]
        raise BrokerUnavailableError("no answer")


ALL = info("faas-workers")
ONE = info("faas-workers-one", "faas-request.0.one.fn")
OTHER = info("faas-workers-other", "faas-request.0.other.fn")
RETIRED = info("faas-workers-p0", "RETIRED.faas-request.faas-workers-p0")
FOREIGN = info("audit", "faas-request.0.one.fn")


@pytest.mark.parametrize(
    ("there", "missing", "left"),
    [
        ([ALL], [ONE, OTHER], []),
        ([ONE], [ALL, OTHER], ["faas-workers-other"]),
        ([ONE], [OTHER], ["faas-workers-other"]),
        ([RETIRED], [ONE], ["faas-workers-one"]),
        ([ALL], [FOREIGN], ["audit"]),
        ([], [ALL, ONE], ["faas-workers", "faas-workers-one"]),
    ],
)
def test_what_was_refused_is_taken_away(
    there: list[dict[str, Any]], missing: list[dict[str, Any]], left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of ours that overlaps with one that is there; what overlaps with none may yet have a leader."""
    monkeypatch.setattr(migration, "_REFUSED", 0.0)
    cluster = Cluster(there, missing)

    async def play() -> None:
        looking = Migration(cast(Connection, cluster), load({}).settings)
        with pytest.raises(BrokerUnavailableError):
            await looking.look()

    trio_asyncio.run(aio_as_trio(play))
    assert [*cluster.missing] == left


def test_an_election_is_waited_for() -> None:
    """Not having a leader for a moment is no reason."""
    cluster = Cluster([ALL], [ONE])

    async def play() -> None:
        looking = Migration(cast(Connection, cluster), load({}).settings)
        for _ in range(2):
            with pytest.raises(BrokerUnavailableError):
                await looking.look()

    trio_asyncio.run(aio_as_trio(play))
    assert [*cluster.missing] == ["faas-workers-one"]
