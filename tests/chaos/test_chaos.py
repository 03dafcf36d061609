"""A short run of ``make chaos``, and a check of its faults' names."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import BROKER, CLUSTER, CONNECTIONS, WORKERS_AND_FUNCTIONS
from tests.servers import run_program


def test_chaos_short_run_keeps_every_promise(tmp_path: Path) -> None:
    """A run of 300 messages with killed workers, closed connections and a killed broker breaks no promise."""
    only = [part for fault in ("worker killed", "connections refused", "broker killed") for part in ("--only", fault)]
    code, output, errors = run_program(
        "tests.chaos", "--nodes", "1", "--rounds", "1", "--messages", "300", *only, tmp_path=tmp_path, timeout=300
    )
    assert code == 0, output + errors
    assert "| lost | 0 |" in output
    for fault in only[1::2]:
        assert f"\n| {fault} | 1 |" in output


def test_faults_names_are_unique() -> None:
    """No two faults have the same name in the report."""
    assert len({*WORKERS_AND_FUNCTIONS, *CONNECTIONS, *BROKER, *CLUSTER}) == len(WORKERS_AND_FUNCTIONS) + len(
        CONNECTIONS
    ) + len(BROKER) + len(CLUSTER)
