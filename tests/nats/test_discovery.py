"""The task of the discovery, without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio_asyncio
from trio_asyncio import aio_as_trio

from worker.config import load
from worker.nats.discovery import SubjectFlows

PASSES = 10
"""Passes of the event loop in which a cancelled task ends: more than the one that it takes."""


@pytest.mark.parametrize("passes", range(6))
async def test_run_cancelled_while_it_wakes_ends(passes: int) -> None:
    """A cancellation in any pass after the task's wake-up ends the task, because a drain waits for it."""

    async def cancel() -> bool:
        jetstream = cast(Any, SimpleNamespace(connection=SimpleNamespace(up=False)))
        discovery = SubjectFlows(jetstream, load({}).settings, *([cast(Any, None)] * 3), faults=cast(Any, None))
        task = asyncio.ensure_future(discovery.run())
        await _pass(PASSES)
        discovery.look_soon()
        await _pass(passes)
        task.cancel()
        await _pass(PASSES)
        return task.done()

    async with trio_asyncio.open_loop():
        assert await aio_as_trio(cancel)()


async def _pass(passes: int) -> None:
    for _ in range(passes):
        await asyncio.sleep(0)
