"""The identity of a call, which is its id and its function, and the repeats of its request (contract, section 9).

The nats-server, the producers and the sockets are real.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from tests.cluster import NatsCluster
from tests.gateway import Gateway, Response, gateway_on
from tests.servers import NatsServer, run_program, wait_until

_numbers = count(1)
REPLAYED = "Idempotent-Replayed"
CLAIMS = "faas-request-call-ids"


@pytest.fixture(scope="module")
def gateways(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Gateway]]:
    """Start two producers for one queue."""
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    with gateway_on(nats, one) as first, gateway_on(nats, other) as second:
        yield [first, second]


@pytest.fixture
def call_id() -> str:
    """Return a call id that no other test uses."""
    return f"call-{next(_numbers)}"


def bodies(nats: NatsServer, call_id: str) -> list[tuple[str, str]]:
    """Return subject and body of each message with a call id."""
    found = [each for each in nats.messages() if each.json["Header"]["X-Call-Id"] == [call_id]]
    return [(each.subject, each.json.get("Body", "")) for each in found]


def finish_all(nats: NatsServer, stream: str = "faas-request") -> None:
    """Delete all messages, as workers do that have finished them."""
    nats.api(f"STREAM.PURGE.{stream}")


def submit(nats: NatsServer, tmp_path: Path, *arguments: str, **settings: object) -> tuple[int, str, str]:
    """Run ``queue-worker submit``; return exit code, standard output and standard error."""
    return run_program(
        "worker.cli", "submit", *arguments, tmp_path=tmp_path, settings={"nats_port": nats.port} | settings
    )


def test_call_id_for_several_functions_queues_each(nats: NatsServer, gateways: list[Gateway], call_id: str) -> None:
    """One call id, passed on through a chain of functions, is one call of each of them."""
    for function in ("first", "second", "third", "first.other"):
        answer = gateways[0].queue(function, b"x", X_Call_Id=call_id)
        assert (answer.status, answer.headers[REPLAYED]) == (202, None)
    assert [subject for subject, _ in bodies(nats, call_id)] == [
        f"faas-request.0.{name}"
        for name in ("first.openfaas-fn", "second.openfaas-fn", "third.openfaas-fn", "first.other")
    ]


@pytest.mark.parametrize("finished", [False, True], ids=["waiting", "finished"])
def test_call_repeated_is_queued_once_and_marked(
    nats: NatsServer, gateways: list[Gateway], call_id: str, finished: bool
) -> None:
    """A repeat at any producer gets 202, the first start time and a mark, also after the invocation has ended."""
    first = gateways[0].queue("echo/p?q", b"x", X_Call_Id=call_id)
    if finished:
        finish_all(nats)
    repeats = [gateway.queue("echo/p?q", b"x", X_Call_Id=call_id) for gateway in gateways]
    assert (first.status, first.headers[REPLAYED]) == (202, None)
    assert [(each.status, each.headers[REPLAYED]) for each in repeats] == [(202, "true")] * 2
    assert {each.headers["X-Start-Time"] for each in repeats} == {first.headers["X-Start-Time"]}
    assert {each.headers["X-Call-Id"] for each in repeats} == {call_id}
    assert len(bodies(nats, call_id)) == (0 if finished else 1)


@pytest.mark.parametrize("finished", [False, True], ids=["waiting", "finished"])
@pytest.mark.parametrize("other", [("echo/p?q", b"y"), ("echo/p?r", b"x"), ("echo/o?q", b"x"), ("echo", b"")])
def test_call_id_of_another_request_answers_422(
    nats: NatsServer, gateways: list[Gateway], call_id: str, finished: bool, other: tuple[str, bytes]
) -> None:
    """Another body, query or path under the same call id and function is rejected, at each producer."""
    gateways[0].queue("echo/p?q", b"x", X_Call_Id=call_id)
    if finished:
        finish_all(nats)
    for gateway in gateways:
        answer = gateway.queue(*other, X_Call_Id=call_id)
        assert (answer.status, answer.headers["X-Call-Id"]) == (422, call_id)
        assert f"the call id {call_id} was used for another request to echo.openfaas-fn" in answer.text
    assert len(bodies(nats, call_id)) == (0 if finished else 1)


def test_call_id_made_by_the_producer_is_compared_too(nats: NatsServer, gateways: list[Gateway]) -> None:
    """The id that a producer made for one request is rejected for another, and marks a repeat."""
    made = gateways[0].queue("echo", b"x").headers["X-Call-Id"]
    finish_all(nats)
    repeat, other = (gateways[1].queue("echo", body, X_Call_Id=made) for body in (b"x", b"y"))
    assert (repeat.status, repeat.headers[REPLAYED], other.status) == (202, "true", 422)


def test_function_named_with_its_namespace_is_the_same(nats: NatsServer, gateways: list[Gateway], call_id: str) -> None:
    """With and without the default namespace, a function's name means the same call."""
    gateways[0].queue("echo", b"x", X_Call_Id=call_id)
    assert gateways[1].queue("echo.openfaas-fn", b"x", X_Call_Id=call_id).headers[REPLAYED] == "true"
    assert gateways[1].queue("echo.openfaas-fn", b"y", X_Call_Id=call_id).status == 422
    assert len(bodies(nats, call_id)) == 1


def test_headers_and_callback_are_no_part_of_the_request(
    nats: NatsServer, gateways: list[Gateway], call_id: str
) -> None:
    """A repeat with other headers, as proxies and tracing add them, is a repeat."""
    gateways[0].queue("echo", b"x", X_Call_Id=call_id, Traceparent="1")
    repeat = gateways[1].queue("echo", b"x", X_Call_Id=call_id, Traceparent="2", X_Callback_Url="http://h/")
    assert repeat.headers[REPLAYED] == "true"
    assert len(bodies(nats, call_id)) == 1


@pytest.mark.parametrize("given", ["~" * 256, "a b", "../*/>", "%2F$JS.API", 'a"\\{}', "a.b.>"], ids=str)
def test_call_id_with_odd_characters_is_one_like_any_other(gateways: list[Gateway], given: str) -> None:
    """Any printable call id is compared as it is: neither NATS's wildcards nor quotes mean anything."""
    answers = [gateways[0].queue("odd", body, X_Call_Id=given) for body in (b"x", b"x", b"y")]
    assert [(each.status, each.headers[REPLAYED]) for each in answers] == [(202, None), (202, "true"), (422, None)]
    assert gateways[1].queue("odd", b"z", X_Call_Id=given[:-1] + "!").headers[REPLAYED] is None


def test_calls_at_once_of_two_producers_count_one_request(
    nats: NatsServer, gateways: list[Gateway], call_id: str
) -> None:
    """Of two requests that race under one call id, at two producers, one is queued once; the other one gets 422."""
    race(gateways, call_id)
    assert len(bodies(nats, call_id)) == 1


def race(gateways: list[Gateway], call_id: str) -> None:
    """Send two requests under one call id many times at once, and check that one of them is queued once."""

    def post(number: int) -> tuple[int, Response]:
        return number % 2, gateways[number // 2 % 2].queue("echo", b"%d" % (number % 2), X_Call_Id=call_id)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(post, range(32)))
    winners = {which for which, answer in answers if answer.status == 202}
    assert len(winners) == 1, [(which, answer.status, answer.text) for which, answer in answers]
    (winner,) = winners
    assert {answer.status for which, answer in answers if which != winner} == {422}
    assert [answer.headers[REPLAYED] for which, answer in answers if which == winner].count(None) == 1


def test_calls_at_once_with_three_replicas_count_one_request(tmp_path: Path) -> None:
    """On a cluster too, where a message id may be in the middle of being stored, no race gets 503 or a second call."""
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with NatsCluster(tmp_path) as cluster:
        cluster.make_stream()
        first, second, _ = cluster.nodes.values()
        with (
            gateway_on(first, tmp_path / "one", nats_stream_replicas=3) as one,
            gateway_on(second, tmp_path / "other", nats_stream_replicas=3) as other,
        ):
            for number in range(5):
                race([one, other], f"race-{number}")
                assert len(cluster.on_any_node(lambda node: node.messages())) == number + 1
        assert cluster.api(f"STREAM.INFO.{CLAIMS}")["config"]["num_replicas"] == 3


def test_call_after_the_duplicate_window_is_another_call(tmp_path: Path) -> None:
    """A call id is compared for as long as the stream recognizes it, by the stream's own window."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream(duplicate_window=500_000_000)
        with gateway_on(nats, tmp_path) as gateway:
            assert gateway.queue("echo", b"x", X_Call_Id="one").status == 202
            assert gateway.queue("echo", b"y", X_Call_Id="one").status == 422

            def again() -> Response | None:
                answer = gateway.queue("echo", b"y", X_Call_Id="one")
                return answer if answer.status == 202 else None

            assert wait_until(again, "the window to end").headers[REPLAYED] is None
            assert nats.api(f"STREAM.INFO.{CLAIMS}")["config"]["duplicate_window"] == 500_000_000


def test_claims_follow_a_changed_window_of_the_stream(own_nats: NatsServer, tmp_path: Path) -> None:
    """A producer that connects gives the claims the window that the queue's stream has now."""
    with gateway_on(own_nats, tmp_path) as gateway:
        gateway.queue("echo", X_Call_Id="one")
    config = own_nats.api("STREAM.INFO.faas-request")["config"]
    own_nats.api("STREAM.UPDATE.faas-request", **(config | {"duplicate_window": 300_000_000_000}))
    with gateway_on(own_nats, tmp_path) as gateway:
        assert gateway.queue("echo", b"other", X_Call_Id="one").status == 422
    assert own_nats.api(f"STREAM.INFO.{CLAIMS}")["config"]["duplicate_window"] == 300_000_000_000


def test_call_id_after_a_restart_of_nats_is_still_compared(own_nats: NatsServer, tmp_path: Path) -> None:
    """Claims outlive the server: another request is rejected, and a call that still waits is not queued again."""
    with gateway_on(own_nats, tmp_path) as gateway:
        gateway.queue("echo", b"x", X_Call_Id="one")
        own_nats.kill()
        own_nats.start()
        wait_until(gateway.ready, "the gateway to be ready again")
        assert gateway.queue("echo", b"y", X_Call_Id="one").status == 422
        assert gateway.queue("echo", b"x", X_Call_Id="one").headers[REPLAYED] == "true"


def test_call_unconfirmed_and_sent_again_is_the_same_call(own_nats: NatsServer, tmp_path: Path) -> None:
    """A call that got 503, because the server did not confirm it, is sent again without a false 422, and runs once."""
    with gateway_on(own_nats, tmp_path) as gateway:
        assert gateway.queue("other").status == 202
        own_nats.pause()
        unconfirmed = gateway.queue("echo", b"x")
        own_nats.resume()
        assert unconfirmed.status == 503
        again = wait_until(lambda: _confirmed(gateway, unconfirmed.headers["X-Call-Id"]), "the confirmation")
        assert again.headers["X-Call-Id"] == unconfirmed.headers["X-Call-Id"]
        assert len(bodies(own_nats, again.headers["X-Call-Id"])) == 1


def _confirmed(gateway: Gateway, call_id: str) -> Response | None:
    answer = gateway.queue("echo", b"x", X_Call_Id=call_id)
    assert answer.status in (202, 503)
    return answer if answer.status == 202 else None


def test_claims_refused_are_reported_and_drop_nothing(tmp_path: Path) -> None:
    """Where JetStream refuses the stream of claims, a log line reports it, and another request is another call."""
    config = (
        "jetstream { limits: {} }\naccounts { a { jetstream: { max_streams: 1 }, users: [{user: u, password: p}] } }"
    )
    with NatsServer(tmp_path, config=config, connect={"user": "u", "pass": "p"}) as nats:
        nats.make_stream()
        with gateway_on(nats, tmp_path, nats_user="u", nats_password="p") as gateway:
            answers = [gateway.queue("echo", body, X_Call_Id="one") for body in (b"x", b"y", b"x")]
            assert [(each.status, each.headers[REPLAYED]) for each in answers] == [
                (202, None),
                (202, None),
                (202, "true"),
            ]
            assert re.search(
                r"Trouble with NATS.*comparing requests with the same call id.*maximum number of streams",
                gateway.output,
            )


def test_claims_without_permission_are_reported_and_drop_nothing(tmp_path: Path) -> None:
    """Where the producer may publish to the queue only, calls are still queued, and a log line names the permission."""
    config = """authorization { users: [
        { user: admin, password: p }
        { user: u, password: p, permissions: { publish: ["faas-request.>"], subscribe: ["_INBOX.>"] } }
    ] }"""
    with NatsServer(tmp_path, config=config, connect={"user": "admin", "pass": "p"}) as nats:
        nats.make_stream()
        with gateway_on(nats, tmp_path, nats_user="u", nats_password="p") as gateway:
            answers = [gateway.queue("echo", body, X_Call_Id="one") for body in (b"x", b"y", b"x")]
            assert [(each.status, each.headers[REPLAYED]) for each in answers] == [
                (202, None),
                (202, None),
                (202, "true"),
            ]
            assert re.search(r"Trouble with NATS.*comparing requests.*[Pp]ermissions [Vv]iolation", gateway.output)


def test_stream_of_openfaas_is_used(own_nats: NatsServer, tmp_path: Path) -> None:
    """Producer and submit use the stream OF_<queue> of OpenFaaS's worker, as this worker does, and share its claims."""
    own_nats.make_stream("OF_slow", "slow")
    with gateway_on(own_nats, tmp_path, nats_stream="slow") as gateway:
        assert gateway.queue("echo", b"x", X_Call_Id="one").status == 202
        assert "OF_slow has its subjects; it is used" in gateway.output
        code, out, _ = submit(own_nats, tmp_path, "echo", "--data", "y", "--call-id", "one", nats_stream="OF_slow")
        assert (code, out) == (5, "")
        assert submit(own_nats, tmp_path, "echo", "--data", "y", nats_stream="slow")[0] == 0
    assert [message.subject for message in own_nats.messages("OF_slow")] == ["slow.0.echo.openfaas-fn"] * 2


# submit.


def test_submit_with_a_repeated_call_id_queues_once_and_exits_0(
    nats: NatsServer, tmp_path: Path, gateways: list[Gateway], call_id: str
) -> None:
    """A call that producer or submit have queued before is queued once, which submit reports."""
    assert gateways[0].queue("echo/p?q", b"x", X_Call_Id=call_id).status == 202
    arguments = ("echo", "--path", "p", "--query", "q", "--data", "x", "--call-id", call_id)
    code, out, errors = submit(nats, tmp_path, *arguments)
    assert (code, out) == (0, f"{call_id}\n")
    assert f"had call id {call_id} already" in errors
    assert len(bodies(nats, call_id)) == 1


def test_submit_with_the_call_id_of_another_request_exits_5(nats: NatsServer, tmp_path: Path, call_id: str) -> None:
    """Another request under the same id is refused in one line, also after the first has left the queue."""
    assert submit(nats, tmp_path, "echo", "--data", "x", "--call-id", call_id) == (0, f"{call_id}\n", "")
    finish_all(nats)
    code, out, errors = submit(nats, tmp_path, "echo", "--data", "x", "--call-id", call_id, "--method", "PUT")
    assert (code, out, errors.count("\n")) == (5, "", 1)
    assert f"the call id {call_id} was used for another request to echo.openfaas-fn" in errors
    assert submit(nats, tmp_path, "other", "--data", "y", "--call-id", call_id)[0] == 0
