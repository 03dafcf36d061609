"""Client pools: which client is used, how many an origin may have, and when one is closed."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.http.client_pools import CLOSE_TIMEOUT, ClientPools, open_client_pools
from worker.http.transport import MAX_IDLE


class Client:
    """A client that takes *closing* seconds to close."""

    def __init__(self, closing: float = 0.0) -> None:
        self._closing = closing
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True
        await trio.sleep(self._closing)


class Factory(list[Client]):
    """Creates clients and lists them."""

    def make(self) -> Client:
        self.append(Client())
        return self[-1]


async def test_client_used_last_is_reused_first() -> None:
    """Of an origin's idle clients, the one that was used last is reused first."""
    made = Factory()
    pools = ClientPools(lambda _: made.make(), max_per_origin=9)
    async with pools.client("a") as first, pools.client("b") as second:
        pass
    async with pools.client("a") as again, pools.client("b") as other, trio.open_nursery() as nursery:
        assert (again, other) == (first, second)

        async def one_more() -> None:
            async with pools.client("a") as third:
                assert third not in (first, second)

        nursery.start_soon(one_more)
    async with pools.client("a") as last:
        assert last is first
    assert len(made) == 3


async def test_tasks_beyond_the_limit_wait_in_turn() -> None:
    """An origin has at most max_per_origin clients; the task that waits longest gets the next one."""
    made, turns = Factory(), list[int]()
    pools = ClientPools(lambda _: made.make(), max_per_origin=2)

    async def use(number: int) -> None:
        async with pools.client("a"):
            turns.append(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        async with pools.client("a"):
            nursery.start_soon(_hold, pools)
            await wait_all_tasks_blocked()
            for number in range(5):
                nursery.start_soon(use, number)
                await wait_all_tasks_blocked()
            assert turns == []
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (turns, len(made)) == ([0, 1, 2, 3, 4], 2)


async def _hold(pools: ClientPools[Client]) -> None:
    async with pools.client("a"):
        await trio.sleep_forever()


async def test_client_after_an_error_or_cancellation_is_closed() -> None:
    """A client is closed after an error or a cancellation, because its connection may be half used."""
    made = Factory()
    pools = ClientPools(lambda _: made.make(), max_per_origin=9)
    with pytest.raises(ValueError, match="broken"):
        async with pools.client("a"):
            raise ValueError("broken")
    with trio.CancelScope() as scope:
        async with pools.client("a"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with pools.client("a"):
        assert [client.closed for client in made] == [True, True, False]


async def test_task_cancelled_while_it_waits_takes_no_client() -> None:
    """When a waiting task is cancelled, the next task gets the client."""
    made = Factory()
    pools = ClientPools(lambda _: made.make(), max_per_origin=1)
    async with pools.client("a"):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hold, pools)
                await wait_all_tasks_blocked()
                scope.cancel()
    async with pools.client("a"):
        assert len(made) == 1


async def test_idle_clients_without_traffic_are_closed(autojump_clock: MockClock) -> None:
    """Idle clients are closed after MAX_IDLE, and the pool of their origin is dropped."""
    assert autojump_clock
    made = Factory()
    pools = ClientPools(lambda _: made.make(), max_per_origin=9)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pools.close_expired)
        await trio.sleep(1)
        async with pools.client("a"):
            pass
        await trio.sleep(MAX_IDLE)
        assert not made[0].closed
        await trio.sleep(MAX_IDLE)
        assert made[0].closed
        assert not pools._pools
        nursery.cancel_scope.cancel()


async def test_idle_clients_are_closed_at_the_end(autojump_clock: MockClock) -> None:
    """Idle clients are closed at the end, and one that takes longer than CLOSE_TIMEOUT is abandoned."""
    assert autojump_clock
    slow = Client(closing=60)
    async with open_client_pools(lambda _: slow, max_per_origin=9) as pools:
        async with pools.client("a"):
            pass
        began = trio.current_time()
    assert (slow.closed, round(trio.current_time() - began, 6)) == (True, CLOSE_TIMEOUT)
