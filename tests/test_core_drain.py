"""The drain: orderly, within its time limit, and without delay for the next worker. On the virtual clock, in ms.

A message takes 1 ms either way: a drain with nothing to wait for ends with the answer to its last request, after 2.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.world import Answer, SimulatedWorker, World, ms, reply
from worker.drain import Drain
from worker.events import DrainEnded, DrainExpired, DrainStarted, InvocationEnded, InvocationStarted
from worker.model import Ack, Interrupted, Nak, Term
from worker.policy.retry import Backoff, Retry
from worker.ports import MisconfiguredError


async def test_drain_of_idle_worker_ends_at_once(autojump_clock: MockClock) -> None:
    """An idle worker ends at once."""
    async with World(autojump_clock) as world:
        worker = world.start(world.worker())
        await _stop(worker, at=10)
        assert ms(worker.drain_seconds) == 2
        assert worker.events_of(DrainStarted) == [DrainStarted(0, 25.0)]
        assert worker.events_of(DrainExpired) == []


async def test_drain_started_event_counts_only_running_messages(autojump_clock: MockClock) -> None:
    """The event of the drain's start counts the running messages, without those that have ended."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(200), callback=[Answer()]) for _ in range(3)]
        world.publish(reply(200, after=5))
        worker = world.start(world.worker())
        for message in messages:
            await message.removed.wait()
        await _stop(worker, at=1)
        assert worker.events_of(DrainStarted) == [DrainStarted(1, 25.0)]


async def test_drain_after_its_time_cancels_new_scopes(autojump_clock: MockClock) -> None:
    """The scope of a job that begins after the drain's time has passed is cancelled at once."""
    drain = Drain(0.0, lambda _: None)
    signal, signals = trio.open_memory_channel[None](1)
    signal.send_nowait(None)
    await drain.watch(signals)
    with trio.CancelScope() as scope:
        drain.add(scope)
        await trio.sleep(1)
    assert scope.cancelled_caught
    assert autojump_clock.current_time() == 0


async def test_drain_lets_running_invocations_end(autojump_clock: MockClock) -> None:
    """On a signal, running invocations end and are settled, no other one starts, and then the worker ends."""
    async with World(autojump_clock) as world:
        running, waiting = world.publish(reply(200, after=5)), world.publish(reply(200))
        worker = world.start(world.worker(slots=1))
        await _stop(worker, at=1)
        # The invocation ends at 5_002 and is confirmed 2 later; the signal came at 1_000.
        assert ms(worker.drain_seconds) == 4_004
        assert world.verbs_of(running) == [(5_003, Ack())]
        assert world.starts(waiting) == []
        assert worker.events_of(DrainStarted) == [DrainStarted(1, 25.0)]
        assert [(ms(event.seconds), event.unconfirmed) for event in worker.events_of(DrainEnded)] == [(4_004, False)]


async def test_drain_extends_leases(autojump_clock: MockClock) -> None:
    """A draining worker extends its leases, so that no other worker receives its running messages."""
    async with World(autojump_clock, ack_wait=3) as world:
        message = world.publish(reply(200, after=20))
        worker = world.start(world.worker())
        await trio.sleep(0.5)
        successor = world.start(world.worker())
        await _stop(worker, at=1)
        assert ms(worker.drain_seconds) == 19_004
        assert world.starts(message) == [2]
        assert successor.events_of(InvocationStarted) == []


async def test_drain_past_shutdown_timeout_naks(autojump_clock: MockClock) -> None:
    """An invocation that exceeds shutdown_timeout is cancelled and nakked, and another worker starts it at once."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=100), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(0.5)
        world.start(world.worker())
        await _stop(worker, at=1)
        assert ms(worker.drain_seconds) == 25_002
        assert worker.events_of(DrainExpired) == [DrainExpired(1, "shutdown_timeout")]
        assert [event.outcome for event in worker.events_of(InvocationEnded)] == [Interrupted()]
        await message.removed.wait()
        # Extended at 10_002 and 20_002, nakked at 26_000. The NAK takes 1, and the redelivery 1 more.
        assert world.verbs_of(message) == [(10_003, None), (20_003, None), (26_001, Nak()), (26_003, Ack())]
        assert world.starts(message) == [2, 26_002]


async def test_drain_second_signal_naks_at_once(autojump_clock: MockClock) -> None:
    """A second signal cancels and naks at once, before shutdown_timeout; a third changes nothing."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=100), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(0.5)
        world.start(world.worker())
        for at in (1, 2, 2.0005):
            await trio.sleep_until(at)
            worker.signal()
        await worker.ended.wait()
        assert ms(worker.drain_seconds) == 1_002
        assert worker.events_of(DrainExpired) == [DrainExpired(1, "second signal")]
        assert world.starts(message) == [2, 2_002]


async def test_drain_without_time_naks_at_once(autojump_clock: MockClock) -> None:
    """With a shutdown_timeout of 0 the first signal cancels and naks at once."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=100))
        worker = world.start(world.worker(shutdown_timeout=0))
        await _stop(worker, at=1)
        assert ms(worker.drain_seconds) == 2
        assert world.verbs_of(message) == [(1_001, Nak())]


async def test_drain_late_delivery_is_nakked_unstarted(autojump_clock: MockClock) -> None:
    """A delivery that is on its way at the signal is nakked unstarted, without waiting for running invocations."""
    async with World(autojump_clock, latency=0.1) as world:
        running = world.publish(reply(200, after=10))
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        late = world.publish(reply(200))  # sent at 1_000, received at 1_100
        await _stop(worker, at=1.05)
        # The answer to the stop arrives at 1_250, after all earlier deliveries; the broker receives the NAK 100 later.
        assert world.verbs_of(late) == [(1_350, Nak())]
        assert world.starts(late) == []
        assert world.starts(running) == [200]
        # The other message runs to 10_200, and is confirmed 200 later.
        assert ms(worker.drain_seconds) == 10_400 - 1_050


async def test_drain_late_delivery_twice_is_nakked_once(autojump_clock: MockClock) -> None:
    """When a message arrives twice while the worker stops, only its newest delivery is nakked."""
    async with World(autojump_clock, latency=0.1) as world:
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        message = world.publish(reply(200))
        worker.link.from_broker.stalled_until = 31.5
        await trio.sleep_until(31.4)
        worker.signal()
        await worker.ended.wait()
        # Sent at 1_000 and 31_000, both received at 31_500; the answer to the stop arrives at 31_600.
        assert world.verbs_of(message) == [(31_700, Nak())]
        assert world.server.applied[-1].token == message.token


async def test_drain_before_the_broker_answers_ends_at_once(autojump_clock: MockClock) -> None:
    """A worker that is stopped while it still waits for its broker ends cleanly and at once."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200))
        worker = world.start(world.worker(connected=False))
        await _stop(worker, at=3)
        assert ms(worker.drain_seconds) == 0
        assert world.starts(message) == []


async def test_drain_without_connection_reports_unconfirmed_settlements(autojump_clock: MockClock) -> None:
    """Without a connection the drain waits settle_within for confirmations, and reports that they are missing."""
    async with World(autojump_clock) as world:
        world.publish(reply(200, after=2))
        worker = world.start(world.worker(settle_within=3))
        await trio.sleep(0.5)
        worker.link.cut(1000)
        await _stop(worker, at=1)
        # The invocation ends at 2_002, and the drain waits 3_000 more.
        assert ms(worker.drain_seconds) == 4_002
        assert [event.unconfirmed for event in worker.events_of(DrainEnded)] == [True]


async def test_drain_with_lost_settlement_waits_for_confirmation(autojump_clock: MockClock) -> None:
    """The drain ends when every settlement is confirmed, also when one must be sent again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=2))
        worker = world.start(world.worker())
        worker.link.to_broker.dropped_kinds = {"settlement"}
        await trio.sleep(1)
        worker.signal()
        await trio.sleep_until(3)
        worker.link.to_broker.dropped_kinds = ()
        await worker.ended.wait()
        # Sent at 2_002 and lost, sent again at 4_002.
        assert ms(worker.drain_seconds) == 4_004 - 1_000
        assert world.verbs_of(message) == [(4_003, Ack())]
        assert [event.unconfirmed for event in worker.events_of(DrainEnded)] == [False]


async def test_drain_with_held_early_redelivery_naks_it(autojump_clock: MockClock) -> None:
    """A message that waits in its slot for the rest of its backoff is nakked when the drain's time has passed."""
    async with World(autojump_clock) as world:
        await trio.sleep(0.8)
        message = world.publish(reply(503), reply(200))
        worker = world.start(world.worker(shutdown_timeout=0.25))
        await trio.sleep(2)
        world.server.restart(down=0)  # rounds to whole seconds: due at 10_803, it is redelivered at 10_000
        await _stop(worker, at=10.5)
        assert ms(worker.drain_seconds) == 252
        assert world.verbs_of(message) == [(803, Nak(10)), (10_751, Nak())]
        assert [event.attempt for event in worker.events_of(InvocationStarted)] == [1]


async def test_drain_after_any_outcome_credit_equals_slots(autojump_clock: MockClock) -> None:
    """After a drain with any outcome, the worker has requested one message for each of its slots, and holds none."""
    async with World(autojump_clock, latency=0.1) as world:
        for after in (1, 100, 100):
            world.publish(reply(200, after=after))
        worker = world.start(world.worker(slots=4, shutdown_timeout=5))
        await trio.sleep(3)
        world.publish(reply(200))
        await _stop(worker, at=3.05)
        assert worker.credit == 4
        assert worker.queue.held == {}


async def test_drain_with_failed_callback_gives_it_up(autojump_clock: MockClock) -> None:
    """A callback that has failed before is given up at the end of the drain's time; its function does not run again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500)])
        worker = world.start(world.worker(callback_backoff=Backoff(40, 40), shutdown_timeout=5))
        await _stop(worker, at=1)
        assert ms(worker.drain_seconds) == 5_002
        assert world.verbs_of(message) == [(6_001, Ack())]
        assert len(world.outside.posts) == 1


async def test_drain_with_running_callback_naks_the_message(autojump_clock: MockClock) -> None:
    """When the drain cancels the first try of a callback, the next worker runs the function and the callback again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(200, after=60), Answer(200)])
        worker = world.start(world.worker(shutdown_timeout=5))
        await trio.sleep(0.5)
        world.start(world.worker())
        await _stop(worker, at=1)
        await message.removed.wait()
        assert world.verbs_of(message) == [(6_001, Nak()), (6_003, Ack())]
        assert world.starts(message) == [2, 6_002]
        assert [post.result for post in world.outside.posts] == [None, 200]


async def test_drain_with_unstored_dead_letter_naks_the_message(autojump_clock: MockClock) -> None:
    """A message whose dead letter could not be stored by the end of the drain is nakked and stays on the queue."""
    async with World(autojump_clock) as world:
        world.server.refuses_dead_letters = True
        message = world.publish(reply(500))
        worker = world.start(world.worker(retry=Retry(attempts=1), shutdown_timeout=5))
        await _stop(worker, at=1)
        assert world.verbs_of(message) == [(6_001, Nak())]
        world.server.refuses_dead_letters = False
        world.start(world.worker(retry=Retry(attempts=1)))
        await message.removed.wait()
        assert message.verdict == Term("gave up after 2 of 1 attempts: status 500")
        assert len(world.server.dead_letters) == 1


async def test_worker_with_misconfigured_broker_raises(autojump_clock: MockClock) -> None:
    """An error of configuration, which waiting cannot fix, is raised out of the worker."""
    async with World(autojump_clock) as world:
        world.server.misconfiguration = "its retention is 'limits'"
        worker = world.worker()
        with pytest.RaisesGroup(pytest.RaisesExc(MisconfiguredError, match="its retention"), flatten_subgroups=True):
            await worker.work()
        assert worker.ended.is_set()


async def _stop(worker: SimulatedWorker, *, at: float) -> None:
    await trio.sleep_until(at)
    worker.signal()
    await worker.ended.wait()
