"""Scripted functions and callback receivers.

What a function does is told by its message: each attempt takes one :class:`Reply` of the message's script, the last one
again and again. So a script says how often and how long a message runs, whatever else the worker has to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from worker.model import Attempted, Callback, Headers, Invocation, Responded


@dataclass(frozen=True, slots=True)
class Reply:
    """What an attempt comes to.

    An exception as the outcome stands for a bug of the adapter, which the port says does not happen.
    """

    outcome: Attempted | Exception
    after: float = 0.0
    """Seconds."""


def reply(status: int, after: float = 0.0, headers: Headers = (), body: bytes = b"") -> Reply:
    """A response."""
    return Reply(Responded(status, headers, body), after)


@dataclass(frozen=True, slots=True)
class Answer:
    """What posting a callback comes to."""

    result: int | str | Exception = 200
    after: float = 0.0


@dataclass(slots=True, eq=False)
class Call:
    """One invocation, as the function saw it."""

    invocation: Invocation
    worker: str
    began: float
    ended: float | None = None
    outcome: Attempted | Exception | None = None
    """None while it runs, and when it was cancelled."""


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
        self.calls: list[Call] = []
        self.posts: list[Post] = []
        self.running: Counter[str] = Counter()
        """Invocations at this moment, by call id."""
        self.overlaps: list[tuple[Call, Call]] = []
        """Invocations of one message at the same time."""
        self.peak: Counter[str] = Counter()
        """Most invocations at once, by worker."""

    def calls_of(self, call_id: str) -> list[Call]:
        """The invocations of one message, in order."""
        return [call for call in self.calls if call.invocation.call_id == call_id]


class Reach:
    """One worker's way to the outside: :class:`worker.ports.Functions` and :class:`worker.ports.Callbacks`."""

    def __init__(self, outside: Outside, worker: str) -> None:
        self._outside, self._worker = outside, worker
        self.running = 0

    async def invoke(self, invocation: Invocation) -> Attempted:
        """See :meth:`worker.ports.Functions.invoke`."""
        outside, call_id = self._outside, invocation.call_id
        before = outside.calls_of(call_id)
        script = outside.scripts[call_id]
        call = Call(invocation, self._worker, trio.current_time())
        outside.overlaps += [(other, call) for other in before if other.ended is None]
        outside.calls.append(call)
        self.running += 1
        outside.peak[self._worker] = max(outside.peak[self._worker], self.running)
        scripted = script[min(len(before), len(script) - 1)]
        try:
            await trio.sleep(scripted.after)
            call.outcome = scripted.outcome
        finally:
            self.running -= 1
            call.ended = trio.current_time()
        if isinstance(scripted.outcome, Exception):
            raise scripted.outcome
        return scripted.outcome

    async def post(self, callback: Callback) -> int | str:
        """See :meth:`worker.ports.Callbacks.post`."""
        answers = self._outside.answers[callback.url]
        before = sum(post.callback.url == callback.url for post in self._outside.posts)
        post = Post(callback, self._worker, trio.current_time())
        self._outside.posts.append(post)
        scripted = answers[min(before, len(answers) - 1)]
        try:
            await trio.sleep(scripted.after)
            post.result = scripted.result
        finally:
            post.ended = trio.current_time()
        if isinstance(scripted.result, Exception):
            raise scripted.result
        return scripted.result
