"""Names of functions and queues, and the subjects made of them."""

from __future__ import annotations

import re

_NAME = r"[a-z0-9](?:[-a-z0-9_]*[a-z0-9])?"
_LONGEST = 253
"""Characters in a name: the limit of a DNS name, which Kubernetes sets for what it calls a name."""
NAME = re.compile(_NAME)
FUNCTION = re.compile(rf"({_NAME})(?:\.({_NAME}))?")


def is_name(text: str) -> bool:
    """Whether *text* can name a queue, a function or a namespace."""
    return len(text) <= _LONGEST and NAME.fullmatch(text) is not None


def split_function(text: str, namespace: str) -> tuple[str, str] | None:
    """Name and namespace of ``name`` or ``name.namespace``, *namespace* standing in; None where it is neither."""
    if len(text) > 2 * _LONGEST or (match := FUNCTION.fullmatch(text)) is None:
        return None
    return match[1], match[2] or namespace


def subject_of(queue: str, partition: int, name: str, namespace: str) -> str:
    """Where our producers publish an invocation."""
    return f"{queue}.{partition}.{name}.{namespace}"


def label_of(queue: str, subject: str) -> str:
    """The ``function_name`` that metrics give to what waits on *subject*.

    ``name.namespace`` where the subject tells it, nothing for the bare subject, else what stands below the queue.
    """
    if subject == queue:
        return ""
    below = subject.removeprefix(f"{queue}.")
    tokens = below.split(".")
    return ".".join(tokens[1:]) if len(tokens) == 3 else below


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that *subject* (which may end in ``>``) stands for is one that *pattern* stands for."""
    wide, narrow = pattern.split("."), subject.split(".")
    for position, token in enumerate(wide):
        if token == ">":
            return len(narrow) > position
        if position >= len(narrow) or narrow[position] == ">":
            return False
        if token not in ("*", narrow[position]):
            return False
    return len(wide) == len(narrow)
