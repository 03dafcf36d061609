"""A simulated world for workers: a broker, connections to it, functions, and receivers of callbacks.

::

    async def test_something(autojump_clock):
        async with World(autojump_clock) as world:
            message = world.publish(reply(503, after=1), reply(200))
            worker = world.start(world.worker(slots=2))
            await message.removed.wait()
            worker.signal()
            await worker.ended.wait()
            assert world.starts(message) == [2, 11_004]

What a worker does against the rules of its ports is noted in :attr:`World.violations`, and fails the test when the
world ends. Times are in seconds of Trio's clock, which can be virtual; :func:`ms` makes them comparable.
"""

from __future__ import annotations

from .functions import Answer, Call, Post, Reply, reply
from .server import EPOCH, Message
from .world import SimulatedWorker, World, ms

__all__ = ["EPOCH", "Answer", "Call", "Message", "Post", "Reply", "SimulatedWorker", "World", "ms", "reply"]
