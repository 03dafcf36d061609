"""The ``.env`` file that ``queue-worker dev`` reads.

One ``NAME=VALUE`` a line; ``export`` before it is allowed. Blank lines and lines that begin with ``#`` are skipped. A
value in single or double quotes loses them, and keeps everything between, ``#`` included; without quotes it ends before
`` #``. Nothing is expanded.
"""

from __future__ import annotations

import re
from pathlib import Path

_LINE = re.compile(
    r"""(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*
    (?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<plain>[^'"].*?)?)(?:\s+\#.*)?\s*""",
    re.VERBOSE,
)


def read_dotenv(path: Path) -> dict[str, str]:
    """The variables that *path* sets; none where there is no such file.

    Raises:
        ValueError: a line is not as above. The text names the file and the line.
        OSError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not where else Unicode ends lines: that may be a value
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    variables = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (match := _LINE.fullmatch(line.strip())) is None:
            raise ValueError(f"{path}, line {number}: not NAME=VALUE")
        variables[match["name"]] = match["single"] or match["double"] or match["plain"] or ""
    return variables
