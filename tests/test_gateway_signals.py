"""Stop signals to ``queue-worker gateway``, at any moment of its life."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gateway import Gateway
from tests.patience import LAST_RESORT
from tests.servers import ROOT, NatsServer, wait_until

STEPS = ["logs.configure", "Publisher._connect", "listen", "addresses", "_Server.startup", "FunctionProxy.close"]
"""Functions that are called during start and end, in this order; as named in :mod:`worker.gateway.serve`."""
SIGNAL_AT_STEP = """
import functools, os, sys
from worker import entry
from worker.gateway import serve

*path, name = sys.argv.pop(1).split(".")
number = int(sys.argv.pop(1))
owner = functools.reduce(getattr, path, serve)
original = getattr(owner, name)

def step(*args, **kwargs):
    os.kill(os.getpid(), number)
    return original(*args, **kwargs)

setattr(owner, name, step)
sys.argv[0] = "queue-worker"
entry.program()
"""
"""A program that starts the gateway, and sends itself a signal at one step."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("step", STEPS)
def test_signal_at_each_step_ends_the_gateway_with_0(
    nats: NatsServer, tmp_path: Path, step: str, number: signal.Signals
) -> None:
    """A signal at any step of the start ends the gateway with exit code 0, and so does one while it already ends."""
    gateway = Gateway(tmp_path=tmp_path, nats_port=nats.port)
    command = [sys.executable, "-c", SIGNAL_AT_STEP, step, str(int(number)), "gateway"]
    with (tmp_path / "output").open("w+b") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=gateway.environment, stdout=output, stderr=output)
        try:
            if step == STEPS[-1]:
                wait_until(gateway.healthy, "the gateway to listen")
                process.terminate()
            assert process.wait(LAST_RESORT) == 0
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        assert b"Traceback" not in output.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_at_a_random_moment_ends_the_gateway_with_0(
    nats: NatsServer, tmp_path: Path, number: signal.Signals
) -> None:
    """Whenever a signal comes during the start, the gateway ends with exit code 0."""
    moments = random.Random(int(number))
    with Gateway(tmp_path=tmp_path, nats_port=nats.port) as gateway:
        started = time.monotonic()
        wait_until(gateway.healthy, "the gateway to listen")
        usual = time.monotonic() - started
    # The signals are blocked until entry.program() has set its handlers, as in the image.
    program = (
        "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [1, 2, 15]); print(flush=True);"
        "from worker import entry; sys.argv = ['queue-worker', 'gateway']; entry.program()"
    )
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env=gateway.environment, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(delay := moments.uniform(0, 1.2 * usual))
            os.kill(process.pid, number)
            process.stdout.read()
            assert process.wait(LAST_RESORT) == 0, f"signal after {delay:g} s"


def test_sighup_under_nohup_is_ignored(nats: NatsServer, tmp_path: Path) -> None:
    """Where SIGHUP is switched off, as by nohup, the gateway goes on."""
    gateway = Gateway(tmp_path=tmp_path, nats_port=nats.port)
    gateway.script = 'trap "" HUP; exec "$@"'
    with gateway:
        wait_until(gateway.ready, "the gateway to be ready")
        gateway.process.send_signal(signal.SIGHUP)
        assert gateway.ready()
        gateway.terminate()
        assert gateway.wait() == 0
