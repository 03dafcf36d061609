"""What a figure is: something that measures, and something that judges what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers import NatsServer

from .contenders import Contender

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""What was measured: by quantity, by who; the samples of one pair stand at the same place in each sequence."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a figure measures with."""

    directory: Path
    """For what programs write: thrown away afterwards."""
    pairs: int
    """How often each contender has its turn."""
    peers: Sequence[Contender]
    """Those that can run here."""
    say: Callable[[str], None]
    """Told the progress, a line at a time."""
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
