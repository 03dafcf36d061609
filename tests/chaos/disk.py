"""A small disk that can be full: a file system in memory, which takes root to mount."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_MEGABYTES = 256
"""Size of the disk: many times what a run stores."""


class MountNotPermittedError(Exception):
    """The machine does not allow this process to mount a file system."""


class Disk:
    """A disk that is mounted at *directory* inside its ``with`` block.

    Raises:
        MountNotPermittedError: on entering.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True)
        try:
            _run("mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m,mode=700", "tmpfs", str(self._directory))
        except (OSError, subprocess.CalledProcessError) as error:
            raise MountNotPermittedError(str(error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", "--lazy", str(self._directory))

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill the disk inside this block, so that nothing more can be stored there."""
        ballast = self._directory / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while _write(file.fileno()):
                    pass
            yield
        finally:
            ballast.unlink()


def _write(file: int) -> bool:
    try:
        return os.write(file, bytes(65_536)) > 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
