"""Writer of log lines to standard output: one write for all lines of one pass of Trio's event loop.

One write for each line was a tenth of the CPU of a message. While Trio runs, lines are gathered until the loop is about
to wait, which is a fraction of a millisecond: so much of the log can be missing after a SIGKILL. While it does not run,
each line is written at once.

A pipe accepts a write in one piece only up to PIPE_BUF bytes. A part of a longer write can end up in the middle of
another process's line when the reader is slow. So no write is longer, and if processes share the output, no line is
either: a longer line, usually a traceback, is truncated.

No write waits for the reader (:mod:`worker.observe.log_output`). Lines that the output does not accept now are passed
to a thread, which waits in place of the caller. Beyond :data:`MAX_WAITING` they are dropped and counted, and so are
lines that cannot be written at all. The next line that can be written is preceded by one that names the number.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from queue import SimpleQueue

import orjson
import trio

from .log_output import open_output, wait_writable

MAX_WRITE = select.PIPE_BUF
"""Bytes of one write: 4,096 on Linux, and at least 512 by POSIX."""
MAX_WAITING = 2**20
"""Bytes of lines that wait for the reader: some 4,000 lines, half a second of a busy worker."""
CLOSE_TIMEOUT = 1.0
"""Seconds that the end of the process waits for the reader: the drain has used its own time before."""
_ELLIPSIS = " ... "
NOT_READ = "nothing reads it"


class LogWriter(trio.abc.Instrument):
    """A logger for structlog, which gathers lines, and an instrument of Trio, which writes them to a file descriptor.

    *shared*: whether other processes write to it. *json*: whether each line is a JSON object, also when truncated.
    *report* makes the line about dropped lines from their number and the reason; without it there is none.
    """

    def __init__(
        self,
        file: int,
        *,
        shared: bool = False,
        json: bool = False,
        report: Callable[[int, str], bytes] | None = None,
    ) -> None:
        self._shared, self._json, self._report = shared, json, report
        self._output = open_output(file)
        self._lines: list[bytes] = []
        self._running = False
        # The thread that waits, and what it shares with the event loop's thread; the lock guards the numbers.
        self._thread: threading.Thread | None = None
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        """Bytes in the queue. Only the loop's thread adds to it, so it may trust a 0 without the lock."""
        self._empty = threading.Event()
        self._empty.set()
        self.dropped = 0
        """Lines dropped so far."""
        self._unreported, self._reason = 0, ""

    def msg(self, line: bytes) -> None:
        """Gather *line*, which has no line end, or write it if Trio does not run."""
        self._lines.append(line)
        if not self._running:
            self.flush()

    debug = info = warning = error = critical = msg

    def flush(self) -> None:
        """Write the gathered lines, in batches of complete lines, without waiting for the reader."""
        if self._unreported and not self._waiting:
            self._report_dropped()
        lines, self._lines = self._lines, []
        batch: list[bytes] = []
        size = 0
        for each in lines:
            line = self._terminated(each)
            if size + len(line) > MAX_WRITE and batch:
                self._write(b"".join(batch))
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        if batch:
            self._write(b"".join(batch))

    def close(self, within: float = CLOSE_TIMEOUT) -> None:
        """Write what is left, and wait for the reader at most *within* seconds."""
        self.flush()
        if self._empty.wait(within) and self._unreported:
            self._report_dropped()
            self._empty.wait(within)

    def _terminated(self, line: bytes) -> bytes:
        over = len(line) + 1 - MAX_WRITE
        if self._shared and over > 0:
            line = shorten_json(line, over) if self._json else truncate_middle(line, MAX_WRITE - 1)
        return line + b"\n"

    def _write(self, data: bytes) -> None:
        if not self._waiting and not self._output.blocks:
            try:
                written = self._output.write(data)
            except BlockingIOError:
                written = 0
            except OSError as error:  # a full disk, or a pipe without a reader
                self._drop(data, error.strerror or str(error))
                return
            if written == len(data):
                return
            data = data[written:]  # a nearly full disk accepts a part, and so does a pipe of a very long line
        if self._waiting and self._waiting + len(data) > MAX_WAITING:
            self._drop(data, NOT_READ)
        else:
            self._enqueue(data)

    def _enqueue(self, data: bytes) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_waiting, name="log writer", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # the limit of threads; the next line tries again
                self._thread = None
                self._drop(data, str(error))
                return
        with self._lock:
            self._waiting += len(data)
            self._empty.clear()
        self._queue.put(data)

    def _write_waiting(self) -> None:
        """Write what is in the queue, in the thread, which ends with the process."""
        while True:
            data = self._queue.get()
            rest = memoryview(data)
            try:
                while rest:
                    wait_writable(self._output.file)
                    try:
                        rest = rest[self._output.write(rest) :]
                    except BlockingIOError:  # another process was faster
                        continue
            except OSError as error:
                self._drop(bytes(rest), error.strerror or str(error))
            with self._lock:
                self._waiting -= len(data)
                if not self._waiting:
                    self._empty.set()

    def _drop(self, data: bytes, reason: str) -> None:
        count = data.count(b"\n")
        with self._lock:
            self.dropped += count
            self._unreported += count
            self._reason = reason

    def _report_dropped(self) -> None:
        """Write how many lines were dropped; if that is dropped too, they are reported later."""
        with self._lock:
            count, reason = self._unreported, self._reason
            self._unreported = 0
        if self._report:
            dropped = self.dropped
            self._write(self._terminated(self._report(count, reason)))
            if self.dropped > dropped:
                with self._lock:
                    self.dropped -= 1  # the report is no line of the log
                    self._unreported += count - 1

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
