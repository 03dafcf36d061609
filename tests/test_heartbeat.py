"""Leases alone: renewed, lost and ended. The fake queue records extensions. The ack wait is 60 s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from trio.testing import MockClock

from worker.events import Event, LeaseExpired, LeasesExtended
from worker.heartbeat import Lease, Leases
from worker.model import Delivery


def delivery(number: int, received_at: float = 0.0, token: str = "") -> Delivery:
    return Delivery((number, 7), token or f"t{number}", 1, received_at, "q", b"")


class Rig:
    """Leases, their events, and the extensions that a queue was asked for."""

    def __init__(self, *, confirms: bool = True) -> None:
        self.confirms = confirms
        self.extended: list[tuple[float, str, float]] = []
        """Time, reply subject, and the time after which the extension is not to be sent."""
        self.late: list[Callable[[], None]] = []
        """The calls that confirm extensions, where the queue does not confirm at once."""
        self.events: list[Event] = []
        parts: Any = self
        self.leases = Leases(parts, self.events.append)

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        self.extended.append((trio.current_time(), delivery.token, before))
        if self.confirms:
            confirmed()
        else:
            self.late.append(confirmed)

    async def run_until(self, at: float) -> None:
        """Renew until a time."""
        with trio.move_on_at(at):
            await self.leases.run()


async def test_lease_guard_cancels_only_when_lost(autojump_clock: MockClock) -> None:
    """A lost lease cancels the scope that it guards then, and one that it is to guard later, but none before."""
    assert autojump_clock
    lease, earlier, now, later = Lease(delivery(1)), trio.CancelScope(), trio.CancelScope(), trio.CancelScope()
    lease.guard(earlier)
    lease.guard(now)
    assert (lease.lost, now.cancel_called) == (False, False)
    lease.mark_lost()
    assert (lease.lost, now.cancel_called, earlier.cancel_called) == (True, True, False)
    lease.guard(None)
    lease.guard(later)
    assert later.cancel_called


async def test_lease_that_guards_nothing_is_lost_quietly(autojump_clock: MockClock) -> None:
    """A lease that no longer guards a scope cancels nothing."""
    assert autojump_clock
    lease, scope = Lease(delivery(1)), trio.CancelScope()
    lease.mark_lost()
    other = Lease(delivery(2))
    other.guard(scope)
    other.guard(None)
    other.mark_lost()
    assert not scope.cancel_called


def test_lease_confirm_never_goes_back() -> None:
    """A confirmation that arrives late does not shorten a lease."""
    lease = Lease(delivery(1, 5.0))
    assert (lease.confirmed_at, lease.sent_at) == (5.0, 5.0)
    lease.confirm(9.0)
    lease.confirm(7.0)
    assert lease.confirmed_at == 9.0


async def test_leases_are_extended_at_each_third(autojump_clock: MockClock) -> None:
    """Each lease is extended 20 s after its arrival or last extension, and not sent 40 s after that."""
    assert autojump_clock
    rig = Rig()
    rig.leases.set_ack_wait(60.0)
    rig.leases.add(delivery(1, 0.0))
    rig.leases.add(delivery(2, 0.0))
    await rig.run_until(5)
    rig.leases.add(delivery(3, 5.0))
    await rig.run_until(44)
    first = [(20.0, "t1", 40.0), (20.0, "t2", 40.0), (25.0, "t3", 45.0)]
    assert rig.extended == [*first, (40.0, "t1", 60.0), (40.0, "t2", 60.0)]
    assert rig.events == [LeasesExtended(2), LeasesExtended(1), LeasesExtended(2)]


async def test_leases_first_one_wakes_the_task(autojump_clock: MockClock) -> None:
    """A lease that begins while there is none, or while the ack wait is unknown, is extended in time."""
    assert autojump_clock
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.leases.run)
        await trio.sleep(1)
        rig.leases.add(delivery(1, 1.0))
        await trio.sleep(1)
        rig.leases.set_ack_wait(60.0)
        await trio.sleep_until(30)
        assert rig.extended == [(21.0, "t1", 41.0)]
        rig.leases.set_ack_wait(30.0)
        await trio.sleep_until(32)
        assert rig.extended[1:] == [(31.0, "t1", 41.0)]
        nursery.cancel_scope.cancel()


async def test_lease_removed_is_not_extended(autojump_clock: MockClock) -> None:
    """A lease that has ended is neither extended nor lost, and others are; it may end twice."""
    assert autojump_clock
    rig = Rig()
    rig.leases.set_ack_wait(60.0)
    lease = rig.leases.add(delivery(1))
    rig.leases.add(delivery(2))
    rig.leases.remove(lease)
    rig.leases.remove(lease)
    await rig.run_until(30)
    assert [token for _, token, _ in rig.extended] == ["t2"]


async def test_lease_without_confirmation_is_lost(autojump_clock: MockClock) -> None:
    """A lease whose extension is not confirmed is lost 40 s after its arrival, and is not extended any more."""
    assert autojump_clock
    rig = Rig(confirms=False)
    rig.leases.set_ack_wait(60.0)
    one, other = rig.leases.add(delivery(1)), rig.leases.add(delivery(2))
    await rig.run_until(39.9)
    assert (one.lost, other.lost, rig.leases.lost_at(one)) == (False, False, 40.0)
    await rig.run_until(100)
    assert (one.lost, other.lost) == (True, True)
    assert rig.events == [LeasesExtended(2), LeaseExpired(delivery(1)), LeaseExpired(delivery(2))]
    assert len(rig.extended) == 2


async def test_lease_confirmed_late_counts_from_its_sending(autojump_clock: MockClock) -> None:
    """A late confirmation extends a lease from when its extension was sent, so it is extended again 20 s after that."""
    assert autojump_clock
    rig = Rig(confirms=False)
    rig.leases.set_ack_wait(60.0)
    lease = rig.leases.add(delivery(1))
    await rig.run_until(35)
    rig.late.pop()()
    assert (lease.confirmed_at, rig.leases.lost_at(lease)) == (20.0, 60.0)
    await rig.run_until(50)
    assert rig.extended == [(20.0, "t1", 40.0), (40.0, "t1", 60.0)]


async def test_lease_of_a_process_that_stood_still_is_lost(autojump_clock: MockClock) -> None:
    """A lease that could not be extended in time is lost, not extended, when the process runs again."""
    rig = Rig()
    rig.leases.set_ack_wait(60.0)
    old = rig.leases.add(delivery(1, 0.0))
    autojump_clock.jump(40.0)
    new = rig.leases.add(delivery(2, 20.0))
    await rig.run_until(41)
    assert (old.lost, new.lost, rig.extended) == (True, False, [(40.0, "t2", 60.0)])


async def test_replace_delivery_counts_as_an_extension(autojump_clock: MockClock) -> None:
    """A redelivery replaces a lease's delivery, and extends it from its arrival; of another message it does nothing."""
    assert autojump_clock
    rig = Rig()
    rig.leases.set_ack_wait(60.0)
    lease = rig.leases.add(delivery(1))
    rig.leases.add(delivery(2))
    again = delivery(1, 15.0, "again")
    rig.leases.replace_delivery(again)
    rig.leases.replace_delivery(delivery(9, 15.0))
    assert (lease.delivery, lease.confirmed_at, lease.sent_at) == (again, 15.0, 15.0)
    await rig.run_until(36)
    assert rig.extended == [(20.0, "t2", 40.0), (35.0, "again", 55.0)]
