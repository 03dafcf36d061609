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


class Missing(Exception):  # noqa: N818 -- it says what happened
    """A contender cannot run here. The text names what it needs."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that works the queue off."""

    name: str
    command: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    """Besides those that all of them get."""


OURS = Contender("ours", (sys.executable, "-m", "worker"), {"log_encoding": "json"})
"""With everything on."""


def python_peer(name: str) -> Contender:
    """One of ``benchmarks/peers/*.py``."""
    return Contender(name, (sys.executable, "-m", f"benchmarks.peers.{name}"))


UVLOOP_AIOHTTP = python_peer("uvloop_aiohttp")
PYTHON = (UVLOOP_AIOHTTP, python_peer("asyncio_httpx"), python_peer("faststream_nats"), python_peer("taskiq_nats"))
GO, GO_FULL = "go", "go_full"


def go(directory: Path, *, full: bool) -> Contender:
    """Compile the peer in Go into *directory*.

    Raises:
        Missing: there is no Go, or not its NATS client.
    """
    program = directory / "go-worker"
    if not program.exists():
        compiler = shutil.which("go")
        if not compiler or not (_DEBIAN / "src/github.com/nats-io/nats.go").is_dir():
            raise Missing("Go is left out: apt-get install golang-go golang-github-nats-io-go-nats-dev")
        environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(_DEBIAN), "GOFLAGS": ""}
        command = [compiler, "build", "-o", str(program), str(PEERS / "worker.go")]
        subprocess.run(command, env=environment, check=True)  # noqa: S603 -- our own
    return Contender(GO_FULL if full else GO, (str(program),), {"FULL": "1"} if full else {})
