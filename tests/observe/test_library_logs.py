"""Log lines of libraries: in the program's own log, and bounded."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from worker.observe.library_logs import MAX_LINES, PERIOD, LibraryHandler, configure_library_logs


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """Return the list that gets the lines, as dicts; restore Python's own hooks at the end."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions, sys.unraisablehook, threading.excepthook
    with structlog.testing.capture_logs() as captured:
        yield captured
    root.handlers[:], root.level, logging.raiseExceptions, sys.unraisablehook, threading.excepthook = before
    logging.captureWarnings(capture=False)


def _record(text: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("nats", level, "file.py", 1, text, args, None)


def test_library_line_has_its_level_and_source(lines: list[Any]) -> None:
    """A warning and an error of a library are lines with its name; information is none."""
    configure_library_logs()
    for level in ("info", "warning", "error", "critical"):
        getattr(logging.getLogger("asyncio"), level)("about %s", level)
    assert lines == [
        {"event": "about warning", "source": "asyncio", "log_level": "warning"},
        {"event": "about error", "source": "asyncio", "log_level": "error"},
        {"event": "about critical", "source": "asyncio", "log_level": "error"},
    ]


def test_library_lines_beyond_the_limit_are_counted(lines: list[Any]) -> None:
    """Of lines without end, MAX_LINES are written in each PERIOD; the next one has the number of the others."""
    clock = SimpleNamespace(now=100.0)
    handler = LibraryHandler(lambda: clock.now)
    for _ in range(MAX_LINES + 7):
        handler.handle(_record("again"))
    assert len(lines) == MAX_LINES
    clock.now += PERIOD
    handler.handle(_record("later"))
    handler.handle(_record("last"))
    assert [(line["event"], line.get("left_out")) for line in lines[MAX_LINES:]] == [("later", 7), ("last", None)]


def test_library_line_that_is_long_is_cut(lines: list[Any]) -> None:
    """Neither a text nor a traceback of any length makes a line without end."""
    configure_library_logs()
    logging.getLogger("nats").error("x" * 100_000, exc_info=ValueError("y" * 100_000))
    assert len(lines[0]["event"]) < 1_010
    assert len(lines[0]["traceback"]) == 8_000


def test_library_line_with_wrong_arguments_is_its_text(lines: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    """A line whose arguments do not fit its text is written without them, and nothing goes to standard error."""
    LibraryHandler().handle(_record("%d of %d", "one"))
    assert lines[0]["event"] == "%d of %d"
    assert capfd.readouterr().err == ""


def test_errors_that_python_prints_itself_are_lines(lines: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    """A warning, an error in a thread and one in a finalizer are lines of the log."""

    class Bad:
        def __del__(self) -> None:
            raise ValueError("in a finalizer")

    def fail() -> None:
        raise ValueError("in a thread")

    configure_library_logs()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("deprecated", stacklevel=1)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    Bad()
    gc.collect()
    texts = [line["event"] + line.get("traceback", "") for line in lines]
    assert [text in found for text, found in zip(("deprecated", "in a thread", "in a finalizer"), texts, strict=True)]
    assert capfd.readouterr().err == ""
