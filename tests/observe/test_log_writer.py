"""Log lines of several processes on one standard output."""

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
    """A pipe, and what is written into it, each piece on its own."""

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


def test_a_line_is_one_write(pipe: Pipe) -> None:
    """Where no loop runs, as before it starts, nothing waits: the next line might never come."""
    lines = LogWriter(pipe.file)
    lines.info(b"one")
    lines.warning(b"two")
    assert pipe.written == [b"one\n", b"two\n"]


def test_a_pass_of_the_loop_is_one_write(pipe: Pipe) -> None:
    """What was said before the loop waits is written when it does, together; after its end nothing is left."""
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
def test_a_write_is_of_whole_lines(sizes: list[int]) -> None:
    """None has more than a pipe takes in one piece, but for a line that has more alone; all come, in order."""
    written: list[bytes] = []

    class Kept(LogWriter):
        def _write(self, lines: list[bytes]) -> None:
            written.append(b"".join(lines))

    lines = Kept(1)
    lines.before_run()
    told = [b"x" * size for size in sizes]
    for line in told:
        lines.info(line)
    lines.before_io_wait(0)
    assert b"".join(written) == b"".join(line + b"\n" for line in told)
    assert all(piece.endswith(b"\n") for piece in written if piece)
    assert all(len(piece) <= MAX_WRITE or piece.count(b"\n") == 1 for piece in written)


def test_a_disk_that_takes_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is written after it."""
    taken = bytearray()

    def write(_: int, data: bytes) -> int:
        taken.extend(data[:5])
        return min(5, len(data))

    monkeypatch.setattr(os, "write", write)
    LogWriter(1).info(b"0123456789")
    assert taken == b"0123456789\n"


def test_what_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it tried again: the disk may be full for long."""

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
def test_a_long_line_is_cut_where_it_is_longest(line: dict[str, object]) -> None:
    """It fits, is JSON with the same fields still, and a value that is no longer whole tells so."""
    written = bytearray()

    class Kept(LogWriter):
        def _write(self, lines: list[bytes]) -> None:
            written.extend(b"".join(lines))

    Kept(1, shared=True, json=True).info(json.dumps(line).encode())
    told = json.loads(written)
    assert len(written) <= MAX_WRITE
    assert told.keys() == line.keys()
    # Compared outside of the assertions, which would print what is very long.
    whole = {name for name in line if told[name] == line[name]}
    marked = {name for name in line if " ... ".startswith(str(told[name])[:5]) or " ... " in str(told[name])}
    assert whole | marked == line.keys()
    fits = len(json.dumps(line)) < MAX_WRITE
    assert whole == line.keys() or not fits


@given(st.text("x\u2603\U0001f600\n"), st.integers(-5, 200))
def test_texts_are_cut_between_characters(text: str, most: int) -> None:
    """What is left is text, no longer than may be, with the beginning and the end of the whole."""
    data = text.encode()
    left = truncate_middle(data, most)
    assert len(left) <= max(0, most) or left == data
    left.decode()
    if left != data and most > 5:
        head, _, tail = left.decode().partition(" ... ")
        assert text.startswith(head)
        assert text.endswith(tail)


def test_what_cannot_be_shortened_enough_has_no_values_left() -> None:
    """Then all is cut, and that is all that can be done."""
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


def test_processes_do_not_write_into_each_other_s_lines() -> None:
    """Three at once into one pipe that is always full, with lines from short to far too long: each line is whole."""
    reading, writing = os.pipe()
    read = bytearray()

    def slowly() -> None:
        while data := os.read(reading, 1_000):
            read.extend(data)

    reader = threading.Thread(target=slowly)
    reader.start()
    command = [sys.executable, "-c", WRITER]
    processes = [subprocess.Popen([*command, str(number)], stdout=writing, cwd=ROOT) for number in (1, 2, 3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    os.close(writing)
    reader.join()
    os.close(reading)
    told = [json.loads(line) for line in read.splitlines()]
    for number in (1, 2, 3):
        assert [line["number"] for line in told if line["process"] == number] == list(range(300))
