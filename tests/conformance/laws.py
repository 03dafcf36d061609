"""The laws of :mod:`tests.world.consumer`, each with a script that shows it, played in addition to drawn scripts."""

from __future__ import annotations

from .script import Acknowledge, ChangeAckWait, Publish, Pull, RecreateConsumer, Restart, Script, Unsubscribe

_THREE_TICKS = ((),) * 3

LAWS = {
    "each pull request in turn gets one message": Script(((Pull(2), Pull(3, client=1), Publish(4)),)),
    "a pull request ends at its expiry": Script(
        ((Pull(2, expires=2), Publish(1)), (), (), (Publish(1), Pull(1, client=1)))
    ),
    "an ack of an old delivery ends the message's newer delivery": Script(
        ((Publish(1), Pull(2)), (), (), (), (Acknowledge("+ACK", delivery_index=1),), (Acknowledge("+ACK"),))
    ),
    "a nak of an old delivery redelivers the message of another client": Script(
        ((Publish(1), Pull(1)), (), (), (Pull(1, client=1),), (Acknowledge("-NAK", delivery_index=1), Pull(1)))
    ),
    "an extension cancels the delay of a nak": Script(
        ((Publish(1), Pull(2)), (Acknowledge("-NAK", delay=9),), (Acknowledge("+WPI", client=1),)), ack_wait=2
    ),
    "a nak replaces the delay of the previous nak": Script(
        ((Publish(1), Pull(2)), (Acknowledge("-NAK", delay=9),), (Acknowledge("-NAK", delay=1),)), ack_wait=4
    ),
    "redeliveries precede new messages": Script(((Publish(3), Pull(1)), (Acknowledge("-NAK"),), (Pull(3),))),
    "a message nakked twice is redelivered once": Script(
        ((Publish(1), Pull(1)), (Acknowledge("-NAK"), Acknowledge("-NAK")), (Pull(3),))
    ),
    "an extension leaves a due message in the redelivery queue": Script(
        ((Publish(1), Pull(1)), *_THREE_TICKS, (Acknowledge("+WPI"),), (Pull(1),)), ack_wait=2
    ),
    "a nak with a delay removes a message from the redelivery queue": Script(
        ((Publish(1), Pull(1)), *_THREE_TICKS, (Acknowledge("-NAK", delay=4),), (Pull(1),)), ack_wait=2
    ),
    "a message in the redelivery queue can be terminated": Script(
        ((Publish(2), Pull(2)), *_THREE_TICKS, (Acknowledge("+TERM"),), (Pull(2),)), ack_wait=2
    ),
    "a changed ack wait applies to all pending messages": Script(
        (
            (Publish(2), Pull(4)),
            (Acknowledge("-NAK", delay=5),),
            (ChangeAckWait(5),),
            *_THREE_TICKS,
            (ChangeAckWait(2),),
        ),
        ack_wait=4,
    ),
    "a recreated consumer delivers all messages, counted from one": Script(
        (
            (Publish(3), Pull(3)),
            (Acknowledge("-NAK", delay=9), Acknowledge("+ACK", delivery_index=1)),
            (RecreateConsumer(), Pull(3)),
        )
    ),
    "a recreated consumer confirms, and ignores, verbs about messages that it has not delivered": Script(
        (
            (Publish(2), Pull(2)),
            (RecreateConsumer(),),
            (Acknowledge("+ACK"), Acknowledge("+WPI"), Acknowledge("-NAK")),
            (Pull(2),),
        )
    ),
    "a recreated consumer accepts acks of messages before its first one": Script(
        (
            (Publish(2), Pull(2)),
            (Acknowledge("+ACK", delivery_index=1),),
            (RecreateConsumer(),),
            (Acknowledge("+ACK", delivery_index=1), Acknowledge("+ACK")),
        )
    ),
    "a recreated consumer confirms, and ignores, a nak of an unknown delivery": Script(
        (
            (Publish(3), Pull(3)),
            (Acknowledge("-NAK"), Acknowledge("-NAK", delivery_index=1), Pull(2)),
            (RecreateConsumer(), Pull(3)),
            (Acknowledge("-NAK", delivery_index=3), Pull(1)),
        ),
        ack_wait=5,
    ),
    "a nak of a delivery before the first pending one is ignored": Script(
        (
            (Publish(2), Pull(2)),
            (RecreateConsumer(), Pull(1)),
            (Acknowledge("-NAK"), Pull(1)),
            (Acknowledge("-NAK"), Pull(1)),
            (Pull(1), Acknowledge("+ACK", delivery_index=1)),
            (Acknowledge("-NAK", delivery_index=4), Pull(1)),
        ),
        ack_wait=7,
    ),
    "a due message without a pull request goes to the end of the redelivery queue": Script(
        ((Publish(2), Pull(2)), (), (), (Pull(1, client=1), Unsubscribe(1)), (Pull(1),)), ack_wait=3
    ),
    "a restart counts the ack wait from the publication": Script(
        ((Publish(2),), *_THREE_TICKS, (Pull(2), Acknowledge("+WPI")), *((),) * 5, (Pull(2),)),
        ack_wait=7,
        restart=Restart("stop"),
    ),
    "a restart counts a redelivered message's ack wait from the publication": Script(
        ((Publish(1), Pull(1)), *_THREE_TICKS, (Acknowledge("-NAK"), Pull(1)), *((),) * 5, (Pull(1),)),
        ack_wait=7,
        restart=Restart("kill"),
    ),
    "a restart keeps delays in whole seconds": Script(
        (
            (),
            (Publish(2), Pull(2)),
            (),
            (Acknowledge("-NAK", delay=8), Acknowledge("-NAK", delivery_index=1, delay=9)),
            *((),) * 6,
            (Pull(2),),
        ),
        restart=Restart("kill"),
    ),
    "a restart loses the redelivery queue": Script(
        ((Publish(1), Pull(1)), (Acknowledge("+WPI"),), (Acknowledge("-NAK"),), *((),) * 7, (Pull(1),)),
        ack_wait=11,
        restart=Restart("stop"),
    ),
    "a crash keeps confirmed settlements, and may lose the last nak": Script(
        (
            (Publish(3), Pull(3)),
            (Acknowledge("+WPI"),),
            *_THREE_TICKS,
            (Acknowledge("+ACK", delivery_index=2), Acknowledge("-NAK", delivery_index=1, delay=12)),
            *((),) * 4,
            (Pull(2),),
        ),
        ack_wait=9,
        restart=Restart("mid-write"),
    ),
}
