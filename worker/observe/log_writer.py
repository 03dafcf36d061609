"""Writer of log lines to standard output: one write for all lines of one pass of Trio's event loop.

One write for each line was a tenth of the CPU of a message. While Trio runs, lines are gathered until the loop is about
to wait, which is a fraction of a millisecond: so much of the log can be missing after a SIGKILL. While it does not run,
each line is written at once.

A pipe accepts a write in one piece only up to PIPE_BUF bytes. A part of a longer write can end up in the middle of
another process's line when the reader is slow. So no write is longer, and if processes share the output, no line is
either: a longer line, usually a traceback, is truncated.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

import orjson
import trio

MAX_WRITE = select.PIPE_BUF
"""Bytes of one write: 4,096 on Linux, and at least 512 by POSIX."""
_ELLIPSIS = " ... "


class LogWriter(trio.abc.Instrument):
    """A logger for structlog, which gathers lines, and an instrument of Trio, which writes them to a file descriptor.

    *shared*: whether other processes write to it. *json*: whether each line is a JSON object, also when truncated.
    """

    def __init__(self, file: int, *, shared: bool = False, json: bool = False) -> None:
        self._file, self._shared, self._json = file, shared, json
        self._lines: list[bytes] = []
        self._running = False

    def msg(self, line: bytes) -> None:
        """Gather *line*, which has no line end, or write it if Trio does not run."""
        self._lines.append(line)
        if not self._running:
            self.flush()

    debug = info = warning = error = critical = msg

    def flush(self) -> None:
        """Write the gathered lines, in batches of complete lines.

        Lines that cannot be written are dropped: a full disk or a closed pipe must not stop the worker.
        """
        lines, self._lines = self._lines, []
        batch: list[bytes] = []
        size = 0
        for each in lines:
            line = self._terminated(each)
            if size + len(line) > MAX_WRITE and batch:
                self._write(batch)
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        self._write(batch)

    def _terminated(self, line: bytes) -> bytes:
        over = len(line) + 1 - MAX_WRITE
        if self._shared and over > 0:
            line = shorten_json(line, over) if self._json else truncate_middle(line, MAX_WRITE - 1)
        return line + b"\n"

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        with suppress(OSError):
            while data:  # a pipe, file or terminal accepts all of it at once; a nearly full disk may accept a part
                data = data[os.write(self._file, data) :]

    # Trio calls the methods below.

    def before_run(self) -> None:
        self._running = True

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 -- Trio's signature
        if self._lines:
            self.flush()

    def after_run(self) -> None:
        self._running = False
        self.flush()


def truncate_middle(text: bytes, max_size: int) -> bytes:
    """Return UTF-8 *text* in at most *max_size* bytes, without its middle if it is longer."""
    if len(text) <= max_size:
        return text
    kept = max(0, max_size - len(_ELLIPSIS))
    head, tail = text[: kept - kept // 2], text[len(text) - kept // 2 :]
    return (head.decode(errors="ignore") + _ELLIPSIS + tail.decode(errors="ignore")).encode()[: max(0, max_size)]


def shorten_json(line: bytes, over: int) -> bytes:
    """Return a JSON object that is *over* bytes shorter. Its longest values are truncated first, down to nothing."""
    fields = orjson.loads(line)
    for name in sorted(fields, key=lambda name: -len(orjson.dumps(fields[name]))):
        before = len(line)
        if over <= 0:
            break
        text = fields[name] if isinstance(fields[name], str) else orjson.dumps(fields[name]).decode()
        # JSON needs a byte or more for each byte of the text, so removing *over* bytes of text is enough.
        fields[name] = truncate_middle(text.encode(), len(text.encode()) - over - len(_ELLIPSIS)).decode()
        line = orjson.dumps(fields)
        over -= before - len(line)
    return line
