"""The decision about a delivery, for all combinations of facts."""

from __future__ import annotations

from itertools import product

import pytest

from worker.model import Abandon, Ack
from worker.policy.arrival import NO_TOKEN, Action, GiveBack, decide_delivery
from worker.policy.ledger import Extend, Known, Postpone, SettleAgain, Start

START, POSTPONE = Start(3, 0.5), Postpone(20.0)
FACTS = [*product([True, False], repeat=4)]


def decided(known: Known, facts: tuple[bool, ...]) -> Action:
    newest, leased, room, token = facts
    return decide_delivery(known, newest=newest, leased=leased, room=room, token=token)


@pytest.mark.parametrize("facts", FACTS)
def test_decide_delivery_new_message_starts_or_is_given_back(facts: tuple[bool, ...]) -> None:
    """A new message starts with a lease, a slot and a token; else its newest delivery is given back if leased."""
    newest, leased, room, token = facts
    expected: Action
    if leased and room and token:
        expected = START
    elif newest and leased:
        expected = GiveBack(3, NO_TOKEN if room else 0.0)
    else:
        expected = Abandon()
    assert decided(START, facts) == expected


@pytest.mark.parametrize("facts", FACTS)
def test_decide_delivery_early_message_is_postponed(facts: tuple[bool, ...]) -> None:
    """An early message is postponed for the rest of its back-off if its delivery is the newest and leased."""
    newest, leased, _, _ = facts
    assert decided(POSTPONE, facts) == (POSTPONE if newest and leased else Abandon())


@pytest.mark.parametrize("known", [Extend(), SettleAgain(Ack())])
@pytest.mark.parametrize("facts", FACTS)
def test_decide_delivery_known_message_is_extended_or_settled_again(known: Known, facts: tuple[bool, ...]) -> None:
    """A running message is extended, and a finished one is settled again, with any other facts."""
    assert decided(known, facts) == known
