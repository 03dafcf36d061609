"""Scripts drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from .script import (
    END,
    MAX_ACTIONS,
    Acknowledge,
    Action,
    ChangeAckWait,
    Publish,
    Pull,
    RecreateConsumer,
    Restart,
    Script,
    Unsubscribe,
)

clients = st.sampled_from([0, 1])
published = st.builds(Publish, count=st.integers(1, 4))
pulls = st.builds(Pull, batch=st.integers(1, 4), expires=st.sampled_from([1, 2, 4, 99, 99, 99]), client=clients)
delivery_index = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4])
verbs = st.sampled_from(["+ACK", "-NAK", "+TERM", "+WPI", "+WPI"])


def ticks(waits: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[Action, ...]]:
    """Draw the actions of a tick."""
    settlements: list[st.SearchStrategy[Action]] = [
        st.builds(Acknowledge, verb=verbs, delivery_index=delivery_index, client=clients),
        st.builds(Acknowledge, verb=st.just("-NAK"), delivery_index=delivery_index, delay=waits, client=clients),
    ]
    rare: list[st.SearchStrategy[Action]] = [
        st.builds(Unsubscribe, client=clients),
        st.just(RecreateConsumer()),
        st.builds(ChangeAckWait, ack_wait=waits),
    ]
    kinds: list[st.SearchStrategy[Action]] = [*[published] * 4, *[pulls] * 8, *settlements * 8, *rare]
    return st.lists(st.sampled_from(kinds).flatmap(lambda kind: kind), max_size=MAX_ACTIONS).map(tuple)


def scripts(restart: Restart | None) -> st.SearchStrategy[Script]:
    """Draw scripts with that restart. They begin with messages and pulls, so that many deliveries can be settled.

    Most ack waits and delays are longer than the restart, so that they continue after it.
    """
    waits = st.integers(4, 12) if restart else st.integers(1, 5)
    first = st.tuples(published, pulls)
    rest = st.lists(ticks(waits), min_size=END - 5, max_size=END - 3)
    return st.builds(lambda first, rest, ack_wait: Script((first, *rest), ack_wait, restart), first, rest, waits)


def draw(restart: Restart | None, count: int, accepts: Callable[[Script], object]) -> list[Script]:
    """Return about *count* different scripts for which *accepts* is true."""
    drawn: dict[Script, None] = {}

    @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=[*HealthCheck], database=None)
    @given(scripts(restart))
    def record(script: Script) -> None:
        assume(accepts(script))
        drawn[script] = None

    record()
    return [*drawn]
