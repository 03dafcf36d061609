"""Parts of fuzz inputs that people can also write by hand, for several targets."""

from __future__ import annotations

import re
from collections.abc import Iterator


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut *data* into pieces of these sizes, in turn; without sizes, return it in one piece."""
    at, number = 0, 0
    while at < len(data):
        size = max(1, sizes[number % len(sizes)]) if sizes else len(data)
        yield data[at : at + size]
        at, number = at + size, number + 1


def numbers(text: bytes) -> list[int]:
    """Return the numbers in *text*, of at most four digits each."""
    return [int(digits) for digits in re.findall(rb"[0-9]{1,4}", text)]
