"""Redirects: Go's servers answer a request whose path is not clean by a redirect to the clean path.

OpenFaaS's gateway does it for ``/function/f//x`` (301), and of-watchdog for ``//x`` behind a gateway that passes such
paths (307). The function has not run then. Such a redirect is the only one that is followed, and only once: any other
is an answer of the function.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from ..model import Outcome, Responded

REDIRECTS = frozenset({301, 307, 308})
"""Statuses of redirects to be followed with the same method and body. (301 allows a GET, but gateways mean this.)"""
_PORTS = {"http": 80, "https": 443}
_VISIBLE = re.compile(r"[!-~]+")


def clean_target(requested: str, root: str, location: str) -> str | None:
    """Return the request target that a redirect leads to; None if it is not the one that was *requested*, but clean.

    *requested* is an absolute URL, and *root* the path in it that stands for the function. *location* is the redirect's
    Location as the gateway writes it, below *root*, or as the function does, which does not know *root*.
    """
    if not _VISIBLE.fullmatch(location):
        return None
    try:
        ours, there = urlsplit(requested), urlsplit(urljoin(requested, location))
        same = _origin(ours) == _origin(there) and "@" not in there.netloc
    except ValueError:
        return None
    sent, answered = unquote(ours.path, "latin-1"), unquote(there.path, "latin-1")
    clean, query = clean_path(sent), f"?{there.query}" if there.query else ""
    if not same or there.fragment or ours.query != there.query or sent == clean:
        return None
    if answered == clean:
        return f"{there.path}{query}"
    return f"{root}{there.path}{query}" if answered == clean_path(sent.removeprefix(root)) else None


def redirect_result(outcome: Outcome) -> str | None:
    """Return whether the redirect in an outcome was ``followed`` or is the ``final`` answer; None without one."""
    if not isinstance(outcome, Responded):
        return None
    return "final" if 300 <= outcome.status < 400 else "followed" if outcome.redirected else None


def clean_path(path: str) -> str:
    """Return *path* as Go's ServeMux cleans it: no empty segment, no dots, a slash at the end where there was one."""
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return clean if clean == "/" or not path.endswith("/") else f"{clean}/"


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)
