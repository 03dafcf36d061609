"""A figure: a function that measures, and one that compares the measurements with goals."""

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
    """For the files of programs; deleted afterwards."""
    pairs: int
    """Number of runs of each contender."""
    peers: Sequence[Contender]
    """The contenders that can run here."""
    log: Callable[[str], None]
    """A function that prints a line of progress."""
    nats: NatsServer


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table of goals."""

    figure: str
    goal: str
    measured: str
    reached: bool | None
    """None: there is no goal."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A module of :mod:`benchmarks.figures`, as the command sees it."""

    name: str
    title: str
    measure: Callable[[Session], Samples]
    assess: Callable[[Samples], Sequence[Line]]
    """A pure function: the lines can be written again from stored samples."""
    picture: Callable[[Samples], str] | None = None
    """The function that draws an SVG."""
    long: bool = False
    """Whether it takes many minutes, and is measured only on request."""
