"""The parent, with small programs in place of workers: restarts, the end of all processes, and the exit code."""

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
from worker.parent.processes import ExitStatus, MergedStatus, Processes, own_command
from worker.policy.processes import MAX_CRASHES
from worker.policy.retry import Backoff

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(600)"
WITH_RANK = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from worker.parent.control_socket import *
rank = worker_rank(os.environ)
"""
READY = "import pathlib, os; ready = pathlib.Path(os.environ['READY'] + str(os.getpid())).touch\n"


class SupervisedPrograms:
    """Processes that run a piece of Python, and the log of their supervision."""

    def __init__(self, code: str, directory: Path, count: int = 2, timeout: float = 0.0) -> None:
        self.log_lines: list[tuple[str, dict[str, Any]]] = []
        self._directory = directory
        environment = {**os.environ, "READY": f"{directory}/"}
        command = [sys.executable, "-c", READY + code]
        self.processes = Processes(command, environment, count=count, timeout=timeout, log=self._log)

    def _log(self, level: str, message: str, **fields: Any) -> None:
        assert level in ("info", "error")
        self.log_lines.append((message, fields))

    def messages(self) -> list[str]:
        return [message for message, _ in self.log_lines]

    @property
    def ready(self) -> int:
        """The number of processes that were ready, also of ended ones."""
        return len(list(self._directory.iterdir()))

    async def supervise(self, beside: Callable[[], Awaitable[object]]) -> ExitStatus:
        """Supervise the processes until they end, while *beside* runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beside)
            return await self.processes.supervise()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTART_BACKOFF", Backoff(0.001, 0.001))


async def nothing() -> None:
    pass


async def test_process_that_crashes_is_started_again(tmp_path: Path) -> None:
    """A crashed process is started again after its backoff, and the log has its exit status."""
    once = "n = len(os.listdir(os.environ['READY'])); ready(); n or os.kill(os.getpid(), 9)\n"
    programs = SupervisedPrograms(once + "import signal, time; time.sleep(600)", tmp_path, count=1)

    async def stop() -> None:
        await until(lambda: programs.ready == 2, "the restarted process")
        assert programs.processes.restarts == 1
        programs.processes.stop()

    assert await programs.supervise(stop) == ExitStatus(0)
    message, fields = programs.log_lines[0]
    assert message == "A process ended; starting it again"
    assert fields == {"process": 1, "how": "was killed by SIGKILL", "crashes": 1, "again_in": 0.001}
    assert programs.messages()[1:] == ["Draining all processes"]


@pytest.mark.parametrize(("code", "how"), [("exit(0)", "0"), ("exit(1)", "1"), ("1 / 0", "1"), ("exit(77)", "77")])
async def test_processes_that_all_crash_repeatedly_end_the_parent_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, how: str
) -> None:
    """When every process has crashed five times in a row, the parent ends with 1, so that Kubernetes shows it."""
    # Longer than a process takes to start, so that soon none runs: the parent ends only then.
    monkeypatch.setattr(module, "RESTART_BACKOFF", Backoff(0.3, 0.3))
    programs = SupervisedPrograms(code, tmp_path)
    assert await programs.supervise(nothing) == ExitStatus(
        1, f"every process crashes, again and again; the last ended with exit code {how}"
    )
    crashes = [fields["crashes"] for _, fields in programs.log_lines if "crashes" in fields]
    assert max(crashes) >= 4
    assert len(crashes) >= 8


async def test_processes_with_one_that_works_are_restarted_forever(tmp_path: Path) -> None:
    """While one process runs, the others are restarted after any number of crashes."""
    code = WITH_RANK + "import time\nif rank.number == 1: exit(1)\ntime.sleep(600)"
    programs = SupervisedPrograms(code, tmp_path)

    async def stop() -> None:
        await until(lambda: programs.processes.restarts > 2 * MAX_CRASHES, "many crashes")
        assert max(programs.processes.running) == 2
        programs.processes.stop()

    assert await programs.supervise(stop) == ExitStatus(0)


async def test_process_with_bad_settings_ends_all_with_2(tmp_path: Path) -> None:
    """A process that ends with 2 makes the others drain, and the parent ends with 2."""
    programs = SupervisedPrograms(WITH_RANK + "import time\nif rank.number == 1: exit(2)\ntime.sleep(600)", tmp_path)
    assert await programs.supervise(nothing) == ExitStatus(2)
    assert programs.messages() == ["Draining all processes"]


async def test_process_with_a_fatal_error_ends_all(tmp_path: Path) -> None:
    """A fatal error of one process makes the others drain, and is the parent's exit reason."""
    programs = SupervisedPrograms(WITH_RANK + "rank.send(FATAL, 'no rights'); exit(1)", tmp_path, count=3)
    assert await programs.supervise(nothing) == ExitStatus(1, "no rights")
    assert programs.messages() == ["Draining all processes"]


async def test_process_that_exceeds_the_drain_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that exceeds the drain is killed and logged, and the exit code is 1: its messages were not nakked."""
    monkeypatch.setattr(module, "KILL_AFTER_DRAIN", 0.1)
    monkeypatch.setattr(module, "FAST_DRAIN", 0.0)
    programs = SupervisedPrograms(STUBBORN, tmp_path)

    async def stop() -> None:
        await until(lambda: programs.ready == 2, "both processes")
        programs.processes.stop()

    assert await programs.supervise(stop) == ExitStatus(1)
    assert programs.messages() == ["Draining all processes", *["A process did not end in time, and is killed"] * 2]


async def test_stop_sets_the_time_of_the_kill(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Processes are killed 4.5 s after `shutdown_timeout`, which counts as at least 2 s.

    After a second signal they are killed 6.5 s later, if that is earlier; a third changes nothing.
    """
    cases = ((25, None, None, 29.5), (0, None, None, 6.5), (25, 3, 5, 9.5), (25, 24, None, 29.5))
    for timeout, second, third, killed in cases:
        programs = SupervisedPrograms("", tmp_path, count=0, timeout=timeout)
        began = autojump_clock.current_time()
        programs.processes.stop()
        for at in filter(None, (second, third)):
            await trio.sleep(began + at - trio.current_time())
            programs.processes.stop()
        assert programs.processes._kill_scope.deadline - began == pytest.approx(killed, abs=1e-6)


async def test_process_that_crashes_in_a_drain_ends_with_1(tmp_path: Path) -> None:
    """A process that crashes in a drain makes the exit code 1, because its messages were not nakked."""
    dying = "import signal, time; signal.signal(15, lambda *_: os.kill(os.getpid(), 9)); ready(); time.sleep(600)"
    programs = SupervisedPrograms(dying, tmp_path)

    async def stop() -> None:
        await until(lambda: programs.ready == 2, "both processes")
        programs.processes.stop()

    assert await programs.supervise(stop) == ExitStatus(1)
    assert programs.log_lines[1:] == [
        ("A process did not end in order", {"process": number, "how": "was killed by SIGKILL"})
        for number in (fields["process"] for _, fields in programs.log_lines[1:])
    ]


async def test_stop_before_the_start_starts_nothing(tmp_path: Path) -> None:
    """A parent that is stopped before its start starts no process and exits with 0."""
    programs = SupervisedPrograms("ready()", tmp_path)
    programs.processes.stop()
    assert await programs.supervise(nothing) == ExitStatus(0)
    assert programs.ready == 0


async def test_stop_during_a_start_reaches_the_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts after the signal is also stopped."""
    programs, start = SupervisedPrograms("import time; time.sleep(600)", tmp_path, count=1), trio.lowlevel.open_process

    async def begin(*command: Any, **options: Any) -> trio.Process:
        process = await start(*command, **options)
        programs.processes.stop()
        return process

    monkeypatch.setattr(trio.lowlevel, "open_process", begin)
    assert await programs.supervise(nothing) == ExitStatus(0)


async def test_process_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be started, as for lack of memory, counts as crashed and is started again."""
    programs, start = (
        SupervisedPrograms("ready(); import time; time.sleep(600)", tmp_path, count=1),
        trio.lowlevel.open_process,
    )
    starts = 0

    async def begin(*command: Any, **options: Any) -> trio.Process:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(*command, **options)

    monkeypatch.setattr(trio.lowlevel, "open_process", begin)

    async def stop() -> None:
        await until(lambda: programs.ready, "the process to be ready")
        programs.processes.stop()

    assert await programs.supervise(stop) == ExitStatus(0)
    assert programs.messages()[:2] == ["A process cannot be started", "A process ended; starting it again"]


async def test_metrics_of_an_ended_process_count(tmp_path: Path) -> None:
    """The counts of an ended process stay in the metrics."""
    text = "# HELP c C\\n# TYPE c counter\\nc 1.0\\n"
    programs = SupervisedPrograms(WITH_RANK + f"rank.send(METRICS, '{text}')", tmp_path, count=1)

    async def stop() -> None:
        await until(lambda: programs.processes.restarts, "a restarted process")
        programs.processes.stop()

    assert await programs.supervise(stop) == ExitStatus(0)
    restarts = sum("again_in" in fields for _, fields in programs.log_lines)
    shown = await MergedStatus(programs.processes).metrics()
    assert any(
        f"c {count:.1f}\n" in shown for count in (restarts, restarts + 1)
    )  # the last may have been stopped before


async def test_not_ready_names_the_process_that_is_not(tmp_path: Path) -> None:
    """The reason names each process that is missing, silent or not ready; a drain has precedence."""
    code = WITH_RANK + (
        "import trio\n"
        "class Observed:\n"
        "    async def metrics(self): return ''\n"
        "    async def not_ready(self): return os.path.exists(os.environ['READY'] + 'busy') and 'busy' or None\n"
        "trio.run(rank.serve, Observed())\n"
    )
    programs = SupervisedPrograms(code, tmp_path)
    shown = MergedStatus(programs.processes)

    async def check() -> None:
        assert await shown.not_ready() == "process 1 does not run, process 2 does not run"
        await until(lambda: len(programs.processes.running) == 2, "both processes")
        while await shown.not_ready():  # noqa: ASYNC110 -- what changes is in another process
            await trio.sleep(0.01)
        (tmp_path / "busy").touch()
        assert await shown.not_ready() == "process 1: busy"
        assert await shown.not_alive() is None
        programs.processes.stop()
        assert await shown.not_ready() == "draining"

    assert await programs.supervise(check) == ExitStatus(0)


async def test_not_alive_ignores_a_starting_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has never answered counts as alive for half a minute, and no longer."""
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.01)
    programs = SupervisedPrograms("import time; time.sleep(600)", tmp_path, count=1)
    shown = MergedStatus(programs.processes)

    async def check() -> None:
        await until(lambda: programs.processes.running, "the process to be ready")
        assert await shown.not_ready() == "process 1 does not answer"
        assert await shown.not_alive() is None
        programs.processes.running[1].started_at -= 30
        assert await shown.not_alive() == "process 1 does not answer"
        programs.processes.stop()

    assert await programs.supervise(check) == ExitStatus(0)


async def test_reap_ends_the_zombies_of_orphans(tmp_path: Path) -> None:
    """The parent reaps zombies of orphans, because process 1 of a container inherits all orphans."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER, of linux/prctl.h
    assert ctypes.CDLL(None).prctl(subreaper, 1, 0, 0, 0) == 0
    try:
        programs = SupervisedPrograms("ready(); import time; time.sleep(600)", tmp_path, count=1)

        async def check() -> None:
            await until(lambda: programs.ready, "the process to be ready")
            orphan = "import os, time; (pid := os.fork()) and (os.write(1, b'%d' % pid), os._exit(0)); time.sleep(0.05)"
            done = await trio.run_process([sys.executable, "-c", orphan], capture_stdout=True)
            stat = Path(f"/proc/{int(done.stdout)}/stat")
            await until(lambda: stat.read_text().rpartition(") ")[2][0] == "Z", "the orphan to be a zombie")
            programs.processes.reap()
            assert not stat.exists()  # noqa: ASYNC240 -- what it blocks for is nothing
            programs.processes.stop()

        assert await programs.supervise(check) == ExitStatus(0)
    finally:
        ctypes.CDLL(None).prctl(subreaper, 0, 0, 0, 0)


def test_own_command_repeats_interpreter_options_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a process has the parent's interpreter options and arguments."""
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "dev", "-m", "worker", "--flag"])
    assert own_command() == [sys.executable, "-X", "dev", "-m", "worker", "--flag"]
