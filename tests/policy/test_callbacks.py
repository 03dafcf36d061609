from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.callbacks import is_delivered, is_retriable

FINAL = {400, 401, 403, 404, 405, 410, 413, 414, 415, 422, 426, 431, 451, 499}
PASSING = {408, 425, 429, 500, 501, 502, 503, 504, 599}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299, 301, 302, 307, 399])
def test_a_receiver_that_takes_it_has_it(status: int) -> None:
    """Below 400 a callback is delivered, redirects included, and is not sent again."""
    assert is_delivered(status)
    assert not is_retriable(status)


@pytest.mark.parametrize("status", sorted(FINAL))
def test_a_receiver_that_never_will_is_left_alone(status: int) -> None:
    """A client's error does not go away by repetition."""
    assert not is_delivered(status)
    assert not is_retriable(status)


@pytest.mark.parametrize("result", [*sorted(PASSING), "connection refused", ""])
def test_what_may_pass_is_worth_another_try(result: int | str) -> None:
    """A server's error, "later", and no answer at all may pass."""
    assert not is_delivered(result)
    assert is_retriable(result)


@given(st.integers(100, 599) | st.text())
def test_what_is_delivered_is_never_sent_again(result: int | str) -> None:
    """No receiver gets a result again that it has taken."""
    assert not (is_delivered(result) and is_retriable(result))
