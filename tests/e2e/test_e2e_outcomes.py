"""Contract, section 5: the decision table, row by row, and the waits between attempts.

One worker serves most of this file, with four attempts and waits of 50 ms, 100 ms and 200 ms between them; each test
has a function and a call id of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from itertools import count

import pytest

from tests.e2e.functions import Functions, Reply
from tests.e2e.stack import PATIENCE, Queue, StartWorker, Worker, look_on, message
from tests.servers import NatsServer, free_port, wait_until

ATTEMPTS = 4
WAITS = [0.05, 0.1, 0.2]
_numbers = count(1)


class Case:
    """One function, one message for it, and the worker and server that all cases share."""

    def __init__(self, queue: Queue, functions: Functions, worker: Worker) -> None:
        self.queue, self.functions, self.worker = queue, functions, worker
        self.name = f"case-{next(_numbers)}"
        self.call_id = f"call-of-{self.name}"
        self.payload = b""

    def run(self, *replies: Reply, annotations: dict[str, str] | None = None) -> int:
        """Put one message for a function that answers like this, and wait for its end: how often it was sent."""
        self.functions.answer(self.name, *replies)
        self.payload = message(self.name, self.call_id, b"input", Annotations=annotations or {})
        self.queue.put(self.payload)
        self.queue.wait_empty()
        return len(self.functions.of(self.call_id))

    def given_up_with(self) -> str:
        """The status in the one dead letter."""
        (letter,) = self.queue.letters_of(self.call_id)
        assert letter.data == self.payload
        return letter.headers["X-Function-Status"]

    @property
    def gaps(self) -> list[float]:
        return list(self.functions.gaps(self.call_id))


@pytest.fixture(scope="module")
def shared(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Queue, Functions, Worker]]:
    """The worker of this file, its queue and its functions."""
    queue = Queue(nats, "outcomes")
    settings = {"max_retry_attempts": ATTEMPTS, "upstream_timeout": "500ms"}
    with ExitStack() as stack:
        functions = stack.enter_context(Functions())
        directory = tmp_path_factory.mktemp("outcomes")
        worker = stack.enter_context(Worker(queue, functions, tmp_path=directory, **settings))
        worker.wait_ready()
        yield queue, functions, worker
        assert not functions.faults, functions.faults


@pytest.fixture
def case(shared: tuple[Queue, Functions, Worker]) -> Case:
    return Case(*shared)


# Done, or retry.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 302, 304, 400, 401, 403, 404, 409, 413, 418, 422, 501])
def test_a_code_not_in_the_list_is_done(case: Case, status: int) -> None:
    """Below 400 or not: one invocation, off the queue, no dead letter; a redirect is not followed."""
    body = b"" if status in (204, 304) else b"body"
    headers = (("Location", f"{case.functions.url}/function/elsewhere"),)
    reply = Reply(status, body, headers)
    if not body:
        reply = Reply(raw=f"HTTP/1.1 {status} Whatever\r\n\r\n".encode())
    assert case.run(reply) == 1
    assert case.queue.letters_of(case.call_id) == []
    assert case.functions.to("elsewhere") == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_code_in_the_list_is_retried(case: Case, status: int) -> None:
    """The same request comes again until it has another code."""
    assert case.run(Reply(status), Reply(status), Reply(200)) == 3
    first, second, third = case.functions.of(case.call_id)
    assert (first.line, first.headers, first.body) == (second.line, second.headers, second.body)
    assert (first.line, first.headers, first.body) == (third.line, third.headers, third.body)
    assert case.queue.letters_of(case.call_id) == []


@pytest.mark.parametrize("status", [400, 401, 404, 418, 501])
def test_an_internal_error_of_openfaas_is_retried(case: Case, status: int) -> None:
    """A code of 400 or more with an X-OpenFaaS-Internal header is retried, whatever the list."""
    internal = Reply(status, headers=(("x-openfaas-internal", "faas-netes"),))
    assert case.run(internal, Reply(status)) == 2


@pytest.mark.parametrize("status", [200, 302])
def test_the_internal_header_alone_is_no_error(case: Case, status: int) -> None:
    """Below 400 the header changes nothing."""
    assert case.run(Reply(status, headers=(("X-OpenFaaS-Internal", "gateway"),))) == 1


NO_ANSWER = {
    "reset at once": Reply(raw=b"", reset=True),
    "closed at once": Reply(raw=b""),
    "reset in the header": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le", reset=True),
    "closed in the header": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le"),
    "shorter than its length": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
    "reset in the body": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", reset=True),
    "no last chunk": Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    "a bad chunk": Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
    "not HTTP": Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    "noise": Reply(raw=bytes(range(256)) * 20),
    "a bad status": Reply(raw=b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"),
    "endless header": Reply(raw=b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 50_000),
    "two lengths": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
}


@pytest.mark.parametrize("reply", NO_ANSWER.values(), ids=list(NO_ANSWER))
def test_no_valid_response_counts_as_502(case: Case, reply: Reply) -> None:
    """Reset, malformed or truncated: retried as 502, and given up as 502 where it stays so."""
    assert case.run(reply) == ATTEMPTS
    assert case.given_up_with() == "502"
    again = Case(case.queue, case.functions, case.worker)
    assert again.run(reply, Reply(200)) == 2
    assert case.queue.letters_of(again.call_id) == []


TOO_LATE = {
    "never": Reply(raw=b"", stall=True),
    "in the header": Reply(raw=b"HTTP/1.1 200 OK\r\n", stall=True),
    "in the body": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", stall=True),
    "only informational": Reply(raw=b"HTTP/1.1 102 Processing\r\n\r\n", stall=True),
}


@pytest.mark.parametrize("reply", TOO_LATE.values(), ids=list(TOO_LATE))
def test_past_upstream_timeout_counts_as_504(case: Case, reply: Reply) -> None:
    """No whole answer within `upstream_timeout`: the request is ended and retried as 504."""
    assert case.run(reply, reply, Reply(200)) == 3
    first = case.functions.of(case.call_id)[0]
    wait_until(lambda: first.gone, "the worker to leave the first request", PATIENCE)
    again = Case(case.queue, case.functions, case.worker)
    annotations = {"com.openfaas.retry.attempts": "1"}
    assert again.run(reply, annotations=annotations) == 1
    assert again.given_up_with() == "504"


def test_a_timeout_is_the_longest_invocation(case: Case) -> None:
    """An answer that comes before `upstream_timeout` counts."""
    assert case.run(Reply(after=0.2)) == 1


def test_refused_connections_are_retried(queue: Queue, start: StartWorker) -> None:
    """While nobody listens at `gateway_url`, invocations wait; when someone does, they succeed."""
    port = free_port()
    worker = start(gateway_url=f"http://127.0.0.1:{port}")
    queue.put_calls("echo", ["one", "two"])
    wait_until(lambda: worker.metric("queue_worker_retries_total") >= 4, "retries", PATIENCE)
    with Functions(port) as functions:
        queue.wait_empty()
        assert functions.calls() == {"one": 1, "two": 1}
    assert {line["status"] for line in worker.lines_of("one")} == {502, 200}


def test_a_host_that_does_not_exist(queue: Queue, start: StartWorker) -> None:
    """What DNS does not know counts as 502: retried, then given up."""
    start(gateway_url="http://no-such-host.invalid:8080", max_retry_attempts=2)
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    (letter,) = queue.letters()
    assert (letter.headers["X-Function-Status"], letter.headers["X-Dead-Letter-Attempts"]) == ("502", "2")


def test_a_server_without_tls(queue: Queue, start: StartWorker) -> None:
    """A failed TLS handshake counts as 502: retried, then given up."""
    start(gateway_url=f"https://127.0.0.1:{queue.nats.port}", max_retry_attempts=2)  # NATS greets first, in plain text
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    (letter,) = queue.letters()
    assert (letter.headers["X-Function-Status"], letter.headers["X-Dead-Letter-Attempts"]) == ("502", "2")


# Responses that are fine.

WHOLE = {
    "chunked": Reply(body=b"x" * 100_000, framing="chunked"),
    "until the connection's end": Reply(body=b"x" * 100_000, framing="close"),
    "huge": Reply(body=b"x" * 30_000_000),
    "huge and chunked": Reply(body=b"x" * 5_000_000, framing="chunked"),
    "empty": Reply(body=b""),
    "after an informational one": Reply(
        raw=b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    ),
    "old": Reply(raw=b"HTTP/1.0 200 OK\r\n\r\nbody"),
    "with trailers": Reply(
        raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n1\r\na\r\n0\r\nX-A: b\r\n\r\n"
    ),
    "closed without a word": Reply(close=True),
}


@pytest.mark.parametrize("reply", WHOLE.values(), ids=list(WHOLE))
def test_however_a_body_ends(case: Case, reply: Reply) -> None:
    """Any whole HTTP/1.1 response counts, however long, and however its body ends."""
    assert case.run(reply) == 1
    assert case.queue.letters_of(case.call_id) == []


# The waits.


def test_waits_double_up_to_the_longest(case: Case) -> None:
    """Attempt n waits min(initial * 2^(n-1), max) before the next one."""
    annotations = {"com.openfaas.retry.attempts": "6"}
    assert case.run(Reply(500), annotations=annotations) == 6
    for gap, wait in zip(case.gaps, [*WAITS, 0.2, 0.2], strict=True):
        assert gap >= wait
    logged = [line["retry_in"] for line in case.worker.lines_of(case.call_id) if "retry_in" in line]
    assert logged == [*WAITS, 0.2, 0.2]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_replaces_the_wait(case: Case, status: int) -> None:
    """On 429 and 503 the seconds of a Retry-After are waited, also past `max_retry_wait`."""
    assert case.run(Reply(status, headers=(("Retry-After", "1"),)), Reply(200)) == 2
    (gap,) = case.gaps
    assert gap >= 1


def test_retry_after_may_be_a_date(case: Case) -> None:
    """An HTTP date counts, to its second."""
    due = int(time.time()) + 2
    reply = Reply(503, headers=(("Retry-After", formatdate(due, usegmt=True)),))
    assert case.run(reply, Reply(200)) == 2
    second = case.functions.of(case.call_id)[1]
    assert time.time() - (time.monotonic() - second.began) >= due - 0.05


@pytest.mark.parametrize("value", ["0", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_retry_after_is_never_below_the_first_wait(case: Case, value: str) -> None:
    """A Retry-After of nothing, or of the past, waits `initial_retry_wait`."""
    assert case.run(Reply(429, headers=(("Retry-After", value),)), Reply(200)) == 2
    (gap,) = case.gaps
    assert gap >= 0.05
    assert [line.get("retry_in") for line in case.worker.lines_of(case.call_id)] == [0.05, None]


@pytest.mark.parametrize("value", ["soon", "-5", "1.5", "", "1, 2"])
def test_an_invalid_retry_after_is_ignored(case: Case, value: str) -> None:
    """What is neither seconds nor a date leaves the wait as it was."""
    reply = Reply(429, headers=(("Retry-After", value),))
    assert case.run(reply, reply, Reply(200)) == 3
    assert [line.get("retry_in") for line in case.worker.lines_of(case.call_id)] == [*WAITS[:2], None]


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_retry_after_counts_on_429_and_503_only(case: Case, status: int) -> None:
    """With other codes the header changes nothing, so this ends long before its hour is over."""
    assert case.run(Reply(status, headers=(("Retry-After", "3600"),)), Reply(200)) == 2


@pytest.mark.parametrize(("asked", "waited"), [("600", 600), ("3600", 3_600), ("86400", 3_600), ("9" * 40, 3_600)])
def test_retry_after_is_honoured_up_to_an_hour(
    queue: Queue, functions: Functions, start: StartWorker, asked: str, waited: int
) -> None:
    """One above `max_retry_wait` is honoured, but no answer parks a message for more than an hour."""
    functions.answer("echo", Reply(429, headers=(("Retry-After", asked),)))
    worker = start()
    queue.put_calls("echo", ["one"])
    wait_until(lambda: worker.lines_of("one"), "the attempt", PATIENCE)
    (line,) = worker.lines_of("one")
    assert line["retry_in"] == waited
    look_on()
    assert functions.calls() == {"one": 1}
    assert not queue.empty()


def test_jitter(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """`backoff=full` waits 0-100 % of the wait, `equal` 50-100 %: not always the same, and never more."""
    functions.answer("echo", Reply(500), Reply(200))
    calls = [f"call-{number}" for number in range(40)]
    for backoff, least in (("full", 0.0), ("equal", 0.1)):
        worker = start(backoff=backoff, initial_retry_wait="200ms")
        queue.put_calls("echo", [f"{backoff}-{call}" for call in calls])
        queue.wait_empty()
        waits = [line["retry_in"] for line in worker.lines() if "retry_in" in line]
        assert len(waits) == len(calls)
        assert all(least <= wait <= 0.2 for wait in waits)
        assert len(set(waits)) > 10
        worker.terminate()
        assert worker.wait(PATIENCE) == 0


# Giving up.


def test_given_up_after_the_last_attempt(case: Case) -> None:
    """At attempt `max_retry_attempts` it goes to `<nats_stream>-dead-letters`, byte for byte, then off the queue."""
    assert case.run(Reply(500, b"sorry")) == ATTEMPTS
    (letter,) = case.queue.letters_of(case.call_id)
    assert letter.data == case.payload
    assert letter.subject == f"DEAD-LETTERS.{case.queue.name}.{case.name}.openfaas-fn"
    headers = dict(letter.headers)
    sequence = headers.pop("X-Dead-Letter-Sequence")
    assert headers.pop("Nats-Msg-Id").startswith(f"{case.queue.name}.{sequence}.")
    assert headers == {
        "X-Dead-Letter-Reason": f"gave up after {ATTEMPTS} of {ATTEMPTS} attempts: status 500",
        "X-Dead-Letter-Attempts": str(ATTEMPTS),
        "X-Dead-Letter-Deliveries": str(ATTEMPTS),
        "X-Dead-Letter-Stream": case.queue.name,
        "X-Dead-Letter-Subject": case.queue.name,
        "X-Call-Id": case.call_id,
        "X-Function-Name": f"{case.name}.openfaas-fn",
        "X-Function-Status": "500",
    }
    assert not [line for line in case.worker.lines_of(case.call_id)[-1:] if line["level"] != "error"]


def test_the_stream_of_dead_letters(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Dead letters are kept for `dead_letter_max_age`, in a stream that consumers may read without taking them off."""
    functions.answer("echo", Reply(500))
    start(max_retry_attempts=1, dead_letter_max_age="48h", nats_stream_storage="memory")
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    config = queue.nats.api(f"STREAM.INFO.{queue.dead_letter_stream}")["config"]
    assert (config["retention"], config["max_age"], config["storage"]) == ("limits", 48 * 3600 * 10**9, "memory")


def test_dead_letters_switched_off(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """With `dead_letter=false` what is given up only leaves the queue; it is logged and counted all the same."""
    functions.answer("echo", Reply(500))
    worker = start(dead_letter="false", max_retry_attempts=2)
    queue.put(message("echo", "one"), b"malformed")
    queue.wait_empty()
    assert functions.calls() == {"one": 2}
    streams = queue.nats.api("STREAM.NAMES")["streams"]
    assert queue.dead_letter_stream not in streams
    assert len(worker.logged("Given up")) == 2
    assert worker.metric("queue_worker_messages_processed_total") == 2


def test_codes_of_ones_own(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """`retry_http_codes` replaces the list; no response still counts as 502, and is retried even where 502 is not."""
    functions.answer("teapot", Reply(418), Reply(200))
    functions.answer("broken", Reply(500))
    functions.answer("bad", Reply(502))
    functions.answer("reset", Reply(raw=b"", reset=True), Reply(200))
    start(retry_http_codes="418,429")
    for name in ("teapot", "broken", "bad", "reset"):
        queue.put_calls(name, [name])
    queue.wait_empty()
    assert functions.calls() == {"teapot": 2, "broken": 1, "bad": 1, "reset": 2}
    assert queue.letters() == []


def test_attempts_are_counted_across_workers(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """An invocation is sent `max_retry_attempts` times in all, whichever worker sends it."""
    functions.answer("echo", Reply(500))
    start(max_retry_attempts=5)
    start(max_retry_attempts=5)
    calls = queue.put_calls("echo", [f"call-{number}" for number in range(20)])
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 5)
    assert sorted(letter.headers["X-Call-Id"] for letter in queue.letters()) == sorted(calls)


# Annotations.


def test_annotated_attempts(case: Case) -> None:
    """`com.openfaas.retry.attempts` may ask for fewer attempts than the setting."""
    assert case.run(Reply(500), annotations={"com.openfaas.retry.attempts": "2"}) == 2
    (letter,) = case.queue.letters_of(case.call_id)
    assert letter.headers["X-Dead-Letter-Attempts"] == "2"


def test_annotated_codes(case: Case) -> None:
    """`com.openfaas.retry.codes` replaces the list for its function."""
    annotations = {"com.openfaas.retry.codes": "418,425"}
    assert case.run(Reply(418), Reply(425), Reply(500), annotations=annotations) == 3


def test_annotated_waits(case: Case) -> None:
    """`com.openfaas.retry.min_wait` and `max_wait` replace the first and the longest wait."""
    annotations = {"com.openfaas.retry.min_wait": "150ms", "com.openfaas.retry.max_wait": "250ms"}
    assert case.run(Reply(500), annotations=annotations) == ATTEMPTS
    logged = [line["retry_in"] for line in case.worker.lines_of(case.call_id) if "retry_in" in line]
    assert logged == [0.15, 0.25, 0.25]
    assert all(gap >= wait for gap, wait in zip(case.gaps, logged, strict=True))


def test_annotated_least_wait_bounds_retry_after(case: Case) -> None:
    """The floor of a Retry-After is the function's own first wait."""
    annotations = {"com.openfaas.retry.min_wait": "300ms", "com.openfaas.retry.max_wait": "1s"}
    assert case.run(Reply(429, headers=(("Retry-After", "0"),)), Reply(200), annotations=annotations) == 2
    assert case.gaps[0] >= 0.3


def test_invalid_annotations_are_ignored(case: Case) -> None:
    """Each on its own, with one warning each; the valid one beside them counts."""
    annotations = {
        "com.openfaas.retry.attempts": "3",
        "com.openfaas.retry.codes": "429,abc",
        "com.openfaas.retry.min_wait": "5",
        "com.openfaas.retry.max_wait": "-1m",
        "topic": "payments",
    }
    assert case.run(Reply(500), annotations=annotations) == 3
    assert all(gap >= wait for gap, wait in zip(case.gaps, WAITS[:2], strict=True))
    warned = [line for line in case.worker.lines() if str(line.get("function")).startswith(f"{case.name}.")]
    ignored = [line["annotation"] for line in warned if line["level"] == "warning"]
    assert sorted(ignored) == [f"com.openfaas.retry.{each}" for each in ("codes", "max_wait", "min_wait")]
