"""A small NATS client for tests, whose setup and checks must not depend on the client under test."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

from tests.patience import LAST_RESORT


class NoResponseError(Exception):
    """The server did not respond: it has stopped, is too slow, has no JetStream, or refuses the connection."""


class ApiError(Exception):
    """An error of JetStream's API. *code* is its ``err_code``."""

    def __init__(self, subject: str, error: Mapping[str, Any]) -> None:
        super().__init__(f"{subject}: {error}")
        self.code = error.get("err_code")


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it is stored in a stream."""

    sequence: int
    subject: str
    headers: dict[str, str]
    data: bytes

    @classmethod
    def from_api(cls, message: Mapping[str, Any]) -> Self:
        """Create the message from a response of ``STREAM.MSG.GET``."""
        lines = base64.b64decode(message.get("hdrs", "")).decode().split("\r\n")[1:]
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        return cls(message["seq"], message["subject"], headers, base64.b64decode(message.get("data", "")))

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class WireConnection:
    """One connection to a server. Its methods block, at most for *timeout* (s) before each line that they read.

    Raises:
        NoResponseError: from every method, if no line arrives or the connection breaks; it is unusable then.
    """

    def __init__(self, port: int, connect: Mapping[str, str], timeout: float = LAST_RESORT) -> None:
        self._numbers = count()
        with _translated():
            self._open(port, connect, timeout)

    def _open(self, port: int, connect: Mapping[str, str], timeout: float) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._file = self._socket.makefile("rwb")
        self._file.readline()
        options = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "name": "test",
            **connect,
        }
        self._inbox = f"_INBOX.test.{os.getpid()}.{id(self)}"
        self._send(b"CONNECT %s\r\nSUB %s.* 1\r\nPING\r\n" % (json.dumps(options).encode(), self._inbox.encode()))
        while (line := self._file.readline()) != b"PONG\r\n":
            _check(line)

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def request_many(self, requests: Iterable[tuple[str, bytes, Mapping[str, str]]]) -> list[bytes]:
        """Send all requests, then receive the responses; return them in the order of the requests."""
        inboxes, answers = list[str](), dict[str, bytes]()
        with _translated():
            for subject, payload, headers in requests:
                # Each request has its own inbox, because a cluster may respond twice while leaders change.
                inboxes.append(f"{self._inbox}.{next(self._numbers)}")
                self._publish(subject, inboxes[-1], payload, headers)
            self._file.flush()
            while not answers.keys() >= set(inboxes):
                inbox, answer = self._message()
                answers[inbox] = answer
        return [answers[inbox] for inbox in inboxes]

    def _publish(self, subject: str, reply: str, payload: bytes, headers: Mapping[str, str]) -> None:
        block = b""
        if headers:
            block = "".join(["NATS/1.0\r\n", *(f"{k}: {v}\r\n" for k, v in headers.items()), "\r\n"]).encode()
        sizes = f"{len(block)} {len(block) + len(payload)}" if block else f"{len(payload)}"
        self._file.write(
            f"{'HPUB' if block else 'PUB'} {subject} {reply} {sizes}\r\n".encode() + block + payload + b"\r\n"
        )

    def _message(self) -> tuple[str, bytes]:
        while True:
            line = self._file.readline()
            _check(line)
            match line.split():
                case [b"MSG", subject, _, size]:
                    return subject.decode(), self._file.read(int(size) + 2)[:-2]
                case [b"HMSG", subject, _, headers, size]:
                    content = self._file.read(int(size) + 2)[:-2]
                    status = content[: int(headers)].split(b"\r\n")[0].split()[1:2]
                    if status == [b"503"]:
                        raise NoResponseError("no responders: no stream has this subject, or there is no JetStream")
                    return subject.decode(), content[int(headers) :]
                case [b"PING"]:
                    self._send(b"PONG\r\n")

    def _send(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()


def _check(line: bytes) -> None:
    if not line or line.startswith(b"-ERR"):
        raise NoResponseError(line.decode().strip() or "the server closed the connection")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoResponseError(str(error)) from None
