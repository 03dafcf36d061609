"""The server's answers to pull requests: limits are kept, other refusals are repeated and reported."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg

from worker.model import Delivery
from worker.nats.credit import DEFAULT_BATCH, EXPIRES, HEARTBEAT, SILENCE, Credit, PullInbox
from worker.nats.pull import Pull


class Owner:
    """A stand-in for the pull consumer, which records the requests, failures and deliveries of one pull."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.delivered: list[str] = []
        self.lost = 0
        client = SimpleNamespace(
            new_inbox=lambda: "inbox",
            subscribe=self._subscribe,
            publish=self._publish,
            _send_unsubscribe=self._subscribe,
        )
        self.connection: Any = SimpleNamespace(client=client, report_failure=lambda _, why: self.failures.append(why))
        self.outbox: Any = SimpleNamespace(epoch="")
        self.old_inboxes: Any = []

    async def _subscribe(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(subject="inbox", _id=1)

    async def _publish(self, _: str, payload: bytes, __: str) -> None:
        self.requests.append(json.loads(payload))

    def may_request(self, pull: Pull) -> None: ...

    def notify(self, notice: object) -> None: ...

    def deliver(self, _: Pull, __: str, delivery: Delivery) -> None:
        self.delivered.append(delivery.subject)

    def on_lost(self, _: Pull) -> None:
        self.lost += 1

    def on_stripped(self, _: Pull, __: str, delivery: Delivery) -> None:
        self.delivered.append(f"stripped {delivery.subject}")


async def bound_pull(credit: int = 500) -> tuple[Owner, Pull]:
    """Return a pull with credit, and its owner."""
    owner = Owner()
    pull = Pull("", Credit(), owner)
    pull.credit.add(credit)
    pull.bind("$JS.API.CONSUMER.MSG.NEXT.s.c")
    return owner, pull


def answer(pull: Pull, inbox: PullInbox, status: str, description: str = "") -> None:
    """Let the server answer a request with a status."""
    headers = {"Status": status, "Description": description}
    pull._on_message(inbox, Msg(Client(), "inbox", "", b"", headers))


def open_inboxes(pull: Pull) -> list[PullInbox]:
    return [inbox for inbox in pull.credit.inboxes if inbox.outstanding]


async def test_pull_above_max_batch_is_sent_again_within_it() -> None:
    """A request above max_batch is sent again at once, for no more messages, and is no failure."""
    owner, pull = await bound_pull()
    await pull.send_requests(trio.current_time())
    assert [request["batch"] for request in owner.requests] == [DEFAULT_BATCH, DEFAULT_BATCH]
    for inbox in open_inboxes(pull):
        answer(pull, inbox, "409", "Exceeded MaxRequestBatch of 10")
    owner.requests.clear()
    assert await pull.send_requests(trio.current_time())
    assert [request["batch"] for request in owner.requests] == [10] * 4
    assert (owner.failures, pull.refusal) == ([], None)


async def test_pull_above_max_expires_is_sent_again_within_it() -> None:
    """A request that is open for too long is sent again for less, with a heartbeat that fits."""
    owner, pull = await bound_pull(50)
    await pull.send_requests(trio.current_time())
    answer(pull, open_inboxes(pull)[0], "409", "Exceeded MaxRequestExpires of 1.5s")
    await pull.send_requests(trio.current_time())
    assert [request["expires"] for request in owner.requests] == [30 * 10**9, 1_500_000_000]
    assert [request["idle_heartbeat"] for request in owner.requests] == [5 * 10**9, 750_000_000]
    assert owner.failures == []


async def test_pull_limits_of_a_consumer_are_replaced() -> None:
    """The limits of a consumer are kept before a request exceeds them, and are forgotten where they are raised."""
    owner, pull = await bound_pull(1000)
    pull.keep_limits(10, 2.0, 1)
    await pull.send_requests(trio.current_time())
    assert [(each["batch"], each["expires"]) for each in owner.requests] == [(10, 2 * 10**9)]
    pull.keep_limits(0, 0.0, 0)
    await pull.send_requests(trio.current_time())
    assert (
        owner.requests[1:]
        == [{"batch": DEFAULT_BATCH, "expires": EXPIRES * 1e9, "idle_heartbeat": HEARTBEAT * 1e9}] * 3
    )


@pytest.mark.parametrize(
    ("status", "description", "reported"),
    [
        ("409", "Server Shutdown", False),
        ("409", "Leadership Change", False),
        ("409", "Batch Completed", False),
        ("409", "Exceeded MaxWaiting", True),
        ("409", "Consumer is push based", True),
        ("409", "Exceeded MaxRequestMaxBytes of 1", True),
        ("409", "Exceeded MaxRequestBatch of 100000", True),
        ("409", "Exceeded MaxRequestExpires of long", True),
        ("409", "a text of a later version", True),
        ("400", "Bad Request - Priority Group missing", True),
    ],
)
async def test_pull_refused_is_repeated_after_a_wait(status: str, description: str, reported: bool) -> None:
    """A refused request is sent again after a wait; it counts as refused until one is accepted, whatever its text."""
    owner, pull = await bound_pull(50)
    now = trio.current_time()
    await pull.send_requests(now)
    answer(pull, open_inboxes(pull)[0], status, description)
    assert bool(owner.failures) == reported
    assert pull.refusal
    assert pull.refusal[1].startswith(f"{status} {description}")
    assert not await pull.send_requests(now)
    assert await pull.send_requests(now + 1.0)
    assert len(owner.requests) == 2
    answer(pull, open_inboxes(pull)[0], "100", "Idle Heartbeat")
    assert pull.refusal is None


async def test_pull_max_waiting_beside_an_open_request_is_no_refusal() -> None:
    """Where one request is open, another one above max_waiting only waits."""
    owner, pull = await bound_pull()
    await pull.send_requests(trio.current_time())
    answer(pull, open_inboxes(pull)[1], "409", "Exceeded MaxWaiting")
    assert (owner.failures, pull.refusal) == ([], None)
    assert not await pull.send_requests(trio.current_time())


async def test_pull_without_any_answer_is_refused() -> None:
    """Requests without a sign of life count as refused: a server drops those above max_waiting silently."""
    _, pull = await bound_pull(50)
    now = trio.current_time()
    await pull.send_requests(now)
    await pull.end_silent_requests(now + SILENCE)
    assert pull.refusal is None
    await pull.end_silent_requests(now + SILENCE + 0.1)
    assert pull.refusal
    assert "max_waiting" in pull.refusal[1]


async def test_pull_held_sends_no_request() -> None:
    """While its consumer cannot be used, a pull keeps its credit, and sends no request."""
    owner, pull = await bound_pull(50)
    pull.held = True
    assert await pull.send_requests(trio.current_time())
    assert (owner.requests, pull.credit.unrequested) == ([], 50)


@pytest.mark.parametrize(
    ("data", "headers", "delivered"),
    [
        (b"", {"Nats-Msg-Size": "5"}, "stripped q"),
        (b"", {"Nats-Msg-Size": "0"}, "q"),
        (b"", None, "q"),
        (b"x", {"Nats-Msg-Size": "5"}, "q"),
    ],
)
async def test_pull_delivery_without_its_payload_is_recognized(
    data: bytes, headers: dict[str, str] | None, delivered: str
) -> None:
    """A delivery is without its payload where it has none, and the server names a size."""
    owner, pull = await bound_pull(1)
    await pull.send_requests(trio.current_time())
    message = Msg(Client(), "q", "$JS.ACK.s.c.1.1.1.1.0", data, headers)
    pull._on_message(open_inboxes(pull)[0], message)
    assert owner.delivered == [delivered]


async def test_pull_short_max_expires_is_not_repeated_all_the_time() -> None:
    """Where requests may be open for some milliseconds only, there is a wait after each."""
    _, pull = await bound_pull(50)
    pull.keep_limits(0, 0.01, 0)
    now = trio.current_time()
    await pull.send_requests(now)
    answer(pull, open_inboxes(pull)[0], "408", "Request Timeout")
    assert not await pull.send_requests(now)
    assert await pull.send_requests(now + 1.0)


async def test_pull_connection_lost_while_subscribing_sends_nothing() -> None:
    """Credit that returned with the lost connection is requested once, not by a request of before, too."""
    owner, pull = await bound_pull(50)
    subscribe = owner.connection.client.subscribe

    async def lose_connection(*_: object, **__: object) -> Any:
        if not pull.credit.unrequested:
            pull.leave_inboxes(0.0)
            owner.connection.client.subscribe = subscribe
        return await subscribe()

    owner.connection.client.subscribe = lose_connection
    await pull.send_requests(trio.current_time())
    assert sum(request["batch"] for request in owner.requests) == pull.credit.outstanding == 50
