"""Warnings that callers can cause with each call: the first is written at once, then one a minute with their number."""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger

INTERVAL = 60.0
"""Seconds between two lines about the same."""
_MOST = 1_000
"""Keys at once. Further ones share one."""


class BoundedLog:
    """Warnings of one kind of trouble; *log* gets them."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._left_out: dict[str, int] = {}
        """The number of warnings that were not written since the last line, by key."""
        self._last: dict[str, tuple[str, dict[str, object]]] = {}
        """The last of these warnings."""

    def warning(self, event: str, /, key: str = "", **fields: object) -> None:
        """Write a warning, or count it if one with the same *event* and *key* was written in the last minute.

        At the minute's end a line with the fields of the last one has the number of those that are missing
        (``left_out``).
        """
        key = f"{event} {key}"
        if key not in self._left_out and len(self._left_out) >= _MOST:
            key = ""
        if key in self._left_out:
            self._left_out[key] += 1
            self._last[key] = event, fields
            return
        self._begin(key)
        self._log.warning(event, **fields)

    def _begin(self, key: str) -> None:
        self._left_out[key] = 0
        asyncio.get_running_loop().call_later(INTERVAL, self._end, key)

    def _end(self, key: str) -> None:
        """Report the warnings of a minute, and begin another one if there were any."""
        if left_out := self._left_out.pop(key):
            self._begin(key)
            event, fields = self._last.pop(key)
            self._log.warning(event, **fields, left_out=left_out)
