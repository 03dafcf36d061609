"""Log lines on their way to standard output: one write for all that one pass of the event loop had to say.

A write of its own for each line was a tenth of a message's cost. While Trio runs, lines are gathered until the loop is
about to wait, which is a fraction of a millisecond: so much of the log can be missing after a SIGKILL. Outside of it
each line is written at once.
"""

from __future__ import annotations

import os
from contextlib import suppress

import trio

WHOLE = 4096
"""Bytes up to which a write to a pipe is never mixed with another process's (PIPE_BUF on Linux, see pipe(7))."""


class Lines(trio.abc.Instrument):
    """A logger for structlog, all of whose methods take a line, and an instrument for Trio, which has it written.

    Args:
        descriptor: of the file to write to.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._gathered: list[bytes] = []
        self._running = False

    def msg(self, line: bytes) -> None:
        """Take a line, without its end.

        Raises:
            OSError: it cannot be written. It is not tried again.
        """
        self._gathered.append(line)
        if not self._running:
            self.flush()

    debug = info = warning = error = critical = msg

    def flush(self) -> None:
        """Write what was gathered, in pieces of whole lines no larger than :data:`WHOLE`, where no line is larger.

        Raises:
            OSError: it cannot be written. It is not tried again.
        """
        lines, self._gathered = self._gathered, []
        piece: list[bytes] = []
        size = 0
        for line in lines:
            if size + len(line) >= WHOLE and piece:
                self._write(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line) + 1
        if piece:
            self._write(piece)

    def _write(self, lines: list[bytes]) -> None:
        data = b"\n".join((*lines, b""))
        while data:
            data = data[os.write(self._descriptor, data) :]

    # Called by Trio, which would drop an instrument that raises.

    def before_run(self) -> None:
        self._running = True

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 -- Trio's signature
        if self._gathered:
            self._flush_anyhow()

    def after_run(self) -> None:
        self._running = False
        self._flush_anyhow()

    def _flush_anyhow(self) -> None:
        with suppress(OSError):  # a full disk or a closed pipe behind standard output must not stop the work
            self.flush()
