"""Outputs for log lines: how to write to a file descriptor without waiting for its reader.

O_NONBLOCK belongs to the open file, not to the descriptor. Setting it would change standard output for the other
programs that share it: a shell, a neighbour in the same container. So a pipe or a terminal is opened again, through
/proc, and only this second opening does not block.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

Write = Callable[[bytes | memoryview], int]


class Output(NamedTuple):
    """The function that writes to *file* and returns the number of bytes that were accepted."""

    write: Write
    file: int
    blocks: bool
    """Whether *write* can wait for the reader; otherwise it raises BlockingIOError."""


def open_output(file: int) -> Output:
    """Return the output for a file descriptor, opened again where that is needed to write without waiting."""
    write = partial(os.write, file)
    try:
        mode = os.fstat(file).st_mode
    except OSError:  # not open: each write fails at once
        return Output(write, file, blocks=False)
    if stat.S_ISSOCK(mode):  # such as systemd's journal
        return Output(_make_sender(file), file, blocks=False)
    if not (stat.S_ISFIFO(mode) or os.isatty(file)):  # a file or a device waits for no reader
        return Output(write, file, blocks=False)
    try:
        opened = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # the pipe belongs to another user or has no reader, or there is no /proc
        return Output(write, file, blocks=os.get_blocking(file))
    return Output(partial(os.write, opened), opened, blocks=False)


def _make_sender(file: int) -> Write:
    connection = socket.socket(fileno=os.dup(file))
    return lambda data: connection.send(data, socket.MSG_DONTWAIT)


def wait_writable(file: int) -> None:
    """Wait until *file* accepts bytes or reports an error; forever if its reader reads nothing."""
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    poll.poll()
