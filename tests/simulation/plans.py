"""Plans, drawn by Hypothesis: settings that go together, and what happens under them."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.world import Answer, reply
from tests.world.faults import ALL, ONE, Fault
from tests.world.functions import Deployment, Reply
from tests.world.simulation import Plan, Planned, Shift
from worker.model import Attempted, Headers, NoResponse, Responded, TimedOut

from .expected import ANNOTATIONS, PATIENCE

MOST_WORKERS = 4


def seconds(most: float) -> st.SearchStrategy[float]:
    """Tenths of a second: round numbers make things coincide."""
    return st.integers(0, round(most * 10)).map(lambda tenths: tenths / 10)


def _responded(status: int, *headers: tuple[bytes, bytes]) -> Responded:
    return Responded(status, headers)


_PATIENT: list[Headers] = [((b"Retry-After", value.encode()),) for value in PATIENCE]
_OUTCOMES: list[Attempted | Exception] = [
    *[Responded(200)] * 6,
    *[Responded(503)] * 4,
    *[Responded(500)] * 3,
    Responded(404),
    Responded(302),
    _responded(400, (b"X-OpenFaaS-Internal", b"faas-netes")),
    _responded(200, (b"x-openfaas-internal", b"gateway")),
    *(Responded(status, headers) for status in (429, 503) for headers in _PATIENT),
    _responded(500, (b"Retry-After", b"30")),
    NoResponse("refused"),
    TimedOut(60.0),
    KeyError("a bug"),
]
_DURATIONS = [
    0.0,
    0.0,
    *(tenths / 10 for tenths in (1, 2, 5, 9, 10, 11, 15, 20, 25, 30, 33, 40, 50, 75, 100, 150, 240, 400)),
]
scripts = st.lists(
    st.builds(Reply, st.sampled_from(_OUTCOMES), st.sampled_from(_DURATIONS)), min_size=1, max_size=4
).map(tuple)
answers = st.builds(
    Answer,
    st.sampled_from([200, 200, 302, 404, 429, 500, "refused", KeyError("a bug")]),
    st.sampled_from([0.0, 0.0, 0.1, 1.0, 2.5, 5.0, 15.0]),
)
annotated = st.lists(st.sampled_from([*ANNOTATIONS]), max_size=2, unique_by=lambda each: each[0]).map(tuple)
messages = st.builds(
    Planned,
    script=scripts,
    callback=st.none() | st.lists(answers, min_size=1, max_size=4).map(tuple),
    at=st.just(0.0) | seconds(60),
    function=st.integers(0, 2),
    annotations=st.just(()) | annotated,
    payload=st.sampled_from([None] * 15 + [b"no JSON", b'{"Function": "../etc"}', b"\xff"]),
)
bursts = st.builds(
    lambda planned, times: (planned,) * times,
    messages,
    st.sampled_from([1] * 6 + [3, 8]),
)
deployments = st.builds(
    Deployment,
    capacity=st.none() | st.integers(1, 3),
    gone_from=seconds(60),
    gone_until=st.just(0.0) | seconds(80),
    warms_up=st.just(0.0) | seconds(20),
    patience=st.none() | st.sampled_from([*PATIENCE]),
)
faults = st.builds(
    Fault,
    kind=st.sampled_from([*ONE, *ALL]),
    at=seconds(30) | seconds(100),
    seconds=seconds(8) | seconds(60),
    worker=st.integers(0, MOST_WORKERS - 1),
)


@st.composite
def shifts(draw: st.DrawFn, interesting: list[float]) -> tuple[Shift, ...]:
    """One to four workers: some from the start, some later, some that go, some that stay.

    Args:
        draw: of Hypothesis.
        interesting: times (s) at which something else happens.
    """
    starts, stops = st.just(0.0) | seconds(100), st.none() | st.sampled_from(interesting) | seconds(120)
    return tuple(
        Shift(
            starts=draw(starts) if number else 0.0,
            stops=draw(stops),
            hurry_after=draw(st.none() | seconds(30)),
        )
        for number in range(draw(st.integers(1, MOST_WORKERS)))
    )


@st.composite
def plans(draw: st.DrawFn, faults: st.SearchStrategy[tuple[Fault, ...]]) -> Plan:
    """Settings that go together, and what happens under them."""
    initial = draw(seconds(10)) + 0.1
    ack_wait = draw(st.sampled_from([1.5, 3.0, 5.0, 10.0, 30.0]))
    # A round trip takes less than a third of the ack wait, or no extension is ever confirmed in time.
    latency = draw(st.sampled_from([latency for latency in (0.001, 0.02, 0.24, 0.8) if latency < ack_wait / 6]))
    messages = tuple(planned for burst in draw(st.lists(bursts, min_size=1, max_size=6)) for planned in burst)
    return Plan(
        messages=messages,
        functions=tuple(draw(st.lists(deployments, max_size=2))),
        workers=draw(shifts([planned.at for planned in messages])),
        faults=draw(faults),
        slots=draw(st.integers(1, 8)),
        attempts=draw(st.integers(1, 4)),
        initial=initial,
        longest=initial + draw(seconds(20)),
        backoff=draw(st.sampled_from(["exponential", "exponential", "full", "equal"])),
        callback_attempts=draw(st.integers(1, 3)),
        dead_letters=draw(st.sampled_from([True, True, False])),
        ack_wait=ack_wait,
        latency=latency,
        shutdown_timeout=draw(seconds(30)),
        by_function=draw(st.booleans()),
        learns=draw(st.booleans()),
        schedule=draw(st.integers(0, 2**32 - 1)),
    )


healthy = plans(st.just(()))
faulty = plans(st.lists(faults, min_size=1, max_size=6).map(tuple))


_LONG = Planned((reply(503, after=10.0), reply(200, after=20.0)))
_BUSY = Deployment(capacity=1, gone_from=2.0, gone_until=20.0, warms_up=2.0, patience="4")
_TWO = (Shift(), Shift())
_UNANSWERED = Planned((Reply(NoResponse("refused")), Reply(TimedOut(60.0)), reply(200, after=20.0)))
RARE_HEALTHY = (
    # A function that has no room, and then is not there.
    Plan((Planned((reply(200, after=3.0),)),) * 3, functions=(_BUSY,), initial=0.5, slots=3),
    # The same, found out.
    Plan(
        (Planned((reply(200, after=3.0),)),) * 6,
        functions=(_BUSY,),
        initial=0.5,
        slots=6,
        by_function=True,
        learns=True,
    ),
    # Given back in the drain, after attempts without an answer.
    Plan((_UNANSWERED,), workers=(Shift(stops=5.0),), shutdown_timeout=1.0),
)
RARE = (
    # The NAK is said again on the new connection and heeded; when the old one's is read, another runs the message.
    Plan((_LONG,), workers=_TWO, faults=(Fault("late", 9.9, 6.0), Fault("late", 9.9, 6.0, 1)), initial=5.0),
    # Both have it, and the first gives it back while the second runs it.
    Plan((_LONG,), workers=(Shift(), Shift(starts=3.0)), faults=(Fault("anew", 1.0),), slots=1),
    # Killed, and standing still, while it runs.
    Plan((_LONG,), faults=(Fault("kill", 5.0),)),
    Plan((_LONG,), workers=(Shift(), Shift(starts=1.0)), faults=(Fault("freeze", 5.0, 60.0),)),
    # Its acknowledgement has not got through when the worker dies.
    Plan((Planned((reply(200),), at=1.0),), faults=(Fault("deaf", 0.5, 60.0), Fault("kill", 2.0))),
    # Given up while dead letters are refused.
    Plan((_LONG,), faults=(Fault("no letters", 5.0, 60.0),), attempts=1),
    # Published longer ago than the ack wait, and not extended yet when the server ends, in order or at once.
    Plan((_LONG,), workers=(Shift(40.0), Shift(40.0)), faults=(Fault("restart", 45.0, 1.0),)),
    Plan((_LONG,), workers=(Shift(40.0), Shift(40.0)), faults=(Fault("crash", 45.0, 1.0),)),
    # The drain stops the first try of its callback.
    Plan(
        (Planned((reply(200),), callback=(Answer(after=15.0),)),),
        workers=(Shift(stops=1.0),),
        shutdown_timeout=1.0,
    ),
    # It comes again because its acknowledgement is not heard, to the worker that has ended it.
    Plan((Planned((reply(200),), at=1.0),), faults=(Fault("deaf", 0.5, 35.0),)),
    # The consumer is made anew while it waits, so it comes too early.
    Plan((Planned((reply(503), reply(200))),), faults=(Fault("anew", 2.0),), initial=5.0),
    # Another leader is elected while it runs.
    Plan((_LONG,), faults=(Fault("elect", 5.0, 1.0),)),
    # On its way to the first for longer than the ack wait, so the second has it when it comes.
    Plan(
        (Planned((reply(200, after=10.0),), at=1.0),),
        workers=(Shift(), Shift(starts=10.0)),
        faults=(Fault("stall", 0.5, 35.0),),
        slots=1,
    ),
    # No extension gets through while it runs: its lease is lost, and the other worker has it.
    Plan(
        (Planned((reply(200, after=40.0),)),),
        workers=(Shift(), Shift(starts=1.0)),
        faults=(Fault("deaf", 1.0, 60.0),),
        slots=1,
    ),
)
"""Lives that chance seldom comes upon: one for each cause of a repeat that is rare."""
