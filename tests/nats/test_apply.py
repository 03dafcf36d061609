"""Changes of consumers are applied, on a client that stands in for JetStream's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio_asyncio
from trio_asyncio import aio_as_trio

from worker.nats.apply import Applier
from worker.nats.connection import NoRespondersError
from worker.nats.jetstream import JetStream
from worker.nats.layout import FUNCTION, RETIRED, ConsumerState, static
from worker.nats.reconcile import DeleteRefused, DeleteRetired, Idle, Retire, Unfilter
from worker.nats.wire import ApiError, ConsumerInfo, ErrorCode, decode_answer
from worker.ports import BrokerUnavailableError, MisconfiguredError


class Fake:
    """A stream's consumers, as the client shows them. *calls* are the changes."""

    def __init__(self, *consumers: dict[str, Any]) -> None:
        self.found = {each["name"]: each for each in consumers}
        self.calls: list[tuple[Any, ...]] = []
        self.failures: list[tuple[str, str]] = []
        self.before_pause: Callable[[], None] = lambda: None
        self.pauses = self.answers_deletions = True
        self.connection = self

    def report_failure(self, doing: str, error: object) -> None:
        self.failures.append((doing, str(error)))

    async def consumer(self, _: str, name: str) -> ConsumerInfo:
        if name not in self.found:
            raise ApiError(404, ErrorCode.CONSUMER_NOT_FOUND, "consumer not found")
        return decode_answer(json.dumps(self.found[name]).encode(), ConsumerInfo)

    async def find_consumer(self, stream: str, name: str) -> ConsumerInfo | None:
        return await self.consumer(stream, name) if name in self.found else None

    async def pause_consumer(self, _: str, name: str, until: str) -> bool:
        self.before_pause()
        if not self.pauses:
            raise NoRespondersError
        self.found[name]["paused"] = True
        self.calls.append(("pause", name, until[17:]))
        return True

    async def update_consumer(self, _: str, info: ConsumerInfo, **changes: Any) -> None:
        self.calls.append(("update", info.name, changes))

    async def delete_consumer(self, _: str, name: str) -> None:
        self.found.pop(name, None)
        self.calls.append(("delete", name))
        if not self.answers_deletions:
            raise BrokerUnavailableError("no answer")


def consumer(name: str, *subjects: str, ack_pending: int = 0, pending: int = 0, **metadata: str) -> dict[str, Any]:
    """Return a consumer as a server describes it."""
    labels = {f"queue-worker.{key}": value for key, value in {"mode": FUNCTION, **metadata}.items()}
    return {
        "name": name,
        "config": {"filter_subjects": subjects, "ack_wait": 30 * 10**9, "metadata": labels},
        "delivered": {"stream_seq": 7},
        "num_ack_pending": ack_pending,
        "num_pending": pending,
        "ts": "2026-11-28T12:00:00.5Z",
    }


ECHO = "q.0.echo.fn"
PAUSED, RESUMED = ("pause", "w", "10.500000Z"), ("pause", "w", "00.700000Z")
"""By the server's clock."""
RETIRE, ANNOUNCED = Retire(("w",), static(1)), ("announce", "w")


def play(fake: Fake, do: Callable[[Applier], Awaitable[Any]]) -> Any:
    async def announce(change: Retire) -> None:
        fake.calls.append(("announce", *change.names))

    applier = Applier(cast(JetStream, fake), "q", "q", announce)
    return trio_asyncio.run(aio_as_trio(do), applier)


def test_retire_pauses_updates_and_resumes() -> None:
    """After the announcement. The mark is read during the pause, which then ends soon, whatever is left of it."""
    fake = Fake(consumer("w", ECHO))
    play(fake, lambda applier: applier.apply(RETIRE))
    announced, paused, (_, _, changes), resumed = fake.calls
    assert (announced, paused, resumed) == (ANNOUNCED, PAUSED, RESUMED)
    assert changes["metadata"] == {
        "queue-worker.mode": "retired",
        "queue-worker.mark": "7",
        "queue-worker.was": f'["{ECHO}"]',
        "queue-worker.for": "static/1",
        "queue-worker.at": "1795867200500000000",
    }


def test_retire_leaves_a_retired_consumer_alone() -> None:
    """A mark that another worker has set stays."""
    fake = Fake(consumer("w", mode="retired", mark="3"))
    play(fake, lambda applier: applier.apply(RETIRE))
    assert fake.calls == [ANNOUNCED, PAUSED, RESUMED]


def test_retire_without_pauses_is_misconfigured() -> None:
    """A server before 2.11 cannot change the layout, which waiting does not resolve."""
    fake = Fake(consumer("w", ECHO))
    fake.pauses = False

    async def retire(applier: Applier) -> None:
        with pytest.raises(MisconfiguredError, match=r"2\.11"):
            await applier.apply(RETIRE)

    play(fake, retire)


@pytest.mark.parametrize(
    ("now", "deleted"),
    [
        ([consumer("w", mode="retired", at="5")], True),
        ([consumer("w", mode="retired", at="5", ack_pending=1)], False),
        ([consumer("w", mode="retired", at="9")], False),
        ([consumer("w", ECHO)], False),
        ([], False),
    ],
    ids=["unchanged", "pending acks", "retired again", "created again", "gone"],
)
def test_delete_retired_looks_again(now: list[dict[str, Any]], deleted: bool) -> None:
    """Another worker may have deleted it, and created another one under its name."""
    fake, observed = Fake(*now), ConsumerState("w", RETIRED, (), 7, 0, 0, 30.0, retired_at=5)
    play(fake, lambda applier: applier.apply(DeleteRetired((observed,))))
    assert (fake.calls == [("delete", "w")]) is deleted


@pytest.mark.parametrize(
    ("others", "deleted"),
    [
        (((),), True),
        ((("q.0.other.fn",), ("q.>",)), True),
        ((("q.0.other.fn",), ("RETIRED.q.w",)), False),
        ((), False),
    ],
    ids=["an unfiltered one", "an overlap", "no overlap", "no other"],
)
def test_delete_refused_where_filters_overlap(others: tuple[tuple[str, ...], ...], deleted: bool) -> None:
    """One that overlaps with none may yet elect its leader; the deletion is obeyed and not always answered."""
    fake = Fake(consumer("w", ECHO))
    fake.answers_deletions = False
    play(fake, lambda applier: applier.apply(DeleteRefused(("w",), others)))
    assert ("w" not in fake.found) is deleted


@pytest.mark.parametrize(("mode", "updated"), [("static", True), ("retired", False)])
def test_unfilter_unless_retired(mode: str, updated: bool) -> None:
    """The filter of a consumer that another worker has retired since must stay."""
    fake = Fake(consumer("w", "q", "q.>", mode=mode))
    play(fake, lambda applier: applier.apply(Unfilter("w")))
    changes = {"filter_subject": None, "filter_subjects": None, "pause_until": None}
    assert fake.calls == [("update", "w", changes)] * updated


IDLE = [Idle("w", ECHO, 0.0, 0)]


def test_delete_idle_deletes_a_paused_consumer() -> None:
    """Its subject is returned."""
    fake = Fake(consumer("w", ECHO))
    assert play(fake, lambda applier: applier.delete_idle(IDLE)) == [ECHO]
    assert fake.calls == [PAUSED, ("delete", "w")]


def test_delete_idle_of_a_deleted_consumer() -> None:
    """A consumer that another worker has deleted is gone, too."""
    assert play(Fake(), lambda applier: applier.delete_idle(IDLE)) == [ECHO]


def test_delete_idle_keeps_a_consumer_with_messages() -> None:
    """What was stored since the observation keeps it, without a pause."""
    fake = Fake(consumer("w", ECHO, pending=1))
    assert play(fake, lambda applier: applier.delete_idle(IDLE)) == []
    assert fake.calls == []


def test_delete_idle_resumes_a_consumer_with_messages() -> None:
    """What was stored before the pause keeps it, and is delivered soon."""
    fake = Fake(consumer("w", ECHO))
    fake.before_pause = lambda: fake.found["w"].update(num_pending=1)
    assert play(fake, lambda applier: applier.delete_idle(IDLE)) == []
    assert fake.calls == [PAUSED, RESUMED]


def test_delete_idle_reports_a_failure() -> None:
    """A deletion without an answer is reported, and tried again after the next observation."""
    fake = Fake(consumer("w", ECHO))
    fake.answers_deletions = False
    assert play(fake, lambda applier: applier.delete_idle(IDLE)) == []
    assert fake.failures == [("deleting the consumer w, which is idle", "no answer")]


def test_apply_changes_all_and_raises_the_first_error() -> None:
    """A consumer that cannot be retired keeps no other one from it; all is tried again after the next observation."""
    fake = Fake(consumer("w", ECHO))

    async def retire(applier: Applier) -> None:
        with pytest.raises(ApiError, match="not found"):
            await applier.apply(Retire(("gone", "w"), static(1)))

    play(fake, retire)
    assert [call[:2] for call in fake.calls] == [("announce", "gone"), ("pause", "w"), ("update", "w"), ("pause", "w")]
