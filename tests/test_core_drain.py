"""Ending: in order, within its time, and so that the next worker need not wait. On the virtual clock, in milliseconds.

A message takes 1 ms either way: a drain that has nothing to wait for ends with the answer to its last request, after 2.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.world import Answer, Hired, World, ms, reply
from worker.drain import CancelGroup
from worker.events import DrainEnded, DrainExpired, DrainStarted, InvocationEnded, InvocationStarted
from worker.model import Ack, Interrupted, Nak, Term
from worker.policy.backoff import Backoff
from worker.policy.retry import Retry
from worker.ports import MisconfiguredError


async def test_idle(autojump_clock: MockClock) -> None:
    """An idle worker ends at once."""
    async with World(autojump_clock) as world:
        worker = world.start(world.worker())
        await _stop(worker, at=10)
        assert ms(worker.took) == 2
        assert worker.told(DrainStarted) == [DrainStarted(0, 25.0)]
        assert worker.told(DrainExpired) == []


async def test_what_has_ended_is_not_running(autojump_clock: MockClock) -> None:
    """The drain tells how many run when it begins; what has ended is not among them."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(200), callback=[Answer()]) for _ in range(3)]
        world.publish(reply(200, after=5))
        worker = world.start(world.worker())
        for message in messages:
            await message.over.wait()
        await _stop(worker, at=1)
        assert worker.told(DrainStarted) == [DrainStarted(1, 25.0)]


async def test_a_cord_stays_pulled(autojump_clock: MockClock) -> None:
    """What begins to wait after the cord was pulled does not wait."""
    cord = CancelGroup()
    cord.cancel()
    with cord.scope() as scope:
        await trio.sleep(1)
    assert scope.cancelled_caught
    assert autojump_clock.current_time() == 0
    assert len(cord) == 0


async def test_running_invocations_end(autojump_clock: MockClock) -> None:
    """What runs when the stop comes runs to its end and is settled; nothing new is started; then the worker ends."""
    async with World(autojump_clock) as world:
        running, waiting = world.publish(reply(200, after=5)), world.publish(reply(200))
        worker = world.start(world.worker(slots=1))
        await _stop(worker, at=1)
        # The end at 5_002, its confirmation 2 later, less the second before the stop.
        assert ms(worker.took) == 4_004
        assert world.heard(running) == [(5_003, Ack())]
        assert world.starts(waiting) == []
        assert worker.told(DrainStarted) == [DrainStarted(1, 25.0)]
        assert [(ms(told.seconds), told.unconfirmed) for told in worker.told(DrainEnded)] == [(4_004, False)]


async def test_leases_are_kept(autojump_clock: MockClock) -> None:
    """While it drains the worker goes on extending leases: another worker is not given what runs here."""
    async with World(autojump_clock, ack_wait=3) as world:
        message = world.publish(reply(200, after=20))
        worker = world.start(world.worker())
        await trio.sleep(0.5)
        successor = world.start(world.worker())
        await _stop(worker, at=1)
        assert ms(worker.took) == 19_004
        assert world.starts(message) == [2]
        assert successor.told(InvocationStarted) == []


async def test_past_shutdown_timeout_it_is_given_back(autojump_clock: MockClock) -> None:
    """What runs longer than shutdown_timeout is cancelled and given back at once: the next worker starts it then."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=100), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(0.5)
        world.start(world.worker())
        await _stop(worker, at=1)
        assert ms(worker.took) == 25_002
        assert worker.told(DrainExpired) == [DrainExpired(1, "shutdown_timeout")]
        assert [told.outcome for told in worker.told(InvocationEnded)] == [Interrupted()]
        await message.over.wait()
        # Extended at 10_002 and 20_002; given back at 26_000, heard 1 later, at the other worker 1 later again.
        assert world.heard(message) == [(10_003, None), (20_003, None), (26_001, Nak()), (26_003, Ack())]
        assert world.starts(message) == [2, 26_002]


async def test_the_second_signal_gives_back_at_once(autojump_clock: MockClock) -> None:
    """A second signal does not wait for shutdown_timeout; a third changes nothing."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=100), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(0.5)
        world.start(world.worker())
        for at in (1, 2, 2.0005):
            await trio.sleep_until(at)
            worker.signal()
        await worker.ended.wait()
        assert ms(worker.took) == 1_002
        assert worker.told(DrainExpired) == [DrainExpired(1, "second signal")]
        assert world.starts(message) == [2, 2_002]


async def test_no_time_at_all(autojump_clock: MockClock) -> None:
    """With a shutdown_timeout of nothing the first signal gives back at once."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=100))
        worker = world.start(world.worker(shutdown_timeout=0))
        await _stop(worker, at=1)
        assert ms(worker.took) == 2
        assert world.heard(message) == [(1_001, Nak())]


async def test_what_arrives_meanwhile_is_handed_back(autojump_clock: MockClock) -> None:
    """A delivery that is on its way when the stop comes goes back unstarted, without waiting for what runs."""
    async with World(autojump_clock, latency=0.1) as world:
        running = world.publish(reply(200, after=10))
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        late = world.publish(reply(200))  # sent at 1_000, there at 1_100
        await _stop(worker, at=1.05)
        # The stop's answer is there at 1_250, and with it all that was sent before; the NAK is heard 100 later.
        assert world.heard(late) == [(1_350, Nak())]
        assert world.starts(late) == []
        assert world.starts(running) == [200]
        # The other runs to 10_200, and is confirmed 200 later.
        assert ms(worker.took) == 10_400 - 1_050


async def test_what_comes_twice_meanwhile_is_handed_back_once(autojump_clock: MockClock) -> None:
    """Of a message that arrives twice while the worker stops, only the newest delivery is given back."""
    async with World(autojump_clock, latency=0.1) as world:
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        message = world.publish(reply(200))
        worker.link.down.stands_until = 31.5
        await trio.sleep_until(31.4)
        worker.signal()
        await worker.ended.wait()
        # Sent at 1_000 and 31_000, both there at 31_500; the stop's answer comes at 31_600.
        assert world.heard(message) == [(31_700, Nak())]
        assert world.server.heard[-1].token == message.token


async def test_a_stop_before_the_broker_answers(autojump_clock: MockClock) -> None:
    """A worker that is stopped while it still waits for its broker ends cleanly and at once."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200))
        worker = world.start(world.worker(connected=False))
        await _stop(worker, at=3)
        assert ms(worker.took) == 0
        assert world.starts(message) == []


async def test_a_stop_while_the_connection_is_lost(autojump_clock: MockClock) -> None:
    """Without a connection the drain waits settle_within for confirmations, and says that it had none."""
    async with World(autojump_clock) as world:
        world.publish(reply(200, after=2))
        worker = world.start(world.worker(settle_within=3))
        await trio.sleep(0.5)
        worker.link.cut(1000)
        await _stop(worker, at=1)
        # The end at 2_002, and 3_000.
        assert ms(worker.took) == 4_002
        assert [told.unconfirmed for told in worker.told(DrainEnded)] == [True]


async def test_lost_confirmations_are_waited_for(autojump_clock: MockClock) -> None:
    """The drain ends when every settlement is confirmed, also when it must be said again for that."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=2))
        worker = world.start(world.worker())
        worker.link.there.swallows = {"settlement"}
        await trio.sleep(1)
        worker.signal()
        await trio.sleep_until(3)
        worker.link.there.swallows = ()
        await worker.ended.wait()
        # Said at 2_002 in vain, again at 4_002.
        assert ms(worker.took) == 4_004 - 1_000
        assert world.heard(message) == [(4_003, Ack())]
        assert [told.unconfirmed for told in worker.told(DrainEnded)] == [False]


async def test_a_held_early_redelivery_goes_back(autojump_clock: MockClock) -> None:
    """A message that waits here for the rest of its back-off is given back when the drain's time is up."""
    async with World(autojump_clock) as world:
        await trio.sleep(0.8)
        message = world.publish(reply(503), reply(200))
        worker = world.start(world.worker(shutdown_timeout=0.25))
        await trio.sleep(2)
        world.server.restart(down=0)  # by whole seconds: due at 10_803, it comes at 10_000
        await _stop(worker, at=10.5)
        assert ms(worker.took) == 252
        assert world.heard(message) == [(803, Nak(10)), (10_751, Nak())]
        assert [told.attempt for told in worker.told(InvocationStarted)] == [1]


async def test_credit_returns_with_what_is_given_back(autojump_clock: MockClock) -> None:
    """After the drain the books balance: there is a slot wanted for each that the worker has, whatever was in them."""
    async with World(autojump_clock, latency=0.1) as world:
        for after in (1, 100, 100):
            world.publish(reply(200, after=after))
        worker = world.start(world.worker(slots=4, shutdown_timeout=5))
        await trio.sleep(3)
        world.publish(reply(200))
        await _stop(worker, at=3.05)
        assert worker.wanted == 4
        assert worker.queue.held == {}


async def test_a_callback_that_has_failed_is_given_up_with_the_drain(autojump_clock: MockClock) -> None:
    """A function whose callback has failed before does not run again for it: the drain's end gives the callback up."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500)])
        worker = world.start(world.worker(callback_backoff=Backoff(40, 40), shutdown_timeout=5))
        await _stop(worker, at=1)
        assert ms(worker.took) == 5_002
        assert world.heard(message) == [(6_001, Ack())]
        assert len(world.outside.posts) == 1


async def test_a_callback_that_is_under_way_is_done_again(autojump_clock: MockClock) -> None:
    """Stopped in its first try, a callback may never have been told: the next worker does all of it again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(200, after=60), Answer(200)])
        worker = world.start(world.worker(shutdown_timeout=5))
        await trio.sleep(0.5)
        world.start(world.worker())
        await _stop(worker, at=1)
        await message.over.wait()
        assert world.heard(message) == [(6_001, Nak()), (6_003, Ack())]
        assert world.starts(message) == [2, 6_002]
        assert [post.result for post in world.outside.posts] == [None, 200]


async def test_a_dead_letter_that_is_not_stored_goes_back(autojump_clock: MockClock) -> None:
    """What is given up and could not be buried by the end of the drain stays on the queue."""
    async with World(autojump_clock) as world:
        world.server.refuses_letters = True
        message = world.publish(reply(500))
        worker = world.start(world.worker(retry=Retry(attempts=1), shutdown_timeout=5))
        await _stop(worker, at=1)
        assert world.heard(message) == [(6_001, Nak())]
        world.server.refuses_letters = False
        world.start(world.worker(retry=Retry(attempts=1)))
        await message.over.wait()
        assert message.verdict == Term("gave up after 2 of 1 attempts: status 500")
        assert len(world.server.letters) == 1


async def test_an_unusable_broker_ends_the_worker(autojump_clock: MockClock) -> None:
    """What cannot work, and waiting will not mend, is raised out of the worker."""
    async with World(autojump_clock) as world:
        world.server.unusable = "its retention is 'limits'"
        worker = world.worker()
        with pytest.RaisesGroup(pytest.RaisesExc(MisconfiguredError, match="its retention"), flatten_subgroups=True):
            await worker.work()
        assert worker.ended.is_set()


async def _stop(worker: Hired, *, at: float) -> None:
    await trio.sleep_until(at)
    worker.signal()
    await worker.ended.wait()
