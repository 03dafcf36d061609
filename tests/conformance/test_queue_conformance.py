"""The laws of every queue (:mod:`worker.ports`): the one on NATS, and the fake one of the worker's tests.

The laws state order and number. The real queue runs in real time, on a machine that may be slow. So a law may require
that an event is not early, and never that it is soon. Leases are long, except in the laws about leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf

import pytest
import trio

from tests.conformance.rigs import Rig, on_each_broker, on_each_broker_with_short_leases
from tests.patience import LAST_RESORT
from worker.model import (
    CALLBACKS,
    Ack,
    Callback,
    DeadLetter,
    Delivery,
    FlowEnded,
    Nak,
    Notice,
    StoredCallback,
    StoredCount,
    Term,
)
from worker.policy.stored_callback import decode_callback
from worker.ports import BrokerUnavailableError, Consumer, Queue


async def receive(consumer: Consumer, count: int) -> list[Delivery]:
    """Return the next *count* deliveries, and check that no more arrive with them."""
    received: list[Delivery] = []
    with trio.fail_after(LAST_RESORT):
        while len(received) < count:
            received += await receive_some(consumer)
    assert len(received) == count
    return received


async def receive_some(consumer: Consumer) -> list[Delivery]:
    """Return the next deliveries, at least one, without notices."""
    while True:
        received = [each for each in await consumer.receive() if isinstance(each, Delivery)]
        if received:
            return received


async def wait_recreated(consumer: Consumer, flow: str) -> None:
    """Wait until a flow has ended, and has been found again."""
    items: list[Delivery | Notice] = []
    with trio.fail_after(LAST_RESORT):
        while not (
            FlowEnded(flow) in items
            and any(isinstance(each, StoredCount) for each in items[items.index(FlowEnded(flow)) :])
        ):
            items += await consumer.receive()


async def expect_nothing(consumer: Consumer, seconds: float) -> None:
    """Wait, and check that no delivery arrives."""
    received: Sequence[Delivery] = ()
    with trio.move_on_after(seconds):
        received = await receive_some(consumer)
    assert not received


async def wait_settled(queue: Queue) -> None:
    """Wait until all settlements are confirmed."""
    with trio.fail_after(LAST_RESORT):
        await queue.wait_settled()


def payloads(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]


@on_each_broker
async def test_delivery_has_payload_identity_and_count(rig: Rig) -> None:
    """A delivery has the payload as it was published, the message's identity, and the number of its deliveries."""
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
async def test_deliveries_are_in_stream_order(rig: Rig) -> None:
    """Deliveries are in the order of publication, for any sizes of credit."""
    await rig.publish(*(b"%d" % number for number in range(50)))
    async with rig.connect() as queue:
        consumer = await queue.consume()
        received = list[bytes]()
        for credit in (1, 2, 7, 30, 10):
            consumer.add_credit(credit, rig.flow)
            received += payloads(await receive(consumer, credit))
        assert received == [b"%d" % number for number in range(50)]


@on_each_broker
async def test_deliveries_do_not_exceed_the_credit(rig: Rig) -> None:
    """The consumer delivers no more messages than its credit, and more when credit is added."""
    await rig.publish(*[b""] * 10)
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        await receive(consumer, 3)
        await expect_nothing(consumer, rig.short_wait)
        consumer.add_credit(1, rig.flow)
        consumer.add_credit(1, rig.flow)
        await receive(consumer, 2)


@on_each_broker
async def test_credit_remains_until_a_delivery(rig: Rig) -> None:
    """Credit remains until a message is delivered."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        await expect_nothing(consumer, rig.short_wait)
        await rig.publish(b"one")
        assert payloads(await receive(consumer, 1)) == [b"one"]
        await rig.publish(b"two", b"three")
        assert payloads(await receive(consumer, 1)) == [b"two"]


@on_each_broker
async def test_ack_removes_the_message(rig: Rig) -> None:
    """An acked message has left the stream when wait_settled() returns, and is not redelivered."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Ack(), before=inf)
        await wait_settled(queue)
        assert await rig.num_stored() == 0
        await expect_nothing(consumer, rig.short_wait)


@on_each_broker
async def test_term_removes_the_message(rig: Rig) -> None:
    """A terminated message leaves the stream, with any text as the reason."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Term("line\r\none\nand é " + 1000 * "x"), before=inf)
        await wait_settled(queue)
        assert await rig.num_stored() == 0
        await expect_nothing(consumer, rig.short_wait)


@on_each_broker
async def test_nak_redelivers_the_message_at_once(rig: Rig) -> None:
    """A nakked message is redelivered at once, before new messages, with a count one higher."""
    await rig.publish(b"one", b"two")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(1, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Nak(), before=inf)
        await wait_settled(queue)
        consumer.add_credit(1, rig.flow)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.payload, again.num_delivered) == (one.id, b"one", 2)
        assert again.received_at < one.received_at + rig.ack_wait


@on_each_broker
async def test_nak_with_a_delay_redelivers_after_it(rig: Rig) -> None:
    """A nak with a delay redelivers after it, not after the ack wait, and others are delivered before."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        (one,) = await receive(consumer, 1)
        sent_at = trio.current_time()
        queue.settle(one, Nak(2 * rig.short_wait), before=inf)
        await rig.publish(b"two")
        assert payloads(await receive(consumer, 1)) == [b"two"]
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (one.id, 2)
        assert sent_at + 2 * rig.short_wait <= again.received_at < sent_at + rig.ack_wait


@on_each_broker_with_short_leases
async def test_nak_with_a_delay_above_ack_wait_redelivers_after_it(rig: Rig) -> None:
    """A nak's delay may be longer than the ack wait."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        sent_at = trio.current_time()
        queue.settle(one, Nak(rig.ack_wait * 1.5), before=inf)
        (again,) = await receive(consumer, 1)
        assert sent_at + rig.ack_wait * 1.5 <= again.received_at < sent_at + rig.ack_wait * 2.5 + rig.max_delay


@on_each_broker_with_short_leases
async def test_nak_past_its_deadline_is_not_sent(rig: Rig) -> None:
    """A nak past its deadline is not sent, and wait_settled() does not wait for it; the ack wait ends the lease."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        queue.settle(one, Nak(), before=one.received_at)
        await wait_settled(queue)
        (again,) = await receive(consumer, 1)
        assert again.num_delivered == 2
        assert again.received_at >= one.received_at + rig.ack_wait * 0.9


@on_each_broker_with_short_leases
async def test_ack_past_its_deadline_is_sent(rig: Rig) -> None:
    """An ack is sent at any time, and ends the message also when that was redelivered before."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        await receive(consumer, 1)
        queue.settle(one, Ack(), before=one.received_at)
        await wait_settled(queue)
        assert await rig.num_stored() == 0


@on_each_broker_with_short_leases
async def test_message_without_extension_is_redelivered(rig: Rig) -> None:
    """A message that is neither settled nor extended is redelivered after the ack wait, with a count one higher."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (one.id, 2)
        assert again.token != one.token


@on_each_broker_with_short_leases
async def test_message_with_extensions_is_not_redelivered(rig: Rig) -> None:
    """A message is not redelivered while it is extended in time; each extension is confirmed once."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        confirmed = list[int]()
        for number in range(20):
            await expect_nothing(consumer, rig.ack_wait / 10)
            queue.extend(one, partial(confirmed.append, number), before=inf)
        queue.settle(one, Ack(), before=inf)
        await wait_settled(queue)
        assert confirmed[:19] == [*range(19)]
        assert await rig.num_stored() == 0


@on_each_broker
async def test_extension_before_a_nak_does_not_cancel_its_delay(rig: Rig) -> None:
    """An extension is not sent after a later nak, because it would cancel the nak's delay."""
    await rig.publish(b"one")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        (one,) = await receive(consumer, 1)
        sent_at = trio.current_time()
        queue.extend(one, lambda: None, before=inf)
        queue.settle(one, Nak(rig.short_wait), before=inf)
        (again,) = await receive(consumer, 1)
        assert sent_at + rig.short_wait <= again.received_at < sent_at + rig.ack_wait


@on_each_broker
async def test_receive_when_cancelled_loses_no_delivery(rig: Rig) -> None:
    """If receive() is cancelled at any moment, no delivery is lost, and none is returned twice."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(200, rig.flow)
        received = list[bytes]()
        for number in range(100):
            await rig.publish(b"%d" % number)
            with trio.move_on_after(rig.short_wait / 4_000 * (number % 20)):
                received += payloads(await receive_some(consumer))
        if len(received) < 100:
            received += payloads(await receive(consumer, 100 - len(received)))
        assert received == [b"%d" % number for number in range(100)]


@on_each_broker
async def test_stop_returns_the_unstarted_deliveries(rig: Rig) -> None:
    """stop() returns all deliveries that were not received, and ends all credit; another worker can receive them."""
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(1, rig.flow)
        (one,) = await receive(consumer, 1)
        consumer.add_credit(1, rig.flow)
        await rig.wait_delivered(2)
        with trio.fail_after(LAST_RESORT):
            unstarted = await consumer.stop()
        assert payloads([*unstarted]) == [b"two"]
        consumer.add_credit(5, rig.flow)
        for delivery in (one, *unstarted):
            queue.settle(delivery, Nak(), before=inf)
        await wait_settled(queue)
        await expect_nothing(consumer, rig.short_wait)
        async with rig.connect() as other:
            successor = await other.consume()
            successor.add_credit(3, rig.flow)
            received = await receive(successor, 3)
            assert sorted((each.payload, each.num_delivered) for each in received) == [
                (b"one", 2),
                (b"three", 1),
                (b"two", 2),
            ]


@on_each_broker
async def test_stop_of_an_idle_consumer_returns_nothing(rig: Rig) -> None:
    """stop() of an idle consumer returns nothing, at once; messages published later stay for other workers."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(5, rig.flow)
        await expect_nothing(consumer, rig.short_wait)
        with trio.fail_after(LAST_RESORT):
            assert list(await consumer.stop()) == []
        await rig.publish(b"one")
        await expect_nothing(consumer, rig.short_wait)
        async with rig.connect() as other:
            successor = await other.consume()
            successor.add_credit(1, rig.flow)
            (one,) = await receive(successor, 1)
            assert one.num_delivered == 1


@on_each_broker
async def test_dead_letter_is_stored_with_payload_and_headers(rig: Rig) -> None:
    """When store_dead_letter() returns, the dead letter is stored: the payload byte for byte, and its headers."""
    await rig.publish(b"\x00 no JSON \xff")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(1, rig.flow)
        (one,) = await receive(consumer, 1)
        letter = DeadLetter(one, "not a QueueRequest\r\nX-Forged: yes", 0, None, None, None)
        with trio.fail_after(LAST_RESORT):
            await queue.store_dead_letter(letter)
        (stored,) = await rig.dead_letters()
        assert stored.data == b"\x00 no JSON \xff"
        assert stored.headers["X-Dead-Letter-Reason"] == "not a QueueRequest  X-Forged: yes"
        assert stored.headers["X-Dead-Letter-Sequence"] == "1"
        assert stored.headers["X-Dead-Letter-Deliveries"] == "1"
        assert "X-Forged" not in stored.headers
        assert await rig.num_stored() == 1


@on_each_broker
async def test_dead_letter_sent_twice_is_stored_once(rig: Rig) -> None:
    """A dead letter that is sent again, because its confirmation was lost, is stored once."""
    await rig.publish(b"one", b"two")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        for delivery in await receive(consumer, 2):
            letter = DeadLetter(delivery, "gave up", 3, "a-call-id", "echo.openfaas-fn", 500)
            with trio.fail_after(LAST_RESORT):
                await queue.store_dead_letter(letter)
                await queue.store_dead_letter(letter)
        stored = await rig.dead_letters()
        assert [each.data for each in stored] == [b"one", b"two"]
        assert {each.headers["X-Function-Name"] for each in stored} == {"echo.openfaas-fn"}
        assert {each.headers["X-Function-Status"] for each in stored} == {"500"}


def callback(body: bytes) -> StoredCallback:
    return StoredCallback(Callback("http://results/", ((b"X-Call-Id", b"1"),), body), "1", "f.ns", 1.5, 2.5)


async def store_callbacks(queue: Queue, *keys: str) -> None:
    """Store one callback for each key, with the key as its body."""
    with trio.fail_after(LAST_RESORT):
        for key in keys:
            await queue.store_callback(callback(key.encode()), key)


@on_each_broker
async def test_stored_callback_is_delivered_as_it_was_stored(rig: Rig) -> None:
    """A stored callback is a delivery of its own flow, byte for byte, which an Ack removes."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, CALLBACKS)
        await store_callbacks(queue, "\x00a", "b")
        assert await rig.num_callbacks() == 2
        one, two = await receive(consumer, 2)
        assert [decode_callback(each.payload) for each in (one, two)] == [callback(b"\x00a"), callback(b"b")]
        assert {(each.flow, each.num_delivered) for each in (one, two)} == {(CALLBACKS, 1)}
        queue.settle(one, Ack(), before=inf)
        await wait_settled(queue)
        assert await rig.num_callbacks() == 1
        assert (await queue.backlog()).by_subject == {}


@on_each_broker
async def test_callback_stored_twice_with_one_key_is_stored_once(rig: Rig) -> None:
    """A callback that is stored again with the same key, because its confirmation was lost, is delivered once."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, CALLBACKS)
        await store_callbacks(queue, "a", "a", "b", "a")
        assert [decode_callback(each.payload) for each in await receive(consumer, 2)] == [
            callback(b"a"),
            callback(b"b"),
        ]
        await expect_nothing(consumer, rig.short_wait)
        assert await rig.num_callbacks() == 2


@on_each_broker
async def test_stored_callback_returns_after_the_delay_of_its_nak(rig: Rig) -> None:
    """A stored callback that is nak'ed is delivered again, not before the delay, with a count one higher."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, CALLBACKS)
        await store_callbacks(queue, "a")
        (one,) = await receive(consumer, 1)
        began = trio.current_time()
        queue.settle(one, Nak(1.0), before=inf)
        (again,) = await receive(consumer, 1)
        assert trio.current_time() - began >= 1.0
        assert (again.id, again.payload, again.num_delivered) == (one.id, one.payload, 2)


@on_each_broker_with_short_leases
async def test_stored_callback_without_extension_is_redelivered(rig: Rig) -> None:
    """A stored callback of a worker that died is delivered again after the ack wait."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, CALLBACKS)
        await store_callbacks(queue, "a")
        (one,) = await receive(consumer, 1)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (one.id, 2)
        assert again.token != one.token


@on_each_broker
async def test_backlog_counts_stored_messages_by_subject(rig: Rig) -> None:
    """The backlog counts stored messages by subject, running or not, and has the stream's last sequence."""
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(2, rig.flow)
        one, _ = await receive(consumer, 2)
        queue.settle(one, Ack(), before=inf)
        await wait_settled(queue)
        with trio.fail_after(LAST_RESORT):
            backlog = await queue.backlog()
        assert (backlog.last_sequence, dict(backlog.by_subject)) == (3, {"faas-request": 2})


@on_each_broker
async def test_consume_waits_for_the_broker(rig: Rig) -> None:
    """consume() waits for the broker, can be cancelled, and returns when the broker runs."""
    await rig.publish(b"one")
    await rig.stop()
    async with rig.connect() as queue:
        with trio.move_on_after(rig.short_wait) as waiting:
            await queue.consume()
        assert waiting.cancelled_caught
    async with rig.connect() as queue, trio.open_nursery() as nursery:

        async def work() -> None:
            consumer = await queue.consume()
            consumer.add_credit(1, rig.flow)
            assert payloads(await receive(consumer, 1)) == [b"one"]

        nursery.start_soon(work)
        await trio.sleep(rig.short_wait)
        await rig.start()


@on_each_broker
async def test_credit_survives_a_lost_connection(rig: Rig) -> None:
    """Credit from before the connection was lost counts after the reconnect, and is not increased."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        await expect_nothing(consumer, rig.short_wait)
        await rig.stop()
        await expect_nothing(consumer, rig.short_wait)
        await rig.start()
        await rig.publish(*[b""] * 6)
        received = await receive(consumer, 3)
        assert [delivery.id[0] for delivery in received] == [1, 2, 3]
        for delivery in received:
            queue.settle(delivery, Ack(), before=inf)
        await expect_nothing(consumer, rig.short_wait)
        assert await rig.num_stored() == 3


@on_each_broker
async def test_settlements_survive_a_lost_connection(rig: Rig) -> None:
    """Settlements without a connection are sent after the reconnect: wait_settled() waits for that."""
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        one, two, three = await receive(consumer, 3)
        queue.extend(three, lambda: None, before=inf)
        await rig.stop()
        queue.settle(one, Ack(), before=inf)
        queue.settle(two, Term("given up"), before=inf)
        with trio.move_on_after(rig.short_wait) as waiting:
            await queue.wait_settled()
        assert waiting.cancelled_caught
        await rig.start()
        await wait_settled(queue)
        assert await rig.num_stored() == 1


@on_each_broker_with_short_leases
async def test_broker_crash_keeps_confirmed_settlements(rig: Rig) -> None:
    """A broker that is killed keeps all stored messages, and none whose settlement it had confirmed."""
    await rig.publish(*(b"%d" % number for number in range(100)))
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(80, rig.flow)
        received = await receive(consumer, 80)
        for delivery in received[:60]:
            queue.settle(delivery, Ack() if delivery.id[0] % 2 else Term("given up"), before=inf)
        await wait_settled(queue)
        await rig.crash()
        assert await rig.num_stored() == 40
        consumer.add_credit(40, rig.flow)
        redelivered = set[int]()
        with trio.fail_after(LAST_RESORT):
            while len(redelivered) < 40:
                for delivery in await receive_some(consumer):
                    queue.settle(delivery, Ack(), before=inf)
                    if (
                        delivery.id[0] in redelivered
                    ):  # its lease ended before its settlement: one more delivery follows
                        consumer.add_credit(1, rig.flow)
                    redelivered.add(delivery.id[0])
        assert redelivered == {*range(61, 101)}
        await wait_settled(queue)
        assert await rig.num_stored() == 0


@on_each_broker
async def test_credit_survives_a_broker_crash(rig: Rig) -> None:
    """Credit from before the broker was killed counts after its restart, and is not increased."""
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(3, rig.flow)
        await expect_nothing(consumer, rig.short_wait)
        await rig.crash()
        await rig.publish(*[b""] * 6)
        received = await receive(consumer, 3)
        assert [delivery.id[0] for delivery in received] == [1, 2, 3]
        for delivery in received:
            queue.settle(delivery, Ack(), before=inf)
        await expect_nothing(consumer, rig.short_wait)
        assert await rig.num_stored() == 3


@on_each_broker
async def test_requests_without_a_broker_raise(rig: Rig) -> None:
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
async def test_consumer_that_was_deleted_is_recreated(rig: Rig) -> None:
    """A deleted consumer is recreated: messages that were not settled are delivered at once, counted from one.

    In function mode the flow ends, with its credit; a new notice reports its stored messages.
    """
    await rig.publish(b"one", b"two", b"three")
    async with rig.connect() as queue:
        consumer = await queue.consume()
        consumer.add_credit(4, rig.flow)
        one, two, three = await receive(consumer, 3)
        queue.settle(one, Ack(), before=inf)
        queue.settle(two, Nak(1000), before=inf)
        await wait_settled(queue)
        await rig.recreate_consumer()
        if rig.flow:
            await wait_recreated(consumer, rig.flow)
            consumer.add_credit(1, rig.flow)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (two.id, 1)
        consumer.add_credit(1, rig.flow)
        (again,) = await receive(consumer, 1)
        assert (again.id, again.num_delivered) == (three.id, 1)
        await expect_nothing(consumer, rig.short_wait)
