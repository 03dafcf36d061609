"""The system under test: broker, workers, producer, proxies between them, functions, a receiver of callbacks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from tests.chaos.disk import Disk, MountNotPermittedError
from tests.chaos.history import Answer, DeadLetter, Fault, History, ReceivedCallback, Rules, Run, WorkerLife
from tests.chaos.proxy import Proxy
from tests.chaos.publisher import CONSUMER, FUNCTIONS, STREAM, Publisher, is_intact
from tests.cluster import NatsCluster
from tests.e2e.stack import Worker
from tests.functions import Functions, Request
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, Program
from tests.wire import ApiError
from worker.dev.stack import free_port

T = TypeVar("T")

NUM_WORKERS = 3
"""Number of workers that run at a time."""
RULES = Rules(attempts=8, first_wait=0.3, longest_wait=1.5, upstream_timeout=6.0, ack_wait=4.0, drain=7.0)
SETTINGS: Mapping[str, object] = {
    "max_inflight": 12,
    "ack_wait": "4s",
    "max_retry_attempts": RULES.attempts,
    "initial_retry_wait": "300ms",
    "max_retry_wait": "1500ms",
    "upstream_timeout": "6s",
    "callback_timeout": "2s",
    "callback_allow": "127.0.0.0/8",
    "callback_initial_wait": "100ms",
    "callback_max_wait": "400ms",
    "shutdown_timeout": "2s",
}
RETRIED_CODES = (408, 429, 500, 502, 503, 504)


class WorkerHost:
    """The proxies to the broker's nodes, and the worker that uses them now."""

    def __init__(self, proxies: Sequence[Proxy]) -> None:
        self.proxies = proxies
        self.name = ""
        self.worker: Worker
        self.began = 0.0
        self.stopped: float | None = None


class SystemUnderTest:
    """The system under test. Faults change it, and :meth:`history` returns its records.

    Args:
        directory: for the files of all processes.
        nodes: of the broker.
        rng: random draws.
        log: called with a line of text for each event.
        mode: the workers' ``scaling_mode``; ``mixed``: each worker's is drawn.
    """

    def __init__(
        self, directory: Path, nodes: int, rng: random.Random, log: Callable[[str], None], mode: str = "static"
    ) -> None:
        self.rng, self.log, self.mode = rng, log, mode
        self.broker = NatsCluster(directory, size=nodes)
        self.nodes = [*self.broker.nodes.values()]
        self.functions, self.receiver = Functions(), Functions()
        self.hosts: list[WorkerHost] = []
        self.faults: list[Fault] = []
        self.publisher: Publisher
        self.producer: Program
        self._producer_settings: dict[str, object] = {}
        self.broker_in_use, self.workers_in_use = trio.Lock(), trio.Lock()
        """A fault that kills a node, or a worker, waits until the previous one has ended."""
        self.disks: dict[NatsServer, Disk] = {}
        """The disk of each node; empty if this machine does not allow to mount disks."""
        self._lives: list[WorkerLife] = []
        self._workers: list[Worker] = []
        self._directory = directory
        self._began = time.monotonic()
        self._started = 0
        self._open = ExitStack()

    def now(self) -> float:
        """Return the seconds since the beginning: the clock of all records."""
        return time.monotonic() - self._began

    async def set_up(self, nursery: trio.Nursery) -> None:
        """Start all processes and servers."""
        for server in (self.functions, self.receiver):
            self._open.enter_context(server)
        for name, function in FUNCTIONS.items():
            self.functions.answer(name, *function.replies)
        with suppress(MountNotPermittedError):
            self.disks = {node: self._open.enter_context(Disk(node.store)) for node in self.nodes}
        await in_thread(lambda: self._open.enter_context(self.broker))
        await in_thread(self.broker.make_stream)
        producer_port = free_port()
        self.publisher = Publisher(
            self.nodes, producer_port, self.receiver.url, random.Random(self.rng.random()), self.now
        )
        nodes = ",".join(node.url for node in self.nodes)
        self._producer_settings = {"listen_host": "127.0.0.1", "listen_port": producer_port, "nats_url": nodes}
        self.start_producer()
        for _ in range(NUM_WORKERS):
            host = WorkerHost([Proxy(node.port) for node in self.nodes])
            for proxy in host.proxies:
                await nursery.start(proxy.serve)
            self.hosts.append(host)
            await self.start_worker(host)

    async def tear_down(self) -> None:
        """Kill the processes that still run."""
        with trio.CancelScope(shield=True):
            await in_thread(self._open.close)

    # The producer.

    def start_producer(self) -> None:
        """Start this project's producer, or start it again after it was killed."""
        settings = {"nats_stream_replicas": len(self.nodes), "log_encoding": "json", **self._producer_settings}
        self.producer = self._open.enter_context(
            Program("worker.cli", "gateway", tmp_path=self._directory, settings=settings)
        )

    # Workers.

    async def start_worker(self, host: WorkerHost) -> None:
        """Start a worker on a host without a running worker."""
        self._started += 1
        host.name, host.began, host.stopped = f"w{self._started}", self.now(), None
        urls = ",".join(f"nats://127.0.0.1:{proxy.port}" for proxy in host.proxies)
        gateway = f"{self.functions.url}/{host.name}"
        replicas = len(self.nodes)
        mode = self.rng.choice(["static", "function"]) if self.mode == "mixed" else self.mode
        settings = {
            **SETTINGS,
            "nats_url": urls,
            "gateway_url": gateway,
            "nats_stream_replicas": replicas,
            "scaling_mode": mode,
            "limiter_enabled": "false",  # the ledger does not model which messages it returns
        }
        host.worker = self._open.enter_context(Worker(None, tmp_path=self._directory, **settings))
        self._workers.append(host.worker)
        # A process without a signal handler yet dies of SIGTERM.
        await in_thread(partial(host.worker.wait_for, "Serving metrics"))

    @property
    def consumer(self) -> str:
        """Return the name of the consumer that exists all the time; empty if the mode has none."""
        return CONSUMER if self.mode == "static" else ""

    def any_consumer(self) -> str:
        """Return the name of an existing consumer, drawn at random."""
        names = self.broker.api(f"CONSUMER.NAMES.{STREAM}")["consumers"] or [CONSUMER]
        return str(self.rng.choice(sorted(names)))

    def terminate(self, host: WorkerHost) -> None:
        """Send SIGTERM to a host's worker, and record the time of the first one."""
        host.stopped = host.stopped or self.now()
        host.worker.terminate()

    async def wait_ended(self, host: WorkerHost) -> None:
        """Wait until a worker that was terminated or killed has ended."""
        process = host.worker.process
        with trio.move_on_after(LAST_RESORT):
            while process.poll() is None:  # noqa: ASYNC110 -- there is no event for the end of a process
                await trio.sleep(0.005)
        code = process.poll()
        if code is None:
            self.log(f"{host.name} does not end; see {host.worker.output[-2000:]}")
            host.worker.kill()
            process.wait()
        self._lives.append(WorkerLife(host.name, host.began, host.stopped, self.now(), 99 if code is None else code))

    # Faults and records.

    @contextmanager
    def fault(
        self,
        kind: str,
        workers: frozenset[str] | None = frozenset(),
        *,
        recovery_time: float = 0.0,
        loses_counts: bool = False,
        ends_workers: bool = False,
        delays_messages: bool = False,
    ) -> Iterator[None]:
        """Record a fault that lasts as long as this block; the arguments are the fields of ``Fault``."""
        began = self.now()
        self.log(f"{kind} {' '.join(sorted(workers or ()))}")
        try:
            yield
        finally:
            self.faults.append(
                Fault(kind, began, self.now(), workers, recovery_time, loses_counts, ends_workers, delays_messages)
            )

    async def wait_empty(self) -> int:
        """Wait until the queue is empty; return how many messages are left after LAST_RESORT seconds."""
        with trio.move_on_after(LAST_RESORT):
            while await self.publisher.num_unfinished():  # noqa: ASYNC110 -- the broker sends no event for it
                await trio.sleep(0.1)
        return self.publisher.backlog

    async def history(self, num_unfinished: int) -> History:
        """Return all records, after all workers have ended."""
        return History(
            rules=RULES,
            published=self.publisher.published,
            runs=[self._run(request) for request in self.functions.requests],
            callbacks=[self._callback(request) for request in self.receiver.requests],
            dead_letters=await in_thread(self._dead_letters),
            lives=self._lives,
            faults=self.faults,
            undecodable=self.publisher.undecodable,
            num_unfinished=num_unfinished,
            num_stored=await in_thread(lambda: self.broker.api(f"STREAM.INFO.{STREAM}")["state"]["messages"]),
        )

    def bad_log_lines(self) -> list[str]:
        """Return the log lines that no worker may write: bugs and tracebacks."""
        return [
            line
            for worker in self._workers
            for line in [*worker.stderr.splitlines(), *worker.stdout.splitlines()]
            if "Traceback" in line or '"level":"critical"' in line or "a bug" in line.lower()
        ]

    def _dead_letters(self) -> list[DeadLetter]:
        try:
            stored = self.broker.on_any_node(lambda node: node.messages(f"{STREAM}-dead-letters"))
        except ApiError:
            return []
        return [
            DeadLetter(
                None if "undecodable" in letter.subject else letter.headers.get("X-Call-Id", ""),
                int(letter.headers["X-Dead-Letter-Attempts"]),
                int(letter.headers["X-Dead-Letter-Deliveries"]),
                letter.data if "undecodable" in letter.subject else b"",
            )
            for letter in stored
        ]

    def _run(self, request: Request) -> Run:
        reply, intact = request.reply, is_intact(request)
        began, ended = request.began - self._began, (request.ended or time.monotonic()) - self._began
        answer: Answer = "final"
        if reply is None or reply.stall:
            answer = "none"
        elif reply.raw is not None or reply.status in RETRIED_CODES:
            answer = "retry"
        retry_after = float(dict(reply.headers).get("Retry-After", 0)) if reply else 0.0
        return Run(request.call_id, request.prefix, began, ended, answer, retry_after, intact)

    def _callback(self, request: Request) -> ReceivedCallback:
        began, ended = request.began - self._began, (request.ended or time.monotonic()) - self._began
        return ReceivedCallback(request.call_id, began, ended, request.header("X-Function-Status") or "")


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call beside Trio's tasks."""
    return await trio.to_thread.run_sync(call)
