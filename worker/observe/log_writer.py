"""Log lines on their way to standard output: one write for all that one pass of the event loop had to say.

A write of its own for each line was a tenth of a message's cost. While Trio runs, lines are gathered until the loop is
about to wait, which is a fraction of a millisecond: so much of the log can be missing after a SIGKILL. Outside of it
each line is written at once.

A pipe takes what is written at once in one piece only up to PIPE_BUF bytes; of more, a part can stand in the middle of
another process's line when the reader is slow. So no write has more than that, and where processes share the output,
no line either: one that is longer is cut. Those are tracebacks, and hardly anything else.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

import orjson
import trio

MAX_WRITE = select.PIPE_BUF
"""Bytes of a write: 4,096 on Linux; POSIX asks for 512 at least."""
_CUT = " ... "


class LogWriter(trio.abc.Instrument):
    """A logger for structlog, all of whose methods take a line, and an instrument for Trio, which has it written.

    Args:
        file: the number of the file to write to.
        shared: whether other processes write there too.
        json: whether each line is a JSON object, and stays one when it is cut.
    """

    def __init__(self, file: int, *, shared: bool = False, json: bool = False) -> None:
        self._file, self._shared, self._json = file, shared, json
        self._gathered: list[bytes] = []
        self._running = False

    def msg(self, line: bytes) -> None:
        """Take a line, without its end."""
        self._gathered.append(line)
        if not self._running:
            self.flush()

    debug = info = warning = error = critical = msg

    def flush(self) -> None:
        """Write what was gathered, in pieces of whole lines.

        What cannot be written is dropped: a full disk or a closed pipe behind the log must not stop the work.
        """
        lines, self._gathered = self._gathered, []
        piece: list[bytes] = []
        size = 0
        for each in lines:
            line = self._whole(each)
            if size + len(line) > MAX_WRITE and piece:
                self._write(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line)
        self._write(piece)

    def _whole(self, line: bytes) -> bytes:
        over = len(line) + 1 - MAX_WRITE
        if self._shared and over > 0:
            line = shorten_json(line, over) if self._json else truncate_middle(line, MAX_WRITE - 1)
        return line + b"\n"

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        with suppress(OSError):
            while data:  # a pipe takes it in one piece, and so do files and terminals; a full disk may take a part
                data = data[os.write(self._file, data) :]

    # Called by Trio.

    def before_run(self) -> None:
        self._running = True

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 -- Trio's signature
        if self._gathered:
            self.flush()

    def after_run(self) -> None:
        self._running = False
        self.flush()


def truncate_middle(text: bytes, most: int) -> bytes:
    """*text* in UTF-8 in at most so many bytes, its middle left out."""
    if len(text) <= most:
        return text
    kept = max(0, most - len(_CUT))
    head, tail = text[: kept - kept // 2], text[len(text) - kept // 2 :]
    return (head.decode(errors="ignore") + _CUT + tail.decode(errors="ignore")).encode()[: max(0, most)]


def shorten_json(line: bytes, over: int) -> bytes:
    """A JSON object less at least *over* bytes, taken from its longest values; with none left if that is too little."""
    fields = orjson.loads(line)
    for name in sorted(fields, key=lambda name: -len(orjson.dumps(fields[name]))):
        before = len(line)
        if over <= 0:
            break
        text = fields[name] if isinstance(fields[name], str) else orjson.dumps(fields[name]).decode()
        # JSON takes a byte for each of the text, or more: as many off as there are too many is never too few.
        fields[name] = truncate_middle(text.encode(), len(text.encode()) - over - len(_CUT)).decode()
        line = orjson.dumps(fields)
        over -= before - len(line)
    return line
