"""The scopes that a drain cancels, alone."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from worker.drain import Drain
from worker.events import DrainExpired, DrainStarted, Event


class Rig:
    """A drain of 25 s with its events, one job, and a channel for the signals to stop."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self.drain = Drain(25.0, lambda event: self.events.append((trio.current_time(), event)))
        self.signal, self.signals = trio.open_memory_channel[None](2)
        self.job = trio.CancelScope()
        self.drain.add(self.job)

    async def cancelled(self) -> tuple[bool, bool]:
        """Return whether intake and the job are cancelled, once no task can run."""
        await trio.testing.wait_all_tasks_blocked()
        return self.drain.intake.cancel_called, self.job.cancel_called


async def test_drain_after_one_stop_gives_jobs_its_time(autojump_clock: MockClock) -> None:
    """The first stop cancels intake at once, and the jobs when the drain's time has passed, not before."""
    assert autojump_clock
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.drain.watch, rig.signals)
        await trio.sleep(10)
        assert await rig.cancelled() == (False, False)
        rig.signal.send_nowait(None)
        assert await rig.cancelled() == (True, False)
        assert rig.drain.started_at == 10.0
        await trio.sleep(24)
        assert await rig.cancelled() == (True, False)
        await trio.sleep(2)
        assert await rig.cancelled() == (True, True)
    assert rig.events == [(10.0, DrainStarted(1, 25.0)), (35.0, DrainExpired(1, "shutdown_timeout"))]


async def test_drain_second_stop_cancels_jobs_at_once(autojump_clock: MockClock) -> None:
    """The second stop cancels the jobs, with that reason; a job that begins after that is cancelled at once."""
    assert autojump_clock
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.drain.watch, rig.signals)
        rig.signal.send_nowait(None)
        assert await rig.cancelled() == (True, False)
        await trio.sleep(3)
        other = trio.CancelScope()
        rig.drain.add(other)
        rig.signal.send_nowait(None)
        assert await rig.cancelled() == (True, True)
    assert rig.events == [(0.0, DrainStarted(1, 25.0)), (3.0, DrainExpired(2, "second signal"))]
    late = trio.CancelScope()
    rig.drain.add(late)
    assert (other.cancel_called, late.cancel_called) == (True, True)
