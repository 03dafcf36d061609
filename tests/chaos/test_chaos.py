"""A short run, so that what ``make chaos`` runs at length works whenever it is needed."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import BROKER, CLUSTER, OUTSIDE, WAYS
from tests.servers import run_program


def test_chaos_short_run_keeps_every_promise(tmp_path: Path) -> None:
    """A run of 300 messages with killed workers, closed connections and a killed broker breaks no promise."""
    only = [part for fault in ("worker killed", "way closed", "broker killed") for part in ("--only", fault)]
    code, output, errors = run_program(
        "tests.chaos", "--nodes", "1", "--rounds", "1", "--messages", "300", *only, tmp_path=tmp_path, timeout=300
    )
    assert code == 0, output + errors
    assert "| lost | 0 |" in output
    for fault in only[1::2]:
        assert f"\n| {fault} | 1 |" in output


def test_faults_names_are_unique() -> None:
    """No two faults have the same name in the report."""
    assert len({*OUTSIDE, *WAYS, *BROKER, *CLUSTER}) == len(OUTSIDE) + len(WAYS) + len(BROKER) + len(CLUSTER)
