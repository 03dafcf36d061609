"""The parent with small programs in the place of workers: who is started again, who ends all, and with what code."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.servers import ROOT, until
from worker.parent import processes as module
from worker.parent.processes import ExitStatus, Processes, own_command
from worker.parent.run import MergedStatus
from worker.policy.processes import MAX_CRASHES
from worker.policy.retry import Backoff

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(600)"
SAYS = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from worker.parent.control_socket import *
part = worker_rank(os.environ)
"""
READY = "import pathlib, os; ready = pathlib.Path(os.environ['READY'] + str(os.getpid())).touch\n"


class Crew:
    """Processes that run a piece of Python, and the log of their supervision."""

    def __init__(self, code: str, directory: Path, count: int = 2, timeout: float = 0.0) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._directory = directory
        environment = {**os.environ, "READY": f"{directory}/"}
        command = [sys.executable, "-c", READY + code]
        self.processes = Processes(command, environment, count=count, timeout=timeout, log=self._log)

    def _log(self, level: str, message: str, **fields: Any) -> None:
        assert level in ("info", "error")
        self.told.append((message, fields))

    def messages(self) -> list[str]:
        return [message for message, _ in self.told]

    @property
    def ready(self) -> int:
        """The number of processes that were ever ready."""
        return len(list(self._directory.iterdir()))

    async def lives(self, then: Callable[[], Awaitable[object]]) -> ExitStatus:
        """Supervise the processes until they end, while *then* runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(then)
            return await self.processes.supervise()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_BACKOFF", Backoff(0.001, 0.001))


async def nothing() -> None:
    pass


async def test_process_that_crashes_is_started_again(tmp_path: Path) -> None:
    """The log has how it ended."""
    once = "n = len(os.listdir(os.environ['READY'])); ready(); n or os.kill(os.getpid(), 9)\n"
    crew = Crew(once + "import signal, time; time.sleep(600)", tmp_path, count=1)

    async def stop() -> None:
        await until(lambda: crew.ready == 2, "the second life")
        assert crew.processes.restarts == 1
        crew.processes.stop()

    assert await crew.lives(stop) == ExitStatus(0)
    message, fields = crew.told[0]
    assert message == "A process ended; starting it again"
    assert fields == {"process": 1, "how": "was killed by SIGKILL", "crashes": 1, "again_in": 0.001}
    assert crew.messages()[1:] == ["Draining all processes"]


@pytest.mark.parametrize(("code", "how"), [("exit(0)", "0"), ("exit(1)", "1"), ("1 / 0", "1"), ("exit(77)", "77")])
async def test_processes_that_all_crash_repeatedly_end_the_parent_with_1(tmp_path: Path, code: str, how: str) -> None:
    """After five crashes each the parent gives up, so that Kubernetes shows it."""
    crew = Crew(code, tmp_path)
    assert await crew.lives(nothing) == ExitStatus(
        1, f"every process crashes, again and again; the last ended with exit code {how}"
    )
    crashes = [fields["crashes"] for _, fields in crew.told if "crashes" in fields]
    assert max(crashes) >= 4
    assert len(crashes) >= 8


async def test_processes_with_one_that_works_are_restarted_forever(tmp_path: Path) -> None:
    """While one runs, the others may crash as often as they do."""
    code = SAYS + "import time\nif part.number == 1: exit(1)\ntime.sleep(600)"
    crew = Crew(code, tmp_path)

    async def stop() -> None:
        await until(lambda: crew.processes.restarts > 2 * MAX_CRASHES, "many crashes")
        assert [place.number for place in crew.processes.running][-1:] == [2]
        crew.processes.stop()

    assert await crew.lives(stop) == ExitStatus(0)


async def test_process_with_bad_settings_ends_all_with_2(tmp_path: Path) -> None:
    """The others drain; the process itself has printed the message."""
    crew = Crew(SAYS + "import time\nif part.number == 1: exit(2)\ntime.sleep(600)", tmp_path)
    assert await crew.lives(nothing) == ExitStatus(2)
    assert crew.messages() == ["Draining all processes"]


async def test_process_with_a_fatal_error_ends_all(tmp_path: Path) -> None:
    """Its error is the parent's exit reason, once."""
    crew = Crew(SAYS + "part.send(FATAL, 'no rights'); exit(1)", tmp_path, count=3)
    assert await crew.lives(nothing) == ExitStatus(1, "no rights")
    assert crew.messages() == ["Draining all processes"]


async def test_process_that_exceeds_the_drain_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has it, and the exit code is 1, because its work was not given back."""
    monkeypatch.setattr(module, "KILL_AFTER_DRAIN", 0.1)
    monkeypatch.setattr(module, "FAST_DRAIN", 0.0)
    crew = Crew(STUBBORN, tmp_path)

    async def stop() -> None:
        await until(lambda: crew.ready == 2, "both")
        crew.processes.stop()

    assert await crew.lives(stop) == ExitStatus(1)
    assert crew.messages() == ["Draining all processes", *["A process did not end in time, and is killed"] * 2]


async def test_stop_sets_the_time_of_the_kill(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """`shutdown_timeout`, at least 2 s, + 4.5 s.

    6.5 s after a second signal, if that is earlier; a third changes nothing.
    """
    cases = ((25, None, None, 29.5), (0, None, None, 6.5), (25, 3, 5, 9.5), (25, 24, None, 29.5))
    for timeout, second, third, killed in cases:
        crew = Crew("", tmp_path, count=0, timeout=timeout)
        began = autojump_clock.current_time()
        crew.processes.stop()
        for at in filter(None, (second, third)):
            await trio.sleep(began + at - trio.current_time())
            crew.processes.stop()
        assert crew.processes._kill_scope.deadline - began == pytest.approx(killed, abs=1e-6)


async def test_process_that_crashes_in_a_drain_ends_with_1(tmp_path: Path) -> None:
    """Its work was not given back."""
    dies = "import signal, time; signal.signal(15, lambda *_: os.kill(os.getpid(), 9)); ready(); time.sleep(600)"
    crew = Crew(dies, tmp_path)

    async def stop() -> None:
        await until(lambda: crew.ready == 2, "both")
        crew.processes.stop()

    assert await crew.lives(stop) == ExitStatus(1)
    assert crew.told[1:] == [
        ("A process did not end in order", {"process": place, "how": "was killed by SIGKILL"})
        for place in (fields["process"] for _, fields in crew.told[1:])
    ]


async def test_stop_before_the_start_starts_nothing(tmp_path: Path) -> None:
    """The exit code is 0."""
    crew = Crew("ready()", tmp_path)
    crew.processes.stop()
    assert await crew.lives(nothing) == ExitStatus(0)
    assert crew.ready == 0


async def test_stop_during_a_start_reaches_the_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts after the signal is stopped too."""
    crew, start = Crew("import time; time.sleep(600)", tmp_path, count=1), trio.lowlevel.open_process

    async def begin(*command: Any, **options: Any) -> trio.Process:
        process = await start(*command, **options)
        crew.processes.stop()
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", begin)
    assert await crew.lives(nothing) == ExitStatus(0)


async def test_process_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory, or too many processes, counts as a crash."""
    crew, start = Crew("ready(); import time; time.sleep(600)", tmp_path, count=1), trio.lowlevel.open_process
    starts = 0

    async def begin(*command: Any, **options: Any) -> trio.Process:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(*command, **options)

    monkeypatch.setattr(trio.lowlevel, "open_process", begin)

    async def stop() -> None:
        await until(lambda: crew.ready, "it to run")
        crew.processes.stop()

    assert await crew.lives(stop) == ExitStatus(0)
    assert crew.messages()[:2] == ["A process cannot be started", "A process ended; starting it again"]


async def test_metrics_of_an_ended_process_count(tmp_path: Path) -> None:
    """The last text of a process stays in the metrics."""
    text = "# HELP c C\\n# TYPE c counter\\nc 1.0\\n"
    crew = Crew(SAYS + f"part.send(METRICS, '{text}')", tmp_path, count=1)

    async def stop() -> None:
        await until(lambda: crew.processes.restarts, "a second life")
        crew.processes.stop()

    assert await crew.lives(stop) == ExitStatus(0)
    spoke = sum("again_in" in fields for _, fields in crew.told)
    shown = await MergedStatus(crew.processes).metrics()
    assert any(f"c {count:.1f}\n" in shown for count in (spoke, spoke + 1))  # the last may have been stopped before


async def test_not_ready_names_the_process_that_is_not(tmp_path: Path) -> None:
    """A process may be missing, silent or not ready; draining has precedence."""
    code = SAYS + (
        "import trio\n"
        "class Observed:\n"
        "    async def metrics(self): return ''\n"
        "    async def not_ready(self): return os.path.exists(os.environ['READY'] + 'busy') and 'busy' or None\n"
        "trio.run(part.serve, Observed())\n"
    )
    crew = Crew(code, tmp_path)
    shown = MergedStatus(crew.processes)

    async def look() -> None:
        assert await shown.not_ready() == "process 1 does not run, process 2 does not run"
        await until(lambda: len(crew.processes.running) == 2, "both")
        while await shown.not_ready():  # noqa: ASYNC110 -- what changes is in another process
            await trio.sleep(0.01)
        (tmp_path / "busy").touch()
        assert await shown.not_ready() == "process 1: busy"
        assert await shown.not_alive() is None
        crew.processes.stop()
        assert await shown.not_ready() == "draining"

    assert await crew.lives(look) == ExitStatus(0)


async def test_not_alive_ignores_a_starting_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has never answered counts as alive for half a minute, and no longer."""
    monkeypatch.setattr("worker.parent.run.ANSWER_TIMEOUT", 0.01)
    crew = Crew("import time; time.sleep(600)", tmp_path, count=1)
    shown = MergedStatus(crew.processes)

    async def look() -> None:
        await until(lambda: crew.processes.running, "it")
        assert await shown.not_ready() == "process 1 does not answer"
        assert await shown.not_alive() is None
        crew.processes.slots[0].started_at -= 30
        assert await shown.not_alive() == "process 1 does not answer"
        crew.processes.stop()

    assert await crew.lives(look) == ExitStatus(0)


async def test_reap_ends_the_zombies_of_orphans(tmp_path: Path) -> None:
    """Process 1 of a container inherits all orphans."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER, of linux/prctl.h
    assert ctypes.CDLL(None).prctl(subreaper, 1, 0, 0, 0) == 0
    try:
        crew = Crew("ready(); import time; time.sleep(600)", tmp_path, count=1)

        async def look() -> None:
            await until(lambda: crew.ready, "it")
            orphan = "import os, time; (pid := os.fork()) and (os.write(1, b'%d' % pid), os._exit(0)); time.sleep(0.05)"
            done = await trio.run_process([sys.executable, "-c", orphan], capture_stdout=True)
            stat = Path(f"/proc/{int(done.stdout)}/stat")
            await until(lambda: stat.read_text().rpartition(") ")[2][0] == "Z", "it to be a zombie")
            crew.processes.reap()
            assert not stat.exists()  # noqa: ASYNC240 -- what it blocks for is nothing
            crew.processes.stop()

        assert await crew.lives(look) == ExitStatus(0)
    finally:
        ctypes.CDLL(None).prctl(subreaper, 0, 0, 0, 0)


def test_own_command_repeats_interpreter_options_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the program was started."""
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "dev", "-m", "worker", "--flag"])
    assert own_command() == [sys.executable, "-X", "dev", "-m", "worker", "--flag"]
