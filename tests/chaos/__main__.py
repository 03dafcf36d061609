"""``python -m tests.chaos``: see ``--help``."""

from __future__ import annotations

import random
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import click
import msgspec
import trio

from tests.chaos.faults import BROKER, CLUSTER, OUTSIDE, WAYS, Does
from tests.chaos.ledger import judge
from tests.chaos.report import RunReport, markdown, write
from tests.chaos.stage import Stage

_PAUSE = (1.0, 4.0)
"""Minimum and maximum pause between two faults of a lane (s): some faults overlap the recovery from the one before."""
_SHOWN = 20
"""Number of cases printed for each broken promise."""
_PROGRESS = 10.0
"""Seconds between two lines of progress."""


@click.command()
@click.option("--seed", type=int, default=None, help="Seed of all random draws. By default another one at each run.")
@click.option("--messages", default=20_000, show_default=True, help="Fewest messages that go through each broker.")
@click.option("--rounds", default=2, show_default=True, help="How often each fault is caused.")
@click.option(
    "--nodes", type=click.Choice(["1", "3"]), multiple=True, default=["1", "3"], help="Brokers: each in turn."
)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(["static", "function", "mixed"]),
    multiple=True,
    default=["static"],
    show_default=True,
    help="The workers' scaling_mode; mixed: each worker's is drawn, so that the queue changes back and forth.",
)
@click.option("--only", multiple=True, metavar="FAULT", help="Only these faults.")
@click.option("--report", type=click.Path(path_type=Path), help="The document whose tables are replaced.")
def main(
    *,
    seed: int | None,
    messages: int,
    rounds: int,
    nodes: Sequence[str],
    modes: Sequence[str],
    only: Sequence[str],
    report: Path | None,
) -> None:
    """Cause every fault, and check that no message is lost. The exit code is 1 if a promise was broken."""
    seed = secrets.randbelow(10**6) if seed is None else seed
    click.echo(f"seed {seed}: repeat with  python -m tests.chaos --seed {seed}")
    reports = []
    for mode, size in product(modes, nodes):
        click.echo(f"{mode}, {size} nodes:")
        reports.append(trio.run(_live, seed, int(size), mode, messages, (rounds, only)))
        _show(reports[-1])
        if report:
            write(report, reports)
    raise SystemExit(0 if all(each.sound for each in reports) else 1)


def _show(run: RunReport) -> None:
    click.echo(markdown([run]))
    for promise, cases in run.verdict.broken.items():
        click.echo(f"NOT KEPT: {promise}\n  " + "\n  ".join(cases[:_SHOWN]))
    for line in run.complaints[:_SHOWN]:
        click.echo(f"COMPLAINT: {line}")


async def _live(seed: int, nodes: int, mode: str, messages: int, faults: tuple[int, Sequence[str]]) -> RunReport:
    rounds, only = faults
    rng = random.Random(f"{seed} {nodes}")
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    stage = Stage(directory, nodes, rng, lambda what: click.echo(f"{stage.now():7.1f} s  {what}"), mode)
    lanes = [
        {kind: does for kind, does in kinds.items() if not only or kind in only}
        for kinds in ({**WAYS, **BROKER, **(CLUSTER if nodes > 1 else {})}, OUTSIDE)
    ]
    try:
        async with trio.open_nursery() as nursery:
            await stage.set_up(nursery)
            if not stage.disks:
                lanes[0].pop("disk full", None)
                stage.log("no disk will be full: this machine does not allow to mount one")
            nursery.start_soon(_progress, stage)
            left = await _work(stage, lanes, messages, rounds)
            history = await stage.history(left)
            nursery.cancel_scope.cancel()
        run = RunReport(seed, nodes, mode, history, judge(history), stage.complaints(), stage.now())
    finally:
        await stage.tear_down()
    if run.sound:
        shutil.rmtree(directory)
    else:
        (directory / "history.json").write_bytes(msgspec.json.encode(run.history))
        click.echo(f"What was recorded, and the files of all processes, are in {directory}")
    return run


async def _work(stage: Stage, lanes: Sequence[Mapping[str, Does]], messages: int, rounds: int) -> int:
    """Keep the queue busy under all faults, let it run empty, stop all workers; return how many messages are left."""
    async with trio.open_nursery() as supply:
        supply.start_soon(stage.supply.run)
        async with trio.open_nursery() as faults:
            for kinds in lanes:
                faults.start_soon(_lane, stage, kinds, rounds)
        while len(stage.supply.published) < messages:  # noqa: ASYNC110 -- a few seconds, once
            await trio.sleep(0.1)
        stage.supply.enough = True
    left = await stage.run_empty()
    for slot in stage.slots:
        stage.terminate(slot)
    for slot in stage.slots:
        await stage.wait_ended(slot)
    return left


async def _lane(stage: Stage, kinds: Mapping[str, Does], rounds: int) -> None:
    for _ in range(rounds):
        for kind in stage.rng.sample([*kinds], len(kinds)):
            await trio.sleep(stage.rng.uniform(*_PAUSE))
            await kinds[kind](stage)


async def _progress(stage: Stage) -> None:
    while True:
        await trio.sleep(_PROGRESS)
        published, runs = len(stage.supply.published), len(stage.functions.requests)
        stage.log(f"{published} published, {stage.supply.waiting} waiting; {runs} invocations")


if __name__ == "__main__":
    main()
