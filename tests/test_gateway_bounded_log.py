"""Warnings that callers can cause, in virtual time: their number is bounded, and none is left out uncounted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from worker.gateway import bounded_log
from worker.gateway.bounded_log import INTERVAL, BoundedLog


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait for its timers."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # asyncio's own
        if scheduled and not self._ready:  # type: ignore[attr-defined]  # asyncio's own
            self.now = max(self.now, scheduled[0].when())
        super()._run_once()  # type: ignore[misc]  # asyncio's own


def lines_of(*warnings: tuple[float, str, str]) -> list[tuple[str, Any, Any]]:
    """Return event, number and ``left_out`` of the lines for *warnings*: a time, an event and a key of each."""
    log = CapturingLogger()

    async def warn() -> None:
        bounded, loop = BoundedLog(log), asyncio.get_running_loop()
        for number, (at, event, key) in enumerate(warnings):
            await asyncio.sleep(at - loop.time())
            bounded.warning(event, key, number=number)
        await asyncio.sleep(10 * INTERVAL)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(warn())
    return [(call.args[0], call.kwargs["number"], call.kwargs.get("left_out")) for call in log.calls]


def test_bounded_log_repeated_warnings_are_one_line_a_minute_with_their_number() -> None:
    """The first line is written at once; each minute's end reports how many were left out, as the last one."""
    warnings = [(float(second), "Not queued", "") for second in range(150)]
    lines = lines_of(*warnings)
    assert lines[0] == ("Not queued", 0, None)
    assert len(lines) == 4  # at 0, 60, 120 and 180 s
    assert sum(left_out for _, _, left_out in lines[1:]) == 149
    assert lines[-1][1] == 149


def test_bounded_log_warning_after_a_quiet_minute_is_written_at_once() -> None:
    """Where nothing was left out, the next warning is a first one again."""
    assert lines_of((0.0, "Away", ""), (61.0, "Away", "")) == [("Away", 0, None), ("Away", 1, None)]


def test_bounded_log_other_event_or_key_is_written() -> None:
    """Warnings about something else are first ones of their own."""
    lines = lines_of((0.0, "Full", "a"), (1.0, "Full", "b"), (2.0, "Away", "a"), (3.0, "Full", "a"))
    assert lines == [("Full", 0, None), ("Full", 1, None), ("Away", 2, None), ("Full", 3, 1)]


def test_bounded_log_many_keys_share_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers cannot fill the log, nor the memory, with ever new keys."""
    monkeypatch.setattr(bounded_log, "_MOST", 3)
    lines = lines_of(*[(0.0, "Full", f"queue-{number}") for number in range(100)])
    assert [line[2] for line in lines] == [None, None, None, None, 96]
