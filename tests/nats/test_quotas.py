"""Caps and rates are kept over several workers, by tokens on a real nats-server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.nats.tokens import LABEL, Replica, Work, replicas
from tests.servers import NatsServer, until
from worker.heartbeat import Lease
from worker.model import Quota, Rate
from worker.policy.quota import CAP, RATE, token_flow, token_number

CAPS, RATES = token_flow(CAP, LABEL), token_flow(RATE, LABEL)


async def agreed(workers: list[Replica], quota: Quota) -> None:
    """Wait until all know it."""
    await until(lambda: all(each.quotas.agreed(LABEL) == quota for each in workers), "all to agree")


async def test_quotas_cap_is_kept_over_all_workers(tmp_path: Path) -> None:
    """Three workers that each could run five at once run five together, never more, and all have their turn."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            work = Work(nursery, wish=5, hold=0.002)
            async with replicas(server, 3, None, changed=work.drive) as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
                await until(lambda: len(work.starts) >= 100, "a hundred by those that were first")
                for each in workers:
                    work.wish = 2  # now none can have it all
                    work.drive(each)
                await until(lambda: min(map(work.of, workers)) >= 100, "each to have its turn")
                nursery.cancel_scope.cancel()
        assert work.most == 5
        assert server.state("faas-request-quotas")["messages"] == 5


async def test_quotas_token_is_kept_while_an_invocation_runs(tmp_path: Path) -> None:
    """However much longer than the ack wait: its lease is extended, as a message's is."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            work = Work(nursery, wish=2, hold=3.5)
            async with replicas(server, 2, None, ack_wait="1s", changed=work.drive) as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=2), 1)
                await until(lambda: len(work.starts) == 4, "two invocations, and two after them")
                nursery.cancel_scope.cancel()
        assert work.most == 2


async def test_quotas_tokens_of_a_dead_worker_are_redelivered(tmp_path: Path) -> None:
    """Until then the others have what it left them, then all; at no time do more run."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            work = Work(nursery, wish=3, hold=60.0)  # what the first one runs does not end
            async with replicas(server, 3, None, ack_wait="2s") as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
                await agreed(workers, Quota(max_inflight=5))
                await started(work, workers[0], 3)
                work.wish, work.hold = 5, 0.01
                for each in workers[1:]:
                    nursery.start_soon(drive, work, each)
                await until(lambda: len(work.starts) > 100, "the others to use the rest")
                assert work.most == 5
                work.died(workers[0])
                work.most, before = 0, len(work.starts)
                await until(lambda: work.most == 5, "the others to have all")
                await until(lambda: len(work.starts) > before + 200, "them to go on")
                assert work.most == 5
                nursery.cancel_scope.cancel()


async def drive(work: Work, worker: Replica) -> None:
    """Start what may be started, again and again."""
    while True:
        work.drive(worker)
        await trio.sleep(0.01)


async def started(work: Work, worker: Replica, count: int) -> None:
    """Wait until it runs so many."""

    def running() -> bool:
        work.drive(worker)
        return work.running[worker] == count

    await until(running, f"{count} to run")


@pytest.mark.parametrize("lower", [2, None])
async def test_quotas_lowered_cap_is_reached_as_invocations_end(tmp_path: Path, lower: int | None) -> None:
    """No invocation is cancelled; surplus tokens leave the stream, when a worker receives them or gives them back."""
    with NatsServer(tmp_path) as server:
        held: list[tuple[Replica, Lease]] = []
        async with replicas(server, 2, lambda who, _, lease: held.append((who, lease))) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
            await agreed(workers, Quota(max_inflight=5))
            for each in workers:
                each.flows.add_credit(2, CAPS)
            await until(lambda: len(held) == 4, "four to be held")
            workers[1].quotas.propose(LABEL, Quota(max_inflight=lower), 2)
            await agreed(workers, Quota(max_inflight=lower))
            assert not any(lease.lost for _, lease in held)
            for who, lease in held:
                who.give(lease)
            held.clear()
            kept = {f"QUOTAS.faas-request.cap.{LABEL}.{number}" for number in range(lower or 0)}
            await until(lambda: subjects(server) <= kept | {token(4)}, "the rest to leave")
            assert subjects(server) >= kept


def token(number: int) -> str:
    return f"QUOTAS.faas-request.cap.{LABEL}.{number}"


def subjects(server: NatsServer) -> set[str]:
    """Return the subjects of all tokens."""
    return set(server.api("STREAM.INFO.faas-request-quotas", subjects_filter=">")["state"].get("subjects") or {})


async def test_quotas_raised_cap_counts_at_once(tmp_path: Path) -> None:
    """Who waits for a token gets one of the new ones."""
    with NatsServer(tmp_path) as server:
        held: list[Lease] = []
        async with replicas(server, 2, lambda _who, _token, lease: held.append(lease)) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=1), 1)
            await agreed(workers, Quota(max_inflight=1))
            for each in workers:
                each.flows.add_credit(3, CAPS)
            await until(lambda: len(held) == 1, "the only one")
            workers[1].quotas.propose(LABEL, Quota(max_inflight=6), 2)
            await until(lambda: len(held) == 6, "six")
            assert {token_number(lease.delivery.subject) for lease in held} == set(range(6))


async def test_quotas_newest_message_decides(tmp_path: Path) -> None:
    """Whichever worker sees which message first, all agree on the quota of the message that was stored last."""
    with NatsServer(tmp_path) as server:
        async with replicas(server, 3, lambda *_: None) as workers:
            for most, who in ((7, 2), (3, 0), (9, 1), (5, 0), (2, 1)):
                workers[who].quotas.propose(LABEL, Quota(max_inflight=most), most)
            await agreed(workers, Quota(max_inflight=9))
            workers[2].quotas.propose(LABEL, Quota(max_inflight=4), 8)
            workers[2].quotas.propose(LABEL, Quota(weight=3), 8)
            workers[2].quotas.propose("other.fn", Quota(max_inflight=1), 1)
            await until(lambda: all(each.quotas.agreed("other.fn") for each in workers), "something later")
            assert {each.told[LABEL].max_inflight for each in workers} == {9}


async def test_quotas_are_read_at_the_start(tmp_path: Path) -> None:
    """A worker that starts knows every function's limits before it asks for anything."""
    with NatsServer(tmp_path) as server:
        async with replicas(server, 1, lambda *_: None) as workers:
            workers[0].quotas.propose(LABEL, Quota(2, 5, Rate(10, 60.0)), 1)
            await agreed(workers, Quota(1, 5, Rate(10, 60.0)))
        async with replicas(server, 1, lambda *_: None) as workers:
            assert workers[0].quotas.agreed(LABEL) == Quota(1, 5, Rate(10, 60.0))


async def test_quotas_without_limits_store_nothing(tmp_path: Path) -> None:
    """Nothing is remembered of it, and no stream is made."""
    with NatsServer(tmp_path) as server:
        async with replicas(server, 1, lambda *_: None) as workers:
            workers[0].quotas.propose(LABEL, Quota(weight=7), 1)
            workers[0].quotas.propose("other.fn", Quota(max_inflight=1), 1)
            await until(lambda: workers[0].quotas.agreed("other.fn"), "the other to be agreed")
            assert workers[0].quotas.agreed(LABEL) is None
            assert server.state("faas-request-functions")["messages"] == 1


# Rates.


RATES_AND_TOKENS = pytest.mark.parametrize(("starts", "tokens"), [(20, 20), (100, 100), (250, 84)])


@RATES_AND_TOKENS
async def test_quotas_rate_is_kept_over_all_workers(tmp_path: Path, starts: int, tokens: int) -> None:
    """Three workers together start no more in any window than the rate allows."""
    assert await most_in_a_window(tmp_path, starts, tokens) <= starts


@pytest.mark.quiet
@RATES_AND_TOKENS
async def test_quotas_rate_is_used_up(tmp_path: Path, starts: int, tokens: int) -> None:
    """Where the workers always want to, they start as many in a window as the rate allows."""
    assert await most_in_a_window(tmp_path, starts, tokens) == starts


async def most_in_a_window(tmp_path: Path, starts: int, tokens: int) -> int:
    """Let three workers start all they can for five windows, and return the most starts in a window."""
    quota = Quota(rate=Rate(starts, 1.0))
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            work = Work(nursery, wish=starts, hold=0.0)
            async with replicas(server, 3, None) as workers:
                workers[0].quotas.propose(LABEL, quota, 1)
                await agreed(workers, quota)
                for each in workers:
                    nursery.start_soon(drive, work, each)
                await until(lambda: len(work.starts) >= 5 * starts, "five windows")
                nursery.cancel_scope.cancel()
        assert server.state("faas-request-quotas")["messages"] == tokens
        return work.most_in(1.0)


async def test_quotas_cap_and_rate_together_are_kept(tmp_path: Path) -> None:
    """Each is kept, and neither keeps the other from being used."""
    quota = Quota(max_inflight=3, rate=Rate(40, 1.0))
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            work = Work(nursery, wish=3, hold=0.01)
            async with replicas(server, 3, None) as workers:
                workers[0].quotas.propose(LABEL, quota, 1)
                await agreed(workers, quota)
                for each in workers:
                    nursery.start_soon(drive, work, each)
                await until(lambda: len(work.starts) >= 120, "three windows")
                nursery.cancel_scope.cancel()
        assert work.most == 3
        assert work.most_in(1.0) <= 40


async def test_quotas_unused_rate_token_is_available_at_once(tmp_path: Path) -> None:
    """Without a delay, it is delivered to a worker that wants it."""
    quota = Quota(rate=Rate(1, 3600.0))
    with NatsServer(tmp_path) as server:
        came: list[tuple[Replica, Lease]] = []
        async with replicas(server, 2, lambda who, _, lease: came.append((who, lease))) as workers:
            workers[0].quotas.propose(LABEL, quota, 1)
            await agreed(workers, quota)
            workers[0].flows.add_credit(1, RATES)
            await until(lambda: len(came) == 1, "the only one")
            workers[1].flows.add_credit(1, RATES)
            who, lease = came[0]
            who.give(lease)
            await until(lambda: len(came) == 2, "the other to have it")
            assert [who for who, _ in came] == workers


# What goes wrong.


def kill_and_start(server: NatsServer) -> None:
    """SIGKILL, and a new start on the same files."""
    server.kill()
    server.start()


@pytest.mark.parametrize("end", [NatsServer.restart, kill_and_start])
async def test_quotas_server_restart_keeps_tokens(tmp_path: Path, end: Callable[[NatsServer], object]) -> None:
    """Tokens that are held stay so, though others want them; all are in use again afterwards.

    A server that restarts counts the ack wait of what was only handed out from when it was stored, which is long ago.
    """
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            work = Work(nursery, wish=1, hold=0.01)
            async with replicas(server, 3, None, ack_wait="3s") as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
                await agreed(workers, Quota(max_inflight=5))
                await started(work, workers[0], 1)
                work.wish = 0
                await trio.sleep(3.5)  # longer than the ack wait
                work.wish, work.hold, work.most = 5, 4.0, 0
                await started(work, workers[1], 5)
                await trio.sleep(2.0)  # far longer than the server takes to write it down
                await trio.to_thread.run_sync(end, server)
                nursery.start_soon(drive, work, workers[2])
                before = len(work.starts)
                await until(lambda: len(work.starts) == before + 5, "the next five")
                nursery.cancel_scope.cancel()
        assert work.most == 5
        assert server.state("faas-request-quotas")["messages"] == 5


async def test_quotas_deleted_tokens_are_created_again(tmp_path: Path) -> None:
    """A worker that wants a token creates the stream and the tokens again."""
    with NatsServer(tmp_path) as server:
        came: list[Lease] = []
        async with replicas(server, 1, lambda _who, _token, lease: came.append(lease)) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=2), 1)
            await agreed(workers, Quota(max_inflight=2))
            workers[0].flows.add_credit(3, CAPS)
            await until(lambda: len(came) == 2, "both")
            server.api("STREAM.DELETE.faas-request-quotas")
            await until(lambda: len(came) == 3, "one of the new")


async def test_quotas_of_thousands_are_created_in_batches(tmp_path: Path) -> None:
    """A cap of thousands is made in batches, by all that want some at once."""
    with NatsServer(tmp_path) as server:
        came: list[int] = []
        async with replicas(server, 2, lambda _who, token, _lease: came.append(token_number(token.subject))) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=3000), 1)
            await agreed(workers, Quota(max_inflight=3000))
            for each in workers:
                each.flows.add_credit(2000, CAPS)
            await until(lambda: len(came) == 3000, "all")
            assert set(came) == set(range(3000))


async def test_quotas_refused_for_one_function_hold_up_no_other(tmp_path: Path) -> None:
    """A consumer that cannot be made keeps no other function from its tokens."""
    with NatsServer(tmp_path) as server:
        came: list[str] = []
        async with replicas(server, 1, lambda _who, token, _lease: came.append(token.flow)) as (worker,):
            server.api(
                "STREAM.CREATE.faas-request-quotas",
                name="faas-request-quotas",
                subjects=["QUOTAS.faas-request.>"],
                retention="workqueue",
                max_msgs_per_subject=1,
            )
            taken = {"durable_name": "x", "ack_policy": "explicit", "filter_subject": "QUOTAS.faas-request.cap.a.fn.*"}
            server.api("CONSUMER.CREATE.faas-request-quotas.x", stream_name="faas-request-quotas", config=taken)
            labels = ["a.fn", *(f"f{number}.fn" for number in range(20))]
            for label in labels:
                worker.quotas.propose(label, Quota(max_inflight=1), 1)
            await until(lambda: all(map(worker.quotas.agreed, labels)), "all to be agreed")
            for label in labels:
                worker.flows.add_credit(1, token_flow(CAP, label))
            await until(lambda: len(came) == 20, "the others to have theirs")
            assert token_flow(CAP, "a.fn") not in came
