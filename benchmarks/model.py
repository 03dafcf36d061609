"""A figure: a function that measures, and one that judges the measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers import NatsServer

from .contenders import Contender

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Measurements by quantity and contender. The samples of one pair have the same index in each sequence."""


@dataclass(frozen=True, slots=True)
class Session:
    """The programs and settings with which a figure measures."""

    directory: Path
    """For what programs write: thrown away afterwards."""
    pairs: int
    """Number of runs of each contender."""
    peers: Sequence[Contender]
    """The contenders that can run here."""
    say: Callable[[str], None]
    """A function that prints a line of progress."""
    nats: NatsServer


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table of what was to be reached."""

    figure: str
    reach: str
    measured: str
    reached: bool | None
    """None: nothing was to be reached."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A module of :mod:`benchmarks.figures`, as the command sees it."""

    name: str
    title: str
    measure: Callable[[Session], Samples]
    judge: Callable[[Samples], Sequence[Line]]
    """Pure: the lines can be written again from samples of another day."""
    picture: Callable[[Samples], str] | None = None
    """As SVG."""
    long: bool = False
    """Takes many minutes: measured only when asked for."""
