"""One rendering for all scrapers that wait, on the virtual clock."""

from __future__ import annotations

import trio
import trio.testing

from worker.observe.shared_rendering import SharedRendering


async def test_scrapers_that_wait_share_one_rendering(autojump_clock: trio.testing.MockClock) -> None:  # noqa: ARG001 -- the fixture sets it
    """Twenty scrapers that ask during a rendering get the next one, which begins 4 times its duration later."""
    began: list[float] = []

    async def render() -> str:
        began.append(trio.current_time())
        await trio.sleep(0.1)
        return f"rendering {len(began)}"

    shared = SharedRendering(render)
    answers: list[bytes] = []

    async def scrape() -> None:
        answers.append(await shared.get())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.run)
        async with trio.open_nursery() as scrapers:
            scrapers.start_soon(scrape)
            await trio.sleep(0.05)
            for _ in range(20):
                scrapers.start_soon(scrape)
        nursery.cancel_scope.cancel()
    assert answers == [b"rendering 1", *[b"rendering 2"] * 20]
    assert [round(time - start, 6) for time in began] == [0.0, 0.1 + 4 * 0.1]


async def test_pause_after_a_long_rendering_is_bounded(autojump_clock: trio.testing.MockClock) -> None:  # noqa: ARG001 -- the fixture sets it
    """On a busy loop a rendering takes long; the next one begins half a second after it."""
    began: list[float] = []

    async def render() -> str:
        began.append(trio.current_time())
        await trio.sleep(3)
        return ""

    shared = SharedRendering(render)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.run)
        await shared.get()
        await shared.get()
        nursery.cancel_scope.cancel()
    assert began[1] - began[0] == 3.5


async def test_scraper_that_has_gone_does_not_stop_the_others(autojump_clock: trio.testing.MockClock) -> None:  # noqa: ARG001 -- the fixture sets it
    """A rendering goes on when the scraper that asked first closes its connection."""

    async def render() -> str:
        await trio.sleep(1)
        return "text"

    shared = SharedRendering(render)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.run)
        with trio.move_on_after(0.5):
            await shared.get()
        assert await shared.get() == b"text"
        nursery.cancel_scope.cancel()
