"""A ``.env`` file is read as one name and value a line, or refused with the number of its first line that is neither.

Whatever stands between quotes is the value; and what a file sets can be written and read again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from typing import Any

from worker.dev.dotenv import read_dotenv

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class File:
    """A path to some bytes, without a disk."""

    data: bytes

    def __str__(self) -> str:
        return ".env"

    def read_text(self, encoding: str) -> str:
        """As :meth:`pathlib.Path.read_text`, which also reads the line ends of others."""
        return TextIOWrapper(BytesIO(self.data), encoding).read()


def check(data: bytes) -> None:
    """Read *data* as a ``.env`` file and see that the law above holds."""
    variables = _read(data)
    _says_what_stands_between_quotes({"A": re.sub("[\r\n]", " ", data.decode("utf-8", "replace"))})
    try:
        lines = re.split("\r\n|\r|\n", data.decode())
    except UnicodeDecodeError:
        assert variables == ".env is not text in UTF-8"
        return
    if isinstance(variables, str):
        refused = re.fullmatch(r"(.*), line (\d+): not NAME=VALUE", variables)
        assert refused
        assert refused[1] == ".env"
        assert _read("\n".join(lines[: int(refused[2]) - 1]).encode()) == _alone(lines[: int(refused[2]) - 1])
        assert isinstance(_read(lines[int(refused[2]) - 1].encode()), str)
        return
    assert variables == _alone(lines)
    assert all(_NAME.fullmatch(name) for name in variables)
    _says_what_stands_between_quotes(variables)


def _alone(lines: list[str]) -> dict[str, str]:
    """Each line read by itself, the last of a name counting."""
    found: dict[str, str] = {}
    for line in lines:
        one = _read(line.encode())
        assert isinstance(one, dict), line
        assert len(one) <= 1
        assert bool(one) == (not re.match(r"\s*(#|$)", line)), line
        found |= one
    return found


def _says_what_stands_between_quotes(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        for quote in "'\"":
            if quote not in value:
                for line in (f"{name}={quote}{value}{quote}", f"\texport {name} = {quote}{value}{quote} # {value}"):
                    assert _read(line.encode()) == {name: value}, line


def _read(data: bytes) -> dict[str, str] | str:
    """The variables, or the complaint."""
    path: Any = File(data)
    try:
        return read_dotenv(path)
    except ValueError as refused:
        return str(refused)
