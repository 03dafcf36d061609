"""Scripted functions and callback receivers.

The message determines what its function does: each attempt takes the next :class:`Reply` of the message's script, and
repeats the last one. So a script alone decides how often and how long a message runs. Before that the function itself
may reject the call: a :class:`Deployment` has a capacity, and may be scaled to zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import trio

from worker.model import Attempted, Busy, Callback, Headers, Invocation, Responded


def brief(value: Any) -> str:
    """Return the code that creates a dataclass, without the fields that have their defaults."""
    values = [(each.name, getattr(value, each.name)) for each in fields(value)]
    usual = {each.name: each.default for each in fields(value)}
    return f"{type(value).__name__}({', '.join(f'{name}={it!r}' for name, it in values if it != usual[name])})"


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """Scripted outcome of an attempt.

    An exception as the outcome stands for a bug of the adapter, which the port excludes.
    """

    outcome: Attempted | Exception
    after: float = 0.0
    """Seconds until the outcome."""

    def __repr__(self) -> str:
        if isinstance(self.outcome, Responded) and not (self.outcome.size or self.outcome.truncated):
            usual = {"after": 0.0, "headers": (), "body": b""}
            values = {"after": self.after, "headers": self.outcome.headers, "body": self.outcome.body}
            return f"reply({self.outcome.status}{''.join(f', {k}={v!r}' for k, v in values.items() if v != usual[k])})"
        return brief(self)


def reply(status: int, after: float = 0.0, headers: Headers = (), body: bytes = b"") -> Reply:
    """Create a scripted response."""
    return Reply(Responded(status, headers, body), after)


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """Scripted result of posting a callback."""

    result: int | str | Busy | Exception = 200
    after: float = 0.0

    __repr__ = brief


@dataclass(frozen=True, slots=True, repr=False)
class Deployment:
    """Deployment of a function: its capacity and the time when it is scaled to zero."""

    capacity: int | None = None
    """Maximum of concurrent calls; one more is answered with 429. None is no limit."""
    scaled_down_from: float = 0.0
    scaled_down_until: float = 0.0
    """Time (s) until which it is scaled to zero, from ``scaled_down_from`` on: calls are answered with 503."""
    cold_start: float = 0.0
    """Seconds of a cold start, after ``scaled_down_until``, for whose end a call waits."""
    retry_after: str | None = None
    """Retry-After header of those answers."""

    __repr__ = brief

    def refusal(self, running: int, now: float) -> int | None:
        """Return the status that rejects a call while *running* others run; None: it is accepted."""
        if self.scaled_down_from <= now < self.scaled_down_until:
            return 503
        return 429 if self.capacity is not None and running >= self.capacity else None

    def delay(self, now: float) -> float:
        """Return the seconds that a call waits for the cold start."""
        is_starting = self.scaled_down_until <= now < self.scaled_down_until + self.cold_start
        return self.scaled_down_until + self.cold_start - now if is_starting else 0.0


@dataclass(slots=True, eq=False)
class Call:
    """One invocation, as the function received it."""

    invocation: Invocation
    worker: str
    began: float
    due: float = inf
    """Time (s) at which the function ends, also after its caller has left."""
    ended: float | None = None
    outcome: Attempted | Exception | None = None
    """Outcome; None while the call runs, and when it was cancelled."""
    refused: bool = False
    """Whether the deployment rejected the call, which then took no reply of the message's script."""


@dataclass(slots=True, eq=False)
class Post:
    """One callback, as its receiver got it."""

    callback: Callback
    worker: str
    began: float
    ended: float | None = None
    result: int | str | Busy | Exception | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.callback.headers}


class Outside:
    """All functions and receivers of callbacks, with a record of their calls."""

    def __init__(self) -> None:
        self.scripts: dict[str, Sequence[Reply]] = {}
        """Call id -> script."""
        self.answers: dict[str, Sequence[Answer]] = {}
        """URL -> answers."""
        self.deployments: dict[str, Deployment] = {}
        """Function -> deployment; functions without one accept every call."""
        self.calls: list[Call] = []
        self.posts: list[Post] = []
        self.overlaps: list[tuple[Call, Call]] = []
        """Pairs of invocations of one message that ran at the same time."""
        self.peak: Counter[str] = Counter()
        """Worker -> maximum of concurrent invocations."""
        self._running: Counter[str] = Counter()
        """Function -> number of calls that it has accepted and not answered."""
        self._calls: defaultdict[str, list[Call]] = defaultdict(list)
        self._posts: defaultdict[str, list[Post]] = defaultdict(list)

    def calls_of(self, call_id: str) -> list[Call]:
        """Return the invocations of one message, in order."""
        return self._calls[call_id]

    def posts_to(self, url: str) -> list[Post]:
        """Return the callbacks that one receiver got, in order."""
        return self._posts[url]

    def called(self, invocation: Invocation, worker: str) -> tuple[Call, Reply]:
        """Record the start of a call, and return it with its scripted reply."""
        now, before = trio.current_time(), self._calls[invocation.call_id]
        call = Call(invocation, worker, now)
        self.overlaps += [(other, call) for other in before if other.ended is None and now < other.due]
        deployment = self.deployments.get(invocation.function, Deployment())
        status = deployment.refusal(self._running[invocation.function], now)
        if status is None:
            script, replies = self.scripts[invocation.call_id], sum(not each.refused for each in before)
            scripted = script[min(replies, len(script) - 1)]
            self._running[invocation.function] += 1
        else:
            retry_after, call.refused = deployment.retry_after, True
            scripted = reply(status, headers=() if retry_after is None else ((b"Retry-After", retry_after.encode()),))
        call.due = now + scripted.after + (0.0 if call.refused else deployment.delay(now))
        self.calls.append(call)
        before.append(call)
        return call, scripted

    def ended(self, call: Call) -> None:
        """Record the end of a call for its caller."""
        call.ended = trio.current_time()
        if not call.refused:
            self._running[call.invocation.function] -= 1

    def posted(self, callback: Callback, worker: str) -> tuple[Post, Answer]:
        """Record a callback, and return it with its scripted answer."""
        before, answers = self._posts[callback.url], self.answers[callback.url]
        post = Post(callback, worker, trio.current_time())
        self.posts.append(post)
        before.append(post)
        return post, answers[min(len(before), len(answers)) - 1]


class FakeClients:
    """One worker's :class:`worker.ports.Functions` and :class:`worker.ports.Callbacks`, on the outside."""

    def __init__(self, outside: Outside, worker: str) -> None:
        self._outside, self._worker = outside, worker
        self.running = 0

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.Functions.invoke`."""
        outside = self._outside
        call, scripted = outside.called(invocation, self._worker)
        self.running += 1
        outside.peak[self._worker] = max(outside.peak[self._worker], self.running)
        try:
            await trio.sleep_until(call.due)
            call.outcome = scripted.outcome
        finally:
            self.running -= 1
            outside.ended(call)
        if isinstance(scripted.outcome, Exception):
            raise _copy(scripted.outcome)
        return scripted.outcome

    async def post(self, callback: Callback) -> int | str | Busy:
        """See :meth:`worker.ports.Callbacks.post`."""
        post, scripted = self._outside.posted(callback, self._worker)
        try:
            await trio.sleep(scripted.after)
            post.result = scripted.result
        finally:
            post.ended = trio.current_time()
        if isinstance(scripted.result, Exception):
            raise _copy(scripted.result)
        return scripted.result


def _copy(error: Exception) -> Exception:
    """Copy an exception, because the scripted one would collect the tracebacks of each raise."""
    return type(error)(*error.args)
