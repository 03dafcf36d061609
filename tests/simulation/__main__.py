"""Command that runs a plan that a failed test printed, prints its events, and raises the violated law.

::

    python -m tests.simulation < plan.txt
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.simulation.exact import check_exactly
from tests.simulation.laws import check
from tests.world import Answer, reply
from tests.world.faults import Fault
from tests.world.functions import Deployment, Reply
from tests.world.simulation import Life, Plan, PlannedMessage, PlannedWorker, simulate
from worker.model import NoResponse, Responded, TimedOut

NAMES = {
    each.__name__: each
    for each in (
        Answer,
        Deployment,
        Fault,
        NoResponse,
        Plan,
        PlannedMessage,
        Reply,
        Responded,
        PlannedWorker,
        TimedOut,
        reply,
    )
}
"""Names that a printed plan uses."""


def events_of(life: Life) -> Iterator[tuple[float, str]]:
    """Yield the events of a life, with their times (s)."""
    for fault in life.nemesis.active_faults:
        yield fault.begins, f"fault     {fault}"
    for worker in life.workers:
        yield from ((at, f"{worker.name}  {each}") for at, each in worker.log)
    yield from ((verb.at, f"broker    {verb}") for verb in life.world.server.applied)
    yield from ((post.began, f"receiver  {post}") for post in life.world.outside.posts)


def main() -> None:
    """Run the plan from standard input."""
    plan = eval(sys.stdin.read(), dict(NAMES))  # code that the tests have printed
    life = simulate(plan)
    for at, line in sorted(events_of(life), key=lambda each: each[0]):
        sys.stdout.write(f"{at:12.3f}  {line}\n")
    stories, causes = check(life)
    if not plan.faults:
        check_exactly(life, stories)
    sys.stdout.write(f"No law is violated. Repeats: {dict(causes)}\n")


if __name__ == "__main__":
    main()
