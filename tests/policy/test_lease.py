from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.lease import LeaseTerms


@pytest.mark.parametrize(("lasts", "renew", "lost"), [(60.0, 20.0, 40.0), (30.0, 10.0, 20.0), (9.0, 3.0, 6.0)])
def test_the_thirds_of_a_lease(lasts: float, renew: float, lost: float) -> None:
    """It is renewed at a third and taken for lost at two, from when what the queue confirmed was sent."""
    terms = LeaseTerms(lasts)
    assert (terms.renew_at(0.0), terms.lost_at(0.0)) == (renew, lost)
    assert (terms.renew_at(100.0), terms.lost_at(100.0)) == (100.0 + renew, 100.0 + lost)


@given(st.floats(1, 1e6), st.floats(0, 1e9))
def test_a_lease_is_renewed_before_it_is_lost_and_lost_before_it_ends(lasts: float, sent: float) -> None:
    """There is time for an answer after the renewal, and for what we cannot see after we stopped."""
    terms = LeaseTerms(lasts)
    assert sent < terms.renew_at(sent) < terms.lost_at(sent) < sent + lasts


def test_a_lease_of_unknown_length_neither_ends_nor_is_renewed() -> None:
    """Before the consumer is bound the ack wait is not known, and nothing is due."""
    terms = LeaseTerms(float("inf"))
    assert terms.renew_at(5.0) == terms.lost_at(5.0) == float("inf")
