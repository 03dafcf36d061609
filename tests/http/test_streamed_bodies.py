"""Bodies that are streamed to a function: sent again after a redirect, and what their loss is to an attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.functions import Functions, Reply
from tests.http.invocations import invocation
from worker.config import load
from worker.http.functions import open_functions
from worker.model import Malformed, NotSent, Responded, StoredBody
from worker.ports import BodyLostError, BrokerUnavailableError

STORED = StoredBody("0" * 42, 300_001, "SHA-256=" + "A" * 43 + "=")
PARTS = [b"a" * 100_000, b"b" * 200_000, b"c"]


class FakeBodies:
    """One body in a few parts, whose reading may fail after the first part."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.reads, self.open = failure, 0, 0

    @asynccontextmanager
    async def read(self, _: StoredBody) -> AsyncIterator[AsyncIterator[bytes]]:
        self.reads, self.open = self.reads + 1, self.open + 1
        try:
            yield self._parts()
        finally:
            self.open -= 1

    async def _parts(self) -> AsyncIterator[bytes]:
        for number, part in enumerate(PARTS):
            if number and self.failure:
                raise self.failure
            yield part


async def test_invoke_streamed_body_is_sent_whole_also_after_a_redirect() -> None:
    """The body is read again for the clean path of a redirect, and both requests have all of it."""
    with Functions() as functions:
        functions.answer("f", Reply(307, headers=(("Location", "/function/f/x/"),)), Reply(200))
        bodies = FakeBodies()
        async with open_functions(load({"gateway_url": functions.url}).settings, bodies) as client:
            sent = invocation(
                method="POST",
                target=b"/function/f//x/",
                body=b"",
                stored_body=STORED,
            )
            outcome = await client.invoke(sent)
        assert isinstance(outcome, Responded)
        assert (outcome.status, outcome.redirected) == (200, True)
        assert [request.body for request in functions.requests] == [b"".join(PARTS)] * 2
        assert (bodies.reads, bodies.open) == (2, 0)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (BodyLostError("gone"), Malformed("gone")),
        (BrokerUnavailableError("away"), NotSent("the body cannot be read: away")),
    ],
)
async def test_invoke_body_that_breaks_off_is_no_whole_request(failure: Exception, expected: object) -> None:
    """A lost body is final, a broker that does not answer is no attempt; the function gets no whole request."""
    with Functions() as functions:
        bodies = FakeBodies(failure)
        async with open_functions(load({"gateway_url": functions.url}).settings, bodies) as client:
            sent = invocation(stored_body=STORED, body=b"")
            assert await client.invoke(sent) == expected
        assert [request for request in functions.requests if request.reply] == []
        assert bodies.open == 0
