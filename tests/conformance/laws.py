"""The laws of :mod:`tests.world.consumer`, each as a script that shows it: they are played whatever else is drawn."""

from __future__ import annotations

from .script import ChangeAckWait, Leave, MakeAnew, Publish, Pull, Restart, Say, Script

_LATER = ((),) * 3

LAWS = {
    "requests are served one message at a time, in turn": Script(((Pull(2), Pull(3, client=1), Publish(4)),)),
    "a request ends with its time": Script(((Pull(2, lasts=2), Publish(1)), (), (), (Publish(1), Pull(1, client=1)))),
    "all is keyed by the message: an old acknowledgement ends a newer delivery": Script(
        ((Publish(1), Pull(2)), (), (), (), (Say("+ACK", about=1),), (Say("+ACK"),))
    ),
    "an old NAK gives out again what another client has": Script(
        ((Publish(1), Pull(1)), (), (), (Pull(1, client=1),), (Say("-NAK", about=1), Pull(1)))
    ),
    "an extension cancels the delay of a NAK": Script(
        ((Publish(1), Pull(2)), (Say("-NAK", delay=9),), (Say("+WPI", client=1),)), ack_wait=2
    ),
    "a NAK replaces the delay of the one before": Script(
        ((Publish(1), Pull(2)), (Say("-NAK", delay=9),), (Say("-NAK", delay=1),)), ack_wait=4
    ),
    "what comes again goes before what is new": Script(((Publish(3), Pull(1)), (Say("-NAK"),), (Pull(3),))),
    "given back twice, it comes once": Script(((Publish(1), Pull(1)), (Say("-NAK"), Say("-NAK")), (Pull(3),))),
    "an extension leaves a message in the queue": Script(
        ((Publish(1), Pull(1)), *_LATER, (Say("+WPI"),), (Pull(1),)), ack_wait=2
    ),
    "a NAK with a delay takes a message out of the queue": Script(
        ((Publish(1), Pull(1)), *_LATER, (Say("-NAK", delay=4),), (Pull(1),)), ack_wait=2
    ),
    "a message that is in the queue can be ended": Script(
        ((Publish(2), Pull(2)), *_LATER, (Say("+TERM"),), (Pull(2),)), ack_wait=2
    ),
    "another ack wait moves all that wait": Script(
        ((Publish(2), Pull(4)), (Say("-NAK", delay=5),), (ChangeAckWait(5),), *_LATER, (ChangeAckWait(2),)), ack_wait=4
    ),
    "a consumer made anew gives out all, counted from one": Script(
        ((Publish(3), Pull(3)), (Say("-NAK", delay=9), Say("+ACK", about=1)), (MakeAnew(), Pull(3)))
    ),
    "what it has not come to cannot be ended, but else all is answered": Script(
        ((Publish(2), Pull(2)), (MakeAnew(),), (Say("+ACK"), Say("+WPI"), Say("-NAK")), (Pull(2),))
    ),
    "what was before the first message that it found counts as come to": Script(
        ((Publish(2), Pull(2)), (Say("+ACK", about=1),), (MakeAnew(),), (Say("+ACK", about=1), Say("+ACK")))
    ),
    "a NAK of a delivery that it cannot know is answered and passed over": Script(
        (
            (Publish(3), Pull(3)),
            (Say("-NAK"), Say("-NAK", about=1), Pull(2)),
            (MakeAnew(), Pull(3)),
            (Say("-NAK", about=3), Pull(1)),
        ),
        ack_wait=5,
    ),
    "nor is one heeded of a delivery before the first that has not ended": Script(
        (
            (Publish(2), Pull(2)),
            (MakeAnew(), Pull(1)),
            (Say("-NAK"), Pull(1)),
            (Say("-NAK"), Pull(1)),
            (Pull(1), Say("+ACK", about=1)),
            (Say("-NAK", about=4), Pull(1)),
        ),
        ack_wait=7,
    ),
    "a message that nobody was there for goes to the end of the queue": Script(
        ((Publish(2), Pull(2)), (), (), (Pull(1, client=1), Leave(1)), (Pull(1),)), ack_wait=3
    ),
    "a restart counts the ack wait from when a message was published": Script(
        ((Publish(2),), *_LATER, (Pull(2), Say("+WPI")), *((),) * 5, (Pull(2),)), ack_wait=7, restart=Restart("stop")
    ),
    "the same holds for a message that came again": Script(
        ((Publish(1), Pull(1)), *_LATER, (Say("-NAK"), Pull(1)), *((),) * 5, (Pull(1),)),
        ack_wait=7,
        restart=Restart("kill"),
    ),
    "a restart keeps delays by the second": Script(
        ((), (Publish(2), Pull(2)), (), (Say("-NAK", delay=8), Say("-NAK", about=1, delay=9)), *((),) * 6, (Pull(2),)),
        restart=Restart("kill"),
    ),
    "a restart forgets the queue": Script(
        ((Publish(1), Pull(1)), (Say("+WPI"),), (Say("-NAK"),), *((),) * 7, (Pull(1),)),
        ack_wait=11,
        restart=Restart("stop"),
    ),
    "a crash keeps ends that were confirmed, and can forget what was said last": Script(
        (
            (Publish(3), Pull(3)),
            (Say("+WPI"),),
            *_LATER,
            (Say("+ACK", about=2), Say("-NAK", about=1, delay=12)),
            *((),) * 4,
            (Pull(2),),
        ),
        ack_wait=9,
        restart=Restart("cut short"),
    ),
}
