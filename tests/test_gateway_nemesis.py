"""Two producers under random faults and random callers; the laws are checked on what the queue has afterwards.

The seed of a failed run is in the name of its test, or in NEMESIS_SEED.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.gateway import Gateway
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, wait_until
from worker.dev.stack import free_port

CALLERS = 8
MAX_MEMORY = 150 * 2**20
"""Bytes of a producer under these callers: about 60 MB are its modules."""
LARGE = 1_200_000
"""Bytes of a body that does not fit a message."""


@dataclass
class Call:
    """One call: its tag, by which its message is found, and the status of each try; 0 is no answer."""

    tag: str
    head: bytes
    body: bytes
    chunked: bool = False
    statuses: list[int] = field(default_factory=list)
    call_ids: set[str] = field(default_factory=set)

    def request(self) -> bytes:
        """Return the bytes of the request."""
        if not self.chunked:
            return self.head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body
        size = max(1, len(self.body) // 3)
        parts = [self.body[at : at + size] for at in range(0, len(self.body), size)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return self.head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


class Producer:
    """A producer that is started again with other settings; always on the same port."""

    def __init__(self, nats: NatsServer, tmp_path: Path, rng: random.Random) -> None:
        self._nats, self._tmp_path, self._rng = nats, tmp_path, rng
        self.port = free_port()
        self.lives: list[Gateway] = []
        self.changes = 0
        """Number of times that it was started or ended: even while it does not run."""
        self._open = ExitStack()
        self.start()

    @property
    def gateway(self) -> Gateway:
        return self.lives[-1]

    def start(self) -> None:
        """Start it with random settings."""
        settings: dict[str, object] = {"nats_port": self._nats.port, "listen_port": self.port, "client_timeout": "120s"}
        if self._rng.random() < 0.5:
            settings["max_queued"] = self._rng.choice([40, 100_000])
        if self._rng.random() < 0.3:
            settings["caller_rate"] = self._rng.choice(["20/s", "1000/s"])
        self.lives.append(self._open.enter_context(Gateway(tmp_path=self._tmp_path, **settings)))
        wait_until(self.gateway.healthy, "the gateway to listen")
        self.changes += 1

    def end(self, number: signal.Signals) -> None:
        """End it with a signal."""
        self.changes += 1
        assert memory(self.gateway.pid) < MAX_MEMORY
        self.gateway.process.send_signal(number)
        self.gateway.wait()

    def close(self) -> None:
        """Kill what still runs."""
        self._open.close()


class Nemesis:
    """The system, its faults, and the calls."""

    def __init__(self, tmp_path: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.nats = NatsServer(tmp_path)
        self.nats.start()
        self.nats.make_stream()
        self.producers = [Producer(self.nats, tmp_path, self.rng) for _ in range(2)]
        self.calls: list[Call] = []
        self.never: set[str] = set()
        """Tags of calls whose body was broken off."""
        self.unexplained: list[str] = []
        self.stop = threading.Event()
        self._numbers = itertools.count()

    def close(self) -> None:
        """End all processes."""
        for producer in self.producers:
            producer.close()
        self.nats.resume()
        self.nats.kill()

    # Faults.

    def fault(self) -> None:
        """Cause one fault, and end it."""
        producer, pause = self.rng.choice(self.producers), self.rng.choice([0.05, 0.3, 1.0])
        match self.rng.randrange(6):
            case 0:
                self.nats.kill()
                time.sleep(pause)
                self.nats.start()
            case 1:
                self.nats.restart()
            case 2:
                self.nats.pause()
                time.sleep(pause * 6)  # more than a confirmation may take
                self.nats.resume()
            case 3 | 4 as which:
                producer.end(signal.SIGKILL if which == 3 else signal.SIGTERM)
                time.sleep(pause)
                producer.start()
            case _:
                producer.gateway.process.send_signal(signal.SIGSTOP)
                time.sleep(pause * 3)
                producer.gateway.process.send_signal(signal.SIGCONT)

    # Callers.

    def caller(self, seed: int) -> None:
        """Send random calls until the end."""
        rng = random.Random(seed)
        kinds = [self.usual] * 6 + [self.repeats] * 3 + [self.broken_off, self.slow, self.pipelined]
        while not self.stop.is_set():
            rng.choice(kinds)(rng)
            time.sleep(0.005)

    def new_call(self, rng: random.Random) -> Call:
        """Return a call that was not sent yet."""
        tag = f"t{next(self._numbers)}"
        head = f"POST /async-function/f{rng.randrange(3)} HTTP/1.1\r\nHost: h\r\nX-Tag: {tag}\r\n"
        if named := rng.random() < 0.7:
            head += f"X-Call-Id: id-{tag}\r\n"
        size = rng.choice([0, 10, 1_000, 100_000]) if rng.random() < 0.95 or not named else LARGE
        call = Call(tag, head.encode(), tag.encode() * (size // len(tag)), chunked=rng.random() < 0.3)
        self.calls.append(call)
        return call

    def usual(self, rng: random.Random) -> None:
        """Send a call, and again under its call id while it gets no answer or 5xx."""
        call = self.new_call(rng)
        for _ in range(rng.randrange(1, 6)):
            self.send(rng, [call])
            if b"X-Call-Id" not in call.head or 200 <= call.statuses[-1] < 500:
                return
            time.sleep(rng.random() / 5)

    def repeats(self, rng: random.Random) -> None:
        """Send a call again that is queued already."""
        old = [call for call in self.calls[-50:] if b"X-Call-Id" in call.head and 202 in call.statuses]
        if old:
            self.send(rng, [rng.choice(old)])

    def slow(self, rng: random.Random) -> None:
        """Send a call in pieces."""
        self.send(rng, [self.new_call(rng)], pause=0.02)

    def pipelined(self, rng: random.Random) -> None:
        """Send some calls at once on one connection, and read the answers slowly."""
        self.send(rng, [self.new_call(rng) for _ in range(4)], pause=0.01)

    def broken_off(self, rng: random.Random) -> None:
        """Send a part of a call, and close the connection."""
        tag = f"broken{next(self._numbers)}"
        self.never.add(tag)
        head = f"POST /async-function/f HTTP/1.1\r\nHost: h\r\nX-Tag: {tag}\r\nContent-Length: 2000000\r\n\r\n"
        with suppress(OSError), self.connection(rng.choice(self.producers)) as raw:
            raw.sendall(head.encode() + b"x" * rng.choice([0, 10, 1_900_000]))

    def send(self, rng: random.Random, calls: list[Call], pause: float = 0.0) -> None:
        """Send calls on one connection, and note their statuses."""
        producer = rng.choice(self.producers)
        changes = producer.changes
        statuses: list[tuple[int, str]] = []
        with suppress(OSError), self.connection(producer) as raw:
            data = b"".join(call.request() for call in calls)
            size = max(1, len(data) // 20) if pause else len(data)
            for at in range(0, len(data), size):
                raw.sendall(data[at : at + size])
                time.sleep(pause)
            reader = raw.makefile("rb")
            for _ in calls:
                statuses.append(answer(reader.readline, reader.read))
                time.sleep(pause)
        statuses += [(0, "")] * (len(calls) - len(statuses))
        for call, (status, call_id) in zip(calls, statuses, strict=True):
            if not status and changes % 2 and producer.changes == changes:
                self.unexplained.append(f"{call.tag} {call.statuses} of {len(calls)}")
            call.statuses.append(status)
            if status == 202:
                call.call_ids.add(call_id)

    @contextmanager
    def connection(self, producer: Producer) -> Iterator[socket.socket]:
        """Open a connection."""
        with socket.create_connection(("127.0.0.1", producer.port), timeout=LAST_RESORT) as raw:
            yield raw

    # The run.

    def run(self, seconds: float) -> None:
        """Run faults and callers for so many seconds, then wait until all is as before."""
        callers = [threading.Thread(target=self.caller, args=(self.rng.random(),)) for _ in range(CALLERS)]
        for each in callers:
            each.start()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                time.sleep(self.rng.random())
                self.fault()
        finally:
            self.stop.set()
            for each in callers:
                each.join(LAST_RESORT)
        for producer in self.producers:
            wait_until(producer.gateway.ready, "the gateway to be ready after the last fault")

    def check(self) -> None:
        """Check the laws."""
        queued = Counter(message.json["Header"]["X-Tag"][0] for message in self.nats.messages())
        statuses = Counter(status for call in self.calls for status in call.statuses)
        assert statuses[202] > 10, statuses
        assert not [tag for tag, count in queued.items() if count > 1]
        assert not [call for call in self.calls if 202 in call.statuses and not queued[call.tag]]
        rejected = [call for call in self.calls if all(400 <= status < 500 for status in call.statuses)]
        assert not [call.tag for call in rejected if queued[call.tag]]
        assert not self.never & queued.keys()
        assert not [call for call in self.calls if len(call.call_ids) > 1]
        assert not self.unexplained, statuses
        assert statuses.keys() <= {0, 202, 429, 503}
        for life in (life for producer in self.producers for life in producer.lives):
            assert not re.search("[Tt]raceback|Request failed", life.output)
        for producer in self.producers:
            assert memory(producer.gateway.pid) < MAX_MEMORY


def answer(line: Callable[[], bytes], read: Callable[[int], bytes]) -> tuple[int, str]:
    """Read one response; return its status and call id."""
    found = re.match(rb"HTTP/1\.1 (\d+) ", line())
    if not found:
        raise ConnectionResetError
    headers: dict[bytes, bytes] = {}
    while field_line := line().strip():
        name, _, value = field_line.partition(b":")
        headers[name.lower()] = value.strip()
    read(int(headers.get(b"content-length", b"0")))
    return int(found[1]), headers.get(b"x-call-id", b"").decode()


def memory(pid: int) -> int:
    """Return the most memory (bytes) that a process has had; 0 where that cannot be read."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) * 1024
    return 0


@contextmanager
def nemesis(tmp_path: Path, seed: int) -> Iterator[Nemesis]:
    """Start the system."""
    system = Nemesis(tmp_path, seed)
    try:
        yield system
    finally:
        system.close()


@pytest.mark.parametrize("seed", [1])
def test_producers_under_random_faults_keep_the_laws(tmp_path: Path, seed: int) -> None:
    """Each 202 is queued once, nothing else but calls without answer or with 5xx is, and all is ready again."""
    with nemesis(tmp_path, seed) as system:
        system.run(6)
        system.check()


@pytest.mark.slow
def test_producers_under_random_faults_for_long_keep_the_laws(tmp_path: Path) -> None:
    """The same with other faults each time."""
    seed = int(os.environ.get("NEMESIS_SEED", "0")) or random.randrange(1, 2**32)
    (tmp_path / "seed.out").write_text(f"NEMESIS_SEED={seed}")  # shown if the test fails
    with nemesis(tmp_path, seed) as system:
        system.run(120)
        system.check()
