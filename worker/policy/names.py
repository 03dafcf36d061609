"""Names of functions and queues, and their subjects."""

from __future__ import annotations

import re

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9_]*[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]{1,9}")
"""A partition's number. One of more digits is a name."""
LONGEST = 253
"""Most characters in a name: the limit of a DNS name, which Kubernetes sets for names."""


def is_name(text: str) -> bool:
    """Return whether *text* can name a queue, a function or a namespace."""
    return len(text) <= LONGEST and _NAME.fullmatch(text) is not None


def split_function(text: str, namespace: str) -> tuple[str, str] | None:
    """Split ``name`` or ``name.namespace``; the default is *namespace*. None if the text is neither."""
    name, dot, given = text.partition(".")
    if not is_name(name) or (dot and not is_name(given)):
        return None
    return name, given or namespace


def parse_function(text: str, namespace: str) -> tuple[str, str]:
    """Return name and namespace as :func:`split_function` does.

    Raises:
        ValueError: the text is not a function's name. The message is for the author of the text.
    """
    if split := split_function(text, namespace):
        return split
    advice = "write name or name.namespace, of lower-case letters, digits, - and _"
    raise ValueError(f"not a function's name: {text[:80]!r}; {advice}")


def subject_of(queue: str, partition: int, name: str, namespace: str) -> str:
    """Return the subject to which the producer publishes an invocation."""
    return f"{queue}.{partition}.{name}.{namespace}"


def partition_for(name: str, namespace: str, partitions: int) -> int:
    """Return the partition of a function, from 0, as NATS's subject mapping ``{{partition(n,...)}}`` computes it.

    That is FNV-1a in 32 bits over the tokens, with nothing between them (nats-server, ``getHashPartition``).
    """
    return fnv1a(f"{name}{namespace}".encode()) % partitions


def partition_of(queue: str, subject: str, partitions: int) -> int:
    """Return the partition of a queue that a subject belongs to, from 0.

    It is the number that producers put behind the queue's name, modulo the partitions. Without a number, a hash of the
    subject decides (FNV-1a, 32 bits). The bare subject belongs to the first partition.
    """
    if partitions == 1 or subject == queue:
        return 0
    number, dot, _ = subject.removeprefix(f"{queue}.").partition(".")
    if dot and _NUMBER.fullmatch(number):
        return int(number) % partitions
    return fnv1a(subject.encode()) % partitions


def fnv1a(data: bytes) -> int:
    """Return the hash of Fowler, Noll and Vo, 32 bits: the same in every process of every version."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def label_of(queue: str, subject: str) -> str:
    """Return the ``function_name`` in metrics of the messages on *subject*.

    It is ``name.namespace`` if the subject has them, empty for the bare subject, else all that follows the queue.
    """
    if subject == queue:
        return ""
    tokens = subject.removeprefix(f"{queue}.").split(".")
    return ".".join(tokens[1:] if len(tokens) == 3 else tokens)


def covers(pattern: str, subject: str) -> bool:
    """Return whether *pattern* matches every subject that *subject* (which may end in ``>``) matches."""
    wide, narrow = pattern.split("."), subject.split(".")
    for position, wanted in enumerate(wide):
        if wanted == ">":
            return len(narrow) > position
        if position >= len(narrow) or narrow[position] == ">" or wanted not in ("*", narrow[position]):
            return False
    return len(wide) == len(narrow)
