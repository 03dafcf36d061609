"""A check of many cases of one rule, which runs all cases and reports each that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def check_each(cases: Iterable[T], check: Callable[[T], object]) -> None:
    """Run *check* on every case.

    Raises:
        ExceptionGroup: some cases failed; each error names its case in a note.
    """
    errors: list[Exception] = []
    for case in cases:
        try:
            check(case)
        except Exception as error:  # noqa: BLE001 -- all of them are raised below
            error.add_note(f"case: {case!r}")
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"{len(errors)} cases fail", errors)
