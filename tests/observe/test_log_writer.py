"""The log writer: batches of lines, and lines of several processes on one standard output."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import LAST_RESORT
from tests.servers import ROOT
from worker.observe.log_writer import MAX_WAITING, MAX_WRITE, NOT_READ, LogWriter, shorten_json, truncate_middle

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.one_of(texts, st.text('x\u2603\x00"', min_size=3_000, max_size=9_000), st.integers(-9, 9), st.lists(texts))
fields = st.dictionaries(st.sampled_from(("event", "level", "error", "reason")), values, min_size=1)


@dataclass
class Pipe:
    """An output and a list of all writes into it."""

    written: list[bytes]
    file: int


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    written: list[bytes] = []

    def write(file: int, data: bytes) -> int:
        assert file == -7
        written.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", write)
    return Pipe(written, -7)


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """Create a pipe, and return the end to read from and the end to write to."""
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        with suppress(OSError):
            os.close(end)


def report(count: int, reason: str) -> bytes:
    return f"{count} dropped: {reason}".encode()


def read_lines(reading: int) -> Iterator[str]:
    """Yield each line that is read, until the test stops reading."""
    with os.fdopen(os.dup(reading), "rb") as file:
        for line in file:
            yield line.decode().rstrip("\n")


def test_line_without_a_loop_is_written_at_once(pipe: Pipe) -> None:
    """Without a running loop each line is written at once, because no later event would write it."""
    lines = LogWriter(pipe.file)
    lines.info(b"one")
    lines.warning(b"two")
    assert pipe.written == [b"one\n", b"two\n"]


def test_lines_of_one_pass_of_the_loop_are_one_write(pipe: Pipe) -> None:
    """Lines are written together when the loop is about to wait, and the last ones when it ends."""
    lines = LogWriter(pipe.file)

    async def main() -> None:
        lines.info(b"one")
        lines.info(b"two")
        assert pipe.written == []
        await trio.testing.wait_all_tasks_blocked()
        assert pipe.written == [b"one\ntwo\n"]
        lines.info(b"three")

    trio.run(main, instruments=[lines])
    assert pipe.written[1:] == [b"three\n"]
    lines.info(b"four")
    assert pipe.written[2:] == [b"four\n"]


@given(st.lists(st.integers(0, 3 * MAX_WRITE), max_size=9))
def test_flush_writes_batches_of_complete_lines(sizes: list[int]) -> None:
    """No batch has more than MAX_WRITE bytes, except for one line that is longer. All lines are written in order."""
    written: list[bytes] = []

    class Recorder(LogWriter):
        def _write(self, data: bytes) -> None:
            written.append(data)

    lines = Recorder(1)
    lines.before_run()
    expected = [b"x" * size for size in sizes]
    for line in expected:
        lines.info(line)
    lines.before_io_wait(0)
    assert b"".join(written) == b"".join(line + b"\n" for line in expected)
    assert all(piece.endswith(b"\n") for piece in written if piece)
    assert all(len(piece) <= MAX_WRITE or piece.count(b"\n") == 1 for piece in written)


def test_flush_after_a_partial_write_writes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a partial write, as on a nearly full disk, the rest is written."""
    accepted = bytearray()

    def write(_: int, data: bytes) -> int:
        accepted.extend(data[:5])
        return min(5, len(data))

    monkeypatch.setattr(os, "write", write)
    with Path(os.devnull).open("wb") as file:
        lines = LogWriter(file.fileno())
        lines.info(b"0123456789")
        lines.close(LAST_RESORT)
    assert accepted == b"0123456789\n"
    assert lines.dropped == 0


def test_flush_that_fails_drops_and_counts_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write raises nothing. Its lines are dropped; the next line is preceded by their number."""
    disk_full = True
    written: list[bytes] = []

    def write(_: int, data: bytes) -> int:
        if disk_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", write)
    lines = LogWriter(-1, report=report)
    lines.info(b"lost")
    lines.info(b"lost too")
    assert lines.dropped == 2
    disk_full = False
    lines.info(b"kept")
    lines.info(b"kept too")
    assert written == [b"2 dropped: No space left on device\n", b"kept\n", b"kept too\n"]
    assert lines.dropped == 2


def test_pipe_that_is_not_read_drops_lines_and_reports_them_later(ends: tuple[int, int]) -> None:
    """An unread pipe never blocks: MAX_WAITING bytes wait, later lines are dropped. A reader gets all others in order.

    The first line after the dropped ones names their number.
    """
    reading, writing = ends
    lines = LogWriter(writing, report=report)
    count = (MAX_WAITING + 2**20) // 100
    for number in range(count):
        lines.info(b"%09d" % number + b"x" * 90)
    assert 0 < lines.dropped < count
    kept = count - lines.dropped
    received = read_lines(reading)
    assert [int(next(received)[:9]) for _ in range(kept)] == list(range(kept))
    lines.close(LAST_RESORT)
    lines.info(b"last")
    assert next(received) == f"{lines.dropped} dropped: {NOT_READ}"
    assert next(received) == "last"


def test_pipe_that_is_read_again_accepts_lines_at_once(ends: tuple[int, int]) -> None:
    """When the waiting lines have been read, the next line is written without the thread."""
    reading, writing = ends
    lines = LogWriter(writing)
    while not lines._waiting:
        lines.info(b"x" * 999)
    received = bytearray()
    while not lines._empty.is_set() or select.select([reading], [], [], 0)[0]:
        if select.select([reading], [], [], 0.01)[0]:
            received += os.read(reading, 65_536)
    lines.info(b"direct")
    assert os.read(reading, 100) == b"direct\n"
    assert set(bytes(received).split(b"\n")) == {b"x" * 999, b""}


def test_pipe_without_a_reader_drops_lines(ends: tuple[int, int]) -> None:
    """A pipe whose reader has ended drops lines, whether it ended before or after the start."""
    reading, writing = ends
    before = LogWriter(writing)
    os.close(reading)
    after = LogWriter(writing)
    for lines in (before, after):
        lines.info(b"lost")
        lines.close(LAST_RESORT)
        assert lines.dropped == 1


def test_pipe_of_another_program_stays_blocking(ends: tuple[int, int]) -> None:
    """The open file that other programs share is not changed to non-blocking."""
    LogWriter(ends[1])
    assert os.get_blocking(ends[1])


def test_pipe_that_cannot_be_opened_again_is_written_by_the_thread(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc, or with the pipe of another user, all lines are written by the thread, in order."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    reading, writing = ends
    monkeypatch.setattr(os, "open", refuse)
    lines = LogWriter(writing)
    for number in range(2_000):
        lines.info(b"%d" % number)
    received = read_lines(reading)
    assert [next(received) for _ in range(2_000)] == [str(number) for number in range(2_000)]


def test_socket_that_is_not_read_drops_lines() -> None:
    """A socket, as a service manager gives it, is written without waiting too."""
    ours, peer = socket.socketpair()
    with ours, peer:
        lines = LogWriter(ours.fileno())
        while not lines.dropped:
            lines.info(b"x" * 999)
        assert ours.getblocking()
        assert peer.recv(1_000) == b"x" * 999 + b"\n"


def test_terminal_that_is_stopped_drops_lines() -> None:
    """A terminal whose output is not read, or is stopped by Ctrl-S, does not block either."""
    reading, writing = os.openpty()
    lines = LogWriter(writing)
    while not lines.dropped:
        lines.info(b"x" * 999)
    os.close(writing)
    os.close(reading)


def test_close_without_a_reader_waits_no_longer_than_its_timeout(ends: tuple[int, int]) -> None:
    """Closing returns when its time is up, although the reader reads nothing."""
    lines = LogWriter(ends[1])
    while not lines._waiting:
        lines.info(b"x" * 999)
    lines.close(0.01)
    assert not lines._empty.is_set()


def test_thread_that_cannot_start_drops_lines(ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of threads, lines that would wait are dropped."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    lines = LogWriter(ends[1])
    while not lines.dropped:
        lines.info(b"x" * 999)
    assert lines._waiting == 0


@given(fields)
def test_long_json_line_has_its_longest_values_truncated(line: dict[str, object]) -> None:
    """A long line is shortened to one write: JSON with the same fields, in which truncated values are marked."""
    written = bytearray()

    class Recorder(LogWriter):
        def _write(self, data: bytes) -> None:
            written.extend(data)

    Recorder(1, shared=True, json=True).info(json.dumps(line).encode())
    found = json.loads(written)
    assert len(written) <= MAX_WRITE
    assert found.keys() == line.keys()
    # Compared outside of the assertions, which would print very long values.
    whole = {name for name in line if found[name] == line[name]}
    marked = {name for name in line if " ... ".startswith(str(found[name])[:5]) or " ... " in str(found[name])}
    assert whole | marked == line.keys()
    fits = len(json.dumps(line)) < MAX_WRITE
    assert whole == line.keys() or not fits


@given(st.text("x\u2603\U0001f600\n"), st.integers(-5, 200))
def test_truncate_middle_cuts_between_characters(text: str, most: int) -> None:
    """The result is valid UTF-8 within the limit, and has the beginning and the end of the text."""
    data = text.encode()
    left = truncate_middle(data, most)
    assert len(left) <= max(0, most) or left == data
    left.decode()
    if left != data and most > 5:
        head, _, tail = left.decode().partition(" ... ")
        assert text.startswith(head)
        assert text.endswith(tail)


def test_shorten_json_by_too_much_empties_all_values() -> None:
    """Shortening by more than the values have empties all values and keeps the names."""
    assert shorten_json(b'{"a":"b","c":"d"}', 100) == b'{"a":"","c":""}'


WRITER = """
import sys, trio
from worker.observe.log_writer import LogWriter
lines = LogWriter(1, shared=True, json=True)
async def write():
    for number in range(300):
        text = b"x" * (number * 37 % 9_000)
        lines.info(b'{"process":%s,"number":%d,"text":"%s"}' % (sys.argv[1].encode(), number, text))
        if number % 5 == 0:
            await trio.sleep(0)
trio.run(write, instruments=[lines])
lines.close(60)
"""


def test_lines_of_several_processes_are_not_mixed() -> None:
    """Three processes write short and very long lines into one full pipe, and each line arrives complete."""
    reading, writing = os.pipe()
    read = bytearray()

    def read_slowly() -> None:
        while data := os.read(reading, 1_000):
            read.extend(data)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    command = [sys.executable, "-c", WRITER]
    processes = [subprocess.Popen([*command, str(number)], stdout=writing, cwd=ROOT) for number in (1, 2, 3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    os.close(writing)
    reader.join()
    os.close(reading)
    found = [json.loads(line) for line in read.splitlines()]
    for number in (1, 2, 3):
        assert [line["number"] for line in found if line["process"] == number] == list(range(300))
