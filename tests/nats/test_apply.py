"""Changes of consumers, applied through a fake of the JetStream client."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio_asyncio
from trio_asyncio import aio_as_trio

from worker.nats.apply import Applier
from worker.nats.jetstream import JetStream
from worker.nats.layout import FUNCTION, RETIRED, UNMARKED, ConsumerState, static
from worker.nats.reconcile import DeleteRefused, DeleteRetired, Idle, Retire, Unfilter
from worker.nats.wire import ApiError, ConsumerInfo, ErrorCode, StoredMessage, decode_answer
from worker.policy.names import covers
from worker.ports import BrokerUnavailableError


class FakeJetStream:
    """A fake of the JetStream client: a stream's consumers, and *calls*, the changes that were made."""

    def __init__(self, *consumers: dict[str, Any]) -> None:
        self.consumers = {each["name"]: each for each in consumers}
        self.calls: list[tuple[Any, ...]] = []
        self.failures: list[tuple[str, str]] = []
        self.before_pause: Callable[[], None] = lambda: None
        self.can_pause = self.answers_deletions = True
        self.stored: list[tuple[int, str]] = []
        self.delivers: Callable[[], None] = lambda: None
        self.connection = self

    def report_failure(self, doing: str, error: object) -> None:
        self.failures.append((doing, str(error)))

    async def consumer(self, _: str, name: str) -> ConsumerInfo:
        if name not in self.consumers:
            raise ApiError(404, ErrorCode.CONSUMER_NOT_FOUND, "consumer not found")
        return decode_answer(json.dumps(self.consumers[name]).encode(), ConsumerInfo)

    async def find_consumer(self, stream: str, name: str) -> ConsumerInfo | None:
        return await self.consumer(stream, name) if name in self.consumers else None

    async def pause_consumer(self, _: str, name: str, until: str) -> bool:
        self.before_pause()
        self.consumers[name]["paused"] = True
        self.calls.append(("pause", name, until[17:]))
        return True

    async def update_consumer(self, _: str, info: ConsumerInfo, **changes: Any) -> None:
        self.calls.append(("update", info.name, changes))
        self.delivers()
        config = {**self.consumers[info.name]["config"], **changes}
        self.consumers[info.name]["config"] = {name: value for name, value in config.items() if value is not None}

    async def next_message(self, _: str, sequence: int, pattern: str) -> StoredMessage | None:
        found = (each for each, subject in self.stored if each >= sequence and covers(pattern, subject))
        return next((StoredMessage(subject="", seq=each, time="") for each in found), None)

    async def delete_consumer(self, _: str, name: str) -> None:
        self.consumers.pop(name, None)
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
"""Calls with the end of the pause, by the server's clock."""
RETIRE, ANNOUNCED = Retire(("w",), static(1)), ("announce", "w")


def run(fake: FakeJetStream, do: Callable[[Applier], Awaitable[Any]]) -> Any:
    async def announce(change: Retire) -> None:
        fake.calls.append(("announce", *change.names))

    applier = Applier(cast(JetStream, fake), "q", "q", announce)
    return trio_asyncio.run(aio_as_trio(do), applier)


def test_retire_pauses_updates_and_resumes() -> None:
    """A retirement is announced; then the consumer is paused, updated with the mark of that time, and resumed."""
    fake = FakeJetStream(consumer("w", ECHO))
    run(fake, lambda applier: applier.apply(RETIRE))
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
    """A consumer that another worker has retired keeps its mark."""
    fake = FakeJetStream(consumer("w", mode="retired", mark="3"))
    run(fake, lambda applier: applier.apply(RETIRE))
    assert fake.calls == [ANNOUNCED]


@pytest.mark.parametrize(
    ("deliveries", "subjects", "mark"),
    [
        (0, (ECHO,), 7),  # nothing was delivered since the last look
        (1, (ECHO,), 9),  # the next message that its filter lets through
        (2, (ECHO,), 11),
        (5, (ECHO,), 11),  # some of them were redeliveries: there are no more messages
        (2, (), 9),  # without a filter, these are the next two messages
        (1, (ECHO, "q.0.other.fn"), 9),  # the later one of either filter's next message
        (2_000, (ECHO,), 20),  # too many to count
    ],
)
def test_retire_without_pauses_marks_what_was_delivered(deliveries: int, subjects: tuple[str, ...], mark: int) -> None:
    """A server before 2.11 cannot pause: the mark is not below the last delivery, and not at the stream's end."""
    fake = FakeJetStream(consumer("w", *subjects))
    fake.can_pause = False
    fake.stored = [(8, "q.0.other.fn"), (9, ECHO), (10, "q.0.other.fn"), (11, ECHO)]

    def deliver_and_skip() -> None:
        fake.consumers["w"]["delivered"] = {"stream_seq": 20, "consumer_seq": deliveries}

    fake.delivers = deliver_and_skip
    run(fake, lambda applier: applier.apply(RETIRE))
    marks = [changes["metadata"]["queue-worker.mark"] for _, _, changes in fake.calls[1:]]
    assert marks == [str(UNMARKED), str(mark)]
    assert fake.consumers["w"]["config"]["filter_subject"] == "RETIRED.q.w"


@pytest.mark.parametrize("can_pause", [True, False])
def test_retire_unmarked_consumer_gets_its_mark(can_pause: bool) -> None:
    """A consumer whose retirement another worker began, and did not complete, gets its mark from any server."""
    was = json.dumps([ECHO])
    unmarked = consumer("w", "RETIRED.q.w", mode=RETIRED, mark=str(UNMARKED), was=was, **{"from": "7/0"})  # type: ignore[arg-type]  # a keyword of Python
    fake = FakeJetStream(unmarked)
    fake.consumers["w"]["delivered"] = {"stream_seq": 20, "consumer_seq": 1}
    fake.can_pause, fake.stored = can_pause, [(9, ECHO)]
    run(fake, lambda applier: applier.apply(RETIRE))
    assert [(call, changes["metadata"]["queue-worker.mark"]) for call, _, changes in fake.calls[1:]] == [
        ("update", "9")
    ]


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
def test_delete_retired_after_a_change_keeps_the_consumer(now: list[dict[str, Any]], deleted: bool) -> None:
    """A consumer that another worker has changed or recreated since the observation is not deleted."""
    fake, observed = FakeJetStream(*now), ConsumerState("w", RETIRED, (), 7, 0, 0, 30.0, retired_at=5)
    run(fake, lambda applier: applier.apply(DeleteRetired((observed,))))
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
def test_delete_refused_deletes_only_where_filters_overlap(others: tuple[tuple[str, ...], ...], deleted: bool) -> None:
    """A consumer without a leader is deleted if its filter overlaps with another's, also without an answer."""
    fake = FakeJetStream(consumer("w", ECHO))
    fake.answers_deletions = False
    run(fake, lambda applier: applier.apply(DeleteRefused(("w",), others)))
    assert ("w" not in fake.consumers) is deleted


@pytest.mark.parametrize(("mode", "updated"), [("static", True), ("retired", False)])
def test_unfilter_of_a_retired_consumer_changes_nothing(mode: str, updated: bool) -> None:
    """A consumer that another worker has retired since the observation keeps its filter."""
    fake = FakeJetStream(consumer("w", "q", "q.>", mode=mode))
    run(fake, lambda applier: applier.apply(Unfilter("w")))
    changes = {"filter_subject": None, "filter_subjects": None, "pause_until": None}
    assert fake.calls == [("update", "w", changes)] * updated


IDLE = [Idle("w", ECHO, 0.0, 0)]


def test_delete_idle_deletes_a_paused_consumer() -> None:
    """An idle consumer is paused and deleted, and its subject is returned."""
    fake = FakeJetStream(consumer("w", ECHO))
    assert run(fake, lambda applier: applier.delete_idle(IDLE)) == [ECHO]
    assert fake.calls == [PAUSED, ("delete", "w")]


def test_delete_idle_of_a_deleted_consumer_returns_its_subject() -> None:
    """The subject of a consumer that another worker has deleted is returned as deleted."""
    assert run(FakeJetStream(), lambda applier: applier.delete_idle(IDLE)) == [ECHO]


def test_delete_idle_keeps_a_consumer_with_messages() -> None:
    """A message that was stored since the observation prevents the deletion, without a pause."""
    fake = FakeJetStream(consumer("w", ECHO, pending=1))
    assert run(fake, lambda applier: applier.delete_idle(IDLE)) == []
    assert fake.calls == []


def test_delete_idle_resumes_a_consumer_with_messages() -> None:
    """A message that was stored just before the pause prevents the deletion and ends the pause."""
    fake = FakeJetStream(consumer("w", ECHO))
    fake.before_pause = lambda: fake.consumers["w"].update(num_pending=1)
    assert run(fake, lambda applier: applier.delete_idle(IDLE)) == []
    assert fake.calls == [PAUSED, RESUMED]


def test_delete_idle_reports_a_failure() -> None:
    """A deletion without an answer is reported, and tried again after the next observation."""
    fake = FakeJetStream(consumer("w", ECHO))
    fake.answers_deletions = False
    assert run(fake, lambda applier: applier.delete_idle(IDLE)) == []
    assert fake.failures == [("deleting the consumer w, which is idle", "no answer")]


def test_apply_changes_all_and_raises_the_first_error() -> None:
    """A consumer that cannot be retired does not prevent the retirement of others, and its error is raised."""
    fake = FakeJetStream(consumer("w", ECHO))

    async def retire(applier: Applier) -> None:
        with pytest.raises(ApiError, match="not found"):
            await applier.apply(Retire(("gone", "w"), static(1)))

    run(fake, retire)
    assert [call[:2] for call in fake.calls] == [("announce", "gone"), ("pause", "w"), ("update", "w"), ("pause", "w")]
