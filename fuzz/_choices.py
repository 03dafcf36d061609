"""Fuzz bytes as text that people can write too: how several targets read their input."""

from __future__ import annotations

import re
from collections.abc import Iterator


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """*data* in pieces of these sizes, in turn; in one where there are none."""
    at, turn = 0, 0
    while at < len(data):
        size = max(1, sizes[turn % len(sizes)]) if sizes else len(data)
        yield data[at : at + size]
        at, turn = at + size, turn + 1


def numbers(text: bytes) -> list[int]:
    """The numbers that stand in *text*, none of them above four digits."""
    return [int(digits) for digits in re.findall(rb"[0-9]{1,4}", text)]
