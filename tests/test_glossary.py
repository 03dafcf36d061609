"""The glossary in docs/architecture.md against the names in worker/: one word for one thing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.test_docs import ARCHITECTURE, table

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "worker").rglob("*.py"))

_HTTP_NATS_UNIX = """
abandon addresses api app body broker child children client code community config connection credentials entry exit
flags gateway histogram http http11 jet jetstream listeners log logs memory message metrics nak nats network options
origin output parent parser processes proxy pub queue redirect rendering request reservation responders response
result room sequence server session settings shared signature status stream subject subscription term tls topology
transport url wire
"""
_VERBS = """
applier apply assemble bind binding cancel connect create decide decode delete deleter demo dev drift expire give
merge observe parse pause post postpone publish publisher read reader reconcile retire retry
run serve settle start store submit unfilter writer
"""
_WHAT_HAPPENED = """
agreed bound changed closed connected crashed created delivered discarded disconnected ended error expired tried
failure finished idle ignored interrupted invalid learned listening loaded lost malformed merged misconfigured
observed paused posted published redelivered refusals refused rejected responded returned reused sent started stored
timed unavailable unconfirmed wanted
"""
_ANY_PROGRAM = """
after again annotation answer arrival back backoff buffer busy cache caller collector commands core count counts
decision draft durations family first freshness full group handler heartbeat info intake internals jitter job large
latency library limit lookup model name names no not observation one out overload page phase plain poller pool pooled
pools ports probe protocol rate readiness report return services set shared shot stack stale step supported syntax
terms timeout timers times too tracker work
"""
PLAIN = frozenset(f"{_HTTP_NATS_UNIX} {_VERBS} {_WHAT_HAPPENED} {_ANY_PROGRAM}".split())
"""Words of public names that need no explanation here. A word of this project's own belongs into the glossary."""


def glossary() -> dict[str, str]:
    """Return the terms and their meanings."""
    return {row[0]: row[1] for row in table(ARCHITECTURE, "## Glossary")}


def words(name: str) -> list[str]:
    """Split CamelCase and snake_case into words in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*", name)]


def stems(word: str) -> set[str]:
    """Return the forms under which a word may be listed: itself, and without a plural or a participle's ending."""
    return {word, word.removesuffix("s"), re.sub("ies$", "y", word), re.sub("ed$", "", word), re.sub("ed$", "e", word)}


def public_names() -> Iterator[tuple[str, str]]:
    """Yield each public module and class of the worker, with its file."""
    for path in SOURCES:
        file = path.relative_to(ROOT).as_posix()
        if not path.stem.startswith("_"):
            yield path.stem, file
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, file


@cache
def source() -> str:
    """Return the worker's source in lower case, without underscores."""
    return "\n".join(path.read_text() for path in SOURCES).replace("_", "").lower()


def test_public_names_use_the_glossary() -> None:
    """Each word in the name of a public module or class is a term of the glossary, or a plain technical word."""
    known = PLAIN.union(*(words(term) for term in glossary()))
    unknown = {(name, file) for name, file in public_names() for word in words(name) if not stems(word) & known}
    assert not unknown


@pytest.mark.parametrize("term", glossary())
def test_glossary_terms_are_used(term: str) -> None:
    """Each word of a term is in the worker's source."""
    for word in words(term):
        assert word in source()


def test_glossary_terms_are_in_alphabetical_order() -> None:
    """The terms stand in alphabetical order, each once, each with a meaning."""
    terms = list(glossary())
    assert terms == sorted(set(terms))
    assert all(glossary().values())
