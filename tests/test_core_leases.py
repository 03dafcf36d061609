"""Leases: extended and lost, over redeliveries and lost connections. On the virtual clock.

The ack wait is 30 s, so a worker extends a lease every 10 s, and considers it lost 20 s after the last extension that
the broker confirmed. A message takes 1 ms either way: a delivery arrives at 2, and the broker receives the extension
of 10_002 at 10_003.
"""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from tests.world import Answer, Call, Message, SimulatedWorker, World, ms, reply
from worker.events import InvocationEnded, InvocationStarted, LeaseExpired, LeasesExtended, Settled
from worker.heartbeat import Lease
from worker.intake import Intake
from worker.job import settle
from worker.model import Abandon, Ack, Delivery, LeaseLost, Nak, QueueShared, Settlement, Term
from worker.policy.retry import Backoff
from worker.ports import Consumer


async def test_lease_is_extended_at_each_third(autojump_clock: MockClock) -> None:
    """While an invocation runs, its lease is extended every third of the ack wait, and never after its end."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=35))
        world.start(world.worker())
        await message.removed.wait()
        await trio.sleep(100)
        assert world.verbs_of(message) == [(10_003, None), (20_003, None), (30_003, None), (35_003, Ack())]


async def test_lease_of_long_invocation_is_extended(autojump_clock: MockClock) -> None:
    """An invocation of 3605 s, many times the ack wait, runs once."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=3605))
        world.start(world.worker())
        await message.removed.wait()
        assert world.starts(message) == [2]
        # 360 extensions, after 10, 20 … 3600 s, and the acknowledgement.
        assert len(world.verbs_of(message)) == 361
        assert world.server.num_deliveries == 1


async def test_leases_of_different_age_are_extended_at_their_own_times(autojump_clock: MockClock) -> None:
    """Leases that began at different times are extended at their own times, and those due together at once."""
    async with World(autojump_clock) as world:
        first = [world.publish(reply(200, after=25)) for _ in range(2)]
        worker = world.start(world.worker())
        await trio.sleep(4)
        later = world.publish(reply(200, after=25))  # it arrives at 4_001
        await later.removed.wait()
        for message in first:
            assert world.verbs_of(message) == [(10_003, None), (20_003, None), (25_003, Ack())]
        assert world.verbs_of(later) == [(14_002, None), (24_002, None), (29_002, Ack())]
        assert [event.count for event in worker.events_of(LeasesExtended)] == [2, 1, 2, 1]


async def test_lease_without_confirmation_is_lost(autojump_clock: MockClock) -> None:
    """Two thirds of the ack wait after the last confirmation the invocation is cancelled, and no settlement is sent."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=60), reply(200))
        worker = world.worker()
        worker.link.from_broker.dropped_kinds = {"confirmation"}
        world.start(worker)
        await trio.sleep(25)
        worker.link.from_broker.dropped_kinds = ()
        (call,) = world.outside.calls
        assert (call.outcome, ms(call.ended or 0)) == (None, 20_002)
        assert worker.times(LeaseExpired) == [20_002]
        assert [event.outcome for event in worker.events_of(InvocationEnded)] == [LeaseLost()]
        assert worker.events_of(Settled) == [Settled(Abandon())]
        await message.removed.wait()
        # The extension of 10_002 is sent again every 2 s until 20_002. The broker redelivers the message 30 s after
        # the last one, which it received at 18_003.
        assert world.verbs_of(message)[:6] == [
            *((ms, None) for ms in range(10_003, 18_004, 2_000)),
            (48_005, Ack()),
        ]
        assert world.starts(message) == [2, 48_004]


@pytest.mark.parametrize("latency", [0.002, 0.005, 0.028])
async def test_lease_with_any_rounding_is_lost_after_two_thirds(latency: float, autojump_clock: MockClock) -> None:
    """A lease is lost after two thirds of the ack wait, also where two thirds round to less than a third and a third.

    With these latencies, a delivery's arrival + 10 + 10 is a little less than its arrival + 20, in floats.
    """
    async with World(autojump_clock, latency=latency) as world:
        world.publish(reply(200, after=60))
        worker = world.worker()
        worker.link.to_broker.dropped_kinds = {"extension"}
        world.start(worker)
        await trio.sleep(60)
        assert worker.times(LeaseExpired)[0] == 20_000 + ms(2 * latency)


@pytest.mark.parametrize(("until", "lost"), [(20.125, []), (20.25, [20_250])])
async def test_lease_of_suspended_worker_is_lost_exactly_after_two_thirds(
    until: float, lost: list[int], autojump_clock: MockClock
) -> None:
    """A suspended worker keeps a lease until just before two thirds of the ack wait, and loses it exactly then."""
    async with World(autojump_clock, latency=1 / 8) as world:
        world.publish(reply(200, after=25))
        worker = world.start(world.worker())
        await trio.sleep(5)
        autojump_clock.jump(until - 5)
        await trio.sleep(4)
        assert worker.times(LeaseExpired) == lost
        assert len(worker.events_of(LeasesExtended)) == (not lost)


async def test_lease_without_received_extension_is_lost(autojump_clock: MockClock) -> None:
    """When no extension arrives, the invocation is cancelled, and the message runs again after the ack wait."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=60), reply(200))
        worker = world.worker()
        worker.link.to_broker.dropped_kinds = {"extension"}
        world.start(worker)
        await message.removed.wait()
        assert [ms(call.ended or 0) for call in world.outside.calls] == [20_002, 30_002]
        # Delivered at 1, and again 30_000 later.
        assert world.starts(message) == [2, 30_002]
        assert [event.attempt for event in worker.events_of(InvocationStarted)] == [1, 2]


async def test_lease_with_late_confirmation_counts_from_the_sending(autojump_clock: MockClock) -> None:
    """A lease counts from when the confirmed extension was sent, not from when its confirmation arrived."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503, after=25), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(5)
        worker.link.from_broker.stalled_until = 19.0
        await trio.sleep_until(19.5)
        worker.link.cut(15)
        await message.removed.wait()
        # Sent at 10_002, confirmed at 19_000: the NAK of 25_002 may be sent until 30_002, and the connection returns at
        # 34_500. The broker last received an extension at 18_003, and waits 30_000 from then.
        assert world.verbs_of(message)[-2:] == [(18_003, None), (48_005, Ack())]
        assert world.starts(message) == [2, 48_004]


async def test_lease_over_a_short_cut_is_kept(autojump_clock: MockClock) -> None:
    """An invocation continues while the connection is lost; the due extension is sent after the reconnect."""
    async with World(autojump_clock) as world:
        message, worker = await _cut(world, begin=8, seconds=5)
        assert world.verbs_of(message) == [
            (13_001, None),
            (20_003, None),
            (30_003, None),
            (40_003, None),
            (45_003, Ack()),
        ]
        assert world.starts(message) == [2]
        assert worker.events_of(LeaseExpired) == []


async def test_lease_over_a_long_cut_is_lost(autojump_clock: MockClock) -> None:
    """When the connection is lost for more than two thirds of the ack wait, the invocation is cancelled."""
    async with World(autojump_clock) as world:
        message, worker = await _cut(world, begin=5, seconds=40)
        assert worker.times(LeaseExpired) == [20_002]
        # Reconnected at 45_000: the pull request is received at 45_001, the delivery at 45_002.
        assert world.starts(message) == [2, 45_002]
        assert [_ended(call) for call in world.outside.calls] == [20_002, 90_002]


async def test_nak_too_late_is_not_sent(autojump_clock: MockClock) -> None:
    """A NAK that finds no connection until the lease is over is never sent: another worker may have the message."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503, after=5), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(1)
        worker.link.cut(40)
        await message.removed.wait()
        # Decided at 5_002, to be sent before 20_002. Due again at 30_001, it arrives 2 after the reconnect.
        assert world.verbs_of(message) == [(41_003, Ack())]
        assert world.starts(message) == [2, 41_002]


async def _cut(world: World, *, begin: float, seconds: float) -> tuple[Message, SimulatedWorker]:
    """Run a message of 45 s, and cut the connection at *begin* for *seconds*."""
    message = world.publish(reply(200, after=45))
    worker = world.start(world.worker())
    await trio.sleep(begin)
    worker.link.cut(seconds)
    await message.removed.wait()
    return message, worker


def _ended(call: Call) -> int:
    assert call.ended is not None
    return ms(call.ended)


async def test_intake_after_a_cut_has_all_credit(autojump_clock: MockClock) -> None:
    """Intake stops while the connection is lost, and continues after the reconnect with all its credit."""
    async with World(autojump_clock) as world:
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        worker.link.cut(10)
        messages = [world.publish(reply(200, after=1)) for _ in range(4)]
        for message in messages:
            await message.removed.wait()
        assert [world.starts(message) for message in messages] == [[11_002], [11_002], [12_004], [12_004]]
        assert world.outside.peak["worker-1"] == 2


async def test_lease_follows_a_changed_ack_wait(autojump_clock: MockClock) -> None:
    """Leases follow the consumer's ack wait, also after the consumer was recreated with another one."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=12))
        world.start(world.worker())
        await trio.sleep(5)
        world.server.recreate_consumers(ack_wait=9)
        await message.removed.wait()
        # Redelivered at 5_003, and extended every 3_000 from then on.
        assert world.verbs_of(message) == [(8_004, None), (11_004, None), (12_003, Ack())]


async def test_lease_of_redelivered_message_delays_no_other(autojump_clock: MockClock) -> None:
    """A redelivered message's lease is extended a third of the ack wait later, and other leases at their own times."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(200)) for _ in range(2)]
        worker = world.worker()
        world.nursery.start_soon(worker.link.run)
        consumer = await worker.queue.consume()
        leases = worker.services.leases
        leases.set_ack_wait(consumer.ack_wait)
        consumer.add_credit(2, "")
        first, second = await deliveries(consumer)
        leases.add(first)
        leases.add(second)
        world.nursery.start_soon(leases.run)
        await trio.sleep_until(5)
        leases.replace_delivery(replace(first, received_at=5.0))
        await trio.sleep_until(16)
        assert [world.verbs_of(message) for message in messages] == [[(15_001, None)], [(10_003, None)]]


async def test_lease_before_ack_wait_is_known_is_kept(autojump_clock: MockClock) -> None:
    """Before the ack wait is known, no lease is extended or lost; once it is set, a due lease is extended at once."""
    async with World(autojump_clock) as world:
        world.publish(reply(200))
        worker = world.worker()
        world.nursery.start_soon(worker.link.run)
        consumer = await worker.queue.consume()
        consumer.add_credit(1, "")
        (delivery,) = await deliveries(consumer)
        leases = worker.services.leases
        lease = leases.add(delivery)
        world.nursery.start_soon(leases.run)
        await trio.sleep_until(5)
        assert leases.lost_at(lease) == float("inf")
        assert worker.events == []
        leases.set_ack_wait(9)
        await trio.testing.wait_all_tasks_blocked()
        assert worker.events == [(5, LeasesExtended(1))]


async def test_lease_lost_during_a_callback_cancels_it(autojump_clock: MockClock) -> None:
    """A lease that is lost while a callback is posted cancels it, and the message runs again, with its callback."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(200, after=60), Answer(200)])
        worker = world.worker()
        worker.link.to_broker.dropped_kinds = {"extension"}
        world.start(worker)
        await message.removed.wait()
        assert [ms(post.began) for post in world.outside.posts] == [2, 30_002]
        assert ms(world.outside.posts[0].ended or 0) == 20_002
        assert world.verbs_of(message) == [(30_003, Ack())]


async def test_lease_lost_between_callbacks_ends_them(autojump_clock: MockClock) -> None:
    """A lease that is lost between two tries of a callback ends them, and the message runs again, with its callback."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500), Answer(200)])
        worker = world.worker(callback_backoff=Backoff(60, 60))
        worker.link.to_broker.dropped_kinds = {"extension"}
        world.start(worker)
        await message.removed.wait()
        assert worker.times(LeaseExpired) == [20_002]
        assert [ms(post.began) for post in world.outside.posts] == [2, 30_002]
        assert world.verbs_of(message) == [(30_003, Ack())]


async def test_lease_between_callbacks_is_extended(autojump_clock: MockClock) -> None:
    """The lease is extended during the waits between a callback's tries, so that the function does not run again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500), Answer(500), Answer(200)])
        world.start(world.worker(callback_backoff=Backoff(40, 100)))
        await message.removed.wait()
        assert [ms(post.began) for post in world.outside.posts] == [2, 40_002, 120_002]
        assert world.starts(message) == [2]
        assert world.verbs_of(message)[-1] == (120_003, Ack())
        assert world.server.num_deliveries == 1


async def test_lease_lost_stays_lost(autojump_clock: MockClock) -> None:
    """A late confirmation does not restore a lost lease: its scopes are cancelled, and no settlement is sent."""
    async with World(autojump_clock) as world:
        worker = world.worker()
        lease, delivery = await _leased(world, worker)
        worker.link.to_broker.dropped_kinds = {"extension"}
        with trio.move_on_at(delivery.received_at + 21):
            await worker.services.leases.run()
        assert worker.events_of(LeaseExpired) == [LeaseExpired(delivery)]
        lease.confirm(trio.current_time())
        with trio.CancelScope() as scope:
            lease.guard(scope)
            await trio.sleep(1)
            raise AssertionError("it waits")
        settle(worker.services, lease, 1, Nak(10), counts=True)
        assert worker.queue.settlements == []


async def deliveries(consumer: Consumer) -> list[Delivery]:
    """Receive until there are deliveries, and return these."""
    while True:
        if found := [each for each in await consumer.receive() if isinstance(each, Delivery)]:
            return found


async def _leased(world: World, worker: SimulatedWorker) -> tuple[Lease, Delivery]:
    """Receive a message and return its lease, without starting it."""
    world.publish(reply(200))
    world.nursery.start_soon(worker.link.run)
    consumer = await worker.queue.consume()
    worker.services.leases.set_ack_wait(consumer.ack_wait)
    consumer.add_credit(1, "")
    (delivery,) = await deliveries(consumer)
    return worker.services.leases.add(delivery), delivery


@pytest.mark.parametrize(
    ("verdict", "after", "sent"),
    [(Nak(10), 19.999, True), (Nak(10), 20, False), (Term("given up"), 20, False), (Ack(), 100, True)],
)
async def test_settle_after_the_lease_sends_only_an_ack(
    verdict: Settlement, after: float, sent: bool, autojump_clock: MockClock
) -> None:
    """After the lease's time a worker sends no nak and no term; it still sends an ack."""
    async with World(autojump_clock) as world:
        worker = world.worker()
        lease, delivery = await _leased(world, worker)
        await trio.sleep_until(delivery.received_at + after)
        settle(worker.services, lease, 1, verdict, counts=True)
        assert [settlement for _, _, settlement in worker.queue.settlements] == ([verdict] if sent else [])
        assert worker.events_of(Settled) == [Settled(verdict if sent else Abandon())]


async def test_intake_delivery_without_lease_is_not_started(autojump_clock: MockClock) -> None:
    """A delivery whose lease ends before intake decides on it is abandoned, and its credit returns."""
    async with World(autojump_clock) as world:
        world.publish(reply(200))
        worker = world.worker()
        world.nursery.start_soon(worker.link.run)
        consumer = await worker.queue.consume()
        worker.services.leases.set_ack_wait(consumer.ack_wait)
        intake = Intake(worker.services, world.nursery)
        intake._consumer, intake._open = consumer, True
        consumer.add_credit(1, "")
        (delivery,) = await deliveries(consumer)
        await trio.sleep_until(delivery.received_at + 20)
        intake._take_all([QueueShared(), delivery])
        intake._decide()
        await trio.testing.wait_all_tasks_blocked()
        assert world.outside.calls == []
        assert worker.events_of(Settled) == [Settled(Abandon())]
        assert worker.credit == 10 + 1, "one for each slot, and the one that the test requested"


async def test_settle_in_suspended_process_sends_no_nak(autojump_clock: MockClock) -> None:
    """A worker that was suspended for longer than its leases last sends no nak; other workers may have the messages."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(503, after=5), reply(200)) for _ in range(10)]
        world.start(world.worker())
        await trio.sleep(1)
        autojump_clock.jump(60)
        for message in messages:
            await message.removed.wait()
            assert [settlement for _, settlement in world.verbs_of(message)] == [Ack()]
            assert len(world.starts(message)) == 2
