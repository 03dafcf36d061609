"""Caps and rates are kept over several workers, by tokens on a real nats-server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.nats.tokens import Replica, replicas
from tests.servers import NatsServer, until
from worker.heartbeat import Lease
from worker.model import Delivery, Quota, Rate
from worker.nats.quotas import flow_of, number_of
from worker.policy.quota import CAP, RATE, uses

LABEL = "echo.fn"
CAPS, RATES = flow_of(CAP, LABEL), flow_of(RATE, LABEL)


class Hands:
    """Who holds which tokens, over all workers."""

    def __init__(self, nursery: trio.Nursery, hold: float) -> None:
        self._nursery, self.hold = nursery, hold
        self.held: list[tuple[Replica, int]] = []
        self.most = 0
        self.times: Counter[Replica] = Counter()

    def came(self, replica: Replica, token: Delivery, lease: Lease) -> None:
        quota = replica.quotas.of(LABEL)
        if not quota or not uses(quota, CAP, number_of(token)):
            replica.give(lease)
            return
        self.held.append((replica, number_of(token)))
        self.most = max(self.most, len(self.held))
        self.times[replica] += 1
        self._nursery.start_soon(self._run, replica, lease)

    async def _run(self, replica: Replica, lease: Lease) -> None:
        """An invocation."""
        with trio.CancelScope() as scope:
            lease.guard(scope)
            await trio.sleep(self.hold)
        if not replica.dead:
            self.held.remove((replica, number_of(lease.delivery)))
            replica.give(lease)
            replica.flows.want(1, CAPS)


async def agreed(workers: list[Replica], quota: Quota) -> None:
    """Wait until all know it."""
    await until(lambda: all(each.quotas.of(LABEL) == quota for each in workers), "all to agree")


async def test_a_cap_is_kept_over_all_workers(tmp_path: Path) -> None:
    """Three workers that each could run five at once run five together, never more, and all have their turn."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            hands = Hands(nursery, 0.002)
            async with replicas(server, 3, hands.came) as workers:
                workers[0].quotas.said(LABEL, Quota(most=5), 1)
                await agreed(workers, Quota(most=5))
                for each in workers:
                    each.flows.want(5, CAPS)
                await until(lambda: min(hands.times[each] for each in workers) >= 100, "300 invocations")
                nursery.cancel_scope.cancel()
        assert hands.most == 5
        assert server.state("faas-request-quotas")["messages"] == 5


async def test_a_token_is_kept_as_long_as_an_invocation_runs(tmp_path: Path) -> None:
    """However much longer than the ack wait: its lease is extended, as a message's is."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            hands = Hands(nursery, 3.5)
            async with replicas(server, 2, hands.came, ack_wait="1s") as workers:
                workers[0].quotas.said(LABEL, Quota(most=2), 1)
                await agreed(workers, Quota(most=2))
                for each in workers:
                    each.flows.want(2, CAPS)
                await until(lambda: hands.times.total() == 4, "two invocations, and two after them")
                nursery.cancel_scope.cancel()
        assert hands.most == 2


async def test_what_a_dead_worker_held_comes_back(tmp_path: Path) -> None:
    """After the ack wait, and not before: until then the others have what it left them; at no time are there more."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            hands = Hands(nursery, 0.01)
            async with replicas(server, 3, hands.came, ack_wait="2s") as workers:
                hands.hold = 60.0  # what the first one runs does not end
                workers[0].quotas.said(LABEL, Quota(most=5), 1)
                await agreed(workers, Quota(most=5))
                workers[0].flows.want(3, CAPS)
                await until(lambda: len(hands.held) == 3, "it to hold three")
                hands.hold = 0.01
                for each in workers[1:]:
                    each.flows.want(5, CAPS)
                await until(lambda: hands.times.total() > 100, "the others to use the rest")
                assert hands.most == 5
                workers[0].die()
                hands.held = [(who, number) for who, number in hands.held if not who.dead]
                hands.most = 0
                await until(lambda: hands.most == 5, "the others to have all")
                await until(lambda: hands.times.total() > 200, "them to go on")
                assert hands.most == 5
                nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lower", [2, None])
async def test_a_cap_is_lowered_as_invocations_end(tmp_path: Path, lower: int | None) -> None:
    """None is cancelled for it; tokens that are too many leave the stream, whoever gets them or gives them back."""
    with NatsServer(tmp_path) as server:
        held: list[tuple[Replica, Lease]] = []
        async with replicas(server, 2, lambda who, _, lease: held.append((who, lease))) as workers:
            workers[0].quotas.said(LABEL, Quota(most=5), 1)
            await agreed(workers, Quota(most=5))
            for each in workers:
                each.flows.want(2, CAPS)
            await until(lambda: len(held) == 4, "four to be held")
            workers[1].quotas.said(LABEL, Quota(most=lower), 2)
            await agreed(workers, Quota(most=lower))
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
    """The tokens that there are."""
    return set(server.api("STREAM.INFO.faas-request-quotas", subjects_filter=">")["state"].get("subjects") or {})


async def test_a_cap_is_raised_at_once(tmp_path: Path) -> None:
    """Who waits for a token gets one of the new ones."""
    with NatsServer(tmp_path) as server:
        held: list[Lease] = []
        async with replicas(server, 2, lambda _who, _token, lease: held.append(lease)) as workers:
            workers[0].quotas.said(LABEL, Quota(most=1), 1)
            await agreed(workers, Quota(most=1))
            for each in workers:
                each.flows.want(3, CAPS)
            await until(lambda: len(held) == 1, "the only one")
            workers[1].quotas.said(LABEL, Quota(most=6), 2)
            await until(lambda: len(held) == 6, "six")
            assert {number_of(lease.delivery) for lease in held} == set(range(6))


async def test_the_newest_message_decides(tmp_path: Path) -> None:
    """Whichever worker sees which message first, all end with what the one says that was stored last."""
    with NatsServer(tmp_path) as server:
        async with replicas(server, 3, lambda *_: None) as workers:
            for most, who in ((7, 2), (3, 0), (9, 1), (5, 0), (2, 1)):
                workers[who].quotas.said(LABEL, Quota(most=most), most)
            await agreed(workers, Quota(most=9))
            workers[2].quotas.said(LABEL, Quota(most=4), 8)
            workers[2].quotas.said(LABEL, Quota(weight=3), 8)
            workers[2].quotas.said("other.fn", Quota(most=1), 1)
            await until(lambda: all(each.quotas.of("other.fn") for each in workers), "something later")
            assert {each.told[LABEL].most for each in workers} == {9}


async def test_what_is_agreed_is_known_at_the_start(tmp_path: Path) -> None:
    """A worker that starts knows every function's limits before it asks for anything."""
    with NatsServer(tmp_path) as server:
        async with replicas(server, 1, lambda *_: None) as workers:
            workers[0].quotas.said(LABEL, Quota(2, 5, Rate(10, 60.0)), 1)
            await agreed(workers, Quota(1, 5, Rate(10, 60.0)))
        async with replicas(server, 1, lambda *_: None) as workers:
            assert workers[0].quotas.of(LABEL) == Quota(1, 5, Rate(10, 60.0))


async def test_a_function_without_limits_costs_nothing(tmp_path: Path) -> None:
    """Nothing is remembered of it, and no stream is made."""
    with NatsServer(tmp_path) as server:
        async with replicas(server, 1, lambda *_: None) as workers:
            workers[0].quotas.said(LABEL, Quota(weight=7), 1)
            workers[0].quotas.said("other.fn", Quota(most=1), 1)
            await until(lambda: workers[0].quotas.of("other.fn"), "the other to be agreed")
            assert workers[0].quotas.of(LABEL) is None
            assert server.state("faas-request-functions")["messages"] == 1


# Rates.


class Starts:
    """When invocations of a function were started, over all workers."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        assert quota.rate
        self.rate = quota.rate
        self.at: list[float] = []

    def came(self, replica: Replica, token: Delivery, lease: Lease) -> None:
        replica.leases.release(lease)
        for _ in range(uses(self._quota, RATE, number_of(token))):
            self.at.append(trio.current_time())
        replica.give(lease, self.rate.window)
        replica.flows.want(1, RATES)

    def most(self) -> int:
        """Most starts in any window."""
        most = begin = 0
        for end, at in enumerate(self.at):
            while self.at[begin] <= at - self.rate.window:
                begin += 1
            most = max(most, end - begin + 1)
        return most


@pytest.mark.parametrize(("starts", "tokens"), [(20, 20), (100, 100), (250, 84)])
async def test_a_rate_is_kept_over_all_workers(tmp_path: Path, starts: int, tokens: int) -> None:
    """In no window do three workers together start more, and where they always could, each window is full."""
    quota = Quota(rate=Rate(starts, 1.0))
    with NatsServer(tmp_path) as server:
        counted = Starts(quota)
        async with replicas(server, 3, counted.came) as workers:
            workers[0].quotas.said(LABEL, quota, 1)
            await agreed(workers, quota)
            for each in workers:
                each.flows.want(starts, RATES)
            await until(lambda: len(counted.at) >= 5 * starts, "five windows")
        assert server.state("faas-request-quotas")["messages"] == tokens
        assert counted.most() == starts


async def test_a_token_of_a_rate_that_was_not_used_is_another_s_at_once(tmp_path: Path) -> None:
    """Given back without a delay it goes to whoever wants it."""
    quota = Quota(rate=Rate(1, 3600.0))
    with NatsServer(tmp_path) as server:
        came: list[tuple[Replica, Lease]] = []
        async with replicas(server, 2, lambda who, _, lease: came.append((who, lease))) as workers:
            workers[0].quotas.said(LABEL, quota, 1)
            await agreed(workers, quota)
            workers[0].flows.want(1, RATES)
            await until(lambda: len(came) == 1, "the only one")
            workers[1].flows.want(1, RATES)
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
async def test_the_server_restarts(tmp_path: Path, end: Callable[[NatsServer], object]) -> None:
    """Tokens that are held stay so, and no more than there were are handed out; all are in use again afterwards."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            hands = Hands(nursery, 0.01)
            async with replicas(server, 3, hands.came, ack_wait="3s") as workers:
                workers[0].quotas.said(LABEL, Quota(most=5), 1)
                await agreed(workers, Quota(most=5))
                for each in workers:
                    each.flows.want(5, CAPS)
                await until(lambda: hands.times.total() > 100, "some invocations")
                await trio.to_thread.run_sync(end, server)
                before = hands.times.total()
                hands.hold = 0.2
                await until(lambda: hands.times.total() > before + 20 and len(hands.held) == 5, "five at once again")
                nursery.cancel_scope.cancel()
        assert hands.most == 5
        assert server.state("faas-request-quotas")["messages"] == 5


async def test_tokens_that_someone_deleted_are_made_again(tmp_path: Path) -> None:
    """With the whole stream gone, whoever wants one makes them."""
    with NatsServer(tmp_path) as server:
        came: list[Lease] = []
        async with replicas(server, 1, lambda _who, _token, lease: came.append(lease)) as workers:
            workers[0].quotas.said(LABEL, Quota(most=2), 1)
            await agreed(workers, Quota(most=2))
            workers[0].flows.want(3, CAPS)
            await until(lambda: len(came) == 2, "both")
            server.api("STREAM.DELETE.faas-request-quotas")
            await until(lambda: len(came) == 3, "one of the new")


async def test_many_tokens(tmp_path: Path) -> None:
    """A cap of thousands is made in batches, by all that want some at once."""
    with NatsServer(tmp_path) as server:
        came: list[int] = []
        async with replicas(server, 2, lambda _who, token, _lease: came.append(number_of(token))) as workers:
            workers[0].quotas.said(LABEL, Quota(most=3000), 1)
            await agreed(workers, Quota(most=3000))
            for each in workers:
                each.flows.want(2000, CAPS)
            await until(lambda: len(came) == 3000, "all")
            assert set(came) == set(range(3000))
