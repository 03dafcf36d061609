"""Scripts drawn by Hypothesis."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .script import LAST, SLOTS, Action, ChangeAckWait, Leave, MakeAnew, Publish, Pull, Restart, Say, Script

clients = st.sampled_from([0, 1])
pulls = st.builds(Pull, batch=st.integers(1, 4), lasts=st.sampled_from([1, 2, 4, 99, 99, 99]), client=clients)
about = st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4])
said = st.one_of(
    st.builds(Say, verb=st.sampled_from(["+ACK", "-NAK", "+TERM", "+WPI", "+WPI"]), about=about, client=clients),
    st.builds(Say, verb=st.just("-NAK"), about=about, delay=st.integers(0, 5), client=clients),
)
rare = st.one_of(
    st.builds(Leave, client=clients), st.just(MakeAnew()), st.builds(ChangeAckWait, ack_wait=st.integers(1, 5))
)
published = st.builds(Publish, count=st.integers(1, 4))
kinds: list[st.SearchStrategy[Action]] = [*[published] * 2, *[pulls] * 4, *[said] * 9, rare]
actions = st.sampled_from(range(len(kinds))).flatmap(lambda number: kinds[number])
ticks = st.lists(actions, max_size=SLOTS).map(tuple)


def scripts(restart: Restart | None) -> st.SearchStrategy[Script]:
    """Those with that restart. They begin with messages that are asked for, so that there is much to talk about."""
    first = st.tuples(published, pulls)
    rest = st.lists(ticks, min_size=LAST - 5, max_size=LAST - 3)
    return st.builds(
        lambda first, rest, ack_wait: Script((first, *rest), ack_wait, restart), first, rest, st.integers(1, 5)
    )


def draw(restart: Restart | None, count: int) -> list[Script]:
    """So many of them, all different."""
    drawn: dict[Script, None] = {}

    @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=[*HealthCheck], database=None)
    @given(scripts(restart))
    def note(script: Script) -> None:
        drawn[script] = None

    note()
    return [*drawn]
