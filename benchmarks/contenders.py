"""The contenders: the worker and its peers, each a command that takes the same settings from the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
_DEBIAN = Path("/usr/share/gocode")
"""Debian's directory for the sources of Go libraries; ``golang-github-nats-io-go-nats-dev`` is one."""


class ContenderMissingError(Exception):
    """A contender cannot run here. The text names what it needs."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that processes the queue."""

    name: str
    command: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings in addition to those of all contenders."""


OURS = Contender("ours", (sys.executable, "-m", "worker"), {"log_encoding": "json"})
"""The worker, with all features."""


def python_peer(name: str) -> Contender:
    """Return the contender of a module in ``benchmarks/peers``."""
    return Contender(name, (sys.executable, "-m", f"benchmarks.peers.{name}"))


UVLOOP_AIOHTTP = python_peer("uvloop_aiohttp")
PYTHON = (UVLOOP_AIOHTTP, python_peer("asyncio_httpx"), python_peer("faststream_nats"), python_peer("taskiq_nats"))
GO, GO_FULL = "go", "go_full"


def go(directory: Path, *, full: bool) -> Contender:
    """Compile the peer in Go into *directory*.

    Raises:
        ContenderMissingError: Go or its NATS client is not installed.
    """
    program = directory / "go-worker"
    if not program.exists():
        compiler = shutil.which("go")
        if not compiler or not (_DEBIAN / "src/github.com/nats-io/nats.go").is_dir():
            raise ContenderMissingError("Go is left out: apt-get install golang-go golang-github-nats-io-go-nats-dev")
        environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(_DEBIAN), "GOFLAGS": ""}
        command = [compiler, "build", "-o", str(program), str(PEERS / "worker.go")]
        subprocess.run(command, env=environment, check=True)  # noqa: S603 -- this project's source
    return Contender(GO_FULL if full else GO, (str(program),), {"FULL": "1"} if full else {})
