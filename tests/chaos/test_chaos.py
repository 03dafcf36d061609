"""A short run, so that what ``make chaos`` runs at length works whenever it is needed."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import BROKER, CLUSTER, OUTSIDE, WAYS
from tests.servers import run_program


def test_a_short_run(tmp_path: Path) -> None:
    """Workers killed, connections cut and the broker killed under a few hundred messages: every promise is kept."""
    only = [part for fault in ("worker killed", "way closed", "broker killed") for part in ("--only", fault)]
    code, told, errors = run_program(
        "tests.chaos", "--nodes", "1", "--rounds", "1", "--messages", "300", *only, tmp_path=tmp_path, timeout=300
    )
    assert code == 0, told + errors
    assert "| lost | 0 |" in told
    for fault in only[1::2]:
        assert f"\n| {fault} | 1 |" in told


def test_every_fault_has_a_name_of_its_own() -> None:
    """No two faults have the same name in the report."""
    assert len({*OUTSIDE, *WAYS, *BROKER, *CLUSTER}) == len(OUTSIDE) + len(WAYS) + len(BROKER) + len(CLUSTER)
