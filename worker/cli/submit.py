"""``queue-worker submit``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO
from uuid import uuid4

import click
from rich.console import Console
from rich.progress import Progress

from ..events import BrokerFailure, ConfigDrift, Event
from ..gateway.message import Message, canonical_headers, compose
from ..gateway.publish import MessageTooLargeError
from ..gateway.publisher import CallIdReusedError, submit
from ..ports import BrokerUnavailableError, MisconfiguredError
from ..settings import Settings
from . import fail, settings_or_exit

_REFUSED = 5
"""Exit code for a call id of another request (contract, section 11)."""


@click.command()
@click.argument("function")
@click.option("--data", metavar="TEXT", help="The body.")
@click.option("--data-file", metavar="PATH", type=click.File("rb"), help="The file with the body; - is standard input.")
@click.option("-H", "--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="A header; repeatable.")
@click.option("--method", default="POST", show_default=True, help="The method to invoke the function with.")
@click.option("--path", default="", help="The path below the function, escaped as in a URL.")
@click.option("--query", default="", help="The query, escaped as in a URL.")
@click.option("--callback", metavar="URL", help="The URL to post the result to.")
@click.option("--annotation", "annotations", metavar="KEY=VALUE", multiple=True, help="An annotation; repeatable.")
@click.option("--call-id", help="The call id; by default a new one.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="The number of invocations.")
def command(
    *,
    function: str,
    data: str | None,
    data_file: BinaryIO | None,
    headers: tuple[str, ...],
    method: str,
    path: str,
    query: str,
    callback: str | None,
    annotations: tuple[str, ...],
    call_id: str | None,
    count: int,
) -> None:
    """Put one or many invocations of FUNCTION on the queue.

    Connects to NATS, not to a gateway, and prints the call id of each invocation once it is stored. Without --data and
    --data-file the body is read from standard input, unless that is a terminal.
    """
    if call_id and count > 1:
        raise click.UsageError("--call-id names one invocation: leave it out, or --count")
    if data is not None and data_file is not None:
        raise click.UsageError("--data and --data-file are two bodies: keep one")
    settings = settings_or_exit().settings
    pairs = [_split_option(header, ":", "--header") for header in headers]
    pairs += [("X-Callback-Url", callback)] if callback else []
    pairs += [("X-Call-Id", call_id)] if call_id else []
    encoded = [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in pairs]
    annotation_pairs = dict(_split_option(annotation, "=", "--annotation") for annotation in annotations)

    def message(body: bytes = b"") -> Message:
        return compose(
            function,
            canonical_headers(encoded),
            queue=settings.queue_name,
            namespace=settings.default_function_name,
            new_call_id=str(uuid4()),
            now=time.time_ns(),
            method=method,
            path=f"/{path}" if path and not path.startswith("/") else path,
            query=query.removeprefix("?"),
            annotations=annotation_pairs or None,
            partitions=settings.queue_partitions,
            body=body,
        )

    try:
        message().payload()
    except UnicodeEncodeError:
        raise click.UsageError("an argument is not UTF-8: escape other bytes, as %FF in --path and --query") from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    body = _read_body(data, data_file, settings.max_body_bytes)
    _submit(settings, (message(body) for _ in range(count)), count)


def _submit(settings: Settings, messages: Iterator[Message], count: int) -> None:
    stored = 0

    def on_stored(message: Message, is_duplicate: bool) -> None:
        nonlocal stored
        stored += 1
        if is_duplicate:
            click.echo(f"queue-worker: the queue had call id {message.call_id} already: not queued again", err=True)
        print(message.call_id)
        advance()

    try:
        with _progress(count) as advance:
            try:
                asyncio.run(submit(settings, messages, on_stored, _warn))
            finally:
                sys.stdout.flush()
    except (BrokerUnavailableError, CallIdReusedError, MessageTooLargeError, MisconfiguredError) as problem:
        code = _REFUSED if isinstance(problem, CallIdReusedError) else 1
        fail(f"{stored} of {count} stored, then: {problem}" if stored else problem, code=code)


def _warn(event: Event) -> None:
    match event:
        case BrokerFailure(doing, error):
            click.echo(f"queue-worker: {doing}: {error}", err=True)
        case ConfigDrift(text):
            click.echo(f"queue-worker: {text}", err=True)


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """Draw a progress bar on standard error, if that is a terminal and *count* is above one."""
    console = Console(stderr=True)
    if count == 1 or not console.is_terminal:
        yield lambda: None
        return
    with Progress(console=console, redirect_stdout=sys.stdout.isatty(), transient=True) as progress:
        task = progress.add_task("submitting", total=count)
        yield lambda: progress.advance(task)


def _split_option(text: str, separator: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not found or not name.strip():
        raise click.UsageError(f"{option} {text[:80]!r} has no name and {separator!r} before its value")
    return name.strip(), value.strip()


def _read_body(data: str | None, data_file: BinaryIO | None, max_bytes: int) -> bytes:
    if data is not None:
        body = data.encode("utf-8", "surrogateescape")
    elif data_file is None and sys.stdin.isatty():
        body = b""
    else:
        body = (data_file or sys.stdin.buffer).read(max_bytes + 1)
    if len(body) > max_bytes:
        fail(f"the body is too large: max_body_bytes allows {max_bytes} bytes")
    return body
