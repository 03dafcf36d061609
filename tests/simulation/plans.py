"""Plans, drawn by Hypothesis: settings that fit together, with messages, workers and faults."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.world import Answer, reply
from tests.world.faults import ALL, ONE, Fault
from tests.world.functions import Deployment, Reply
from tests.world.simulation import Plan, PlannedMessage, PlannedWorker
from worker.model import Attempted, Headers, NoResponse, Responded, TimedOut

from .expected import ANNOTATIONS, RETRY_AFTER

MOST_WORKERS = 4


def seconds(max_seconds: float) -> st.SearchStrategy[float]:
    """Draw tenths of a second, because round numbers let events coincide."""
    return st.integers(0, round(max_seconds * 10)).map(lambda tenths: tenths / 10)


def _responded(status: int, *headers: tuple[bytes, bytes]) -> Responded:
    return Responded(status, headers)


_RETRY_AFTER_HEADERS: list[Headers] = [((b"Retry-After", value.encode()),) for value in RETRY_AFTER]
_OUTCOMES: list[Attempted | Exception] = [
    *[Responded(200)] * 6,
    *[Responded(503)] * 4,
    *[Responded(500)] * 3,
    Responded(404),
    Responded(302),
    _responded(400, (b"X-OpenFaaS-Internal", b"faas-netes")),
    _responded(200, (b"x-openfaas-internal", b"gateway")),
    *(Responded(status, headers) for status in (429, 503) for headers in _RETRY_AFTER_HEADERS),
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
    PlannedMessage,
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
    scaled_down_from=seconds(60),
    scaled_down_until=st.just(0.0) | seconds(80),
    cold_start=st.just(0.0) | seconds(20),
    retry_after=st.none() | st.sampled_from([*RETRY_AFTER]),
)
faults = st.builds(
    Fault,
    kind=st.sampled_from([*ONE, *ALL]),
    at=seconds(30) | seconds(100),
    seconds=seconds(8) | seconds(60),
    worker=st.integers(0, MOST_WORKERS - 1),
)


@st.composite
def shifts(draw: st.DrawFn, interesting: list[float]) -> tuple[PlannedWorker, ...]:
    """Draw one to four workers, which start at once or later, and stop or run to the end.

    Args:
        draw: the draw function of Hypothesis.
        interesting: times (s) of other events.
    """
    starts, stops = st.just(0.0) | seconds(100), st.none() | st.sampled_from(interesting) | seconds(120)
    return tuple(
        PlannedWorker(
            starts=draw(starts) if number else 0.0,
            stops=draw(stops),
            second_signal_after=draw(st.none() | seconds(30)),
        )
        for number in range(draw(st.integers(1, MOST_WORKERS)))
    )


@st.composite
def plans(draw: st.DrawFn, faults: st.SearchStrategy[tuple[Fault, ...]]) -> Plan:
    """Draw settings that fit together, with messages, workers and faults."""
    initial = draw(seconds(10)) + 0.1
    ack_wait = draw(st.sampled_from([1.5, 3.0, 5.0, 10.0, 30.0]))
    # A round trip must take less than a third of the ack wait; otherwise no extension is confirmed in time.
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
        callback_durable=draw(st.booleans()),
        callback_max_age=draw(st.sampled_from([5.0, 60.0])),
        dead_letters=draw(st.sampled_from([True, True, False])),
        ack_wait=ack_wait,
        latency=latency,
        shutdown_timeout=draw(seconds(30)),
        by_function=draw(st.booleans()),
        adaptive=draw(st.booleans()),
        schedule=draw(st.integers(0, 2**32 - 1)),
    )


healthy = plans(st.just(()))
faulty = plans(st.lists(faults, min_size=1, max_size=6).map(tuple))


_LONG = PlannedMessage((reply(503, after=10.0), reply(200, after=20.0)))
_BUSY = Deployment(capacity=1, scaled_down_from=2.0, scaled_down_until=20.0, cold_start=2.0, retry_after="4")
_TWO = (PlannedWorker(), PlannedWorker())
_UNANSWERED = PlannedMessage((Reply(NoResponse("refused")), Reply(TimedOut(60.0)), reply(200, after=20.0)))
RARE_HEALTHY = (
    # The drain cancels the first try of a callback, which is stored then.
    Plan(
        (PlannedMessage((reply(200),), callback=(Answer(after=15.0),)),),
        workers=(PlannedWorker(stops=1.0),),
        shutdown_timeout=1.0,
        callback_durable=True,
    ),
    # A callback fails, is stored, and arrives.
    Plan((PlannedMessage((reply(200),), callback=(Answer("refused"), Answer(200))),), callback_durable=True),
    # A function at its capacity, which is then scaled to zero.
    Plan((PlannedMessage((reply(200, after=3.0),)),) * 3, functions=(_BUSY,), initial=0.5, slots=3),
    # The same function, with a limiter.
    Plan(
        (PlannedMessage((reply(200, after=3.0),)),) * 6,
        functions=(_BUSY,),
        initial=0.5,
        slots=6,
        by_function=True,
        adaptive=True,
    ),
    # A message that the drain naks, after attempts without a response.
    Plan((_UNANSWERED,), workers=(PlannedWorker(stops=5.0),), shutdown_timeout=1.0),
)
RARE = (
    # The NAK is sent again on the new connection and applied. When the server reads the first one, another worker
    # runs the message.
    Plan(
        (_LONG,),
        workers=_TWO,
        faults=(Fault("deliver late", 9.9, 6.0), Fault("deliver late", 9.9, 6.0, 1)),
        initial=5.0,
    ),
    # Both workers have the message, and the first naks it while the second runs it.
    Plan(
        (_LONG,),
        workers=(PlannedWorker(), PlannedWorker(starts=3.0)),
        faults=(Fault("recreate consumer", 1.0),),
        slots=1,
    ),
    # The worker is killed, or suspended, while the message runs.
    Plan((_LONG,), faults=(Fault("kill", 5.0),)),
    Plan((_LONG,), workers=(PlannedWorker(), PlannedWorker(starts=1.0)), faults=(Fault("suspend worker", 5.0, 60.0),)),
    # The ack has not arrived when the worker is killed.
    Plan((PlannedMessage((reply(200),), at=1.0),), faults=(Fault("drop from worker", 0.5, 60.0), Fault("kill", 2.0))),
    # The message is given up while dead letters are refused.
    Plan((_LONG,), faults=(Fault("refuse dead letters", 5.0, 60.0),), attempts=1),
    # The server stops, in order or at once, before the first extension of a message that is older than the ack wait.
    Plan((_LONG,), workers=(PlannedWorker(40.0), PlannedWorker(40.0)), faults=(Fault("restart", 45.0, 1.0),)),
    Plan((_LONG,), workers=(PlannedWorker(40.0), PlannedWorker(40.0)), faults=(Fault("crash", 45.0, 1.0),)),
    # The drain cancels the first try of a callback.
    Plan(
        (PlannedMessage((reply(200),), callback=(Answer(after=15.0),)),),
        workers=(PlannedWorker(stops=1.0),),
        shutdown_timeout=1.0,
    ),
    # A callback fails, and cannot be stored.
    Plan(
        (PlannedMessage((reply(200),), callback=(Answer("refused"), Answer(200))),),
        faults=(Fault("refuse callbacks", 0.0, 10.0),),
        callback_durable=True,
    ),
    # The ack is lost, and the message is redelivered to the worker that has finished it.
    Plan((PlannedMessage((reply(200),), at=1.0),), faults=(Fault("drop from worker", 0.5, 35.0),)),
    # The consumer is recreated during the wait of a retry, which then arrives too early.
    Plan((PlannedMessage((reply(503), reply(200))),), faults=(Fault("recreate consumer", 2.0),), initial=5.0),
    # Another leader is elected while the message runs.
    Plan((_LONG,), faults=(Fault("elect", 5.0, 1.0),)),
    # A delivery is on its way for longer than the ack wait, so another worker runs the message when it arrives.
    Plan(
        (PlannedMessage((reply(200, after=10.0),), at=1.0),),
        workers=(PlannedWorker(), PlannedWorker(starts=10.0)),
        faults=(Fault("stall", 0.5, 35.0),),
        slots=1,
    ),
    # No extension arrives while the message runs: its lease is lost, and the other worker runs it.
    Plan(
        (PlannedMessage((reply(200, after=40.0),)),),
        workers=(PlannedWorker(), PlannedWorker(starts=1.0)),
        faults=(Fault("drop from worker", 1.0, 60.0),),
        slots=1,
    ),
)
"""Plans that are seldom drawn: one for each rare cause of a repeat."""
