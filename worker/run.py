"""The worker as a tree of tasks. Inner blocks end first: intake, then the jobs, then what they lean on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from .bench import Bench
from .events import DrainEnded
from .fetch import Intake


async def run(bench: Bench, stops: AsyncIterator[object]) -> None:
    """Work until a drain has ended.

    Args:
        bench: what to work with.
        stops: yields when the worker is asked to stop, and again when it is asked to hurry.

    Raises:
        worker.ports.Unusable: what we found at the broker cannot work.
    """
    async with trio.open_nursery() as beside:
        beside.start_soon(bench.drain.watch, stops)
        beside.start_soon(bench.leases.keep)
        beside.start_soon(bench.retries.run)
        async with trio.open_nursery() as slots:
            intake = Intake(bench, slots)
            with bench.drain.intake.held():
                await intake.run(await bench.queue.consume())
            await intake.stop()
            # Leaving this block waits for every job to settle.
        with trio.move_on_after(bench.rules.settle_within) as patience:
            await bench.queue.settled()
        bench.emit(DrainEnded(trio.current_time() - bench.drain.began, unconfirmed=patience.cancelled_caught))
        beside.cancel_scope.cancel()
