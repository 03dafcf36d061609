"""Scripts drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from .script import LAST, SLOTS, Action, ChangeAckWait, Leave, MakeAnew, Publish, Pull, Restart, Say, Script

clients = st.sampled_from([0, 1])
published = st.builds(Publish, count=st.integers(1, 4))
pulls = st.builds(Pull, batch=st.integers(1, 4), lasts=st.sampled_from([1, 2, 4, 99, 99, 99]), client=clients)
about = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4])
verbs = st.sampled_from(["+ACK", "-NAK", "+TERM", "+WPI", "+WPI"])


def ticks(waits: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[Action, ...]]:
    """Draw the actions of a tick."""
    said: list[st.SearchStrategy[Action]] = [
        st.builds(Say, verb=verbs, about=about, client=clients),
        st.builds(Say, verb=st.just("-NAK"), about=about, delay=waits, client=clients),
    ]
    rare: list[st.SearchStrategy[Action]] = [
        st.builds(Leave, client=clients),
        st.just(MakeAnew()),
        st.builds(ChangeAckWait, ack_wait=waits),
    ]
    kinds: list[st.SearchStrategy[Action]] = [*[published] * 4, *[pulls] * 8, *said * 8, *rare]
    return st.lists(st.sampled_from(kinds).flatmap(lambda kind: kind), max_size=SLOTS).map(tuple)


def scripts(restart: Restart | None) -> st.SearchStrategy[Script]:
    """Draw scripts with that restart. They begin with messages and pulls, so that there are many deliveries to settle.

    Much of what waits when a server goes away still waits when it is back.
    """
    waits = st.integers(4, 12) if restart else st.integers(1, 5)
    first = st.tuples(published, pulls)
    rest = st.lists(ticks(waits), min_size=LAST - 5, max_size=LAST - 3)
    return st.builds(lambda first, rest, ack_wait: Script((first, *rest), ack_wait, restart), first, rest, waits)


def draw(restart: Restart | None, count: int, wanted: Callable[[Script], object]) -> list[Script]:
    """Return about *count* scripts that are *wanted*, none twice."""
    drawn: dict[Script, None] = {}

    @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=[*HealthCheck], database=None)
    @given(scripts(restart))
    def note(script: Script) -> None:
        assume(wanted(script))
        drawn[script] = None

    note()
    return [*drawn]
