"""A worker process, its queue, and messages for it."""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from prometheus_client.parser import text_string_to_metric_families

from tests.functions import Functions
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, Program, wait_until
from tests.wire import ApiError, StoredMessage

LEASE = 8
"""An `ack_wait` for tests that wait until a lease ends (s). A worker that a busy machine does not run for two thirds
of it loses its leases, so a shorter one would fail tests."""
QUIET = 0.6
"""Duration of a wait in which an event must not occur (s): several times what the event would take."""


def message(function: str = "echo", /, call_id: str = "", body: bytes = b"", **fields: Any) -> bytes:
    """Return a QueueRequest, as Go's encoding/json writes it."""
    header = {"X-Call-Id": [call_id]} if call_id else {}
    request = {
        "Header": header,
        "Host": "gateway.example:8080",
        "Body": base64.b64encode(body).decode(),
        "Method": "POST",
        "Function": function,
        "QueueName": "",
        "CallbackUrl": None,
    }
    return json.dumps(request | fields).encode()


def go_url(url: str) -> dict[str, Any]:
    """Return a URL, ``http://host/path?query``, as encoding/json writes Go's ``url.URL``."""
    scheme, _, rest = url.partition("://")
    where, _, query = rest.partition("?")
    host, slash, path = where.partition("/")
    decoded = unquote(slash + path)
    return {
        "Scheme": scheme,
        "Opaque": "",
        "User": None,
        "Host": host,
        "Path": decoded,
        "RawPath": slash + path if decoded != slash + path else "",
        "OmitHost": False,
        "ForceQuery": False,
        "RawQuery": query,
        "Fragment": "",
        "RawFragment": "",
    }


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue on a server, with a stream of the same name."""

    nats: NatsServer
    name: str = "faas-request"

    @property
    def dead_letter_stream(self) -> str:
        return f"{self.name}-dead-letters"

    def put(self, *payloads: bytes) -> list[int]:
        """Store messages, as OpenFaaS does, and return their sequences."""
        return [ack["seq"] for ack in self.nats.publish_many((self.name, payload, {}) for payload in payloads)]

    def put_calls(self, function: str, call_ids: Iterable[str], **fields: Any) -> list[str]:
        """Store one message for each call id, and return the call ids."""
        calls = list(call_ids)
        self.put(*(message(function, call, **fields) for call in calls))
        return calls

    def empty(self) -> bool:
        """Return whether the stream exists and is empty."""
        return self.nats.state(self.name).get("messages") == 0

    def wait_empty(self, timeout: float = LAST_RESORT) -> None:
        """Wait until all messages are settled; a failure names the counts of all consumers of the queue."""
        try:
            wait_until(self.empty, f"the queue {self.name} to be empty", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._consumer_counts()}") from None

    def _consumer_counts(self) -> str:
        streams = [name for name in self.nats.api("STREAM.NAMES")["streams"] or () if name.startswith(self.name)]
        infos = [info for name in streams for info in self.nats.api(f"CONSUMER.LIST.{name}")["consumers"] or ()]
        return "\n".join(
            f"{info['stream_name']} {info['config'].get('filter_subject', '')}: {info['num_pending']} pending, "
            f"{info['num_ack_pending']} ack pending, {info['num_waiting']} requests wait"
            for info in infos
        )

    def dead_letters(self) -> list[StoredMessage]:
        """Return the dead letters, oldest first; none without their stream."""
        try:
            return self.nats.messages(self.dead_letter_stream)
        except ApiError as error:
            if error.code == 10059:  # stream not found
                return []
            raise

    def dead_letters_of(self, call_id: str) -> list[StoredMessage]:
        """Return the dead letters of one call id."""
        return [letter for letter in self.dead_letters() if letter.headers.get("X-Call-Id") == call_id]

    def consumer(self, durable: str = "faas-workers") -> dict[str, Any]:
        """Return the CONSUMER.INFO of a consumer."""
        return self.nats.api(f"CONSUMER.INFO.{self.name}.{durable}")

    def has_consumer(self) -> bool:
        try:
            return bool(self.consumer())
        except ApiError:
            return False


class Worker(Program):
    """``python -m worker``, by default with short waits, JSON logs and a free port for metrics and health.

    Args:
        queue: the queue that it serves; None if *settings* name it.
        functions: the server of its functions.
        tmp_path: the directory of its output.
        settings: further settings, which override these.
    """

    PROGRAM: tuple[str, ...] = ("worker",)
    """Module and arguments, for ``python -m``."""

    def __init__(
        self, queue: Queue | None, functions: Functions | None = None, /, *, tmp_path: Path, **settings: object
    ) -> None:
        usual: dict[str, object] = {
            "http_host": "127.0.0.1",
            "http_port": 0,
            "log_encoding": "json",
            "initial_retry_wait": "50ms",
            "max_retry_wait": "200ms",
            "callback_initial_wait": "50ms",
            "callback_max_wait": "200ms",
            "callback_allow": "127.0.0.0/8,::1",  # the receivers of tests
            "nats_bodies_max_bytes": "33554432",  # the server reserves it for each of many queues
            "NO_PROXY": "*",  # overrides the proxy settings of the machine that runs the tests
        }
        if queue:
            usual |= {"nats_port": queue.nats.port, "nats_stream": queue.name}
        if functions:
            usual["gateway_url"] = functions.url
        super().__init__(*self.PROGRAM, tmp_path=tmp_path, settings=usual | settings)
        self._port = 0

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of a page of the worker."""
        if not self._port:
            found = self.wait_for(r'"address":"(?:http://)?127\.0\.0\.1:(\d+)"')
            self._port = int(found[1])
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LAST_RESORT)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def wait_ready(self) -> None:
        wait_until(lambda: self.get("/readyz")[0] == 200, "the worker to be ready")

    def samples(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the values of one series, by its labels, in the order of their names."""
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name
        }

    def metric(self, name: str, **labels: str) -> float:
        """Add up all series of that name that have these labels."""
        return sum(value for found, value in self.samples(name).items() if labels.items() <= dict(found).items())

    def lines(self) -> list[dict[str, Any]]:
        """Return all log lines that are complete.

        A worker writes its log just before it waits for the network, so the line may be missing for a moment after a
        message was settled. A worker that answers a request has written all earlier lines.

        Raises:
            json.JSONDecodeError: a line is not JSON.
        """
        if self._port and self.process.poll() is None:
            with suppress(OSError, HTTPException):
                self.get("/healthz")
        return [json.loads(line) for line in self.stdout.split("\n")[:-1]]

    def lines_of(self, call_id: str) -> list[dict[str, Any]]:
        """Return the log lines about one call id."""
        return [line for line in self.lines() if line.get("call_id") == call_id]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines whose event matches a pattern."""
        return [line for line in self.lines() if re.search(event, line["event"])]


StartWorker = Callable[..., Worker]
"""A function that starts a worker on a test's queue and functions, and waits until it is ready."""


def wait_quietly(seconds: float = QUIET) -> None:
    """Wait for a time in which no event may occur."""
    time.sleep(seconds)
