"""Coverage-guided fuzzing: ``python -m fuzz [TARGET] [libFuzzer's flags]``, such as ``-max_total_time=60``.

A target is a file beside this one. Its docstring begins with its law, in one sentence, and its function ``check``
fails for bytes that break the law. Without a TARGET each target runs in turn. Fuzzing starts from the target's corpus,
and adds each input that breaks the law. The test suite replays the corpus, so it fails until the error is fixed. Inputs
that only reach new code go to ``build/``. Fuzzing needs atheris, which is not among the development tools:
``pip install atheris``.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGETS = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
_INSTRUMENTED = ["worker", "fuzz", "h11", "nats.protocol", "nats.aio.client", "email"]
"""Packages with the branches that guide the fuzzer: the worker, and other readers of the same bytes in Python."""
_MAX_INPUT_SIZE = 4096
"""Size of an input (bytes). A test of a limit makes the limit small, so longer inputs find nothing more."""

_MAX_SECONDS = 60
"""Timeout of one input (s), which takes milliseconds. libFuzzer's timer can end a process before its report."""


def main() -> int:
    """Fuzz one target, or each in turn, until one breaks or the time is up."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        _fuzz(words[0], words[1:])
    for target in TARGETS:
        if not _fuzz_in_a_process(target, words):
            return 1
    return 0


def _fuzz_in_a_process(target: str, flags: list[str]) -> bool:
    """Fuzz one target in a process of its own, because libFuzzer ends the process that it runs in."""
    corpus = HERE / "corpus" / target
    before = set(corpus.iterdir())
    print(f"{target}: {_law(target)}", flush=True)  # noqa: T201 -- a command's output
    process = subprocess.run([sys.executable, "-m", "fuzz", target, *flags], check=False)  # noqa: S603 -- this program
    if process.returncode:
        inputs = sorted(map(str, set(corpus.iterdir()) - before))
        print(f"{target}: broken by {', '.join(inputs) or 'no input; see above'}", file=sys.stderr)  # noqa: T201 -- as above
    return process.returncode == 0


def _law(target: str) -> str:
    return (HERE / f"{target}.py").read_text(encoding="utf-8").removeprefix('"""').split("\n\n")[0].split('"""')[0]


def _fuzz(target: str, flags: list[str]) -> None:
    corpus, reached = HERE / "corpus" / target, Path("build") / "fuzz" / target
    reached.mkdir(parents=True, exist_ok=True)
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        module = importlib.import_module(f"fuzz.{target}")
    if words := getattr(module, "WORDS", ()):
        dictionary = reached.with_suffix(".dict")
        dictionary.write_text("".join(f'"{_quoted(word)}"\n' for word in words), encoding="ascii")
        flags = [f"-dict={dictionary}", *flags]
    given = [
        f"-max_len={_MAX_INPUT_SIZE}",
        f"-timeout={_MAX_SECONDS}",
        f"-artifact_prefix={corpus}/",
        *flags,
        str(reached),
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *given], module.check)
    atheris.Fuzz()


def _quoted(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode())


if __name__ == "__main__":
    sys.exit(main())
