"""The file with the keys that sign callbacks, read again while the worker runs.

Kubernetes replaces a mounted secret by another link, at any time and perhaps in the middle of a change. So a file that
cannot be used changes nothing: the last keys stay in use, and an event reports the reason once.
"""

from __future__ import annotations

from pathlib import Path

import trio

from ..events import CallbackKeysLoaded, CallbackKeysRejected
from ..policy.signature import MAX_SIZE, SigningKeys, parse_keys
from ..ports import Emit, MisconfiguredError

READ_INTERVAL = 2.0
"""Seconds between two readings. Kubernetes itself takes up to a minute to replace a secret."""


def read_keys(path: str) -> tuple[bytes, SigningKeys]:
    """Return content and keys of a file; a ValueError explains why it cannot be used, and quotes nothing of it."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    return content, parse_keys(content)


class CallbackKeys:
    """The keys of the file at *path*; none without one."""

    def __init__(self, path: str | None) -> None:
        self._path, self._content, self.current = path, b"", SigningKeys()
        if path:
            try:
                self._content, self.current = read_keys(path)
            except ValueError as error:  # the file has changed after the settings were checked
                raise MisconfiguredError(f"callback_secret_file = {path!r}: {error}") from None

    async def follow(self, emit: Emit) -> None:
        """Read the file again and again, until cancelled."""
        reported = None
        while self._path:
            await trio.sleep(READ_INTERVAL)
            try:
                content, keys = await trio.to_thread.run_sync(read_keys, self._path, abandon_on_cancel=True)
            except ValueError as error:
                if str(error) != reported:
                    emit(CallbackKeysRejected(self._path, str(error)))
                reported = str(error)
                continue
            if content != self._content or reported:
                self._content, self.current, reported = content, keys, None
                emit(CallbackKeysLoaded(self._path, len(keys.keys)))
