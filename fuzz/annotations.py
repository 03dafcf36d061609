"""Each annotation of a function is used or ignored on its own, and for any values waits and attempts stay bounded.

The first four lines of the input are the values of the four annotations; the lines after them belong to other
annotations. This module computes the meaning of each again, without the worker's code.
"""

from __future__ import annotations

import re

from fuzz.durations import nanoseconds_of_go
from worker.policy.retry import Backoff, Jitter, Retry, apply_annotations

NAMES = tuple(f"com.openfaas.retry.{name}" for name in ("attempts", "codes", "min_wait", "max_wait"))
WORDS = (
    "0",
    "none",
    "1000000",
    "1000001",
    "408,429,500,502,503,504",
    "599",
    "600",
    "1h30m",
    "300ms",
    "-1s",
    "2562047h47m16s",
)
SETTINGS = Retry(attempts=7, codes=frozenset({503}), backoff=Backoff(3.0, 11.0, Jitter.EQUAL))


def check(data: bytes) -> None:
    """Use *data*'s lines as annotations, and check the law above."""
    lines = data.decode("utf-8", "replace").split("\n")
    annotations = dict(zip(NAMES, lines, strict=False)) | {f"x{n}": line for n, line in enumerate(lines[4:])}
    retry, ignored = apply_annotations(SETTINGS, annotations)
    meanings = [_meaning(name, annotations.get(name, "").strip()) for name in NAMES]
    if NAMES[1] in annotations and annotations[NAMES[1]].strip() in ("", "none"):
        meanings[1] = frozenset()
    given = [not value or value.isspace() for value in (annotations.get(name, "") for name in NAMES)]
    attempts, codes, initial, max_wait = meanings
    assert retry.attempts == (attempts or SETTINGS.attempts)
    assert retry.codes == (SETTINGS.codes if codes is None else codes)
    assert retry.backoff.first_wait == (3.0 if initial is None else initial)
    assert retry.backoff.max_wait == (11.0 if max_wait is None else max_wait)
    assert [each.annotation for each in ignored] == [
        name for name, value, empty in zip(NAMES, meanings, given, strict=True) if value is None and not empty
    ]
    for each in ignored:
        assert annotations[each.annotation].strip().startswith(each.value)
        assert len(each.value) <= 80
        assert each.reason.isprintable()
    assert apply_annotations(SETTINGS, dict(reversed(annotations.items()))) == (retry, ignored)
    assert apply_annotations(retry, annotations) == (retry, ignored)
    _check_waits(retry)


def _meaning(name: str, text: str) -> int | float | frozenset[int] | None:
    """Return the value that *text* gives, or None."""
    if not text or len(text) > 2048:
        return None
    if name.endswith("attempts"):
        return (int(text) or 1) if re.fullmatch(r"0*[0-9]{1,6}|1000000", text) and len(text) <= 7 else None
    if name.endswith("codes"):
        codes = [re.fullmatch(r"\s*([1-5][0-9][0-9])\s*", code) for code in text.split(",")]
        return frozenset(int(code[1]) for code in codes if code) if all(codes) else None
    nanoseconds = nanoseconds_of_go(text)
    return None if nanoseconds is None or nanoseconds < 0 else nanoseconds / 10**9


def _check_waits(retry: Retry) -> None:
    assert 1 <= retry.attempts <= 10**6
    before = 0.0
    for attempt in sorted({1, 2, 3, 64, 65, 66, retry.attempts, 10**6}):
        ceiling = retry.backoff.ceiling(attempt)
        assert before <= ceiling <= retry.backoff.max_wait
        before = ceiling
        for jitter, minimum in ((Jitter.EXPONENTIAL, 1.0), (Jitter.EQUAL, 0.5), (Jitter.FULL, 0.0)):
            backoff = Backoff(retry.backoff.first_wait, retry.backoff.max_wait, jitter)
            assert backoff.delay(attempt, draw=0.0) == ceiling * minimum
            assert ceiling * minimum <= backoff.delay(attempt, draw=0.999) <= ceiling
