"""The import rules, checked. A package exists only where it carries one of them.

A module that is nowhere in :data:`LAYERS` fails: a new one has to be added with its place.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import worker
from tests.cases import check_each

ROOT = Path(worker.__file__).parent

LAYERS = [
    ("__main__",),
    ("cli",),
    ("dev",),
    ("gateway",),
    ("parent",),
    ("observe",),
    ("run",),
    ("intake",),
    ("job",),
    ("admission",),
    ("token_store",),
    ("drain", "heartbeat", "timers"),
    ("nats", "http"),
    ("config",),
    ("policy",),
    ("ports",),
    ("events",),
    ("model",),
    ("",),  # worker/__init__.py: the version
]
"""Top to bottom. Each module, or package, imports only what stands below it; not what stands beside it."""

NATS_LAYERS = [
    ("commands", "queue"),
    ("binding",),
    ("serving",),
    ("quotas",),
    ("flow_consumers", "discovery"),
    ("pull_consumer",),
    ("pull",),
    ("outbox", "migration"),
    ("finished_deleter", "function_state", "dead_letters", "apply"),
    ("topology", "reconcile"),
    ("jetstream",),
    ("connection", "layout"),
    ("wire", "options", "nats_internals", "credit"),
]
"""Layers inside ``worker/nats``, top to bottom."""

ONLY_BY = {
    "cli": {"__main__"},
    "dev": {"cli"},
    "gateway": {"cli", "dev"},
    "parent": {"cli", "dev"},
    "observe": {"cli", "dev", "gateway", "parent"},
    "nats": {"cli"},
    "nats.options": {"gateway"},
    **{f"nats.{name}": {"cli", "gateway"} for name in ("connection", "jetstream", "wire")},
    "http": {"cli"},
    "config": {"cli", "dev", "gateway", "nats", "http", "observe", "parent"},
}
"""Importers besides the own package: the core knows neither adapters nor settings. The longest name rules."""

LOOPS = {
    "trio_asyncio": {"nats"},
    "nats": {"nats"},
    "asyncio": {"nats", "gateway", "cli.submit", "cli.function", "dev.functions"},
    "uvicorn": {"gateway", "dev.functions"},
    "httptools": {"http"},
}
"""Importers of a library with an event loop or a protocol of its own. All else is Trio's, or has no loop."""

IMPURE = {
    *("asyncio", "trio", "trio_asyncio", "anyio", "threading", "concurrent", "signal", "contextvars"),  # waiting
    *("time", "random", "secrets"),  # clock and dice
    *(
        "os",
        "sys",
        "io",
        "pathlib",
        "shutil",
        "tempfile",
        "subprocess",
        "socket",
        "ssl",
        "http",
        "requests",
    ),  # the world
    *("logging", "structlog", "prometheus_client", "warnings"),  # output
    *("httpx", "nats", "uvicorn", "hypercorn", "starlette", "click", "rich"),  # adapters
}
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "open", "print", "input", "urlopen"}
SANS_IO = (
    "worker.nats.credit",
    "worker.nats.layout",
    "worker.nats.reconcile",
    "worker.nats.wire",
    "worker.http.http11",
    "worker.parent.merge",
)
"""Protocols apart from their transport: as pure as a policy, except that they may know the adapter's values."""


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def inside(module: str) -> str:
    """Return its name inside the package: ``policy.decide``."""
    return module.removeprefix("worker").removeprefix(".")


def top(module: str) -> str:
    """Return the module or package directly below ``worker`` that contains it."""
    return inside(module).partition(".")[0]


def imports(module: str) -> set[str]:
    """Return the full names of all that a module imports, anywhere in it."""
    found: set[str] = set()
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module]))
            named = (f"{base}.{alias.name}" for alias in node.names)
            found.update(name if name in MODULES else base for name in named)
    return found


def ours(module: str) -> set[str]:
    return {each for each in imports(module) if each.partition(".")[0] == "worker"}


def foreign(module: str) -> set[str]:
    return {each.partition(".")[0] for each in imports(module)} - {"worker"}


def test_every_module_belongs_to_a_layer() -> None:
    """A module's name is in the list of layers, itself or by its package."""
    assert [module for module in MODULES if top(module) not in RANKS] == []


def test_imports_point_down() -> None:
    """A module imports modules below it, or modules of its own package; what it imports exists."""

    def check(module: str) -> None:
        for imported in ours(module):
            assert imported in MODULES
            beside = top(imported) == top(module)
            assert beside or RANKS[top(module)] < RANKS[top(imported)], f"{module} imports {imported}"

    check_each(MODULES, check)


def test_imports_inside_nats_point_down() -> None:
    """A module of the NATS adapter imports modules of its package below it."""
    ranks = {f"worker.nats.{name}": rank for rank, names in enumerate(NATS_LAYERS) for name in names}

    def check(module: str) -> None:
        for imported in ours(module):
            if top(imported) == "nats" and imported != "worker.nats":
                assert ranks[module] < ranks[imported], f"{module} imports {imported}"

    check_each([name for name in MODULES if name.startswith("worker.nats.")], check)


def test_nats_modules_of_the_producer_import_no_trio() -> None:
    """What the producer imports of the NATS adapter, at any distance, runs on asyncio alone."""
    found, left = set[str](), [name for name in MODULES if top(name) == "gateway"]
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += ours(module)
    assert "worker.nats.jetstream" in found
    assert [name for name in found if top(name) == "nats" and foreign(name) & {"trio", "trio_asyncio"}] == []


def test_imports_make_no_circle() -> None:
    """Also within a package, modules can be read in an order in which each builds on those before."""
    assert list(TopologicalSorter({module: ours(module) for module in MODULES}).static_order())


def test_adapters_and_settings_stay_out_of_the_core() -> None:
    """Settings reach the core in slices and adapters as ports: only what puts the program together imports them."""

    def check(module: str) -> None:
        for imported in ours(module):
            name = inside(imported)
            rule = next((prefix for prefix in (name, top(imported)) if prefix in ONLY_BY), None)
            if rule and top(imported) != top(module):
                assert top(module) in ONLY_BY[rule], f"{module} imports {imported}"

    check_each(MODULES, check)


def test_nothing_else_touches_asyncio() -> None:
    """The broker's island and the producer are asyncio's, the latter with no Trio in it; the rest is Trio's."""

    def check(module: str) -> None:
        for library, importers in LOOPS.items():
            if library in foreign(module):
                allowed = any(f"{inside(module)}.".startswith(f"{each}.") for each in importers)
                assert allowed, f"{module} imports {library}"
        if top(module) == "gateway":
            assert "trio" not in foreign(module)

    check_each(MODULES, check)


def test_what_decides_is_pure() -> None:
    """No clock, no dice, no world, no waiting but what a port promises: time and chance are arguments."""
    pure = [name for name in MODULES if top(name) in ("policy", "ports", "events", "model") or name in SANS_IO]
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)

    def check(module: str) -> None:
        assert not IMPURE & foreign(module)
        for node in ast.walk(TREES[module]):
            assert module == "worker.ports" or not isinstance(node, waits)
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert called not in IMPURE_CALLS

    check_each(pure, check)


def test_policies_know_values_only() -> None:
    """A policy builds on other policies and on the model, not even on ports and events."""
    policies = [module for module in MODULES if top(module) == "policy"]
    assert [each for each in policies if not {*map(top, ours(each))} <= {"policy", "model"}] == []


def test_no_module_calls_wait_for() -> None:
    """``asyncio.wait_for`` of Python 3.11 may lose a cancellation; ``asyncio.timeout`` does not."""
    nodes = ((module, node) for module, tree in TREES.items() for node in ast.walk(tree))
    assert [module for module, node in nodes if isinstance(node, ast.Attribute) and node.attr == "wait_for"] == []


def test_the_checks_see_what_they_should() -> None:
    """The reading of imports knows relative ones, of modules and of names in them, and those inside functions."""
    assert "worker.policy.decide" in imports("worker.job")
    assert "worker.model" in imports("worker.policy.decode")
    assert "trio" in imports("worker.run")
    assert ours("worker.model") == set()
    assert "worker" in imports("worker.cli")
