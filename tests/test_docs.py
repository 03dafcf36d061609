"""The documents against the code. A test that finds a wrong table prints the right one, to be pasted."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import structlog
from click.testing import CliRunner
from prometheus_client import ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from tests.chaos.faults import BROKER, CLUSTER, CONNECTIONS, WORKERS_AND_FUNCTIONS
from tests.test_layers import LAYERS, MODULES, foreign_imports, top
from tests.world.faults import ALL, ONE
from worker import __version__
from worker.cli import COMMANDS, main
from worker.config import load
from worker.events import CallbackPosted, CallbackStored, DeadLettered, Event, InvocationEnded, InvocationStarted
from worker.gateway import claims
from worker.gateway.connections import Connections
from worker.gateway.metrics import GatewayMetrics
from worker.model import (
    Abandon,
    Ack,
    Crashed,
    DeadLetter,
    Delivery,
    Interrupted,
    Invocation,
    LeaseLost,
    Malformed,
    Nak,
    NoResponse,
    NotSent,
    Outcome,
    Refused,
    Responded,
    Term,
    TimedOut,
    Verdict,
)
from worker.nats import dead_letters, function_state, quotas
from worker.nats.topology import consumer_config, stream_config
from worker.observe.function_metrics import FAMILIES, PENDING
from worker.observe.log_metrics import LogMetrics
from worker.observe.log_writer import LogWriter
from worker.observe.logs import LOG_LINES
from worker.observe.metrics import Metrics
from worker.parent.processes import MergedStatus, Processes
from worker.policy import quota
from worker.policy.decide import decide, status_of
from worker.policy.quota import _ANNOTATIONS as QUEUE_ANNOTATIONS
from worker.policy.report import dead_letter_headers
from worker.policy.retry import Retry
from worker.settings import SETTING_FIELDS

ROOT = Path(__file__).resolve().parent.parent
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
ARCHITECTURE, GUARANTEES, OPERATIONS, RELIABILITY, MUTANTS, SCALING, PERFORMANCE, SECURITY = (
    ROOT / "docs" / f"{name}.md"
    for name in (
        "architecture",
        "guarantees",
        "operations",
        "reliability",
        "mutants",
        "scaling",
        "performance",
        "security",
    )
)
DOCUMENTS = (
    README,
    CHANGELOG,
    ARCHITECTURE,
    GUARANTEES,
    OPERATIONS,
    RELIABILITY,
    MUTANTS,
    SCALING,
    PERFORMANCE,
    SECURITY,
)
MANIFESTS = sorted((ROOT / "deploy").glob("*.yaml"))
DEFAULTS = load({}).settings

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


# Reading Markdown.


def section(document: Path, heading: str) -> str:
    """Return the text below a heading, up to the next one of the same or a higher level."""
    text = re.sub(r"(?s)```.*?```", lambda block: re.sub(r"(?m)^#", " ", block[0]), document.read_text())
    depth = len(heading.partition(" ")[0])
    found = re.search(rf"(?ms)^{re.escape(heading)}\n(.*?)(?=^#{{1,{depth}}} |\Z)", text)
    assert found, f"{document.name} has no heading {heading!r}"
    return found[1]


def table(document: Path, heading: str) -> list[tuple[str, ...]]:
    """Return the rows of the first table below a heading."""
    found = re.search(r"(?m)^\|.*\n\| ---.*\n((?:\|.*\n)+)", section(document, heading))
    assert found, f"no table below {heading!r} in {document.name}"
    return [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in found[1].splitlines()]


def assert_table(document: Path, heading: str, rows: list[tuple[str, ...]]) -> None:
    """Assert that the table below a heading has exactly these rows."""
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    assert table(document, heading) == rows, f"{document.name}, {heading!r}, should have:\n{lines}\n"


def prose(document: Path) -> str:
    """Return a document without its code blocks."""
    return re.sub(r"(?s)```.*?```", "", document.read_text())


def ticked(document: Path) -> list[str]:
    """Return the texts in backticks in a document's prose."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def code(*names: str) -> str:
    """Format names as the tables write them."""
    return ", ".join(f"`{name}`" for name in names)


@cache
def texts() -> tuple[str, ...]:
    """Return every string in the worker's source."""
    return tuple(
        node.value
        for path in sorted((ROOT / "worker").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


# Settings and metrics.


def test_settings_table_is_complete() -> None:
    """Every setting is listed, in the order of worker/settings.py, with its default and meaning."""
    assert_table(
        OPERATIONS,
        "## Settings",
        [
            (
                code(name),
                "" if field.metadata["default"] is None else code(field.metadata["default"]),
                field.metadata["meaning"] + (" (secret)" if field.metadata["secret"] else ""),
            )
            for name, field in SETTING_FIELDS.items()
        ],
    )


def test_metrics_table_is_complete() -> None:
    """Every metric of the worker is listed, by the name that Prometheus shows, with type, labels and meaning."""
    assert_table(OPERATIONS, "## Metrics", list(metrics()))


def test_parent_metrics_table_is_complete() -> None:
    """Every metric of the parent of several processes is listed."""
    (_, shown) = re.findall(r"(?m)^\| metric .*\n\| ---.*\n((?:\|.*\n)+)", section(OPERATIONS, "## Metrics"))
    rows = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in shown.splitlines()]
    assert rows == list(parent_metrics())


def test_gateway_metrics_table_is_complete() -> None:
    """Every metric of the producer is listed."""
    assert_table(OPERATIONS, "### The producer's metrics", list(gateway_metrics()))


def gateway_metrics() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of the producer's metrics."""
    connections = Connections(1, 1.0, structlog.get_logger())
    connections.rejected[400] = 1
    registry = GatewayMetrics(connections, lambda: True, {}, lambda: 0, passes_on=True).registry
    for collector in registry._collector_to_names:
        if isinstance(collector, ProcessCollector):
            continue
        for family in collector.collect():
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            own = getattr(collector if isinstance(collector, MetricWrapperBase) else family, "_labelnames", ())
            labels = ("version",) if family.type == "info" else tuple(own)
            yield code(name), family.type, code(*labels) if labels else "", family.documentation


def parent_metrics() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of the parent's metrics."""
    for metric in MergedStatus(Processes([], {}, count=2, timeout=0.0, log=lambda *_: None)).collect():
        name = metric.name + {"counter": "_total"}.get(metric.type, "")
        yield code(name), metric.type, "", metric.documentation


def metrics() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of metrics."""
    for of_functions in (PENDING, *FAMILIES):
        yield code(of_functions.name), of_functions.kind, code(*of_functions.labels), of_functions.help
    for metric in Metrics(DEFAULTS, "pod").registry._collector_to_names:
        if not isinstance(metric, MetricWrapperBase):  # the process's own
            continue
        for family in metric.describe():
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = ("version",) if family.type == "info" else metric._labelnames
            yield code(name), family.type, code(*labels) if labels else "", family.documentation
    for family in LogMetrics(LogWriter(-1)).collect():
        yield code(f"{family.name}_total"), family.type, "", family.documentation


def _all_metrics() -> Iterator[tuple[str, ...]]:
    yield from metrics()
    yield from parent_metrics()
    yield from gateway_metrics()


@each_document
def test_document_names_exist_in_the_worker(document: Path) -> None:
    """A name in backticks that looks like a setting is one, or is in the source, or is NATS's or Prometheus's."""
    of_others = {"sync_interval", "max_payload", "max_request_batch", "max_bytes_required"}
    of_others |= {"honor_labels", "exported_kubernetes_pod_name"}
    folders = ("worker", "benchmarks") if document == PERFORMANCE else ("worker",)
    source = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    known = set(re.findall(r"\w+", source)) | of_others | {row[0].strip("`") for row in _all_metrics()}
    known |= {f"{name}_file" for name, field in SETTING_FIELDS.items() if field.metadata["secret"]}
    alike = re.compile(r"(?<![\w/.:-])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![\w/.])")
    assert {name for text in ticked(document) for name in alike.findall(text)} <= known


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: str(file.name))
def test_manifest_has_valid_settings(file: Path) -> None:
    """The settings in a worker's Kubernetes manifest are valid, and its grace period follows from them."""
    manifest = file.read_text()
    given = dict(re.findall(r'- name: (\w+)\n\s+value: "(.*)"', manifest))
    assert bool(given) == ("image: jetstream-queue-worker" in manifest)
    if not given:
        return
    assert set(given) <= set(SETTING_FIELDS)
    settings = load(given | {"HOSTNAME": "queue-worker-0"}).settings
    assert "`shutdown_timeout` + 5 s" in OPERATIONS.read_text()
    assert f"terminationGracePeriodSeconds: {settings.shutdown_timeout + 5:g}\n" in manifest


def test_queue_annotations_table_is_complete() -> None:
    """Every annotation of a function's quota is listed, with its accepted values."""
    rows = section(OPERATIONS, "## Settings").rpartition("| annotation | accepted | meaning |")[2]
    listed = dict(re.findall(r"(?m)^\| `(com[\w.]+)` \| (.*?) \|", rows))
    assert listed.keys() == QUEUE_ANNOTATIONS.keys()
    assert listed["com.openfaas.queue.weight"].startswith(f"1 to {quota.MOST_WEIGHT},")
    assert listed["com.openfaas.queue.max_inflight"] == f"1 to {quota.MOST_INFLIGHT}"
    for example in re.findall("`(.*?)`", listed["com.openfaas.queue.rate"]):
        assert quota.write_rate(quota.parse_rate(example)) == example


METRICS = {row[0].strip("`"): set(re.findall("`(.*?)`", row[2])) for row in metrics()}


@pytest.mark.parametrize("file", [*MANIFESTS, SCALING], ids=lambda file: str(file.name))
def test_queries_use_existing_metrics_and_labels(file: Path) -> None:
    """A query for Prometheus names a metric of the worker, and groups and selects by labels that it has."""
    queries = re.findall(r"(?m)^.*avg by \(.*$", file.read_text())
    assert bool(queries) == (file.name in ("keda.yaml", "hpa.yaml", "scaling.md"))
    for query in queries:
        ((metric, selected),) = re.findall(r"\((queue_worker_\w+)(?:\{(\w+)=.*?\}|\{<<.*?>>\})?\)", query)
        grouped = {label for labels in re.findall(r"by \((.*?)\)", query) for label in labels.split(", ")}
        assert grouped | ({selected} if selected else set()) <= METRICS[metric]


# Decisions.


CAUSES: dict[str, tuple[Outcome, ...]] = {
    "a status not in `retry_http_codes`, below 400 or not, with no `X-OpenFaaS-Internal` header": (
        *(Responded(status) for status in (200, 204, 302, 400, 404, 501)),
        Responded(200, ((b"X-OpenFaaS-Internal", b"gateway"),)),
    ),
    "a status in `retry_http_codes`": tuple(Responded(status) for status in DEFAULTS.retry_http_codes),
    "a status of 400 or more with an `X-OpenFaaS-Internal` header, whatever the list": (
        Responded(404, ((b"x-openfaas-internal", b""),)),
        Responded(599, ((b"X-OpenFaaS-Internal", b"faas-netes"),)),
    ),
    "no response: refused, reset, name not resolved, TLS failed, not HTTP, broken off": (NoResponse("refused"),),
    "no whole response within `upstream_timeout`": (TimedOut(60.0),),
    (
        "not sent: this machine has no descriptors, memory, threads or ports, no name server answers, "
        "or a large body cannot be read now"
    ): (NotSent("no ports"),),
    "a bug in the worker": (Crashed(ValueError()),),
    "a message whose large body is not stored any more, or is damaged": (Malformed("not stored any more"),),
    "a message that cannot be decoded": (Malformed("not a QueueRequest"),),
    "cancelled by the drain: `shutdown_timeout` passed, or a second signal was received": (Interrupted(),),
    "the lease was lost": (LeaseLost(),),
}
"""First column of the table of decisions -> the outcomes that it describes."""


def test_decisions_table_is_correct() -> None:
    """Every outcome is listed, with the status it counts as, and the verdicts before and at the last attempt."""
    assert_table(GUARANTEES, "## What happens to an invocation", [decisions(cause) for cause in CAUSES])
    assert {type(outcome) for outcomes in CAUSES.values() for outcome in outcomes} == set(get_args(Outcome))


def decisions(cause: str) -> tuple[str, ...]:
    """Compute a row of the table of decisions."""
    outcomes, retry = CAUSES[cause], Retry(attempts=3)

    def verdict(*attempts: int) -> str:
        (only,) = {
            word(decide(outcome, attempt=attempt, retry=retry, draw=0.0, now=0.0)[0])
            for outcome in outcomes
            for attempt in attempts
        }
        return only

    answered = isinstance(outcomes[0], Responded)
    return cause, "that status" if answered else str(status_of(outcomes[0]) or ""), verdict(1, 2), verdict(3, 4)


def word(verdict: Verdict) -> str:
    """Describe a verdict as the table does."""
    match verdict:
        case Ack():
            return "done: ack"
        case Nak(0.0):
            return "returned: nak, at once"
        case Nak():
            return "retry: nak, with the wait"
        case Term():
            return "given up: dead letter, then term"
        case Abandon():
            return "abandoned: nothing is sent"


DELIVERY = Delivery((7, 1_795_300_309_091_784_293), "$JS.ACK", 2, 0.0, "faas-request", b"{")
INVOCATION = Invocation(
    call_id="5bd0a6a1",
    function="figlet",
    label="figlet.openfaas-fn",
    method="POST",
    target=b"/function/figlet",
    headers=(),
    body=b"",
    annotations={},
    callback="http://example.com/done?token=s3cret",
    started="1",
)


def test_dead_letter_headers_table_is_complete() -> None:
    """Every header of a dead letter is listed; the last ones are those that the adapter adds."""
    headers = dead_letter_headers(DeadLetter(DELIVERY, "", 1, "", "", 500, kind="callback"), stream="")
    assert [row[0] for row in table(GUARANTEES, "### Headers of a dead letter")] == [
        *map(code, headers),
        code("X-Dead-Letter-Part"),
        code("Nats-Msg-Id"),
    ]
    assert {"X-Dead-Letter-Part", "Nats-Msg-Id"} <= set(texts())


# Tests.


def test_reliability_tables_name_existing_tests() -> None:
    """Each promise, fault and finding names tests that exist, by file and name, or the fault's own name."""
    tables = section(RELIABILITY, "## Which test holds what") + section(RELIABILITY, "## What was found")
    rows = re.findall(r"(?m)^\| .* \|$", tables)
    paths = [path for folder in ("tests", "fuzz") for path in (ROOT / folder).rglob("*.py")]
    faults = {*WORKERS_AND_FUNCTIONS, *CONNECTIONS, *BROKER, *CLUSTER, *ONE, *ALL}
    assert len(rows) > 30
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row.partition(" | ")[2]):
            if name not in faults:
                file, _, what = name.partition("::")
                (path,) = (path for path in paths if path.as_posix().endswith(f"/{file}"))
                assert re.search(rf"(def|class) {what}\b", path.read_text()), name


def test_reliability_table_of_faults_is_complete() -> None:
    """The table names every fault that the simulation and ``make chaos`` inject."""
    named = set(re.findall(r"`([^`]+)`", section(RELIABILITY, "## Which test holds what")))
    assert {*WORKERS_AND_FUNCTIONS, *CONNECTIONS, *BROKER, *CLUSTER, *ONE, *ALL} <= named


# Logs.


def lines() -> dict[str, tuple[str, set[str]]]:
    """Return the log lines about a message: event -> level and all fields."""
    gone = NoResponse("refused")
    events: list[Event] = [
        InvocationStarted(INVOCATION, 1, 0.0),
        *(InvocationEnded(INVOCATION, 1, 3, gone, verdict, 0.0) for verdict in (Ack(), Nak(1.0), Term(""), Abandon())),
        InvocationEnded(INVOCATION, 1, 3, gone, Nak(0.1), 0.0, counts=False),
        InvocationEnded(INVOCATION, 1, 3, Responded(301), Ack(), 0.0),
        CallbackPosted("a", "echo.fn", "http://h", 200, delivered=True, retry_in=None, duration=0.0),
        CallbackPosted("a", "echo.fn", "http://h", 500, delivered=False, retry_in=1.0, duration=0.0),
        CallbackPosted("a", "echo.fn", "http://h", 500, delivered=False, retry_in=None, duration=0.0),
        CallbackPosted("a", "echo.fn", "http://h", Refused("a rule"), delivered=False, retry_in=None, duration=0.0),
        CallbackPosted("a", "echo.fn", "http://h", 200, delivered=True, retry_in=None, duration=0.0, stored=True),
        CallbackStored("a", "echo.fn"),
        DeadLettered(DeadLetter(DELIVERY, "", 3, "a", "echo.fn", None, kind="callback"), stored=True),
        DeadLettered(DeadLetter(DELIVERY, "", 3, "5bd0a6a1", "figlet.openfaas-fn", 500), stored=True),
    ]
    shown: dict[str, tuple[str, set[str]]] = {}
    for event in events:
        level, message, fields = LOG_LINES[type(event)](event)
        shown[message] = level, shown.get(message, (level, set()))[1] | set(fields)
    return shown


def test_log_lines_table_is_complete() -> None:
    """The log lines about a message are listed with their level and fields."""
    listed = {
        message.strip("`"): (level, set(re.findall(r"`(\w+)`", fields)))
        for message, level, fields in table(OPERATIONS, "## Logs")
    }
    assert listed == lines()


def test_log_examples_have_the_fields_of_their_lines() -> None:
    """Each example of a log line has the fields that such a line has."""
    examples = re.findall(r"(?m)^\{.*\"event\".*\}$", OPERATIONS.read_text())
    assert examples
    for example in map(json.loads, examples):
        level, fields = lines()[example["event"]]
        assert example["level"] == level
        assert set(example) - {"event", "level", "timestamp"} <= fields


def test_troubleshooting_messages_exist_in_the_worker() -> None:
    """Each message in the troubleshooting table is in the worker's source; an ellipsis stands for a variable part."""
    quoted = [row[0].strip("`") for row in table(OPERATIONS, "## Troubleshooting")]
    for message in quoted:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert any(part in text for text in texts()), f"the worker has no text {part!r}"


# JSON.


@pytest.mark.parametrize(
    "config",
    [
        stream_config,
        consumer_config,
        dead_letters.stream_config,
        function_state.stream_config,
        quotas.stream_config,
        lambda settings: claims.stream_config(settings, stream_config(settings).duplicate_window),
    ],
    ids=["queue", "consumer", "dead letters", "functions", "quotas", "call ids"],
)
def test_json_of_stream_and_consumer_is_the_worker_s(config: Callable[..., Any]) -> None:
    """The JSON for streams and consumers by hand is what the worker sends."""
    expected = msgspec.json.decode(msgspec.json.encode(config(DEFAULTS)))
    shown = [json.loads(block) for block in re.findall(r"(?ms)^```json\n(\{\n.*?)^```$", OPERATIONS.read_text())]
    assert expected in shown, f"docs/operations.md should have:\n{json.dumps(expected, indent=2)}\n"


# Commands, links, versions.


@each_document
def test_document_commands_exist(document: Path) -> None:
    """Every command and every make target that a document names exists."""
    text = document.read_text()
    assert set(re.findall(r"(?<![\w/-])queue-worker +([a-z][a-z-]*)", " ".join(re.findall(r"`+[^`]+`+", text)))) <= set(
        COMMANDS
    )
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"(?m)(?:`|^)make ([a-z-]+)", text)) <= targets


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_all_print_their_help(command: str) -> None:
    """Every command prints its help."""
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


@each_document
def test_document_links_resolve(document: Path) -> None:
    """Every relative link leads to a file, and to a heading where it names one."""
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name}: {link}"
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", prose(target))
            assert anchor in [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings], link


@each_document
def test_document_files_exist(document: Path) -> None:
    """Every file of this project that a document names exists."""
    for name in re.findall(r"(?<![\w/.<])((?:worker|tests|docs|deploy)/[\w/.]+\w)", prose(document)):
        assert (ROOT / name).exists(), f"{document.name}: {name}"


def test_changelog_begins_with_the_current_version() -> None:
    """The changelog begins with the current version."""
    (newest, *_) = re.findall(r"(?m)^## (\S+)", CHANGELOG.read_text())
    assert newest == __version__


# Layers and packages.


def test_layers_table_is_complete() -> None:
    """docs/architecture.md lists the layers that tests/test_layers.py checks."""
    listed = [tuple(re.findall(r"`(\w+)`", row[0])) for row in table(ARCHITECTURE, "## Layers")]
    checked = [tuple(name for name in names if any(top(module) == name for module in MODULES)) for names in LAYERS]
    assert listed == [names for names in checked if any(names) and names != ("__main__",)]


def test_dependencies_table_is_complete() -> None:
    """docs/architecture.md lists exactly the packages that the worker imports; pyproject.toml requires them."""
    listed = {row[0].strip("`") for row in table(ARCHITECTURE, "## Dependencies")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert listed <= {re.split(r"[\[<>=]", each)[0] for each in project["dependencies"]}
    imported = {name for module in MODULES for name in foreign_imports(module)} - sys.stdlib_module_names
    assert {
        {"nats-py": "nats", "python-dotenv": "dotenv"}.get(name, name.replace("-", "_")) for name in listed
    } == imported


def test_constraints_pin_every_package() -> None:
    """constraints.txt pins every package that pyproject.toml names, each once, without an index or address."""
    text = (ROOT / "constraints.txt").read_text()
    pins = re.findall(r"(?m)^([\w.-]+)==[\w.]+$", text)
    assert len(pins) == len([line for line in text.splitlines() if line and not line.startswith("#")])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    required = {re.split(r"[\[<>=]", each)[0].lower() for each in named} - {project["name"]}
    assert required <= {re.sub(r"[-_.]+", "-", pin).lower() for pin in pins}
