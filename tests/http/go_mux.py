"""The redirects of Go's ``http.ServeMux``: ``findHandler`` and ``cleanPath`` of net/http/server.go in Go 1.23."""

from __future__ import annotations

from urllib.parse import quote, unquote


def redirect_of(target: str, root: str = "") -> str | None:
    """Return the Location with which a ServeMux answers a request target; None if the path is clean.

    *root* is a prefix that a proxy in front of it removes.
    """
    escaped, question, query = target.removeprefix(root).partition("?")
    path = unquote(escaped, "latin-1")
    clean = _clean_path(path)
    if clean == path:
        return None
    return quote(clean, safe="/:@!$&'()*+,;=-._~", encoding="latin-1") + (f"?{query}" if question and query else "")


def _clean_path(path: str) -> str:
    if not path:
        return "/"
    if not path.startswith("/"):
        path = f"/{path}"
    clean = _clean(path)
    return f"{clean}/" if path.endswith("/") and clean != "/" else clean


def _clean(path: str) -> str:
    """Return what ``path.Clean`` returns of a rooted path."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            kept[-1:] = []
        elif segment not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept)
