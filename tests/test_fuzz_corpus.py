from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORPUS = sorted(path for path in (ROOT / "fuzz" / "corpus").rglob("*") if path.is_file())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_corpus_keeps_its_target_s_law(path: Path) -> None:
    """What a fuzzer begins with, and what it once broke, keeps the law that the target's file begins with."""
    importlib.import_module(f"fuzz.{path.parent.name}").check(path.read_bytes())


def test_every_target_has_a_corpus() -> None:
    """A target without one would not be replayed."""
    targets = {path.stem for path in (ROOT / "fuzz").glob("*.py")} - {"__main__"}
    assert targets == {path.parent.name for path in CORPUS} == {"fields", "messages"}


def test_every_message_of_go_keeps_the_law() -> None:
    """The fixture is corpus too."""
    check = importlib.import_module("fuzz.messages").check
    lines = (ROOT / "tests" / "fixtures" / "queue_requests.jsonl").read_bytes().splitlines()
    assert len(lines) == 24
    for line in lines:
        check(json.loads(line)["message"].encode())
