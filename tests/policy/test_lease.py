from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.lease import LeaseTerms


@pytest.mark.parametrize(("ack_wait", "renew", "lost"), [(60.0, 20.0, 40.0), (30.0, 10.0, 20.0), (9.0, 3.0, 6.0)])
def test_lease_is_renewed_at_one_third_and_lost_at_two(ack_wait: float, renew: float, lost: float) -> None:
    """A lease is renewed at one third of the ack wait and lost at two, counted from when it was last confirmed."""
    terms = LeaseTerms(ack_wait)
    assert (terms.renew_at(0.0), terms.lost_at(0.0)) == (renew, lost)
    assert (terms.renew_at(100.0), terms.lost_at(100.0)) == (100.0 + renew, 100.0 + lost)


@given(st.floats(1, 1e6), st.floats(0, 1e9))
def test_lease_is_renewed_then_lost_then_over(ack_wait: float, sent: float) -> None:
    """A lease is renewed before it is lost, and lost before the ack wait ends, so that its invocation stops in time."""
    terms = LeaseTerms(ack_wait)
    assert sent < terms.renew_at(sent) < terms.lost_at(sent) < sent + ack_wait


def test_lease_of_unknown_length_is_never_due() -> None:
    """Before the consumer is bound, the ack wait is unknown, and no lease is renewed or lost."""
    terms = LeaseTerms(float("inf"))
    assert terms.renew_at(5.0) == terms.lost_at(5.0) == float("inf")
