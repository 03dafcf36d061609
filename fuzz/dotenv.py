"""A ``.env`` file is read as one name and value a line, or refused with the number of its first line that is neither.

Whatever stands between quotes is the value; and what a file sets can be written and read again.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from worker.dev.dotenv import read_dotenv

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE = Path(tempfile.mkdtemp(prefix="fuzz-dotenv-")) / ".env"


def check(data: bytes) -> None:
    """Read *data* as a ``.env`` file and see that the law above holds."""
    variables = _read(data)
    _says_what_stands_between_quotes({"A": re.sub("[\r\n]", " ", data.decode("utf-8", "replace"))})
    try:
        lines = re.split("\r\n|\r|\n", data.decode())
    except UnicodeDecodeError:
        assert variables == f"{_FILE} is not text in UTF-8"
        return
    if isinstance(variables, str):
        refused = re.fullmatch(r"(.*), line (\d+): not NAME=VALUE", variables)
        assert refused
        assert refused[1] == str(_FILE)
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
    _FILE.write_bytes(data)
    try:
        return read_dotenv(_FILE)
    except ValueError as refused:
        return str(refused)
