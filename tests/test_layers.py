"""The import rules of the worker. A package exists only where it has an import rule.

A module that is not in :data:`LAYERS` fails: a new one has to be added to its layer.
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
    ("entry",),
    ("cli",),
    ("dev",),
    ("gateway",),
    ("parent",),
    ("observe",),
    ("run",),
    ("intake",),
    ("job", "callback_retries"),
    ("callbacks",),
    ("dead_letters",),
    ("services",),
    ("admission",),
    ("token_store",),
    ("drain", "heartbeat", "timers"),
    ("nats", "http"),
    ("config",),
    ("settings",),
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
    ("quotas", "discovery", "stored_callbacks"),
    ("drifts",),
    ("flow_consumers", "faults"),
    ("pull_consumer",),
    ("pull",),
    ("outbox", "migration"),
    ("retired_consumers", "function_state", "dead_letters", "apply", "attempt_counts", "presence", "stored_bodies"),
    ("objects",),
    ("topology", "reconcile"),
    ("jetstream",),
    ("connection", "layout"),
    ("wire", "nats_internals", "credit", "object_info", "pull_messages"),
]
"""Layers inside ``worker/nats``, top to bottom."""

ONLY_BY = {
    "entry": {"__main__"},
    "cli": {"entry"},
    "dev": {"cli"},
    "gateway": {"cli", "dev"},
    "parent": {"cli", "dev"},
    "observe": {"cli", "dev", "gateway", "parent"},
    "nats": {"cli"},
    **{f"nats.{name}": {"cli", "gateway"} for name in ("connection", "jetstream", "objects", "topology", "wire")},
    "http": {"cli"},
    "config": {"cli", "dev"},
    "settings": {"config", "cli", "dev", "gateway", "nats", "http", "observe", "parent"},
}
"""Importers besides the own package: the core imports neither adapters nor settings. The longest name applies."""

LOOPS = {
    "trio_asyncio": {"nats"},
    "nats": {"nats"},
    "asyncio": {"nats", "gateway", "cli.submit", "cli.function", "dev.functions"},
    "uvicorn": {"gateway", "dev.functions"},
    "httptools": {"http", "gateway"},
}
"""Importers of a library with an event loop or a protocol of its own. All else is Trio's, or has no loop."""

IMPURE = {
    *("asyncio", "trio", "trio_asyncio", "anyio", "threading", "concurrent", "signal", "contextvars"),  # waiting
    *("time", "random", "secrets"),  # clock and random numbers
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
    ),  # the system
    *("logging", "structlog", "prometheus_client", "warnings"),  # output
    *("httpx", "nats", "uvicorn", "hypercorn", "starlette", "click", "rich"),  # adapters
}
IMPURE_CALLS = {"now", "utcnow", "today", "uuid1", "uuid4", "open", "print", "input", "urlopen"}
SANS_IO = (
    "worker.nats.credit",
    "worker.nats.layout",
    "worker.nats.object_info",
    "worker.nats.pull_messages",
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
    """Return the module or package directly below ``worker`` that contains it; of each package's start, the top."""
    name = inside(module)
    return "__main__" if name.endswith("__main__") else name.partition(".")[0]


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


def own_imports(module: str) -> set[str]:
    return {each for each in imports(module) if each.partition(".")[0] == "worker"}


def foreign_imports(module: str) -> set[str]:
    return {each.partition(".")[0] for each in imports(module)} - {"worker"}


def test_modules_all_belong_to_a_layer() -> None:
    """A module's name is in the list of layers, itself or by its package."""
    assert [module for module in MODULES if top(module) not in RANKS] == []


def test_imports_point_down() -> None:
    """A module imports only existing modules, of the layers below it or of its own package."""

    def check(module: str) -> None:
        for imported in own_imports(module):
            assert imported in MODULES
            beside = top(imported) == top(module)
            assert beside or RANKS[top(module)] < RANKS[top(imported)], f"{module} imports {imported}"

    check_each(MODULES, check)


def test_imports_inside_nats_point_down() -> None:
    """A module of the NATS adapter imports modules of its package below it."""
    ranks = {f"worker.nats.{name}": rank for rank, names in enumerate(NATS_LAYERS) for name in names}

    def check(module: str) -> None:
        for imported in own_imports(module):
            if top(imported) == "nats" and imported != "worker.nats":
                assert ranks[module] < ranks[imported], f"{module} imports {imported}"

    check_each([name for name in MODULES if name.startswith("worker.nats.")], check)


def test_nats_modules_of_the_producer_import_no_trio() -> None:
    """The modules of the NATS adapter that the producer imports, also indirectly, import no Trio."""
    found, left = set[str](), [name for name in MODULES if top(name) == "gateway"]
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += own_imports(module)
    assert "worker.nats.jetstream" in found
    assert [name for name in found if top(name) == "nats" and foreign_imports(name) & {"trio", "trio_asyncio"}] == []


def test_imports_make_no_circle() -> None:
    """The modules have an order in which each imports only earlier ones, also within a package."""
    assert list(TopologicalSorter({module: own_imports(module) for module in MODULES}).static_order())


def test_adapters_and_settings_stay_out_of_the_core() -> None:
    """Only the commands and the adapters themselves import adapters and settings; the core gets them as arguments."""

    def check(module: str) -> None:
        for imported in own_imports(module):
            name = inside(imported)
            rule = next((prefix for prefix in (name, top(imported)) if prefix in ONLY_BY), None)
            if rule and top(imported) != top(module):
                assert top(module) in ONLY_BY[rule], f"{module} imports {imported}"

    check_each(MODULES, check)


def test_asyncio_is_imported_only_by_broker_and_producer() -> None:
    """Only the broker's island, the producer and two commands import asyncio, and the producer imports no Trio."""

    def check(module: str) -> None:
        for library, importers in LOOPS.items():
            if library in foreign_imports(module):
                allowed = any(f"{inside(module)}.".startswith(f"{each}.") for each in importers)
                assert allowed, f"{module} imports {library}"
        if top(module) == "gateway":
            assert "trio" not in foreign_imports(module)

    check_each(MODULES, check)


def test_decisions_are_pure() -> None:
    """Policies, values and protocols import no clock, random numbers or I/O, and only ports have async functions."""
    pure = [name for name in MODULES if top(name) in ("policy", "ports", "events", "model") or name in SANS_IO]
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)

    def check(module: str) -> None:
        assert not IMPURE & foreign_imports(module)
        for node in ast.walk(TREES[module]):
            assert module == "worker.ports" or not isinstance(node, waits)
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert called not in IMPURE_CALLS

    check_each(pure, check)


def test_policies_import_only_policies_and_the_model() -> None:
    """A policy imports only other policies and the model, not ports or events."""
    policies = [module for module in MODULES if top(module) == "policy"]
    assert [each for each in policies if not {*map(top, own_imports(each))} <= {"policy", "model"}] == []


def test_modules_never_call_wait_for() -> None:
    """``asyncio.wait_for`` of Python 3.11 may lose a cancellation; ``asyncio.timeout`` does not."""
    nodes = ((module, node) for module, tree in TREES.items() for node in ast.walk(tree))
    assert [module for module, node in nodes if isinstance(node, ast.Attribute) and node.attr == "wait_for"] == []


def test_events_are_all_emitted() -> None:
    """Each class of :mod:`worker.events` is constructed somewhere: an event that nothing emits is never logged."""
    called = {
        getattr(node.func, "id", getattr(node.func, "attr", ""))
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    events = {node.name for node in TREES["worker.events"].body if isinstance(node, ast.ClassDef)}
    assert events - called == set()


def test_imports_of_each_form_are_read() -> None:
    """Relative imports, imports of names and imports inside functions are read."""
    assert "worker.policy.decide" in imports("worker.job")
    assert "worker.model" in imports("worker.policy.decode")
    assert "trio" in imports("worker.run")
    assert own_imports("worker.model") == set()
    assert "worker" in imports("worker.cli")
