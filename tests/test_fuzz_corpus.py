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
def test_target_has_its_law_and_a_corpus(target: str) -> None:
    """A target's docstring begins with its law, which ``make fuzz`` prints, and a target has a corpus of four cases."""
    law = inspect.getdoc(importlib.import_module(f"fuzz.{target}")) or ""
    assert re.fullmatch(r"[A-Z][^.]*((\.env|time\.)[^.]*)?\.", law.split("\n\n")[0])
    assert len([path for path in CORPUS if path.parent.name == target]) >= 4


def test_corpus_of_each_folder_has_a_target() -> None:
    """Each folder of the corpus has a target, because others would never be replayed."""
    assert {path.parent.name for path in CORPUS} == set(TARGETS)


def test_corpus_files_have_names_of_their_cases() -> None:
    """No file of the corpus has the name of a fuzzer, because each fixed error gets a name of its own."""
    assert [str(path) for path in CORPUS if re.match("crash-|timeout-|oom-|leak-", path.name)] == []


def test_messages_of_go_keep_the_law() -> None:
    """Each message of the fixture that Go encoded keeps the law of the target ``messages``."""
    check = importlib.import_module("fuzz.messages").check
    lines = (ROOT / "tests" / "fixtures" / "queue_requests.jsonl").read_bytes().splitlines()
    assert len(lines) == 24
    for line in lines:
        check(json.loads(line)["message"].encode())
