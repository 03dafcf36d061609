"""The room for callbacks outside of the slots."""

from __future__ import annotations

from contextlib import ExitStack

from worker.policy.receivers import MAX_BYTES, MAX_CALLBACKS, RECEIVERS, Receivers


def test_receivers_have_room_for_so_many_callbacks() -> None:
    """There is room for MAX_CALLBACKS callbacks at once, over all receivers, and again when one has ended."""
    receivers = Receivers(10)
    with ExitStack() as last:
        with ExitStack() as others:
            for number in range(MAX_CALLBACKS - 1):
                assert others.enter_context(receivers.waiting(f"http://{number % 7}", 1, 0.0))
            assert last.enter_context(receivers.waiting("http://a", 1, 0.0))
            with receivers.waiting("http://b", 1, 0.0) as room:
                assert not room
        with receivers.waiting("http://b", 1, 0.0) as room:
            assert room
    assert not receivers._waiting
    assert not receivers._quiet_since
    assert (receivers._outside, receivers._bytes) == (0, 0)


def test_receivers_have_room_for_so_many_bytes() -> None:
    """There is room for MAX_BYTES bytes at once. A callback without room uses none."""
    receivers = Receivers(10)
    with receivers.waiting("http://a", MAX_BYTES - 1, 0.0) as room:
        assert room
        for size, fits in ((2, False), (MAX_BYTES, False), (1, True), (1, True)):
            with receivers.waiting("http://b", size, 0.0) as room_for_b:
                assert room_for_b == fits


def test_receiver_has_a_part_of_the_room() -> None:
    """One receiver fills a part of the room, in callbacks and in bytes; then others still find some."""
    receivers = Receivers(10)
    with ExitStack() as stack:

        def room(receiver: str, size: int) -> bool:
            return stack.enter_context(receivers.waiting(receiver, size, 0.0))

        assert [room("http://many", 1) for _ in range(MAX_CALLBACKS // RECEIVERS + 1)] == [True] * 250 + [False]
        assert [room("http://large", MAX_BYTES // RECEIVERS - 1), room("http://large", 2)] == [True, False]
        assert room("http://large", 1)
        assert room("http://other", MAX_BYTES // 2)  # a single large callback
        assert not room("http://other", 1)
    assert (receivers._outside, receivers._bytes, receivers._taken) == (0, 0, {})


def test_receiver_without_answers_is_silent() -> None:
    """A receiver is silent when its last answer, or its first callback in flight, was so many seconds ago."""
    receivers = Receivers(10)
    with receivers.waiting("http://a", 1, 100.0):
        with receivers.waiting("http://a", 1, 105.0):
            assert not receivers.is_silent("http://a", 109.9)
            assert receivers.is_silent("http://a", 110.0)
            receivers.answered("http://a", 110.0)
            assert not receivers.is_silent("http://a", 119.9)
        assert receivers.is_silent("http://a", 120.0)
    with receivers.waiting("http://a", 1, 200.0):
        assert not receivers.is_silent("http://a", 201.0)
