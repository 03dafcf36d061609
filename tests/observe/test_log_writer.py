"""The log writer: batches of lines, and lines of several processes on one standard output."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.servers import ROOT
from worker.observe.log_writer import MAX_WRITE, LogWriter, shorten_json, truncate_middle

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.one_of(texts, st.text('x\u2603\x00"', min_size=3_000, max_size=9_000), st.integers(-9, 9), st.lists(texts))
fields = st.dictionaries(st.sampled_from(("event", "level", "error", "reason")), values, min_size=1)


@dataclass
class Pipe:
    """A pipe and a list of all writes into it."""

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
        def _write(self, lines: list[bytes]) -> None:
            written.append(b"".join(lines))

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
    LogWriter(1).info(b"0123456789")
    assert accepted == b"0123456789\n"


def test_flush_that_fails_drops_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write raises nothing and drops its lines, because the disk may be full for a long time."""

    def full(_: int, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    lines = LogWriter(1)
    monkeypatch.setattr(os, "write", full)
    lines.info(b"lost")
    monkeypatch.undo()
    reading, writing = os.pipe()
    monkeypatch.setattr(lines, "_file", writing)
    lines.info(b"kept")
    assert os.read(reading, 100) == b"kept\n"
    os.close(reading)
    os.close(writing)


@given(fields)
def test_long_json_line_has_its_longest_values_truncated(line: dict[str, object]) -> None:
    """A long line is shortened to one write: JSON with the same fields, in which truncated values are marked."""
    written = bytearray()

    class Recorder(LogWriter):
        def _write(self, lines: list[bytes]) -> None:
            written.extend(b"".join(lines))

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
