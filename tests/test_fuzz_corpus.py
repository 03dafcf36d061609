from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from fuzz.__main__ import TARGETS
from tests.cases import check_each

ROOT = Path(__file__).parent.parent
CORPUS = sorted(path for path in (ROOT / "fuzz" / "corpus").rglob("*") if path.is_file())


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_of_each_target_keeps_its_law(target: str) -> None:
    """Each input of the corpus keeps the law of its target."""
    check = importlib.import_module(f"fuzz.{target}").check
    check_each((path for path in CORPUS if path.parent.name == target), lambda path: check(path.read_bytes()))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_begins_with_its_law(target: str) -> None:
    """A target has a law of one line, which ``make fuzz`` shows, and a corpus, which the test suite replays."""
    law = inspect.getdoc(importlib.import_module(f"fuzz.{target}")) or ""
    assert re.fullmatch(r"[A-Z][^.]*((\.env|time\.)[^.]*)?\.", law.split("\n\n")[0])
    assert len([path for path in CORPUS if path.parent.name == target]) >= 4


def test_every_corpus_has_a_target() -> None:
    """A folder without a target would never be replayed."""
    assert {path.parent.name for path in CORPUS} == set(TARGETS)


def test_the_corpus_is_named_by_what_it_shows() -> None:
    """A case that a fuzzer stored under a number gets a name when the error is fixed."""
    assert [str(path) for path in CORPUS if re.match("crash-|timeout-|oom-|leak-", path.name)] == []


def test_every_message_of_go_keeps_the_law() -> None:
    """The fixture is corpus too."""
    check = importlib.import_module("fuzz.messages").check
    lines = (ROOT / "tests" / "fixtures" / "queue_requests.jsonl").read_bytes().splitlines()
    assert len(lines) == 24
    for line in lines:
        check(json.loads(line)["message"].encode())
