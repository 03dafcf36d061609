"""Which copies of the gateway's records are used, and when they are requested again: in virtual time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from worker.policy.freshness import Step
from worker.policy.function_records import (
    FRESH,
    MISSING,
    NO_FUNCTION,
    USABLE,
    FunctionRecord,
    FunctionRecords,
    parse_record,
)
from worker.policy.retry import LONGEST, Retry, apply_annotations

RECORD = FunctionRecord(exists=True, annotations={"com.openfaas.retry.attempts": "2"})
NEW = FunctionRecord(exists=True, annotations={})


def test_unknown_function_is_waited_for() -> None:
    """The first call of a function waits for the gateway."""
    assert FunctionRecords().find("echo", 0.0) == (None, Step.WAIT)


def test_copy_by_age_is_used_refreshed_or_waited_for() -> None:
    """A fresh copy is used; an older one is used and refreshed; one that is too old is waited for."""
    records = FunctionRecords()
    records.store("echo", RECORD, 100.0)
    assert records.find("echo", 100.0 + FRESH - 0.1) == (RECORD, Step.USE)
    assert records.find("echo", 100.0 + FRESH) == (RECORD, Step.REFRESH)
    assert records.find("echo", 100.0 + USABLE) == (RECORD, Step.WAIT)
    records.store("echo", NEW, 200.0)
    assert records.find("echo", 200.0) == (NEW, Step.USE)


def test_missing_function_is_missing_for_a_short_time() -> None:
    """A function that the gateway did not have is asked for again sooner, and no old answer counts."""
    records = FunctionRecords()
    records.store("echo", RECORD, 0.0)
    records.store("echo", NO_FUNCTION, 10.0)
    assert records.find("echo", 10.0 + MISSING - 0.1) == (NO_FUNCTION, Step.USE)
    assert records.find("echo", 10.0 + MISSING) == (None, Step.WAIT)


def test_failure_of_one_function_stops_its_requests_for_a_while() -> None:
    """After an error for one function, its last copy is used without requests; other functions are not affected."""
    records = FunctionRecords()
    records.store("echo", RECORD, 0.0)
    records.fail("echo", 40.0)
    records.fail("new", 40.0)
    assert not records.in_outage
    assert records.find("echo", 44.9) == (RECORD, Step.USE)
    assert records.find("new", 44.9) == (None, Step.USE)
    assert records.find("other", 44.9) == (None, Step.WAIT)
    assert records.find("echo", 45.0) == (RECORD, Step.WAIT)


def test_outage_lets_no_call_wait_and_probes_with_growing_waits() -> None:
    """In an outage there is one request after 1, 2, 4, 8, 10 s, and no call waits; the first answer ends it."""
    records = FunctionRecords()
    records.store("echo", RECORD, 0.0)
    assert records.fail_all(100.0)
    now, waits = 100.0, []
    for _ in range(5):
        began = now
        while (found := records.find("echo", now))[1] is Step.USE:
            assert found[0] == RECORD
            assert records.find("new", now)[1] in (Step.USE, Step.REFRESH)
            now += 0.5
        waits.append(now - began)
        assert records.find("new", now) == (None, Step.USE)
        assert not records.fail_all(now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0]
    records.store("new", NEW, now)
    assert records.find("echo", now) == (RECORD, Step.WAIT)
    assert records.fail_all(now)


def test_outage_that_meets_many_requests_begins_once() -> None:
    """Several requests that fail together do not lengthen the wait for the first probe."""
    records = FunctionRecords()
    assert [records.fail_all(10.0 + number / 100) for number in range(8)] == [True] + [False] * 7
    assert records.find("echo", 10.9) == (None, Step.USE)
    assert records.find("echo", 11.0) == (None, Step.REFRESH)


@pytest.mark.parametrize("kind", ["found", "missing", "failed"])
def test_records_are_bounded(kind: str) -> None:
    """Of each kind at most so many are kept; invented names evict no function that exists."""
    records = FunctionRecords(most=10)
    records.store("echo", RECORD, 0.0)
    for number in range(100):
        name = f"f{number}"
        if kind == "failed":
            records.fail(name, 0.0)
        else:
            records.store(name, NEW if kind == "found" else NO_FUNCTION, 0.0)
    known = [name for name in (f"f{number}" for number in range(100)) if records.find(name, 0.0)[1] is Step.USE]
    assert known == [f"f{number}" for number in range(90, 100)]
    assert (records.find("echo", 0.0)[0] == RECORD) == (kind != "found")


class Records(RuleBasedStateMachine):
    """Two functions under any order of answers, failures and times."""

    def __init__(self) -> None:
        super().__init__()
        self.records, self.now = FunctionRecords(), 0.0
        self.last: dict[str, FunctionRecord] = {}
        self.read_at: dict[str, float] = {}

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.9, 4.9, 5.0, 12.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=st.sampled_from("ab"), record=st.sampled_from([RECORD, NEW, NO_FUNCTION]))
    def answer(self, name: str, record: FunctionRecord) -> None:
        self.records.store(name, record, self.now)
        self.last[name], self.read_at[name] = record, self.now

    @rule(name=st.sampled_from("ab"))
    def fail(self, name: str) -> None:
        self.records.fail(name, self.now)

    @rule()
    def fail_all(self) -> None:
        self.records.fail_all(self.now)

    @invariant()
    def copies_are_the_last_answers(self) -> None:
        """Check that a copy is the last answer, that "missing" counts while it is new, and that no outage delays."""
        for name in "ab":
            record, step = self.records.find(name, self.now)
            last, age = self.last.get(name), self.now - self.read_at.get(name, 0.0)
            if last is NO_FUNCTION:
                assert record is (NO_FUNCTION if age < MISSING else None)
            else:
                assert record is last
            if step is Step.WAIT:
                assert not self.records.in_outage
                assert last is None or age >= (MISSING if last is NO_FUNCTION else USABLE)
            if record is not None and record is last and age < FRESH and last is not NO_FUNCTION:
                assert step is Step.USE


TestRecords = Records.TestCase


def status(**fields: Any) -> bytes:
    return json.dumps({"name": "echo", "namespace": "fn"} | fields).encode()


def test_record_has_the_annotations_that_workers_read() -> None:
    """Other annotations, and values that are no texts, are left out; none at all is no error."""
    annotations = {"com.openfaas.retry.attempts": "2", "topic": "x", "com.openfaas.queue.rate": 5}
    queue = {"com.openfaas.queue": " slow-fns "}
    assert parse_record(status(annotations=annotations | queue)) == FunctionRecord(
        True, {"com.openfaas.retry.attempts": "2"}, "slow-fns"
    )
    assert parse_record(status()) == parse_record(status(annotations=None)) == FunctionRecord(True, {})


def test_record_with_a_long_value_keeps_as_much_as_a_worker_reports() -> None:
    """A value that is too long for a worker stays too long, so that the worker reports it, and takes no more room."""
    record = parse_record(status(annotations={"com.openfaas.retry.codes": "500," * 10_000}))
    assert record.annotations is not None
    assert len(record.annotations["com.openfaas.retry.codes"]) == LONGEST + 1
    _, (ignored,) = apply_annotations(Retry(), record.annotations)
    assert "longer than" in ignored.reason


_ANY_JSON = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["name", "annotations", "x"]), inner),
)


@given(st.binary() | _ANY_JSON.map(json.dumps).map(str.encode))
def test_record_of_any_bytes_is_read_or_rejected(body: bytes) -> None:
    """Any answer is a record, or a ValueError."""
    try:
        record = parse_record(body)
    except ValueError:
        return
    assert record.exists
