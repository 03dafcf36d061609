"""The gateway's log lines: to standard output, for people or as JSON. Never a body, a header's value or a secret."""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson
import structlog

from ..config import Settings
from .publisher import Log


def configure(settings: Settings) -> Log:
    """Set up logging for this process, and give the logger."""
    renderer: Any
    if settings.log_encoding == "json":
        renderer = structlog.processors.JSONRenderer(serializer=lambda fields, **_: orjson.dumps(fields).decode())
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if settings.debug else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
    )
    log: Log = structlog.get_logger()
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward(log)], force=True)
    return log


class _Forward(logging.Handler):
    """What libraries say through the standard library's logging."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.warning(record.getMessage().strip(), source=record.name, exc_info=record.exc_info)
