"""Memory for results: a bounded sum of the responses that are kept for callbacks."""

from __future__ import annotations

import socket
from contextlib import suppress

import trio
import trio.testing

from tests.http.invocations import invocation
from worker.config import load
from worker.events import Event, ResultMemoryUnavailable
from worker.http.functions import HttpFunctions, open_functions
from worker.http.result_memory import ResultMemory
from worker.model import Outcome, Responded

BODY = b"x" * 1_000_000


def nothing() -> None:
    pass


def memory_of(limit: int) -> ResultMemory:
    """Return a memory whose clock stands still."""
    return ResultMemory(limit, lambda: 0.0)


def test_memory_is_granted_in_order_up_to_its_limit() -> None:
    """What does not fit waits, also a smaller one behind it, until enough is released."""
    memory = memory_of(100)
    resumed: list[str] = []
    first = memory.reserve(60, nothing)
    second = memory.reserve(60, lambda: resumed.append("second"))
    third = memory.reserve(10, lambda: resumed.append("third"))
    assert (first.granted, second.granted, third.granted) == (True, False, False)
    first.release()
    first.release()
    assert resumed == ["second", "third"]
    assert memory.used == 70


def test_memory_grants_one_result_that_is_larger_than_its_limit() -> None:
    """A limit below the largest response makes results wait for each other, and none forever."""
    memory = memory_of(0)
    first, second = memory.reserve(10, nothing), memory.reserve(10, nothing)
    assert (first.granted, second.granted) == (True, False)
    first.release()
    assert second.granted


def test_memory_that_was_waited_for_in_vain_is_not_used() -> None:
    """A reservation that is released while it waits is never granted."""
    memory = memory_of(10)
    first, second, third = (memory.reserve(10, nothing) for _ in range(3))
    second.release()
    first.release()
    assert (second.granted, third.granted, memory.used) == (False, True, 10)


def test_memory_that_is_not_needed_is_returned() -> None:
    """When the size of a result is known, the rest is for others."""
    memory = memory_of(10)
    first, second = memory.reserve(10, nothing), memory.reserve(5, nothing)
    first.shrink(5)
    assert second.granted
    assert memory.used == 10


def test_waiting_counts_the_results_that_wait() -> None:
    """Neither a granted reservation counts nor one that was released while it waited."""
    memory = memory_of(10)
    first, second, third = (memory.reserve(10, nothing) for _ in range(3))
    assert memory.waiting == 2
    third.release()
    assert (memory.waiting, memory.used) == (1, 10)
    first.release()
    assert (memory.waiting, memory.used) == (0, 10)
    second.release()
    assert (memory.waiting, memory.used) == (0, 0)


async def test_waits_that_last_are_reported_once_a_minute(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 -- the fixture sets it
) -> None:
    """Results that wait are one event after 5 to 10 s and then one each minute, however many they are."""
    memory, events = ResultMemory(10), list[tuple[float, Event]]()
    began = trio.current_time()
    nursery.start_soon(memory.report_waits, lambda event: events.append((trio.current_time() - began, event)))
    await trio.sleep(7)
    held = memory.reserve(10, nothing)
    waiting = [memory.reserve(10, nothing) for _ in range(100)]
    await trio.sleep(120)
    # 7 s + 5 s is 12 s, and the checks are at 5, 10 and 15 s; the next report is 60 s later.
    assert events == [
        (15.0, ResultMemoryUnavailable(100, 8.0, 10, 10)),
        (75.0, ResultMemoryUnavailable(100, 68.0, 10, 10)),
    ]
    for each in (held, *waiting):
        each.release()
    await trio.sleep(600)
    assert len(events) == 2


async def test_waits_that_are_short_are_not_reported(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 -- the fixture sets it
) -> None:
    """Results that each wait for a moment are the usual course of a busy worker."""
    memory, events = ResultMemory(10), list[Event]()
    nursery.start_soon(memory.report_waits, events.append)
    held = memory.reserve(10, nothing)
    for _ in range(100):
        following = memory.reserve(10, nothing)
        await trio.sleep(0.5)
        held.release()
        held = following
    assert events == []


async def _serve(listener: trio.SocketListener) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # a cancelled exchange resets its connection
            async for _ in stream:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)

    await trio.serve_listeners(handle, [listener])


async def test_responses_beyond_the_memory_wait_and_are_complete() -> None:
    """Responses wait until others are released, without a timeout; then each arrives whole."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.1", 0))))
    port = listener.socket.getsockname()[1]
    settings = {"gateway_url": f"http://127.0.0.1:{port}", "max_results_bytes": "2000000"}
    answers: list[Outcome] = []
    arrived = trio.Event()

    async def invoke(functions: HttpFunctions) -> None:
        nonlocal arrived
        answers.append(await functions.invoke(invocation(callback="http://127.0.0.1/x")))
        arrived.set()
        arrived = trio.Event()

    async with trio.open_nursery() as server:
        server.start_soon(_serve, listener)
        async with open_functions(load(settings).settings) as functions:
            for _ in range(2):  # the second round is on reused connections
                answers.clear()
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(invoke, functions)
                    for released in range(5):
                        while len(answers) <= released:
                            await arrived.wait()
                        assert functions.results.used <= 2_000_000
                        assert len(answers) <= released + 2
                        answer = answers[released]
                        assert isinstance(answer, Responded)
                        assert answer.body == BODY
                        assert answer.release
                        answer.release()
                assert functions.results.used == 0
        server.cancel_scope.cancel()


async def test_response_that_is_cancelled_while_it_waits_releases_its_place() -> None:
    """A drain that cancels a waiting invocation leaves the memory to the others."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.1", 0))))
    port = listener.socket.getsockname()[1]
    settings = {"gateway_url": f"http://127.0.0.1:{port}", "max_results_bytes": "0"}
    async with trio.open_nursery() as server:
        server.start_soon(_serve, listener)
        async with open_functions(load(settings).settings) as functions:
            first = await functions.invoke(invocation(callback="http://127.0.0.1/x"))
            with trio.move_on_after(0.1) as scope:
                await functions.invoke(invocation(callback="http://127.0.0.1/x"))
            assert scope.cancelled_caught
            assert isinstance(first, Responded)
            assert first.release
            first.release()
            third = await functions.invoke(invocation(callback="http://127.0.0.1/x"))
            assert isinstance(third, Responded)
            assert third.body == BODY
        server.cancel_scope.cancel()


async def test_wait_for_memory_does_not_count_for_the_timeout() -> None:
    """A response that waits for longer than upstream_timeout is no timeout, on a new and on a reused connection."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.1", 0))))
    port = listener.socket.getsockname()[1]
    settings = {"gateway_url": f"http://127.0.0.1:{port}", "max_results_bytes": "0", "upstream_timeout": "3s"}
    answers: list[Outcome] = []

    async def invoke(functions: HttpFunctions) -> None:
        answers.append(await functions.invoke(invocation(callback="http://127.0.0.1/x")))

    async with trio.open_nursery() as server:
        server.start_soon(_serve, listener)
        async with open_functions(load(settings).settings) as functions:
            await invoke(functions)
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(invoke, functions)
                    await trio.sleep(3.5)
                    held = answers.pop()
                    assert isinstance(held, Responded)
                    assert held.release
                    held.release()
            assert isinstance(answers[0], Responded)
        server.cancel_scope.cancel()
