"""The producer under more calls than it may queue, and without NATS: real processes, a real nats-server."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.functions import Functions
from tests.gateway import Gateway, Response, gateway_on
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, wait_until
from worker.dev.stack import free_port
from worker.policy.queue_counts import USABLE

CONFIRMED_WITHIN = 5.0
"""Seconds for JetStream's confirmation: :data:`worker.nats.connection._ANSWER_WITHIN`."""


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Start a server with the queue's stream."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


def put(nats: NatsServer, count: int, subject: str = "faas-request") -> None:
    """Store messages beside the gateway."""
    nats.publish_many((subject, b"{}", {}) for _ in range(count))


def burst(gateway: Gateway, count: int, function: str = "echo") -> Counter[int]:
    """Send calls from eight connections, and count the statuses."""
    with ThreadPoolExecutor(8) as pool:
        return Counter(answer.status for answer in pool.map(lambda _: gateway.queue(function), range(count)))


def api_requests(nats: NatsServer) -> int:
    """Return the number of requests to JetStream's API so far."""
    return int(nats.api("INFO")["api"]["total"])


def retry_after(answer: Response) -> int:
    """Return the seconds of Retry-After."""
    return int(answer.headers["Retry-After"])


# max_queued.


def test_post_to_a_full_queue_answers_429(nats: NatsServer, tmp_path: Path) -> None:
    """The first call already gets 429, with limit, count and time to retry, and nothing is stored."""
    put(nats, 20)
    with gateway_on(nats, tmp_path, max_queued=10) as gateway:
        answer = gateway.queue("echo", b"x")
        assert answer.status == 429
        assert "the queue faas-request has 20 messages, and may have 10 (max_queued)" in answer.text
        assert 1 <= retry_after(answer) <= 60
        assert burst(gateway, 30) == {429: 30}
        assert nats.state()["messages"] == 20
        assert gateway.output.count("calls get 429 until workers") == 1
        assert 'queue_worker_gateway_limited_total{limit="max_queued"} 31.0' in gateway.metrics()
        nats.api("STREAM.PURGE.faas-request", keep=9)
        wait_until(lambda: gateway.queue("echo").status == 202, "the queue to be taken for not full")


def test_burst_fills_the_queue_to_its_limit_exactly(nats: NatsServer, tmp_path: Path) -> None:
    """Of many calls at once, as many are stored as the queue may have, between two readings of the counts."""
    put(nats, 5)
    with gateway_on(nats, tmp_path, max_queued=25) as gateway:
        assert burst(gateway, 100) == {202: 20, 429: 80}
        assert nats.state()["messages"] == 25


def test_full_function_answers_429_while_others_are_queued(nats: NatsServer, tmp_path: Path) -> None:
    """The limit of a function counts its own messages, also those that the gateway found there."""
    put(nats, 3, "faas-request.0.busy.openfaas-fn")
    with gateway_on(nats, tmp_path, max_queued_per_function=3) as gateway:
        answer = gateway.queue("busy")
        assert (answer.status, "the function busy.openfaas-fn has 3 messages" in answer.text) == (429, True)
        assert burst(gateway, 20, "other") == {202: 3, 429: 17}
        assert burst(gateway, 20, "third") == {202: 3, 429: 17}
        assert nats.state()["messages"] == 9
        nats.api("STREAM.PURGE.faas-request", filter="faas-request.0.other.openfaas-fn")
        wait_until(lambda: gateway.queue("other").status == 202, "the function to be taken for not full")


def test_limit_counts_each_queue_by_itself(nats: NatsServer, tmp_path: Path) -> None:
    """A queue that an annotation selects has the limit for itself."""
    nats.make_stream("slow-fns")
    with Functions() as functions:
        functions.deploy("slow", queue="slow-fns")
        with gateway_on(nats, tmp_path, max_queued=3, gateway_url=functions.url) as gateway:
            assert burst(gateway, 10, "slow") == {202: 3, 429: 7}
            assert burst(gateway, 10, "fast") == {202: 3, 429: 7}
        assert (nats.state()["messages"], nats.state("slow-fns")["messages"]) == (3, 3)


def test_full_queue_is_answered_before_the_body(nats: NatsServer, tmp_path: Path) -> None:
    """A caller that asks first does not send its body to a full queue."""
    put(nats, 1)
    with gateway_on(nats, tmp_path, max_queued=1) as gateway, gateway.raw() as raw:
        raw.sendall(
            b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        )
        assert raw.recv(65_536).startswith(b"HTTP/1.1 429 ")


def test_slow_bodies_take_no_place_in_the_queue(nats: NatsServer, tmp_path: Path) -> None:
    """Calls whose body does not arrive leave the queue to others."""
    with gateway_on(nats, tmp_path, max_queued=3) as gateway:
        slow = [gateway.raw() for _ in range(10)]
        for each in slow:
            each.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx")
        assert burst(gateway, 5) == {202: 3, 429: 2}
        for each in slow:
            each.sendall(b"y")
            assert each.recv(65_536).startswith(b"HTTP/1.1 429 ")
            each.close()
        assert nats.state()["messages"] == 3


def test_bodies_that_end_after_the_last_reading_fill_the_queue_to_its_limit_exactly(
    nats: NatsServer, tmp_path: Path
) -> None:
    """Calls that hold their bodies back until no reading can be used are counted again before they are stored."""
    put(nats, 5)
    with gateway_on(nats, tmp_path, max_queued=10) as gateway:
        head = b"POST /async-function/echo HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\nx"
        calls = [gateway.raw() for _ in range(30)]
        for call in calls:
            call.sendall(head)
        time.sleep(USABLE + 1)
        for call in calls:
            call.sendall(b"y")
        statuses = Counter(call.recv(4096).split(b" ")[1] for call in calls)
        assert statuses == {b"202": 5, b"429": 25}
        assert nats.state()["messages"] == 10
        for call in calls:
            call.close()


def test_counts_are_read_a_few_times_a_second(nats: NatsServer, tmp_path: Path) -> None:
    """However many calls there are, the counts are read at most four times a second, and never without calls."""
    with gateway_on(nats, tmp_path, max_queued=1_000_000, max_queued_per_function=1_000_000) as gateway:
        gateway.queue("echo")
        before, began = api_requests(nats), time.monotonic()
        burst(gateway, 600)
        seconds = time.monotonic() - began
        assert api_requests(nats) - before <= 2 + 4 * seconds
        time.sleep(1)  # in which the last reading ends
        before = api_requests(nats)
        time.sleep(1)
        assert api_requests(nats) - before <= 1  # the request that counts them


def test_limits_off_request_no_counts(nats: NatsServer, tmp_path: Path) -> None:
    """Without limits, calls cause no request besides their publish."""
    with gateway_on(nats, tmp_path) as gateway:
        gateway.queue("echo")
        before = api_requests(nats)
        burst(gateway, 50)
        assert api_requests(nats) - before <= 1


# caller_rate.


def test_caller_above_its_rate_gets_429(nats: NatsServer, tmp_path: Path) -> None:
    """An address may send as many calls as the rate has; X-Forwarded-For does not make it another caller."""
    with gateway_on(nats, tmp_path, caller_rate="5/h") as gateway:
        answers = [gateway.queue("echo", X_Forwarded_For=f"203.0.113.{number}") for number in range(8)]
        assert [answer.status for answer in answers] == [202] * 5 + [429] * 3
        assert "more than 5/h calls of one address (caller_rate)" in answers[-1].text
        assert 600 < retry_after(answers[-1]) <= 720
        assert gateway.healthy()
        assert gateway.output.count("calls more often than it may") == 1


def test_caller_behind_a_trusted_proxy_has_its_own_rate(nats: NatsServer, tmp_path: Path) -> None:
    """With ``trusted_proxies`` the address that the proxy added counts, not what the caller has written before it."""
    with gateway_on(nats, tmp_path, caller_rate="2/h", trusted_proxies="127.0.0.0/8") as gateway:

        def statuses(*forwarded: str) -> list[int]:
            return [gateway.queue("echo", X_Forwarded_For=each).status for each in forwarded]

        assert statuses("203.0.113.1", "1.1.1.1, 203.0.113.1", "203.0.113.1") == [202, 202, 429]
        assert statuses("203.0.113.2", "2001:db8::1", "2001:db8::2", "2001:db8::3") == [202, 202, 202, 429]


# Without NATS.


def test_post_while_nats_is_killed_answers_503_at_once(nats: NatsServer, tmp_path: Path) -> None:
    """Calls get 503 with Retry-After, before their body is read; nothing is stored when the server is back."""
    with gateway_on(nats, tmp_path, max_queued=100) as gateway:
        assert gateway.queue("echo").status == 202
        nats.kill()
        wait_until(lambda: not gateway.ready(), "the gateway to be not ready")
        for _ in range(30):
            answer = gateway.queue("echo", b"x" * 1000)
            assert (answer.status, retry_after(answer), "not connected to NATS" in answer.text) == (503, 1, True)
        with gateway.raw() as raw:
            raw.sendall(
                b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
            )
            assert raw.recv(65_536).startswith(b"HTTP/1.1 503 ")
        # The first, and one at the end of each minute.
        assert 1 <= gateway.output.count("Not queued") < 10
        nats.start()
        wait_until(gateway.ready, "the gateway to be ready again")
        assert gateway.queue("echo").status == 202
        assert nats.state()["messages"] == 2


@pytest.mark.parametrize(
    "limits", [{}, {"max_queued": 100, "max_queued_per_function": 50}], ids=["unlimited", "limited"]
)
def test_post_while_nats_is_frozen_waits_once(nats: NatsServer, tmp_path: Path, limits: dict[str, int]) -> None:
    """The first call waits for its confirmation; then calls get 503 at once, and 202 when the server continues."""
    with gateway_on(nats, tmp_path, **limits) as gateway:
        assert gateway.queue("echo").status == 202
        nats.pause()
        began = time.monotonic()
        first = gateway.queue("echo")
        assert (first.status, "did not confirm within 5 s" in first.text) == (503, True)
        assert time.monotonic() - began < CONFIRMED_WITHIN + LAST_RESORT / 3
        began = time.monotonic()
        answers = [gateway.queue("echo", b"x" * 1000) for _ in range(20)]
        assert time.monotonic() - began < LAST_RESORT / 3  # 20 waits of five seconds would take longer
        assert {(answer.status, retry_after(answer)) for answer in answers} == {(503, 1)}
        wait_until(lambda: "NATS does not answer" in gateway.queue("echo").text, "the server to be found silent")
        nats.resume()
        wait_until(lambda: gateway.queue("echo").status == 202, "the server to be found again")


def test_stream_without_confirmations_is_noticed_once(tmp_path: Path) -> None:
    """If something else than a stream takes the messages, and confirms nothing, calls get 503 at once after the first.

    The server answers all the time, so calls are tried again after a while.
    """
    with NatsServer(tmp_path) as nats, gateway_on(nats, tmp_path) as gateway, _subscriber(nats):
        first = gateway.queue("echo")
        assert (first.status, "did not confirm within 5 s" in first.text) == (503, True)
        wait_until(lambda: "the stream of the queue" in gateway.queue("echo").text, "the stall to be noticed")
        nats.make_stream()
        wait_until(lambda: gateway.queue("echo").status == 202, "calls to be tried again")


def _subscriber(nats: NatsServer) -> socket.socket:
    """Subscribe to the queue's subjects, and answer nothing."""
    connection = socket.create_connection(("127.0.0.1", nats.port), timeout=LAST_RESORT)
    connection.sendall(b'CONNECT {"verbose":false}\r\nSUB faas-request.> 1\r\nPING\r\n')
    received = b""
    while b"PONG\r\n" not in received:
        received += connection.recv(65_536)
    return connection


def test_post_without_nats_requests_nothing_of_the_gateway(nats: NatsServer, tmp_path: Path) -> None:
    """While NATS is away, a call of a new function does not wait for the gateway before its 503."""
    with Functions() as functions, gateway_on(nats, tmp_path, gateway_url=functions.url) as gateway:
        assert gateway.queue("echo").status == 202
        nats.kill()
        wait_until(lambda: not gateway.ready(), "the gateway to be not ready")
        assert {gateway.queue(f"new-{number}").status for number in range(10)} == {503}
        assert [each.name for each in functions.look_ups] == ["system/echo"]


def test_gateway_without_nats_from_the_start_answers_503(tmp_path: Path) -> None:
    """A gateway that was never connected answers 503 at once, limits or not."""
    with Gateway(tmp_path=tmp_path, nats_port=free_port(), max_queued=5) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        answer = gateway.queue("echo")
        assert (answer.status, retry_after(answer)) == (503, 1)
