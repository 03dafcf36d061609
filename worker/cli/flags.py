"""The flags of ``jetstream-queue-worker``: those of OpenFaaS's own worker, in the syntax of Go's package flag."""

from __future__ import annotations

import re
from collections.abc import Sequence

_KNOWN = re.compile(r"--?(license-file|license|pprof)(=.*)?", re.DOTALL)
_UNKNOWN = re.compile(r"-([A-Za-z0-9][\w.-]*)(=.*)?", re.ASCII | re.DOTALL)
_HELP = ("-h", "-help")


def split_flags(arguments: Sequence[str]) -> list[str]:
    """Return the arguments for `queue-worker run`: each flag that it ignores as a hidden option with the flag's name.

    A flag that is not known may come with a newer chart, and a worker that does not start would stop the queue. So it
    is ignored too, with a warning. Go accepts ``-flag=value`` and ``-flag value``; without the flag's type, an argument
    that does not look like a flag is taken for the value of the flag before it.
    """
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        known, unknown = _KNOWN.fullmatch(argument), _UNKNOWN.fullmatch(argument)
        flag = known or unknown
        if flag is None or argument in _HELP:
            rest.append("--help" if argument in _HELP else argument)
            continue
        rest += ["--ignored-flag" if known else "--unknown-flag", flag[1]]
        takes_value = flag[2] is None and flag[1] != "pprof"
        if takes_value and left and (known or not left[0].startswith("-")):
            left.pop(0)
    return rest
