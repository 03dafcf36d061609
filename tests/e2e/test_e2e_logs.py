"""Contract, section 7, last sentence: the log lines of a worker."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Queue, StartWorker, Worker, go_url, message
from tests.functions import Functions, Reply

MARK = "m4rk"


def test_log_has_one_line_for_each_invocation(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The worker logs each ended invocation in one info line: call id, function, attempt, status, duration, bytes."""
    functions.answer("fine", Reply(201, b"x" * 1_234, after=0.05))
    functions.answer("flaky", Reply(503, b"no"), Reply(200, b"yes"))
    functions.answer("late", Reply(after=600))
    lines = []
    for timeout, payloads in (
        ("60s", [message("fine.dev", "one"), message("flaky", "two")]),
        ("300ms", [message("late", "three")]),
    ):
        worker = start(upstream_timeout=timeout, max_retry_attempts=2)
        queue.put(*payloads)
        queue.wait_empty()
        worker.terminate()
        assert worker.wait() == 0
        lines += worker.logged("^Invoked$")
    logged = {(line["call_id"], line["function"], line["attempt"], line["status"], line["bytes"]) for line in lines}
    assert logged == {
        ("one", "fine.dev", 1, 201, 1_234),
        ("two", "flaky.openfaas-fn", 1, 503, 2),
        ("two", "flaky.openfaas-fn", 2, 200, 3),
        ("three", "late.openfaas-fn", 1, 504, 0),
        ("three", "late.openfaas-fn", 2, 504, 0),
    }
    assert len(lines) == len(logged)
    assert {line["level"] for line in lines} == {"info"}
    durations = {line["call_id"]: line["duration"] for line in lines}
    assert durations["one"] >= 0.05
    assert durations["three"] >= 0.3


def test_log_with_debug_has_the_start_of_each_invocation(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """With `debug=true` the worker logs the start of each invocation; without it, no line is below info."""
    for debug in ("true", "false"):
        worker = start(debug=debug)
        queue.put(message("echo", debug, b"12345", Method="PUT"))
        queue.wait_empty()
        worker.terminate()
        assert worker.wait() == 0
        started = [line for line in worker.lines_of(debug) if line["level"] == "debug"]
        assert len(started) == (debug == "true")
        for line in started:
            logged = {name: line[name] for name in ("function", "attempt", "method", "bytes")}
            assert logged == {"function": "echo.openfaas-fn", "attempt": 1, "method": "PUT", "bytes": 5}
        if debug == "false":
            assert {line["level"] for line in worker.lines()} == {"info"}
    assert len(functions.requests) == 2


def test_log_in_json_has_one_event_in_each_line(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """With `log_encoding=json` each line is one JSON object with time, level and text, for any text that it quotes."""
    functions.answer("broken", Reply(500))
    functions.answer("reset", Reply(raw=b"", reset=True))
    receiver.answer("callback", Reply(500))
    worker = start(debug="true", max_retry_attempts=2)
    special = 'line\nbreak "quotes" \\ back\u2028slash \x1b[31m'
    queue.put(
        message("broken", "a\tb"),
        message("reset", "two", CallbackUrl=go_url(f"{receiver.url}/callback")),
        message("echo", "three", Annotations={"com.openfaas.retry.attempts": special}),
        message("echo", "four", CallbackUrl=f"http://{special}"),
        message(special, "five"),
        b"\xff\x00",
    )
    queue.wait_empty()
    worker.terminate()
    assert worker.wait() == 0
    lines = worker.lines()
    assert len(lines) == len(worker.stdout.split("\n")) - 1
    for line in lines:
        assert {"timestamp", "level", "event"} <= set(line)
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])
        assert line["level"] in ("debug", "info", "warning", "error")
    assert worker.stderr == ""


@pytest.mark.parametrize("encoding", ["json", "console"])
def test_log_contains_no_body_header_or_secret(
    queue: Queue, functions: Functions, receiver: Functions, tmp_path: Path, encoding: str
) -> None:
    """The worker never logs a body, a header's value or a secret, also at debug level and after any failure."""
    marked = MARK.encode()
    body, secret = marked + b"-body", f"{MARK}-secret"
    headers = (("X-Answer", f"{MARK}-header"), ("Set-Cookie", f"{MARK}-cookie"))
    functions.answer("fine", Reply(200, body, headers))
    functions.answer("broken", Reply(500, body, headers))
    functions.answer("reset", Reply(raw=b"HTTP/1.1 200 OK\r\nX-A: " + body, reset=True))
    functions.answer("garbage", Reply(raw=body * 100))
    functions.answer("chunks", Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))
    functions.answer("late", Reply(body=body, after=30))
    receiver.answer("callback", Reply(500, body, headers), Reply(raw=body), Reply(200, body, headers))
    header = {
        "Authorization": [f"Bearer {MARK}-token"],
        "Cookie": [f"{MARK}-cookie"],
        "X-Api-Key": [f"{MARK}-key"],
    }
    url = go_url(f"{receiver.url}/callback?token={MARK}-query")
    names = ("fine", "broken", "reset", "garbage", "chunks", "late")
    encoded = base64.b64encode(body).decode()
    usual: dict[str, Any] = {"CallbackUrl": url, "QueryString": f"a={MARK}-query"}
    # Only this function keeps the many attempts of the setting, because on a busy machine its answer may be late.
    payloads = [
        message(name, body=body, Header=header | {"X-Call-Id": [name]}, Annotations=attempts, **usual)
        for name in names
        for attempts in [{} if name == "fine" else {"com.openfaas.retry.attempts": "2"}]
    ]
    payloads += [
        payloads[0][:-5],
        payloads[0].replace(b'"POST"', b"5"),
        message("fine", Header=header, Body=f"{MARK}-not base64"),
        message("fine", Header=header | {"X-A": [f"{MARK}\r\nX-B: c"]}, Body=encoded),
        message("fine", Header=f"{MARK}-header"),
        message("fine", Header={"Authorization": f"{MARK}-header"}),
        body,
    ]
    settings = {"debug": "true", "log_encoding": encoding, "max_retry_attempts": 100, "upstream_timeout": "300ms"}
    with Worker(queue, functions, tmp_path=tmp_path, **settings, nats_token=secret, http_port=0) as worker:
        worker.wait_for("Consuming")
        queue.put(*payloads)
        queue.wait_empty()
        worker.terminate()
        assert worker.wait() == 0
        assert "Invoke" in worker.output
        found = [line for line in worker.output.splitlines() if MARK in line or encoded.rstrip("=")[:6] in line]
        assert found == []
    assert len(queue.dead_letters()) == len(payloads) - 1
    assert any(request.header("X-Answer") for request in receiver.requests)


def test_log_for_the_console_is_plain_text(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """By default log lines are plain text, one for each event, without colours if the output is not a terminal."""
    with Worker(queue, functions, tmp_path=tmp_path, log_encoding="") as worker:
        worker.wait_for("Consuming")
        queue.put_calls("echo", ["one"])
        queue.wait_empty()
        line = worker.wait_for("(?m)^.*Invoked.*$")[0]
        assert "call_id=one" in line
        assert "status=200" in line
        assert "\x1b" not in worker.output


def test_log_without_trouble_has_at_most_ten_lines(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A worker without trouble logs at most ten lines, all on standard output."""
    worker = start()
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    worker.terminate()
    assert worker.wait() == 0
    assert worker.stderr == ""
    assert len(worker.lines()) <= 10
    assert functions.calls() == {"one": 1}
