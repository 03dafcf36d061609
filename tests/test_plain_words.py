"""The language rules of this project that a machine can check: banned words, openings of docstrings, long sentences.

``python tests/test_plain_words.py FILE...`` prints every problem in the named files; without names, in all of them.
The rules apply to Python (docstrings and comments everywhere, the string literals of worker/, benchmarks/ and fuzz/
that contain a space, and the texts of exceptions) and to the prose of the documents. Text in backticks is exempt.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("worker", "benchmarks", "fuzz", "tests")
DOCUMENTS = ("README.md", "CHANGELOG.md", "docs/*.md")

Kind = Literal["docstring", "comment", "string", "prose"]

BANNED = {
    r"anew": "again, or recreate",
    r"mend(s|ed|ing)?": "fix",
    r"heed(s|ed|ing)?": "apply, follow, handle",
    r"whoever|whom|nobody|somebody": "name the worker, function or person",
    r"he|him|his|she": "name the worker, function or person",
    r"ours": "name the owner: the worker's, this project's",
    r"for ever": "forever",
    r"in vain": "rejected, unanswered",
    r"once more": "again",
    r"hear(s|d|ing)?": "receive",
    r"tell(s|ing)?|told": "notify, log, report, send",
    r"say(s|ing)?|said": "send, log, report, contain",
    r"meanwhile": "until then",
    r"as well(?! as)": "also",
    r"learn(s|ed|t)? of": "receive, read, detect",
    r"what is lacking|to come by|goes? by|went by": "name the thing",
}
"""Pattern of words that must not appear -> what to write instead."""

PERSONS = {r"who|whose (business|turn|part|to)": "programs are not persons"}
"""Banned in worker/ besides, where the subjects are programs. "Whose" of a thing is plain English."""

OPENINGS = re.compile(
    r"(It|They|That|Those|These|What|Whatever|Who|Whose|How|Why|Where|When|Wherever|Whenever|So|Ours|We|Our"
    r"|All of them|One came|The same|As if)\b"
)
"""First words with which a docstring names no thing: a pronoun without its noun, or a clause in a noun's place.

"Whether" is allowed, for values that are true or false.
"""

LONGEST_SENTENCE = {"worker": 30, "docs": 25}
"""Most words of a sentence: in docstrings of worker/, and in the prose of documents (their tables are exempt)."""
LONGEST_LINE = 100
"""Most characters of a line in a document, outside tables, code blocks, headings and links that cannot be broken."""

ALLOWED: dict[tuple[str, str], str] = {
    ("benchmarks/plot.py", ".ours"): "the name of a contender in the stored samples",
    ("benchmarks/report.py", "ours is |"): "the same",
}
"""(file, text of the exception as it stands there) -> why this use is right."""

THIS_FILE = "tests/test_plain_words.py"


@dataclass(frozen=True, slots=True)
class Text:
    """One piece of prose in a file."""

    line: int
    kind: Kind
    text: str
    function: str | None = None
    """The name of the function that a docstring describes."""


def files() -> list[str]:
    """List every file that the rules apply to, relative to the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found += [path for pattern in DOCUMENTS for path in ROOT.glob(pattern)]
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return sorted(name for name in names if name != THIS_FILE)


def problems(name: str, root: Path = ROOT) -> Iterator[str]:
    """Yield each violation in a file as ``file:line: what``."""
    source = (root / name).read_text()
    texts = python_texts(source, name) if name.endswith(".py") else markdown_texts(source)
    allowed = [text for file, text in ALLOWED if file == name]
    for each in texts:
        for problem in violations(each, name):
            if not any(text in each.text for text in allowed):
                yield f"{name}:{each.line}: {problem}"
    if name.endswith(".md"):
        yield from (f"{name}:{number}: the line has {size} characters" for number, size in long_lines(source))


def violations(piece: Text, name: str) -> Iterator[str]:
    """Yield what is wrong with one piece of prose."""
    text = re.sub(r"``.*?``|`[^`]*`", "`code`", piece.text)
    text = re.sub(r"\]\([^)]*\)|https?://\S+", "]", text)
    folder = {"README.md": "docs", "CHANGELOG.md": "docs"}.get(name, name.partition("/")[0])
    for pattern, instead in (BANNED | PERSONS if folder == "worker" else BANNED).items():
        for found in re.finditer(rf"(?i)(?<![\w-])({pattern})(?![\w-])", text):
            yield f"{piece.kind} has {found[0]!r} ({instead})"
    if piece.kind == "docstring":
        yield from _openings_and_questions(text, is_test=folder == "tests" and is_test(piece.function))
    if folder in LONGEST_SENTENCE and piece.kind in ("docstring", "prose"):
        for sentence in sentences(text):
            if len(words := sentence.split()) > LONGEST_SENTENCE[folder]:
                yield f"sentence of {len(words)} words: {' '.join(words[:8])} …"


def is_test(function: str | None) -> bool:
    """Return whether this is a test, whose docstring states a requirement and describes no function."""
    return (function or "").startswith("test_")


def _openings_and_questions(text: str, *, is_test: bool) -> Iterator[str]:
    if re.search(r"\w\?(\s|$)", text):
        yield "docstring asks a question"
    opening = OPENINGS.match(text)
    if opening and not is_test:
        yield f"docstring begins with {opening[0]!r} (a verb for a function, a noun for a thing)"


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text; list entries and paragraphs end one too."""
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s+|\n\s*\w+:(?=\s)", text):
        yield from re.split(r"(?<=[.!?:;])(?:\*\*|\))?\s+", paragraph)


def python_texts(source: str, name: str) -> Iterator[Text]:
    """Yield the docstrings and comments of a module, and those of its strings that people read."""
    tree = ast.parse(source)
    docstrings = dict(_docstrings(tree))
    yield from docstrings.values()
    raised = {id(node) for each in ast.walk(tree) if isinstance(each, ast.Raise) for node in ast.walk(each)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            is_prose = " " in node.value and (id(node) in raised or not name.startswith("tests/"))
            if is_prose:
                yield Text(node.lineno, "string", node.value)
    yield from _comments(source)


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, Text]]:
    """Yield each string that stands alone as a statement: docstrings of modules, classes, functions and values."""
    for node in ast.walk(tree):
        for index, each in enumerate(getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ()):
            if (
                isinstance(each, ast.Expr)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            ):
                function = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not index else None
                yield id(each.value), Text(each.lineno, "docstring", each.value.value, function)


def _comments(source: str) -> Iterator[Text]:
    """Yield the comments of a module, those on neighbouring lines as one; directives for linters are none."""
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#(!| noqa| type:| pragma| fmt:)", token.string):
            if block and token.start[0] != last + 1:
                yield Text(start, "comment", "\n".join(block))
                block = []
            start, last = (start if block else token.start[0]), token.start[0]
            block.append(token.string.lstrip("# "))
    if block:
        yield Text(start, "comment", "\n".join(block))


def markdown_texts(source: str) -> Iterator[Text]:
    """Yield the paragraphs and list entries of a document as prose, and its headings and table rows as strings.

    Tables of measurements are exempt: programs write them, and the rules apply to those.
    """
    paragraph: list[str] = []
    start, fenced = 0, False
    written_by_programs = re.sub(
        r"(?s)<!-- (measured|the latest).*?<!-- its end -->", lambda block: "\n" * block[0].count("\n"), source
    )
    for number, line in enumerate([*written_by_programs.splitlines(), ""], 1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        row = line.startswith(("|", "#", "<!--"))
        if paragraph and (fence or fenced or row or not line.strip() or re.match(r"\s*([-*]|\d+\.) ", line)):
            yield Text(start, "prose", "\n".join(paragraph))
            paragraph = []
        if fence or fenced or not line.strip():
            continue
        if row:
            yield Text(number, "string", line)
            continue
        start = start if paragraph else number
        paragraph.append(line.strip())


def long_lines(source: str) -> Iterator[tuple[int, int]]:
    """Yield number and length of each line of a document that is too long and could be broken."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        exempt = fenced or line.startswith(("|", "#", "```")) or " " not in line.lstrip("-*0123456789. ")
        if len(line) > LONGEST_LINE and not exempt:
            yield number, len(line)


@pytest.mark.parametrize("name", files())
def test_plain_words_each_file_follows_the_rules(name: str) -> None:
    """No file has a banned word, a docstring without subject or verb, or a sentence or line that is too long."""
    assert not [*problems(name)]


CASES: dict[str, tuple[str, str]] = {
    "banned word": ("worker/x.py", '"""Make the stream anew."""'),
    "banned word in an exception": ("tests/x.py", 'raise ValueError(f"{x}: nobody reads this")'),
    "banned word in a string": ("worker/x.py", 'log("Tell the server")'),
    "banned word in a comment": ("fuzz/x.py", "# The server said so."),
    "banned word in a document": ("docs/x.md", "The worker heeds it."),
    "program as a person": ("worker/x.py", '"""Worker who holds the lease."""'),
    "clause as a noun": ("worker/x.py", 'def f():\n    """What is stored."""'),
    "question": ("benchmarks/x.py", '"""Is the queue empty?"""'),
    "long sentence": ("docs/x.md", "a " * 26 + "."),
    "long line": ("docs/x.md", "word " * 10 + "x" * 51),
}


@pytest.mark.parametrize("case", CASES)
def test_problems_of_a_file_that_breaks_a_rule_are_found(case: str, tmp_path: Path) -> None:
    """Each rule finds a file that breaks it."""
    name, source = CASES[case]
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(source + "\n")
    assert len(list(problems(name, tmp_path))) == 1


def test_problems_of_a_plain_file_are_none(tmp_path: Path) -> None:
    """Code in backticks, identifiers and code blocks are not prose."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "worker").mkdir()
    (tmp_path / "docs/x.md").write_text("Call `tell()`.\n\n```\nwho said so\n```\n")
    (tmp_path / "worker/x.py").write_text('"""Send ``told``."""\n\nsaid = his["heard"]\n')
    assert not [*problems("docs/x.md", tmp_path), *problems("worker/x.py", tmp_path)]


def main(arguments: list[str]) -> int:
    """Print the problems of the named files, or of all."""
    found = [line for name in arguments or files() for line in problems(name)]
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
