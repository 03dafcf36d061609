"""The laws of every queue (:mod:`worker.ports`): the one on NATS, and the fake one of the worker's tests.

They are about order and number. The real queue runs in real time, on a machine that may be slow, so a law may require
that something happens no sooner than it should, and never how soon. Leases are long, but for the laws about leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf

import pytest
import trio

from tests.conformance.rigs import Rig, on_each_broker, on_each_broker_with_short_leases
from tests.patience import LAST_RESORT
from worker.model import Ack, DeadLetter, Delivery, FlowEnded, Nak, Notice, StoredCount, Term
from worker.ports import BrokerUnavailableError, Consumer, Queue


async def receive(consumer: Consumer, count: int) -> list[Delivery]:
    """Return the next *count* deliveries, and check that no more arrive with them."""
    came: list[Delivery] = []
    with trio.fail_after(LAST_RESORT):
        while len(came) < count:
            came += await some(consumer)
    assert len(came) == count
    return came


async def some(consumer: Consumer) -> list[Delivery]:
    """Return the next deliveries, at least one, without notices."""
    while True:
        came = [each for each in await consumer.receive() if isinstance(each, Delivery)]
        if came:
            return came


async def found_anew(consumer: Consumer, flow: str) -> None:
    """Wait until a flow has ended, and begun again."""
    told: list[Delivery | Notice] = []
    with trio.fail_after(LAST_RESORT):
        while not (
            FlowEnded(flow) in told
            and any(isinstance(each, StoredCount) for each in told[told.index(FlowEnded(flow)) :])
        ):
            told += await consumer.receive()


async def nothing(consumer: Consumer, seconds: float) -> None:
    """Nothing comes for so long."""
    came: Sequence[Delivery] = ()
    with trio.move_on_after(seconds):
        came = await some(consumer)
    assert not came


async def settled(queue: Queue) -> None:
    """Wait until all settlements are confirmed."""
    with trio.fail_after(LAST_RESORT):
        await queue.wait_settled()


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]


@on_each_broker
async def test_delivers(rig: Rig) -> None:
    """A stored message comes as it was published, with its identity and the count of its hand-outs."""
    await rig.publish(b"one", b"\x00\xff")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        assert consumer.ack_wait == rig.ack_wait
        before = trio.current_time()
        consumer.add_credit(2, rig.flow)
        one, two = await receive(consumer, 2)
        assert (one.payload, two.payload) == (b"one", b"\x00\xff")
        assert (one.num_delivered, two.num_delivered) == (1, 1)
        assert one.subject == "faas-request"
        assert (one.id[0], two.id[0]) == (1, 2)
        assert one.token != two.token
        assert before <= one.received_at <= two.received_at <= trio.current_time()


@on_each_broker
async def test_in_order(rig: Rig) -> None:
    """Messages come in the order in which they were published, however little is wanted at a time."""
    await rig.publish(*(b"%d" % number for number in range(50)))
    async with rig.connect() as queue:
        consumer = await queue.consume()
        came = list[bytes]()
        for want in (1, 2, 7, 30, 10):
            consumer.add_credit(want, rig.flow)
            came += payloads(await receive(consumer, want))
        assert came == [b"%d" % number for number in range(50)]


@on_each_broker
async def test_no_more_than_wanted(rig: Rig) -> None:
    """No more comes than was wanted, and what is wanted later comes then."""
    await rig.publish(*[b""] * 10)
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        await receive(consumer, 3)
        await nothing(consumer, rig.moment)
        consumer.add_credit(1, rig.flow)
        consumer.add_credit(1, rig.flow)
        await receive(consumer, 2)


@on_each_broker
async def test_what_is_wanted_stays_wanted(rig: Rig) -> None:
    """What nothing came for yet stays wanted."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        await nothing(consumer, rig.moment)
        await rig.publish(b"one")
        assert payloads(await receive(consumer, 1)) == [b"one"]
        await rig.publish(b"two", b"three")
        assert payloads(await receive(consumer, 1)) == [b"two"]


@on_each_broker
async def test_ack_removes(rig: Rig) -> None:
    """What is acknowledged leaves the queue, by the time that settled() returns, and does not come again."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Ack(), before=inf)
        await settled(queue)
        assert await rig.left() == 0
        await nothing(consumer, rig.moment)


@on_each_broker
async def test_term_removes(rig: Rig) -> None:
    """A message that is given up leaves the queue too, whatever its reason contains."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Term("line\r\none\nand é " + 1000 * "x"), before=inf)
        await settled(queue)
        assert await rig.left() == 0
        await nothing(consumer, rig.moment)


@on_each_broker
async def test_nak_gives_out_again(rig: Rig) -> None:
    """What is given back comes again at once, one hand-out more, and before what is new."""
    await rig.publish(b"one", b"two")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(1, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Nak(), before=inf)
        await settled(queue)
        consumer.add_credit(1, rig.flow)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.payload, again.num_delivered) == (one.id, b"one", 2)
        assert again.received_at < one.received_at + rig.ack_wait


@on_each_broker
async def test_nak_with_a_delay(rig: Rig) -> None:
    """A nak with a delay redelivers after it, not after the ack wait, and others are delivered before."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        (one,) = await receive(consumer, 1)
        said = trio.current_time()
        queue.settle(one, Nak(2 * rig.moment), before=inf)
        await rig.publish(b"two")
        assert payloads(await receive(consumer, 1)) == [b"two"]
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (one.id, 2)
        assert said + 2 * rig.moment <= again.received_at < said + rig.ack_wait


@on_each_broker_with_short_leases
async def test_nak_with_a_long_delay(rig: Rig) -> None:
    """A delay may be longer than the ack wait."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        said = trio.current_time()
        queue.settle(one, Nak(rig.ack_wait * 1.5), before=inf)
        (again,) = await receive(consumer, 1)
        assert said + rig.ack_wait * 1.5 <= again.received_at < said + rig.ack_wait * 2.5 + rig.late


@on_each_broker_with_short_leases
async def test_a_late_nak_is_not_said(rig: Rig) -> None:
    """A nak is not sent when its time is over, and wait_settled() does not wait for it; the ack wait ends the lease."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Nak(), before=one.received_at)
        await settled(queue)
        (again,) = await receive(consumer, 1)
        assert again.num_delivered == 2
        assert again.received_at >= one.received_at + rig.ack_wait * 0.9


@on_each_broker_with_short_leases
async def test_a_late_ack_is_said(rig: Rig) -> None:
    """An ack is sent at any time, and ends the message also when that was redelivered before."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        await receive(consumer, 1)
        queue.settle(one, Ack(), before=one.received_at)
        await settled(queue)
        assert await rig.left() == 0


@on_each_broker_with_short_leases
async def test_without_extension_it_comes_again(rig: Rig) -> None:
    """What is neither settled nor extended comes again after the ack wait, one hand-out more."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (one.id, 2)
        assert again.token != one.token


@on_each_broker_with_short_leases
async def test_extensions_keep_it(rig: Rig) -> None:
    """What is extended in time is kept for as long as it is; each extension is confirmed once."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        confirmed = list[int]()
        for number in range(20):
            await nothing(consumer, rig.ack_wait / 10)
            queue.extend(one, partial(confirmed.append, number), before=inf)
        queue.settle(one, Ack(), before=inf)
        await settled(queue)
        assert confirmed[:19] == [*range(19)]
        assert await rig.left() == 0


@on_each_broker
async def test_said_in_order(rig: Rig) -> None:
    """An extension that was asked for before a NAK does not follow it, where it would cancel the delay."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        said = trio.current_time()
        queue.extend(one, lambda: None, before=inf)
        queue.settle(one, Nak(rig.moment), before=inf)
        (again,) = await receive(consumer, 1)
        assert said + rig.moment <= again.received_at < said + rig.ack_wait


@on_each_broker
async def test_a_cancelled_receive_loses_nothing(rig: Rig) -> None:
    """Whenever waiting for deliveries is cancelled, none is lost and none comes twice."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(200, rig.flow)
        came = list[bytes]()
        for number in range(100):
            await rig.publish(b"%d" % number)
            with trio.move_on_after(rig.moment / 4_000 * (number % 20)):
                came += payloads(await some(consumer))
        if len(came) < 100:
            came += payloads(await receive(consumer, 100 - len(came)))
        assert came == [b"%d" % number for number in range(100)]


@on_each_broker
async def test_stop_returns_what_was_not_started(rig: Rig) -> None:
    """Stopping returns all that has come, and nothing comes any more, wanted or not; another worker can have it."""
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(1, rig.flow)
        (one,) = await receive(consumer, 1)
        consumer.add_credit(1, rig.flow)
        await rig.handed_out(2)
        with trio.fail_after(LAST_RESORT):
            unstarted = await consumer.stop()
        assert payloads([*unstarted]) == [b"two"]
        consumer.add_credit(5, rig.flow)
        for delivery in (one, *unstarted):
            queue.settle(delivery, Nak(), before=inf)
        await settled(queue)
        await nothing(consumer, rig.moment)
        async with rig.connect() as other:
            successor = await other.consume()
            successor.add_credit(3, rig.flow)
            came = await receive(successor, 3)
            assert sorted((each.payload, each.num_delivered) for each in came) == [
                (b"one", 2),
                (b"three", 1),
                (b"two", 2),
            ]


@on_each_broker
async def test_stop_of_an_idle_consumer(rig: Rig) -> None:
    """Stopping with nothing there returns nothing, at once; what is published later stays for others."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(5, rig.flow)
        await nothing(consumer, rig.moment)
        with trio.fail_after(LAST_RESORT):
            assert list(await consumer.stop()) == []
        await rig.publish(b"one")
        await nothing(consumer, rig.moment)
        async with rig.connect() as other:
            successor = await other.consume()
            successor.add_credit(1, rig.flow)
            (one,) = await receive(successor, 1)
            assert one.num_delivered == 1


@on_each_broker
async def test_burying(rig: Rig) -> None:
    """A dead letter is stored by the time that bury() returns: the message to the byte, and what became of it."""
    await rig.publish(b"\x00 no JSON \xff")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(1, rig.flow)
        (one,) = await receive(consumer, 1)
        letter = DeadLetter(one, "not a QueueRequest\r\nX-Forged: yes", 0, None, None, None)
        with trio.fail_after(LAST_RESORT):
            await queue.store_dead_letter(letter)
        (stored,) = await rig.letters()
        assert stored.data == b"\x00 no JSON \xff"
        assert stored.headers["X-Dead-Letter-Reason"] == "not a QueueRequest  X-Forged: yes"
        assert stored.headers["X-Dead-Letter-Sequence"] == "1"
        assert stored.headers["X-Dead-Letter-Deliveries"] == "1"
        assert "X-Forged" not in stored.headers
        assert await rig.left() == 1


@on_each_broker
async def test_burying_twice(rig: Rig) -> None:
    """A message that is buried again, because the first time was not confirmed to us, has one dead letter."""
    await rig.publish(b"one", b"two")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        for delivery in await receive(consumer, 2):
            letter = DeadLetter(delivery, "gave up", 3, "a-call-id", "echo.openfaas-fn", 500)
            with trio.fail_after(LAST_RESORT):
                await queue.store_dead_letter(letter)
                await queue.store_dead_letter(letter)
        stored = await rig.letters()
        assert [each.data for each in stored] == [b"one", b"two"]
        assert {each.headers["X-Function-Name"] for each in stored} == {"echo.openfaas-fn"}
        assert {each.headers["X-Function-Status"] for each in stored} == {"500"}


@on_each_broker
async def test_backlog(rig: Rig) -> None:
    """The backlog counts what is stored by subject, being worked on or not, and all that was ever taken."""
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        one, _ = await receive(consumer, 2)
        queue.settle(one, Ack(), before=inf)
        await settled(queue)
        with trio.fail_after(LAST_RESORT):
            backlog = await queue.backlog()
        assert (backlog.last_sequence, dict(backlog.by_subject)) == (3, {"faas-request": 2})


@on_each_broker
async def test_a_broker_that_is_not_there_yet(rig: Rig) -> None:
    """consume() waits for the broker, can be cancelled, and goes on when the broker has come."""
    await rig.publish(b"one")
    await rig.stop()
    async with rig.connect() as queue:
        with trio.move_on_after(rig.moment) as waiting:
            await queue.consume()
        assert waiting.cancelled_caught
    async with rig.connect() as queue, trio.open_nursery() as nursery:

        async def work() -> None:
            consumer = await queue.consume()
            consumer.add_credit(1, rig.flow)
            assert payloads(await receive(consumer, 1)) == [b"one"]

        nursery.start_soon(work)
        await trio.sleep(rig.moment)
        await rig.start()


@on_each_broker
async def test_credit_outlives_the_connection(rig: Rig) -> None:
    """What was wanted before the broker went away is wanted when it is back, and no more than that."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        await nothing(consumer, rig.moment)
        await rig.stop()
        await nothing(consumer, rig.moment)
        await rig.start()
        await rig.publish(*[b""] * 6)
        came = await receive(consumer, 3)
        assert [delivery.id[0] for delivery in came] == [1, 2, 3]
        for delivery in came:
            queue.settle(delivery, Ack(), before=inf)
        await nothing(consumer, rig.moment)
        assert await rig.left() == 3


@on_each_broker
async def test_settlements_outlive_the_connection(rig: Rig) -> None:
    """Settlements without a connection are sent when the broker is back: wait_settled() waits for that."""
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        one, two, three = await receive(consumer, 3)
        queue.extend(three, lambda: None, before=inf)
        await rig.stop()
        queue.settle(one, Ack(), before=inf)
        queue.settle(two, Term("given up"), before=inf)
        with trio.move_on_after(rig.moment) as waiting:
            await queue.wait_settled()
        assert waiting.cancelled_caught
        await rig.start()
        await settled(queue)
        assert await rig.left() == 1


@on_each_broker_with_short_leases
async def test_a_crash_keeps_what_was_confirmed(rig: Rig) -> None:
    """A broker that is killed has all messages that were stored, and none whose end it had confirmed."""
    await rig.publish(*(b"%d" % number for number in range(100)))
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(80, rig.flow)
        came = await receive(consumer, 80)
        for delivery in came[:60]:
            queue.settle(delivery, Ack() if delivery.id[0] % 2 else Term("given up"), before=inf)
        await settled(queue)
        await rig.crash()
        assert await rig.left() == 40
        consumer.add_credit(40, rig.flow)
        later = set[int]()
        with trio.fail_after(LAST_RESORT):
            while len(later) < 40:
                for delivery in await some(consumer):
                    queue.settle(delivery, Ack(), before=inf)
                    if delivery.id[0] in later:  # its lease ended before its settlement: another one is still to come
                        consumer.add_credit(1, rig.flow)
                    later.add(delivery.id[0])
        assert later == {*range(61, 101)}
        await settled(queue)
        assert await rig.left() == 0


@on_each_broker
async def test_a_crash_leaves_the_credit_as_it_was(rig: Rig) -> None:
    """What was wanted before the broker was killed is wanted when it is back, and no more than that."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        await nothing(consumer, rig.moment)
        await rig.crash()
        await rig.publish(*[b""] * 6)
        came = await receive(consumer, 3)
        assert [delivery.id[0] for delivery in came] == [1, 2, 3]
        for delivery in came:
            queue.settle(delivery, Ack(), before=inf)
        await nothing(consumer, rig.moment)
        assert await rig.left() == 3


@on_each_broker
async def test_nothing_is_stored_by_a_broker_that_is_away(rig: Rig) -> None:
    """Without a broker, store_dead_letter() and backlog() raise."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(1, rig.flow)
        (one,) = await receive(consumer, 1)
        await rig.stop()
        with trio.fail_after(LAST_RESORT), pytest.raises(BrokerUnavailableError):
            await queue.store_dead_letter(DeadLetter(one, "gave up", 3, None, None, None))
        with trio.fail_after(LAST_RESORT), pytest.raises(BrokerUnavailableError):
            await queue.backlog()


@on_each_broker
async def test_a_consumer_made_anew(rig: Rig) -> None:
    """A deleted consumer is recreated: messages that were not settled are delivered at once, counted from one.

    A flow among others has ended then, with its credit; a new notice reports its stored messages.
    """
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(4, rig.flow)
        one, two, three = await receive(consumer, 3)
        queue.settle(one, Ack(), before=inf)
        queue.settle(two, Nak(1000), before=inf)
        await settled(queue)
        await rig.make_anew()
        if rig.flow:
            await found_anew(consumer, rig.flow)
            consumer.add_credit(1, rig.flow)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (two.id, 1)
        consumer.add_credit(1, rig.flow)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (three.id, 1)
        await nothing(consumer, rig.moment)
