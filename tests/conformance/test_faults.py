"""Faults of the simulated broker, to the millisecond. The ack wait is 30 s, and a message takes 1 ms.

Restarts and crashes are compared with a nats-server in :mod:`tests.conformance.test_same_as_nats`. A change
of leaders was tried on three servers: published at 0.3 s, delivered at 5.3 s with an ack wait of 12 s, nakked at
5.8 s for 9 s, with a new leader at 6.8 s, messages were redelivered at 12.3 s and 14.8 s.
"""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.world import World, reply
from worker.events import Redelivered
from worker.model import Ack, Nak


async def test_restart_counts_the_ack_wait_from_the_publication(autojump_clock: MockClock) -> None:
    """After a restart, a message that was not extended is redelivered an ack wait after its *publication*."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=5))
        await trio.sleep(50)
        worker = world.start(world.worker())
        await trio.sleep(2)
        world.server.restart(down=1)
        await message.removed.wait()
        # The server runs at 53_000; the pull request arrives at 53_001, the message at 53_002; the ledger contains it.
        assert worker.times(Redelivered) == [53_002]
        assert world.starts(message) == [50_002]
        assert world.server.disturbed == {1}


async def test_crash_loses_a_nak_that_was_not_written(autojump_clock: MockClock) -> None:
    """A broker that is killed loses a nak that it had not written: the message is redelivered after the ack wait."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503), reply(200))
        world.start(world.worker())
        await trio.sleep(0.1)
        # Delivered and written at 1, nakked at 3; the nak would have been written at 101.
        world.server.crash(down=1)
        await message.removed.wait()
        assert world.verbs_of(message)[0] == (3, Nak(10))
        assert world.starts(message) == [2, 30_001]


async def test_crash_keeps_a_nak_that_was_written(autojump_clock: MockClock) -> None:
    """A broker that is killed keeps a nak that it had written, with its delay in whole seconds."""
    async with World(autojump_clock) as world:
        await trio.sleep(0.5)
        message = world.publish(reply(503), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(0.2)
        world.server.crash(down=1)
        await trio.sleep_until(10.25)
        # Nakked at 503 for 10 s, which the disk stores as until 10_000; the worker waits for the rest.
        assert worker.services.timers.waiting["early redelivery"] == 1
        await message.removed.wait()
        assert world.starts(message) == [502, 10_502]


async def test_settlement_without_a_leader_is_sent_again(autojump_clock: MockClock) -> None:
    """Settlements without a leader are lost and sent again; requests are sent again when a new leader is announced."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=5))
        worker = world.start(world.worker(slots=2))
        await trio.sleep(4)
        world.server.elect(3)
        other = world.publish(reply(200))
        await other.removed.wait()
        await message.removed.wait()
        # Sent at 5_002 and lost, and again at 7_002. The new leader is announced at 7_001, the request there at 7_002.
        assert world.verbs_of(message) == [(7_003, Ack())]
        assert world.starts(other) == [7_003]
        assert worker.credit == 2


async def test_pull_request_to_a_dead_leader_is_sent_again(autojump_clock: MockClock) -> None:
    """A pull request whose leader died unannounced is sent again after 11 s without heartbeats."""
    async with World(autojump_clock) as world:
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        world.server.elect(2, notifies=False)
        await trio.sleep_until(4)
        message = world.publish(reply(200))
        await message.removed.wait()
        assert world.starts(message) == [12_002]
        assert worker.credit == 2


async def test_new_leader_keeps_the_delays_of_naks(autojump_clock: MockClock) -> None:
    """A new leader keeps delays to the millisecond, and counts other ack waits from the publication."""
    async with World(autojump_clock) as world:
        runs = world.publish(reply(200, after=13))
        await trio.sleep(20.5)
        waits = world.publish(reply(503), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(2)
        world.server.elect(1)
        await waits.removed.wait()
        await runs.removed.wait()
        assert world.starts(waits) == [20_502, 30_504]
        # Extensions would have begun at 30_502.
        assert worker.times(Redelivered) == [30_001]
        assert world.starts(runs) == [20_502]


async def test_settlement_sent_before_a_cut_may_arrive_after_it(autojump_clock: MockClock) -> None:
    """A settlement that is sent again on the next connection may arrive there first, and the old one after it."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=1))
        worker = world.start(world.worker())
        await trio.sleep(1.0025)
        worker.link.cut(0.1, late=3)
        await trio.sleep(10)
        # Sent at 1_002 and in flight; sent again at 1_102.5; the first arrives 3 s after the cut.
        assert [settlement for _, settlement in world.verbs_of(message)] == [Ack(), Ack()]
        assert [round(verb.at, 4) for verb in world.server.applied] == [1.1035, 4.0025]
        assert worker.credit == 10
