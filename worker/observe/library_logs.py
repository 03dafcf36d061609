"""Log lines of libraries, through the log of this program: asyncio, nats-py and others write to Python's ``logging``.

Its default is standard error, which blocks if nothing reads it. Here their lines use the same writer as all others, so
they wait for no reader. Their number and length are bounded, because an error of a library can repeat without end.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable

import structlog

MAX_LINES = 20
"""Lines in each :data:`PERIOD`."""
PERIOD = 10.0
"""Seconds after which as many lines are written again."""
_MAX_TEXT = 1_000
"""Characters of a line's text."""
_MAX_TRACEBACK = 8_000
"""Characters of a traceback, of which the end is kept: it names the error."""


class LibraryHandler(logging.Handler):
    """Handler that passes warnings and errors to structlog; *clock* returns seconds.

    A line that follows lines left out has their number (``left_out``).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._period_ends, self._lines, self._left_out = 0.0, 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        """See :meth:`logging.Handler.emit`, which holds this handler's lock."""
        now = self._clock()
        if now >= self._period_ends:
            self._period_ends, self._lines = now + PERIOD, 0
        if self._lines >= MAX_LINES:
            self._left_out += 1
            return
        self._lines += 1
        fields: dict[str, object] = {"source": record.name}
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)[-_MAX_TRACEBACK:]
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        log = structlog.get_logger()
        (log.error if record.levelno >= logging.ERROR else log.warning)(_text(record), **fields)


def configure_library_logs() -> None:
    """Pass the lines of libraries on, and also what Python itself would write to standard error while it goes on."""
    logging.raiseExceptions = False  # logging would report its own errors to standard error
    logging.basicConfig(level=logging.WARNING, handlers=[LibraryHandler()], force=True)
    logging.captureWarnings(capture=True)
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread_error


def _text(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage().strip()
    except Exception:  # noqa: BLE001 -- a line whose arguments do not fit its text
        text = str(record.msg)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ..."


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    error = args.exc_value or args.exc_type()
    logging.getLogger("python").error("%s", args.err_msg or "error that cannot be raised", exc_info=error)


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        error = args.exc_value or args.exc_type()
        logging.getLogger("python").error("error in the thread %s", args.thread and args.thread.name, exc_info=error)
