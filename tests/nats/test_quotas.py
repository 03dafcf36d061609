"""Caps and rates over several workers, kept by tokens on a real nats-server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.nats.tokens import LABEL, TokenWorker, Workload, token_workers
from tests.servers import NatsServer, until
from worker.heartbeat import Lease
from worker.model import Quota, Rate
from worker.policy.quota import CAP, RATE, token_flow, token_number

CAPS, RATES = token_flow(CAP, LABEL), token_flow(RATE, LABEL)


async def wait_agreed(workers: list[TokenWorker], quota: Quota) -> None:
    """Wait until all workers have received the quota."""
    await until(lambda: all(each.quotas.agreed(LABEL) == quota for each in workers), "all workers to receive the quota")


async def test_quotas_cap_is_kept_over_all_workers(tmp_path: Path) -> None:
    """Three workers that could run five invocations each run at most five together, and each worker gets tokens."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            load = Workload(nursery, demand=5, duration=0.002)
            async with token_workers(server, 3, None, changed=load.drive) as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
                await until(lambda: len(load.starts) >= 100, "a hundred starts by any worker")
                for each in workers:
                    load.demand = 2  # so that no worker can use the whole cap
                    load.drive(each)
                await until(lambda: min(map(load.starts_of, workers)) >= 100, "a hundred starts by each worker")
                nursery.cancel_scope.cancel()
        assert load.peak == 5
        assert server.state("faas-request-quotas")["messages"] == 5


async def test_quotas_token_is_kept_while_an_invocation_runs(tmp_path: Path) -> None:
    """A token's lease is extended while its invocation runs, also for much longer than the ack wait."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            load = Workload(nursery, demand=2, duration=3.5)
            async with token_workers(server, 2, None, ack_wait="1s", changed=load.drive) as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=2), 1)
                await until(lambda: len(load.starts) == 4, "two invocations, and two after them")
                nursery.cancel_scope.cancel()
        assert load.peak == 2


async def test_quotas_tokens_of_a_dead_worker_are_redelivered(tmp_path: Path) -> None:
    """The others use the rest of the cap, and after the ack wait all of it; the cap is never exceeded."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            load = Workload(nursery, demand=3, duration=60.0)  # invocations of the first worker do not end
            async with token_workers(server, 3, None, ack_wait="2s") as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
                await wait_agreed(workers, Quota(max_inflight=5))
                await wait_running(load, workers[0], 3)
                load.demand, load.duration = 5, 0.01
                for each in workers[1:]:
                    nursery.start_soon(start_repeatedly, load, each)
                await until(lambda: len(load.starts) > 100, "a hundred starts by the others")
                assert load.peak == 5
                load.kill(workers[0])
                load.peak, before = 0, len(load.starts)
                await until(lambda: load.peak == 5, "the others to use the whole cap")
                await until(lambda: len(load.starts) > before + 200, "two hundred more starts")
                assert load.peak == 5
                nursery.cancel_scope.cancel()


async def start_repeatedly(load: Workload, worker: TokenWorker) -> None:
    """Start as many invocations as tokens allow, repeatedly."""
    while True:
        load.drive(worker)
        await trio.sleep(0.01)


async def wait_running(load: Workload, worker: TokenWorker, count: int) -> None:
    """Wait until the worker runs *count* invocations."""

    def running() -> bool:
        load.drive(worker)
        return load.running[worker] == count

    await until(running, f"{count} running invocations")


@pytest.mark.parametrize("lower", [2, None])
async def test_quotas_lowered_cap_is_reached_as_invocations_end(tmp_path: Path, lower: int | None) -> None:
    """A lowered cap cancels no invocation; a surplus token is deleted when it is received or given back."""
    with NatsServer(tmp_path) as server:
        held: list[tuple[TokenWorker, Lease]] = []
        async with token_workers(server, 2, lambda worker, _, lease: held.append((worker, lease))) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
            await wait_agreed(workers, Quota(max_inflight=5))
            for each in workers:
                each.flows.add_credit(2, CAPS)
            await until(lambda: len(held) == 4, "four tokens")
            workers[1].quotas.propose(LABEL, Quota(max_inflight=lower), 2)
            await wait_agreed(workers, Quota(max_inflight=lower))
            assert not any(lease.lost for _, lease in held)
            for worker, lease in held:
                worker.give_back(lease)
            held.clear()
            kept = {f"QUOTAS.faas-request.cap.{LABEL}.{number}" for number in range(lower or 0)}
            await until(lambda: subjects(server) <= kept | {token(4)}, "the surplus tokens to be deleted")
            assert subjects(server) >= kept


def token(number: int) -> str:
    return f"QUOTAS.faas-request.cap.{LABEL}.{number}"


def subjects(server: NatsServer) -> set[str]:
    """Return the subjects of all tokens."""
    return set(server.api("STREAM.INFO.faas-request-quotas", subjects_filter=">")["state"].get("subjects") or {})


async def test_quotas_raised_cap_counts_at_once(tmp_path: Path) -> None:
    """A worker that has requested tokens receives the new ones at once."""
    with NatsServer(tmp_path) as server:
        held: list[Lease] = []
        async with token_workers(server, 2, lambda _worker, _token, lease: held.append(lease)) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=1), 1)
            await wait_agreed(workers, Quota(max_inflight=1))
            for each in workers:
                each.flows.add_credit(3, CAPS)
            await until(lambda: len(held) == 1, "the only token")
            workers[1].quotas.propose(LABEL, Quota(max_inflight=6), 2)
            await until(lambda: len(held) == 6, "six tokens")
            assert {token_number(lease.delivery.subject) for lease in held} == set(range(6))


async def test_quotas_newest_message_decides(tmp_path: Path) -> None:
    """In any order of proposals, all workers agree on the quota of the message that was stored last."""
    with NatsServer(tmp_path) as server:
        async with token_workers(server, 3, lambda *_: None) as workers:
            for most, index in ((7, 2), (3, 0), (9, 1), (5, 0), (2, 1)):
                workers[index].quotas.propose(LABEL, Quota(max_inflight=most), most)
            await wait_agreed(workers, Quota(max_inflight=9))
            workers[2].quotas.propose(LABEL, Quota(max_inflight=4), 8)
            workers[2].quotas.propose(LABEL, Quota(weight=3), 8)
            workers[2].quotas.propose("other.fn", Quota(max_inflight=1), 1)
            await until(lambda: all(each.quotas.agreed("other.fn") for each in workers), "a later quota")
            assert {each.received_quotas[LABEL].max_inflight for each in workers} == {9}


async def test_quotas_are_read_at_the_start(tmp_path: Path) -> None:
    """A worker that starts has read every function's quota when the queue is open."""
    with NatsServer(tmp_path) as server:
        async with token_workers(server, 1, lambda *_: None) as workers:
            workers[0].quotas.propose(LABEL, Quota(2, 5, Rate(10, 60.0)), 1)
            await wait_agreed(workers, Quota(1, 5, Rate(10, 60.0)))
        async with token_workers(server, 1, lambda *_: None) as workers:
            assert workers[0].quotas.agreed(LABEL) == Quota(1, 5, Rate(10, 60.0))


async def test_quotas_without_limits_store_nothing(tmp_path: Path) -> None:
    """A quota without limits is not stored, and no token stream is created for it."""
    with NatsServer(tmp_path) as server:
        async with token_workers(server, 1, lambda *_: None) as workers:
            workers[0].quotas.propose(LABEL, Quota(weight=7), 1)
            workers[0].quotas.propose("other.fn", Quota(max_inflight=1), 1)
            await until(lambda: workers[0].quotas.agreed("other.fn"), "the other quota")
            assert workers[0].quotas.agreed(LABEL) is None
            assert server.state("faas-request-functions")["messages"] == 1


# Rates.


RATES_AND_TOKENS = pytest.mark.parametrize(("starts", "tokens"), [(20, 20), (100, 100), (250, 84)])


@RATES_AND_TOKENS
async def test_quotas_rate_is_kept_over_all_workers(tmp_path: Path, starts: int, tokens: int) -> None:
    """Three workers together start no more in any window than the rate allows."""
    assert await peak_in_a_window(tmp_path, starts, tokens) <= starts


@pytest.mark.quiet
@RATES_AND_TOKENS
async def test_quotas_rate_is_used_up(tmp_path: Path, starts: int, tokens: int) -> None:
    """Workers that always have demand start as many invocations in a window as the rate allows."""
    assert await peak_in_a_window(tmp_path, starts, tokens) == starts


async def peak_in_a_window(tmp_path: Path, starts: int, tokens: int) -> int:
    """Let three workers start all they can for five windows, and return the maximum of starts in a window."""
    quota = Quota(rate=Rate(starts, 1.0))
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            load = Workload(nursery, demand=starts, duration=0.0)
            async with token_workers(server, 3, None) as workers:
                workers[0].quotas.propose(LABEL, quota, 1)
                await wait_agreed(workers, quota)
                for each in workers:
                    nursery.start_soon(start_repeatedly, load, each)
                await until(lambda: len(load.starts) >= 5 * starts, "five windows")
                nursery.cancel_scope.cancel()
        assert server.state("faas-request-quotas")["messages"] == tokens
        return load.peak_in(1.0)


async def test_quotas_cap_and_rate_together_are_kept(tmp_path: Path) -> None:
    """A function with a cap and a rate exceeds neither, and neither prevents the use of the other."""
    quota = Quota(max_inflight=3, rate=Rate(40, 1.0))
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            load = Workload(nursery, demand=3, duration=0.01)
            async with token_workers(server, 3, None) as workers:
                workers[0].quotas.propose(LABEL, quota, 1)
                await wait_agreed(workers, quota)
                for each in workers:
                    nursery.start_soon(start_repeatedly, load, each)
                await until(lambda: len(load.starts) >= 120, "three windows")
                nursery.cancel_scope.cancel()
        assert load.peak == 3
        assert load.peak_in(1.0) <= 40


async def test_quotas_unused_rate_token_is_available_at_once(tmp_path: Path) -> None:
    """A rate's token that is given back unused is delivered without a delay to a worker that requested one."""
    quota = Quota(rate=Rate(1, 3600.0))
    with NatsServer(tmp_path) as server:
        tokens: list[tuple[TokenWorker, Lease]] = []
        async with token_workers(server, 2, lambda worker, _, lease: tokens.append((worker, lease))) as workers:
            workers[0].quotas.propose(LABEL, quota, 1)
            await wait_agreed(workers, quota)
            workers[0].flows.add_credit(1, RATES)
            await until(lambda: len(tokens) == 1, "the only token")
            workers[1].flows.add_credit(1, RATES)
            worker, lease = tokens[0]
            worker.give_back(lease)
            await until(lambda: len(tokens) == 2, "the token to be delivered to the other worker")
            assert [worker for worker, _ in tokens] == workers


# Failures.


def kill_and_start(server: NatsServer) -> None:
    """Kill the server, and start it again with the same files."""
    server.kill()
    server.start()


@pytest.mark.parametrize("end", [NatsServer.restart, kill_and_start])
async def test_quotas_server_restart_keeps_tokens(tmp_path: Path, end: Callable[[NatsServer], object]) -> None:
    """After a restart of the server, held tokens are not delivered to other workers, and all tokens are used again.

    A restarted server counts the ack wait of a token that was never extended from its time of storage, long before.
    """
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            load = Workload(nursery, demand=1, duration=0.01)
            async with token_workers(server, 3, None, ack_wait="3s") as workers:
                workers[0].quotas.propose(LABEL, Quota(max_inflight=5), 1)
                await wait_agreed(workers, Quota(max_inflight=5))
                await wait_running(load, workers[0], 1)
                load.demand = 0
                await trio.sleep(3.5)  # longer than the ack wait
                load.demand, load.duration, load.peak = 5, 4.0, 0
                await wait_running(load, workers[1], 5)
                await trio.sleep(2.0)  # far longer than the server takes to write its state
                await trio.to_thread.run_sync(end, server)
                nursery.start_soon(start_repeatedly, load, workers[2])
                before = len(load.starts)
                await until(lambda: len(load.starts) == before + 5, "the next five")
                nursery.cancel_scope.cancel()
        assert load.peak == 5
        assert server.state("faas-request-quotas")["messages"] == 5


async def test_quotas_deleted_tokens_are_created_again(tmp_path: Path) -> None:
    """A worker with demand for a token creates the stream and the tokens again."""
    with NatsServer(tmp_path) as server:
        tokens: list[Lease] = []
        async with token_workers(server, 1, lambda _worker, _token, lease: tokens.append(lease)) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=2), 1)
            await wait_agreed(workers, Quota(max_inflight=2))
            workers[0].flows.add_credit(3, CAPS)
            await until(lambda: len(tokens) == 2, "both tokens")
            server.api("STREAM.DELETE.faas-request-quotas")
            await until(lambda: len(tokens) == 3, "a new token")


async def test_quotas_of_thousands_are_created_in_batches(tmp_path: Path) -> None:
    """The tokens of a cap of thousands are created in batches, by all workers with demand."""
    with NatsServer(tmp_path) as server:
        tokens: list[int] = []
        async with token_workers(
            server, 2, lambda _worker, token, _lease: tokens.append(token_number(token.subject))
        ) as workers:
            workers[0].quotas.propose(LABEL, Quota(max_inflight=3000), 1)
            await wait_agreed(workers, Quota(max_inflight=3000))
            for each in workers:
                each.flows.add_credit(2000, CAPS)
            await until(lambda: len(tokens) == 3000, "all tokens")
            assert set(tokens) == set(range(3000))


async def test_quotas_refused_for_one_function_delay_no_other(tmp_path: Path) -> None:
    """A consumer that cannot be created delays no other function's tokens."""
    with NatsServer(tmp_path) as server:
        tokens: list[str] = []
        async with token_workers(server, 1, lambda _worker, token, _lease: tokens.append(token.flow)) as (worker,):
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
            await until(lambda: all(map(worker.quotas.agreed, labels)), "all quotas")
            for label in labels:
                worker.flows.add_credit(1, token_flow(CAP, label))
            await until(lambda: len(tokens) == 20, "the tokens of the other functions")
            assert token_flow(CAP, "a.fn") not in tokens
