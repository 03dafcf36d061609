"""Log lines of several processes on one standard output."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers import ROOT
from worker.observe.lines import MOST, Lines, cut, shortened

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.one_of(texts, st.text('x\u2603\x00"', min_size=3_000, max_size=9_000), st.integers(-9, 9), st.lists(texts))
fields = st.dictionaries(st.sampled_from(("event", "level", "error", "reason")), values, min_size=1)


@dataclass
class Pipe:
    """A pipe, and what is written into it, each piece on its own."""

    written: list[bytes]
    file: int

    def lines(self, *, json: bool) -> io.TextIOWrapper:
        lines: Any = Lines(self.file, 3, json=json)  # the type checker does not see that it is a file
        return io.TextIOWrapper(lines, "utf-8", write_through=True)


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
    """However it comes: in pieces, as print does it, or several at once; and each says whose it is."""
    out = pipe.lines(json=False)
    print("one", "two", file=out, flush=True)
    out.buffer.write(b"three")
    assert len(pipe.written) == 1
    out.buffer.write(b" four\nfive\nsi")
    out.write("x\n")
    assert pipe.written == [b"one two process=3\n", b"three four process=3\n", b"five process=3\n", b"six process=3\n"]


def test_json_gets_a_field(pipe: Pipe) -> None:
    """The process is a field like others; what is no object is passed on as it is."""
    out = pipe.lines(json=True)
    out.buffer.write(b'{"event":"Invoked"}\nno object\n{}\n')
    assert pipe.written == [b'{"process":3,"event":"Invoked"}\n', b"no object\n", b"{}\n"]


def test_a_disk_that_takes_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is written after it."""
    taken = bytearray()

    def write(_: int, data: bytes) -> int:
        taken.extend(data[:5])
        return min(5, len(data))

    monkeypatch.setattr(os, "write", write)
    Lines(1, 3, json=False).write(b"0123456789\n")
    assert taken == b"0123456789 process=3\n"


@given(fields)
def test_a_long_line_is_cut_where_it_is_longest(line: dict[str, object]) -> None:
    """It fits, is JSON with the same fields still, and a value that is no longer whole tells so."""
    written = bytearray()

    class Kept(Lines):
        def _put_all(self, whole: bytes) -> None:
            written.extend(whole)

    Kept(1, 3, json=True).write(json.dumps(line).encode() + b"\n")
    told = json.loads(written)
    assert len(written) <= MOST
    assert told.keys() == {*line, "process"}
    # Compared outside of the assertions, which would print what is very long.
    whole = {name for name in line if told[name] == line[name]}
    marked = {name for name in line if " ... ".startswith(str(told[name])[:5]) or " ... " in str(told[name])}
    assert whole | marked == line.keys()
    fits = len(json.dumps(line)) + len('"process":3,\n') <= MOST
    assert whole == line.keys() or not fits


@given(st.text("x\u2603\U0001f600\n"), st.integers(-5, 200))
def test_texts_are_cut_between_characters(text: str, most: int) -> None:
    """What is left is text, no longer than may be, with the beginning and the end of the whole."""
    data = text.encode()
    left = cut(data, most)
    assert len(left) <= max(0, most) or left == data
    left.decode()
    if left != data and most > 5:
        head, _, tail = left.decode().partition(" ... ")
        assert text.startswith(head)
        assert text.endswith(tail)


def test_what_cannot_be_shortened_enough_has_no_values_left() -> None:
    """Then all is cut, and that is all that can be done."""
    assert shortened(b'{"a":"b","c":"d"}', 100) == b'{"a":"","c":""}'


WRITER = """
import sys
from worker.observe.lines import share_stdout
share_stdout(int(sys.argv[1]), json=True)
for number in range(300):
    sys.stdout.buffer.write(b'{"number":%d,"text":"%s"}\\n' % (number, b"x" * (number * 37 % 9_000)))
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
