"""The whole table of decisions about a delivery."""

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
def test_decide_delivery_new_message(facts: tuple[bool, ...]) -> None:
    """It starts if it is still leased and there are a slot and a token. Else only the newest delivery is given back."""
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
def test_decide_delivery_early_message(facts: tuple[bool, ...]) -> None:
    """It goes back for the rest of its back-off, unless another worker may have it or a newer delivery is here."""
    newest, leased, _, _ = facts
    assert decided(POSTPONE, facts) == (POSTPONE if newest and leased else Abandon())


@pytest.mark.parametrize("known", [Extend(), SettleAgain(Ack())])
@pytest.mark.parametrize("facts", FACTS)
def test_decide_delivery_known_message(known: Known, facts: tuple[bool, ...]) -> None:
    """A message that runs here is extended, and one that ended here is settled again, whatever there is room for."""
    assert decided(known, facts) == known
