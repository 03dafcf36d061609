"""``queue-worker dev``: the stack, left running until Ctrl-C, or the demonstration."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import httpx
import trio
from dotenv.parser import parse_stream

from ..dev.demo import run_demo
from ..dev.stack import ChildEndedError, NotStartedError, Stack, print_line, print_text, stack, until_signalled
from . import caught, fail, settings_or_exit

STORE = Path(".queue-worker")
"""Directory of JetStream's files, below the working directory."""


@click.command()
@click.option("--demo", is_flag=True, help="Submit a few hundred invocations, show their outcomes, and end.")
def command(*, demo: bool) -> None:
    """Run everything on one machine: NATS, gateway, demo functions and a worker.

    Listens on the loopback, unless the settings name other addresses. Reads more settings from the file .env, if there
    is one. The demonstration uses free ports, a temporary directory and settings of its own.
    """
    with caught(NotStartedError, ChildEndedError, OSError, httpx.HTTPError) as errors:
        if demo:
            raise SystemExit(0 if trio.run(run_demo, os.environ) else 1)
        variables, warnings = read_dotenv(Path(".env"))
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
        environment = variables | os.environ
        settings_or_exit(environment, warn=True)
        STORE.mkdir(parents=True, exist_ok=True)
        with (STORE / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two servers would corrupt the files
            except BlockingIOError:
                raise NotStartedError(f"another queue-worker dev is running in {STORE.resolve().parent}") from None
            trio.run(_run, environment)
    if errors:
        # When a child has ended, the other errors are consequences of that.
        fail(min(errors, key=lambda error: not isinstance(error, ChildEndedError)))


def read_dotenv(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the variables that the file *path* sets, none where there is no such file, and warnings.

    The file may belong to another program in this directory. So a line that python-dotenv would skip, or a name that no
    variable can have, is left out with a warning.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            bindings = list(parse_stream(file))
    except FileNotFoundError:
        return {}, []
    except OSError as problem:
        return {}, [f"{path} cannot be read: {problem.strerror}"]
    variables: dict[str, str] = {}
    warnings: list[str] = []
    for key, value, original, error in bindings:
        text = original.string
        if error or "\0" in text or (key is not None and (value is None or not key.isidentifier())):
            blank_lines = text[: len(text) - len(text.lstrip())].count("\n")
            warnings.append(f"{path}, line {original.line + blank_lines}: not NAME=VALUE, so it is ignored")
        elif key and value is not None:  # it is no comment
            variables[key] = value
    return variables, warnings


async def _run(environment: Mapping[str, str]) -> None:
    async with until_signalled() as workers, stack(environment, STORE, print_line, workers) as running:
        print_text(_instructions(running))
        await trio.sleep_forever()


def _instructions(running: Stack) -> str:
    settings = running.settings
    nats = f"nats_port={settings.nats_port} " if settings.nats_port != 4222 else ""
    return f"""
Ready. Ctrl-C stops it; what is queued is kept in {STORE}/.
  gateway  {running.gateway}/async-function/<name>, with the functions fast, slow, flaky, broken, echo
  worker   {running.worker}/metrics, /healthz, /readyz
  NATS     nats://{settings.nats_host}:{settings.nats_port}, its monitoring at {running.monitor}

Try, in another terminal:
  curl -i {running.gateway}/async-function/flaky -d hello -H 'X-Callback-Url: {running.gateway}/function/receive'
  curl {running.gateway}/function/receive
  {nats}{_program()} submit slow --count 100
"""


def _program() -> str:
    """Return a command that starts this program: its virtual environment may not be active."""
    if shutil.which("queue-worker"):
        return "queue-worker"
    beside = Path(sys.executable).with_name("queue-worker")
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
