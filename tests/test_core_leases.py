"""Whose a message is: leases kept and lost, redeliveries, lost connections. On the virtual clock.

The ack wait is 30 s, so a lease is renewed 10 s after it was last, and taken for lost 20 s after the last extension
that the broker confirmed. A message takes 1 ms either way: a delivery is there at 2, and the extension of 10_002 is
heard at 10_003.
"""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from tests.world import Answer, Call, Hired, Message, World, ms, reply
from worker.events import InvocationEnded, InvocationStarted, LeaseExpired, LeasesExtended, Settled
from worker.heartbeat import Lease
from worker.intake import Intake
from worker.model import Abandon, Ack, Delivery, LeaseLost, Nak, QueueShared, Settlement, Term
from worker.policy.backoff import Backoff
from worker.ports import Consumer
from worker.settle import settle


async def test_renewed_at_a_third(autojump_clock: MockClock) -> None:
    """While an invocation runs, its lease is extended every third of the ack wait, and not once more after it."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=35))
        world.start(world.worker())
        await message.over.wait()
        await trio.sleep(100)
        assert world.heard(message) == [(10_003, None), (20_003, None), (30_003, None), (35_003, Ack())]


async def test_a_long_invocation_runs_once(autojump_clock: MockClock) -> None:
    """The ack wait does not bound how long a function may run."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=3605))
        world.start(world.worker())
        await message.over.wait()
        assert world.starts(message) == [2]
        # 360 extensions, after 10, 20 … 3600 s, and the acknowledgement.
        assert len(world.heard(message)) == 361
        assert world.server.deliveries == 1


async def test_each_lease_has_its_own_times(autojump_clock: MockClock) -> None:
    """Leases that began at different times are renewed each in its time, and those due together in one go."""
    async with World(autojump_clock) as world:
        first = [world.publish(reply(200, after=25)) for _ in range(2)]
        worker = world.start(world.worker())
        await trio.sleep(4)
        later = world.publish(reply(200, after=25))  # it is there at 4_001
        await later.over.wait()
        for message in first:
            assert world.heard(message) == [(10_003, None), (20_003, None), (25_003, Ack())]
        assert world.heard(later) == [(14_002, None), (24_002, None), (29_002, Ack())]
        assert [told.count for told in worker.told(LeasesExtended)] == [2, 1, 2, 1]


async def test_lost_when_nothing_is_confirmed(autojump_clock: MockClock) -> None:
    """Two thirds of the ack wait after the last confirmed extension it is cancelled, and nothing is said."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=60), reply(200))
        worker = world.worker()
        worker.link.down.swallows = {"confirmation"}
        world.start(worker)
        await trio.sleep(25)
        worker.link.down.swallows = ()
        (call,) = world.outside.calls
        assert (call.outcome, ms(call.ended or 0)) == (None, 20_002)
        assert worker.times(LeaseExpired) == [20_002]
        assert [told.outcome for told in worker.told(InvocationEnded)] == [LeaseLost()]
        assert worker.told(Settled) == [Settled(Abandon())]
        await message.over.wait()
        # The extension of 10_002 is said again every 2 s while it may be; the broker gives the message out 30 s
        # after the last, which it heard at 18_003.
        assert world.heard(message)[:6] == [*((ms, None) for ms in range(10_003, 18_004, 2_000)), (48_005, Ack())]
        assert world.starts(message) == [2, 48_004]


@pytest.mark.parametrize("latency", [0.002, 0.005, 0.028])
async def test_lost_however_the_thirds_round(latency: float, autojump_clock: MockClock) -> None:
    """Two thirds of a lease can come to less than a third and a third: it is lost all the same, not a third later.

    With these, a delivery's arrival + 10 + 10 is a little less than its arrival + 20, as floats go.
    """
    async with World(autojump_clock, latency=latency) as world:
        world.publish(reply(200, after=60))
        worker = world.worker()
        worker.link.there.swallows = {"extension"}
        world.start(worker)
        await trio.sleep(60)
        assert worker.times(LeaseExpired)[0] == 20_000 + ms(2 * latency)


@pytest.mark.parametrize(("until", "lost"), [(20.125, []), (20.25, [20_250])])
async def test_lost_to_the_moment(until: float, lost: list[int], autojump_clock: MockClock) -> None:
    """A worker that stood still may go on a moment before two thirds are over, and not when they are."""
    async with World(autojump_clock, latency=1 / 8) as world:
        world.publish(reply(200, after=25))
        worker = world.start(world.worker())
        await trio.sleep(5)
        autojump_clock.jump(until - 5)
        await trio.sleep(4)
        assert worker.times(LeaseExpired) == lost
        assert len(worker.told(LeasesExtended)) == (not lost)


async def test_lost_when_nothing_is_heard(autojump_clock: MockClock) -> None:
    """The same when the extensions never arrive: the next worker has it when the ack wait is over."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=60), reply(200))
        worker = world.worker()
        worker.link.there.swallows = {"extension"}
        world.start(worker)
        await message.over.wait()
        assert [ms(call.ended or 0) for call in world.outside.calls] == [20_002, 30_002]
        # Handed out at 1, and again 30_000 later.
        assert world.starts(message) == [2, 30_002]
        assert [told.attempt for told in worker.told(InvocationStarted)] == [1, 2]


async def test_a_late_confirmation_counts_from_the_sending(autojump_clock: MockClock) -> None:
    """What counts is when the confirmed extension was sent, not when its confirmation came."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503, after=25), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(5)
        worker.link.down.stands_until = 19.0
        await trio.sleep_until(19.5)
        worker.link.cut(15)
        await message.over.wait()
        # Sent at 10_002, confirmed at 19_000: the NAK of 25_002 may be said until 30_002, and the connection is back at
        # 34_500. The broker heard the extension last at 18_003, said again, and waits for 30_000 from then.
        assert world.heard(message)[-2:] == [(18_003, None), (48_005, Ack())]
        assert world.starts(message) == [2, 48_004]


async def test_a_short_cut_stops_nothing(autojump_clock: MockClock) -> None:
    """Over a lost connection the invocation goes on; the extension that fell due is sent when it is back."""
    async with World(autojump_clock) as world:
        message, worker = await _cut(world, begin=8, seconds=5)
        assert world.heard(message) == [(13_001, None), (20_003, None), (30_003, None), (40_003, None), (45_003, Ack())]
        assert world.starts(message) == [2]
        assert worker.told(LeaseExpired) == []


async def test_a_long_cut_loses_the_lease(autojump_clock: MockClock) -> None:
    """With nothing confirmed for two thirds of the ack wait the invocation is cancelled, connection or none."""
    async with World(autojump_clock) as world:
        message, worker = await _cut(world, begin=5, seconds=40)
        assert worker.times(LeaseExpired) == [20_002]
        # Back at 45_000: asked at once, heard at 45_001, there at 45_002.
        assert world.starts(message) == [2, 45_002]
        assert [_ended(call) for call in world.outside.calls] == [20_002, 90_002]


async def test_what_could_not_be_given_back_in_time_is_not(autojump_clock: MockClock) -> None:
    """A NAK that finds no connection until somebody else may have the message is never said."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503, after=5), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(1)
        worker.link.cut(40)
        await message.over.wait()
        # Decided at 5_002, to be said before 20_002. Out again since 30_001, it is there 2 after the connection.
        assert world.heard(message) == [(41_003, Ack())]
        assert world.starts(message) == [2, 41_002]


async def _cut(world: World, *, begin: float, seconds: float) -> tuple[Message, Hired]:
    """A message that runs for 45 s, and a connection that breaks meanwhile."""
    message = world.publish(reply(200, after=45))
    worker = world.start(world.worker())
    await trio.sleep(begin)
    worker.link.cut(seconds)
    await message.over.wait()
    return message, worker


def _ended(call: Call) -> int:
    assert call.ended is not None
    return ms(call.ended)


async def test_no_work_comes_over_a_cut_connection(autojump_clock: MockClock) -> None:
    """A lost connection stops intake only until it is back, and costs no credit."""
    async with World(autojump_clock) as world:
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        worker.link.cut(10)
        messages = [world.publish(reply(200, after=1)) for _ in range(4)]
        for message in messages:
            await message.over.wait()
        assert [world.starts(message) for message in messages] == [[11_002], [11_002], [12_004], [12_004]]
        assert world.outside.peak["worker-1"] == 2


async def test_another_ack_wait(autojump_clock: MockClock) -> None:
    """Leases last as long as the consumer's ack wait says, also when the consumer was made anew with another one."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=12))
        world.start(world.worker())
        await trio.sleep(5)
        world.server.make_anew(ack_wait=9)
        await message.over.wait()
        # There again at 5_003, and from then on extended every 3_000.
        assert world.heard(message) == [(8_004, None), (11_004, None), (12_003, Ack())]


async def test_a_redelivery_does_not_hold_up_others(autojump_clock: MockClock) -> None:
    """A lease that a redelivery made younger is renewed after those that are older now, and they in their time."""
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
        assert [world.heard(message) for message in messages] == [[(15_001, None)], [(10_003, None)]]


async def test_before_the_ack_wait_is_known(autojump_clock: MockClock) -> None:
    """What is held before the consumer is known is neither renewed nor lost; then, what is due is done at once."""
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


async def test_lost_while_the_result_is_told(autojump_clock: MockClock) -> None:
    """A lease that is lost while a callback is posted ends that too, and nothing is said: it is done again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(200, after=60), Answer(200)])
        worker = world.worker()
        worker.link.there.swallows = {"extension"}
        world.start(worker)
        await message.over.wait()
        assert [ms(post.began) for post in world.outside.posts] == [2, 30_002]
        assert ms(world.outside.posts[0].ended or 0) == 20_002
        assert world.heard(message) == [(30_003, Ack())]


async def test_lost_while_a_callback_waits_for_its_next_try(autojump_clock: MockClock) -> None:
    """Also a callback that has failed before is left to whoever has the message now."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500), Answer(200)])
        worker = world.worker(callback_backoff=Backoff(60, 60))
        worker.link.there.swallows = {"extension"}
        world.start(worker)
        await message.over.wait()
        assert worker.times(LeaseExpired) == [20_002]
        assert [ms(post.began) for post in world.outside.posts] == [2, 30_002]
        assert world.heard(message) == [(30_003, Ack())]


async def test_kept_while_a_callback_waits_for_its_next_try(autojump_clock: MockClock) -> None:
    """The lease covers the waits between a callback's tries, so that its function does not run again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500), Answer(500), Answer(200)])
        world.start(world.worker(callback_backoff=Backoff(40, 100)))
        await message.over.wait()
        assert [ms(post.began) for post in world.outside.posts] == [2, 40_002, 120_002]
        assert world.starts(message) == [2]
        assert world.heard(message)[-1] == (120_003, Ack())
        assert world.server.deliveries == 1


async def test_what_is_lost_stays_lost(autojump_clock: MockClock) -> None:
    """A confirmation that comes when a lease has been lost does not bring it back: nothing waits, nothing is said."""
    async with World(autojump_clock) as world:
        worker = world.worker()
        lease, delivery = await _leased(world, worker)
        worker.link.there.swallows = {"extension"}
        with trio.move_on_at(delivery.received_at + 21):
            await worker.services.leases.run()
        assert worker.told(LeaseExpired) == [LeaseExpired(delivery)]
        lease.confirm(trio.current_time())
        with trio.CancelScope() as scope:
            lease.guard(scope)
            await trio.sleep(1)
            raise AssertionError("it waits")
        settle(worker.services, lease, 1, Nak(10), counts=True)
        assert worker.queue.said == []


async def deliveries(consumer: Consumer) -> list[Delivery]:
    """What comes next."""
    while True:
        if here := [each for each in await consumer.receive() if isinstance(each, Delivery)]:
            return here


async def _leased(world: World, worker: Hired) -> tuple[Lease, Delivery]:
    """A lease on a message, and nothing that works on it."""
    world.publish(reply(200))
    world.nursery.start_soon(worker.link.run)
    consumer = await worker.queue.consume()
    worker.services.leases.set_ack_wait(consumer.ack_wait)
    consumer.add_credit(1, "")
    (delivery,) = await deliveries(consumer)
    return worker.services.leases.add(delivery), delivery


@pytest.mark.parametrize(
    ("verdict", "after", "said"),
    [(Nak(10), 19.999, True), (Nak(10), 20, False), (Term("given up"), 20, False), (Ack(), 100, True)],
)
async def test_a_verdict_that_comes_late(
    verdict: Settlement, after: float, said: bool, autojump_clock: MockClock
) -> None:
    """Past its lease's time, a message is neither given back nor given up: only that it is done stays true."""
    async with World(autojump_clock) as world:
        worker = world.worker()
        lease, delivery = await _leased(world, worker)
        await trio.sleep_until(delivery.received_at + after)
        settle(worker.services, lease, 1, verdict, counts=True)
        assert [settlement for _, _, settlement in worker.queue.said] == ([verdict] if said else [])
        assert worker.told(Settled) == [Settled(verdict if said else Abandon())]


async def test_what_lay_here_too_long_is_not_started(autojump_clock: MockClock) -> None:
    """A delivery whose lease is over before it could be looked at is left to others, and its credit returns."""
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
        assert worker.told(Settled) == [Settled(Abandon())]
        assert worker.wanted == 10 + 1, "for each slot, and what was wanted besides"


async def test_a_process_that_stood_still(autojump_clock: MockClock) -> None:
    """A worker that did not run for longer than its leases last gives nothing back that others may have by then."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(503, after=5), reply(200)) for _ in range(10)]
        world.start(world.worker())
        await trio.sleep(1)
        autojump_clock.jump(60)
        for message in messages:
            await message.over.wait()
            assert [settlement for _, settlement in world.heard(message)] == [Ack()]
            assert len(world.starts(message)) == 2
