"""Scripted functions and callback receivers.

What a function does is told by its message: each attempt takes one :class:`Reply` of the message's script, the last one
again and again. So a script says how often and how long a message runs, whatever else the worker has to do. Before that
the function itself may turn it away: a :class:`Deployment` has room for so many at once, and may be scaled to zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import trio

from worker.model import Attempted, Callback, Headers, Invocation, Responded


def brief(value: Any) -> str:
    """The code that makes a dataclass, without what is as it is by default."""
    said = [(each.name, getattr(value, each.name)) for each in fields(value)]
    usual = {each.name: each.default for each in fields(value)}
    return f"{type(value).__name__}({', '.join(f'{name}={it!r}' for name, it in said if it != usual[name])})"


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """What an attempt comes to.

    An exception as the outcome stands for a bug of the adapter, which the port says does not happen.
    """

    outcome: Attempted | Exception
    after: float = 0.0
    """Seconds."""

    def __repr__(self) -> str:
        if isinstance(self.outcome, Responded) and not (self.outcome.size or self.outcome.truncated):
            usual = {"after": 0.0, "headers": (), "body": b""}
            said = {"after": self.after, "headers": self.outcome.headers, "body": self.outcome.body}
            return f"reply({self.outcome.status}{''.join(f', {k}={v!r}' for k, v in said.items() if v != usual[k])})"
        return brief(self)


def reply(status: int, after: float = 0.0, headers: Headers = (), body: bytes = b"") -> Reply:
    """A response."""
    return Reply(Responded(status, headers, body), after)


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What posting a callback comes to."""

    result: int | str | Exception = 200
    after: float = 0.0

    __repr__ = brief


@dataclass(frozen=True, slots=True, repr=False)
class Deployment:
    """How a function is deployed, as far as that decides whether it takes a call."""

    capacity: int | None = None
    """Most calls at once; one more is answered 429."""
    gone_from: float = 0.0
    gone_until: float = 0.0
    """When (s) it is scaled to zero: every call is answered 503."""
    warms_up: float = 0.0
    """Seconds after that in which a call waits for it to be there."""
    patience: str | None = None
    """The Retry-After of those answers."""

    __repr__ = brief

    def refusal(self, running: int, now: float) -> int | None:
        """The status of a call that it does not take, with so many running already."""
        if self.gone_from <= now < self.gone_until:
            return 503
        return 429 if self.capacity is not None and running >= self.capacity else None

    def delay(self, now: float) -> float:
        """How long (s) a call waits for it to be there."""
        begun = self.gone_until <= now < self.gone_until + self.warms_up
        return self.gone_until + self.warms_up - now if begun else 0.0


@dataclass(slots=True, eq=False)
class Call:
    """One invocation, as the function saw it."""

    invocation: Invocation
    worker: str
    began: float
    due: float = inf
    """When the function is done with it, whoever still listens."""
    ended: float | None = None
    outcome: Attempted | Exception | None = None
    """None while it runs, and when it was cancelled."""
    refused: bool = False
    """It was turned away, so it took nothing of the message's script."""


@dataclass(slots=True, eq=False)
class Post:
    """One callback, as its receiver saw it."""

    callback: Callback
    worker: str
    began: float
    ended: float | None = None
    result: int | str | Exception | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.callback.headers}


class Outside:
    """All functions and receivers of callbacks, and what they saw."""

    def __init__(self) -> None:
        self.scripts: dict[str, Sequence[Reply]] = {}
        """By call id."""
        self.answers: dict[str, Sequence[Answer]] = {}
        """By URL."""
        self.deployments: dict[str, Deployment] = {}
        """By function; those that are not here take every call."""
        self.calls: list[Call] = []
        self.posts: list[Post] = []
        self.overlaps: list[tuple[Call, Call]] = []
        """Invocations of one message at the same time."""
        self.peak: Counter[str] = Counter()
        """Most invocations at once, by worker."""
        self._running: Counter[str] = Counter()
        """Calls that each function has taken and not answered."""
        self._calls: defaultdict[str, list[Call]] = defaultdict(list)
        self._posts: defaultdict[str, list[Post]] = defaultdict(list)

    def calls_of(self, call_id: str) -> list[Call]:
        """The invocations of one message, in order."""
        return self._calls[call_id]

    def posts_to(self, url: str) -> list[Post]:
        """The callbacks that one receiver saw, in order."""
        return self._posts[url]

    def called(self, invocation: Invocation, worker: str) -> tuple[Call, Reply]:
        """A call begins; what it comes to."""
        now, before = trio.current_time(), self._calls[invocation.call_id]
        call = Call(invocation, worker, now)
        self.overlaps += [(other, call) for other in before if other.ended is None and now < other.due]
        deployment = self.deployments.get(invocation.function, Deployment())
        status = deployment.refusal(self._running[invocation.function], now)
        if status is None:
            script, taken = self.scripts[invocation.call_id], sum(not each.refused for each in before)
            scripted = script[min(taken, len(script) - 1)]
            self._running[invocation.function] += 1
        else:
            patience, call.refused = deployment.patience, True
            scripted = reply(status, headers=() if patience is None else ((b"Retry-After", patience.encode()),))
        call.due = now + scripted.after + (0.0 if call.refused else deployment.delay(now))
        self.calls.append(call)
        before.append(call)
        return call, scripted

    def ended(self, call: Call) -> None:
        """A call is over, for its caller."""
        call.ended = trio.current_time()
        if not call.refused:
            self._running[call.invocation.function] -= 1

    def posted(self, callback: Callback, worker: str) -> tuple[Post, Answer]:
        """A callback comes; what it is answered."""
        before, answers = self._posts[callback.url], self.answers[callback.url]
        post = Post(callback, worker, trio.current_time())
        self.posts.append(post)
        before.append(post)
        return post, answers[min(len(before), len(answers)) - 1]


class Reach:
    """One worker's way to the outside: :class:`worker.ports.SubjectDiscovery` and :class:`worker.ports.Callbacks`."""

    def __init__(self, outside: Outside, worker: str) -> None:
        self._outside, self._worker = outside, worker
        self.running = 0

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.SubjectDiscovery.invoke`."""
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
            raise _another(scripted.outcome)
        return scripted.outcome

    async def post(self, callback: Callback) -> int | str:
        """See :meth:`worker.ports.Callbacks.post`."""
        post, scripted = self._outside.posted(callback, self._worker)
        try:
            await trio.sleep(scripted.after)
            post.result = scripted.result
        finally:
            post.ended = trio.current_time()
        if isinstance(scripted.result, Exception):
            raise _another(scripted.result)
        return scripted.result


def _another(error: Exception) -> Exception:
    """One of the same kind: the scripted one would keep the traceback of each time that it was raised."""
    return type(error)(*error.args)
