"""Lanes: one connection each, stacked while idle, so many to an origin, and closed when in doubt or old."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.http.client_pools import CLOSING, ClientPools
from worker.http.transport import IDLE


class Lane:
    """One that takes so long to close."""

    def __init__(self, closing: float = 0.0) -> None:
        self._closing = closing
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True
        await trio.sleep(self._closing)


class Works(list[Lane]):
    """All lanes that were made."""

    def make(self) -> Lane:
        self.append(Lane())
        return self[-1]


async def test_the_lane_used_last_is_used_first() -> None:
    """Each origin has its own."""
    made = Works()
    lanes = ClientPools(made.make, at_once=9)
    async with lanes.client("a") as first, lanes.client("b") as second:
        pass
    async with lanes.client("a") as again, lanes.client("b") as other, trio.open_nursery() as nursery:
        assert (again, other) == (first, second)

        async def one_more() -> None:
            async with lanes.client("a") as third:
                assert third not in (first, second)

        nursery.start_soon(one_more)
    async with lanes.client("a") as last:
        assert last is first
    assert len(made) == 3


async def test_who_finds_all_taken_waits_in_turn() -> None:
    """So many lanes to an origin, and no more; whoever came first goes first."""
    made, turns = Works(), list[int]()
    lanes = ClientPools(made.make, at_once=2)

    async def use(number: int) -> None:
        async with lanes.client("a"):
            turns.append(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        async with lanes.client("a"):
            nursery.start_soon(_hold, lanes)
            await wait_all_tasks_blocked()
            for number in range(5):
                nursery.start_soon(use, number)
                await wait_all_tasks_blocked()
            assert turns == []
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (turns, len(made)) == ([0, 1, 2, 3, 4], 2)


async def _hold(lanes: ClientPools[Lane]) -> None:
    async with lanes.client("a"):
        await trio.sleep_forever()


async def test_a_lane_in_doubt_is_closed() -> None:
    """What failed on it, or was cancelled, may have left it half used."""
    made = Works()
    lanes = ClientPools(made.make, at_once=9)
    with pytest.raises(ValueError, match="broken"):
        async with lanes.client("a"):
            raise ValueError("broken")
    with trio.CancelScope() as scope:
        async with lanes.client("a"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with lanes.client("a"):
        assert [lane.closed for lane in made] == [True, True, False]


async def test_one_that_waits_can_go() -> None:
    """Cancelled while it waits for a lane, it has taken none."""
    made = Works()
    lanes = ClientPools(made.make, at_once=1)
    async with lanes.client("a"):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hold, lanes)
                await wait_all_tasks_blocked()
                scope.cancel()
    async with lanes.client("a"):
        assert len(made) == 1


async def test_idle_lanes_are_closed_in_time(autojump_clock: MockClock) -> None:
    """Also where nothing else happens, and then nothing is left of the origin."""
    assert autojump_clock
    made = Works()
    lanes = ClientPools(made.make, at_once=9)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lanes.close_idle)
        await trio.sleep(1)
        async with lanes.client("a"):
            pass
        await trio.sleep(IDLE)
        assert not made[0].closed
        await trio.sleep(IDLE)
        assert made[0].closed
        assert not lanes._roads
        nursery.cancel_scope.cancel()


async def test_all_idle_lanes_are_closed_at_the_end(autojump_clock: MockClock) -> None:
    """One that takes too long is left to itself."""
    assert autojump_clock
    lane = Lane(closing=60)
    lanes = ClientPools(lambda: lane, at_once=9)
    async with lanes.client("a"):
        pass
    began = trio.current_time()
    await lanes.aclose()
    assert (lane.closed, round(trio.current_time() - began, 6)) == (True, CLOSING)
