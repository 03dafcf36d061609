"""The gateway's log: the worker's format, also for the libraries' messages."""

from __future__ import annotations

import logging

import structlog

from ..config import Settings
from ..observe import logs
from .publisher import Log

_formatter = logging.Formatter()


def configure(settings: Settings) -> Log:
    """Set up logging for this process, and return the logger."""
    logs.configure(settings)
    log: Log = structlog.get_logger()
    logging.basicConfig(level=logging.WARNING, handlers=[_Forward(log)], force=True)
    return log


class _Forward(logging.Handler):
    """Handler that passes messages of the standard library's logging, which uvicorn uses, to the gateway's log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"traceback": _formatter.formatException(record.exc_info)} if record.exc_info else {}
        self._log.warning(record.getMessage().strip(), source=record.name, **trace)
