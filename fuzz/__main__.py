"""Coverage-guided fuzzing: ``python -m fuzz TARGET [libFuzzer's flags]``, such as ``-max_total_time=60``.

It needs atheris, which is none of our development tools: ``pip install atheris``. It begins with the corpus and
puts there what breaks the target's law, so that the test suite, which replays the corpus, fails until it is mended.
What merely reaches new code goes to ``build/``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Fuzz until something breaks or the time is up."""
    target, *flags = sys.argv[1:]
    corpus = Path(__file__).parent / "corpus" / target
    reached = Path("build") / "fuzz" / target
    reached.mkdir(parents=True, exist_ok=True)
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["worker"]):
        check = importlib.import_module(f"fuzz.{target}").check
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={corpus}/", str(reached), str(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
