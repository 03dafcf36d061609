from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.callbacks import is_delivered, is_retriable

FINAL = {400, 401, 403, 404, 405, 410, 413, 414, 415, 422, 426, 431, 451, 499}
PASSING = {408, 425, 429, 500, 501, 502, 503, 504, 599}


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299, 301, 302, 307, 399])
def test_callback_status_below_400_is_delivered(status: int) -> None:
    """A callback with a status below 400, also a redirect, is delivered and not retried."""
    assert is_delivered(status)
    assert not is_retriable(status)


@pytest.mark.parametrize("status", sorted(FINAL))
def test_callback_client_error_is_not_retried(status: int) -> None:
    """A client error is neither delivered nor retried, because a retry has the same result."""
    assert not is_delivered(status)
    assert not is_retriable(status)


@pytest.mark.parametrize("result", [*sorted(PASSING), "connection refused", ""])
def test_callback_passing_failure_is_retried(result: int | str) -> None:
    """A server error, a status that asks for a later retry, and a missing answer are retried."""
    assert not is_delivered(result)
    assert is_retriable(result)


@given(st.integers(100, 599) | st.text())
def test_callback_delivered_is_never_retried(result: int | str) -> None:
    """No result is both delivered and retried."""
    assert not (is_delivered(result) and is_retriable(result))
