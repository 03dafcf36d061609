"""The causes of errors, in words. httpx and Trio wrap the error that names the cause, mostly without a text."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator

LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EADDRNOTAVAIL})
"""Errors of connecting that only this machine can cause: no descriptors, no memory, no ports left."""
_MAX_ERRORS = 32
"""Errors of a chain that are looked at."""


def describe_failure(error: BaseException) -> str:
    """Return the cause of an error: the TLS error, or else the operating system's, or else the first with a text."""
    errors = list(causes(error))
    for each in errors:
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"the certificate is not valid: {each.verify_message or each.reason}"
        if isinstance(each, ssl.SSLError) and each.reason:
            return f"TLS failed: {each.reason.replace('_', ' ').lower()}"
    for each in reversed(errors):
        if isinstance(each, OSError) and each.strerror:
            return f"{each.strerror} ({type(error).__name__})"
    return next((text for each in errors if (text := str(each))), type(error).__name__)


def local_failure(error: BaseException) -> OSError | None:
    """Return the error for which this machine itself could not connect; None if it is not the reason."""
    for each in causes(error):
        if isinstance(each, OSError) and each.errno in LOCAL_ERRORS and not isinstance(each, ssl.SSLError):
            return each
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
