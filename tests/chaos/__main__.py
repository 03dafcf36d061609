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

from tests.chaos.faults import BROKER, CLUSTER, CONNECTIONS, WORKERS_AND_FUNCTIONS, FaultFunction
from tests.chaos.ledger import check
from tests.chaos.report import RunReport, markdown, write
from tests.chaos.system import SystemUnderTest

_PAUSE = (1.0, 4.0)
"""Minimum and maximum pause between two faults of a lane (s): some faults overlap the previous recovery."""
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
        reports.append(trio.run(_run, seed, int(size), mode, messages, (rounds, only)))
        _show(reports[-1])
        if report:
            write(report, reports)
    raise SystemExit(0 if all(each.sound for each in reports) else 1)


def _show(run: RunReport) -> None:
    click.echo(markdown([run]))
    for promise, cases in run.findings.broken.items():
        click.echo(f"NOT KEPT: {promise}\n  " + "\n  ".join(cases[:_SHOWN]))
    for line in run.bad_log_lines[:_SHOWN]:
        click.echo(f"COMPLAINT: {line}")


async def _run(seed: int, nodes: int, mode: str, messages: int, faults: tuple[int, Sequence[str]]) -> RunReport:
    rounds, only = faults
    rng = random.Random(f"{seed} {nodes}")
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    system = SystemUnderTest(directory, nodes, rng, lambda what: click.echo(f"{system.now():7.1f} s  {what}"), mode)
    lanes = [
        {kind: inject for kind, inject in kinds.items() if not only or kind in only}
        for kinds in ({**CONNECTIONS, **BROKER, **(CLUSTER if nodes > 1 else {})}, WORKERS_AND_FUNCTIONS)
    ]
    try:
        async with trio.open_nursery() as nursery:
            await system.set_up(nursery)
            if not system.disks:
                lanes[0].pop("disk full", None)
                system.log("left out the fault 'disk full': this machine does not allow to mount a disk")
            nursery.start_soon(_progress, system)
            num_unfinished = await _run_faults(system, lanes, messages, rounds)
            history = await system.history(num_unfinished)
            nursery.cancel_scope.cancel()
        run = RunReport(seed, nodes, mode, history, check(history), system.bad_log_lines(), system.now())
    finally:
        await system.tear_down()
    if run.sound:
        shutil.rmtree(directory)
    else:
        (directory / "history.json").write_bytes(msgspec.json.encode(run.history))
        click.echo(f"The records, and the files of all processes, are in {directory}")
    return run


async def _run_faults(
    system: SystemUnderTest, lanes: Sequence[Mapping[str, FaultFunction]], messages: int, rounds: int
) -> int:
    """Publish during all faults, wait until the queue is empty, stop all workers; return how many messages are left."""
    async with trio.open_nursery() as publisher:
        publisher.start_soon(system.publisher.run)
        async with trio.open_nursery() as faults:
            for kinds in lanes:
                faults.start_soon(_lane, system, kinds, rounds)
        while len(system.publisher.published) < messages:  # noqa: ASYNC110 -- a few seconds, once
            await trio.sleep(0.1)
        system.publisher.finished = True
    num_unfinished = await system.wait_empty()
    for host in system.hosts:
        system.terminate(host)
    for host in system.hosts:
        await system.wait_ended(host)
    return num_unfinished


async def _lane(system: SystemUnderTest, kinds: Mapping[str, FaultFunction], rounds: int) -> None:
    for _ in range(rounds):
        for kind in system.rng.sample([*kinds], len(kinds)):
            await trio.sleep(system.rng.uniform(*_PAUSE))
            await kinds[kind](system)


async def _progress(system: SystemUnderTest) -> None:
    while True:
        await trio.sleep(_PROGRESS)
        published, runs = len(system.publisher.published), len(system.functions.requests)
        system.log(f"{published} published, {system.publisher.backlog} unfinished; {runs} invocations")


if __name__ == "__main__":
    main()
