"""The causes of errors, in words. httpx and Trio wrap the error that names the cause, mostly without a text."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EADDRNOTAVAIL})
"""Errors of connecting that only this machine can cause: no descriptors, no memory, no ports left."""
LOCAL_LOOKUP_ERRORS = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM})
"""Errors of look-ups without an answer about the name: no name server answered, it failed or refused, or this machine
lacks something. With all others the name does not exist, has no address, or is no valid name."""
_MAX_ERRORS = 32
"""Errors of a chain that are looked at."""


def describe_failure(error: BaseException) -> str:
    """Return the cause of an error: the TLS error, or else the first text with the operating system's reason."""
    errors = list(causes(error))
    for each in errors:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"the certificate is not valid: {each.verify_message or each.reason}"
        if isinstance(each, ssl.SSLError) and each.reason:
            return f"TLS failed: {each.reason.replace('_', ' ').lower()}"
    text = next((text for each in errors if (text := str(each))), type(error).__name__)
    reasons = (each.strerror for each in reversed(errors) if isinstance(each, OSError) and each.strerror)
    reason = next(reasons, "")
    return text if reason in text else f"{text}: {reason}"


def local_failure(error: BaseException) -> str | None:
    """Return why this machine itself could not connect or look up a name; None if it is not the reason."""
    for each in causes(error):
        if isinstance(each, socket.gaierror):
            if each.errno in LOCAL_LOOKUP_ERRORS:
                return f"the look-up of its name failed: {each.strerror}"
        elif isinstance(each, OSError) and not isinstance(each, ssl.SSLError) and each.errno in LOCAL_ERRORS:
            return str(each.strerror)
        elif isinstance(each, RuntimeError) and "thread" in str(each):
            return str(each)
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors that led to it, the outermost first."""
    todo, seen = [error], set[int]()
    while todo and len(seen) < _MAX_ERRORS:
        each = todo.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = list(each.exceptions) if isinstance(each, BaseExceptionGroup) else []
        todo += [cause for cause in (*inner, each.__cause__, each.__context__) if cause is not None]
