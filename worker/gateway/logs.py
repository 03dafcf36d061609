"""The gateway's log: the worker's, with what the libraries say in it."""

from __future__ import annotations

import logging

import structlog

from ..config import Settings
from ..observe import logs
from .publisher import Log

_lines = logging.Formatter()


def configure(settings: Settings) -> Log:
    """Set up logging for this process, and give the logger."""
    logs.configure(settings)
    log: Log = structlog.get_logger()
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward(log)], force=True)
    return log


class _Forward(logging.Handler):
    """From the standard library's logging, where uvicorn writes, to our log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"traceback": _lines.formatException(record.exc_info)} if record.exc_info else {}
        self._log.warning(record.getMessage().strip(), source=record.name, **trace)
