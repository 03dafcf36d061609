"""A callback URL is rejected in one line, or is http or https to one host, the same to every reader of URLs.

The input is a URL; and its lines are the fields of Go's ``url.URL``, in the order of :data:`FIELDS`. The readers are
RFC 3986's own pattern (appendix B) with its pattern of an authority, the standard library's ``urlsplit``, and httpx,
which posts.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from worker.policy.decode import callback_url

FIELDS = ("Scheme", "Host", "Path", "RawPath", "RawQuery", "Opaque", "Fragment", "ForceQuery")
WORDS = ("http://", "https://", "://", "[::1]", ":65535", ":65536", "user:word@", "%2F", "%zz", "\\", "//")
_PARTS = re.compile(r"(([^:/?#]+):)?(//([^/?#]*))?([^?#]*)(\?([^#]*))?(#(.*))?", re.DOTALL)
_AUTHORITY = re.compile(r"([^@]*@)?(\[[0-9A-Fa-f:.]+\]|[^:@\[\]]*)(:([0-9]*))?")
_PLAIN = re.compile(
    r"https?://[a-z0-9]+(\.[a-z0-9]+)*(:[0-9]{1,4})?(/[-A-Za-z0-9_.~!$&'()*+,;=:@/]*)?(\?[a-z0-9=&%]*)?"
)
"""URLs that must be accepted."""


def check(data: bytes) -> None:
    """Read *data* as a callback URL, and as a Go object, and check the law above."""
    text = data.decode("utf-8", "replace")
    check_one_host(text)
    lines = dict(zip(FIELDS, text.split("\n"), strict=False))
    _check_go_url({**lines, "ForceQuery": lines.get("ForceQuery") == "true"})


def check_one_host(text: str) -> None:
    """Check that a URL is rejected, or read alike by all readers."""
    url = read(text)
    if url is None:
        assert not text or not _PLAIN.fullmatch(text) or len(text) > 8192, text
        return
    assert url == text.partition("#")[0]
    assert re.fullmatch(r"[!-~]{1,8192}", url)
    assert callback_url(url) == url
    found = _PARTS.fullmatch(url)
    assert found
    authority = _AUTHORITY.fullmatch(found[4] or "")
    assert authority, url
    scheme, host, port = found[2].lower(), authority[2].lower(), int(authority[4] or 0)
    assert scheme in ("http", "https")
    assert host
    split = urlsplit(url)
    assert (split.scheme, (split.hostname or "").lower(), split.port or 0) == (scheme, host.strip("[]"), port), url
    assert (split.path, split.query) == (found[5], found[7] or "")
    try:
        posted = httpx.URL(url)
    except httpx.InvalidURL as error:  # an attempt to post reports it
        assert str(error)  # noqa: PT017 -- rejected or the same
        return
    default = {"http": 80, "https": 443}[scheme]
    assert (posted.scheme, posted.host, posted.port or default) == (scheme, host.strip("[]"), port or default), url


def _check_go_url(value: dict[str, Any]) -> None:
    """Check that a URL has the fields of its object, escaped, and keeps the law of a string."""
    url = read(value)
    if url is None:
        return
    check_one_host(url)
    if value.get("Opaque"):
        return
    scheme, host, path, query = (value.get(name, "") for name in ("Scheme", "Host", "Path", "RawQuery"))
    query = query.partition("#")[0]
    forced = value["ForceQuery"] or value.get("RawQuery")
    assert url.startswith(f"{scheme}://{host}".partition("#")[0])
    if set("/?#").isdisjoint(scheme + host):
        rest = url.removeprefix(f"{scheme}://{host}")
        written, mark, query_found = rest.partition("?")
        assert (mark, query_found) == ("?" if forced else "", query), (url, value)
        assert not re.search(r"%(?![0-9A-Fa-f]{2})", written), url
        paths = [f"/{path.removeprefix('/')}" if path else ""]
        if not value.get("RawPath", "/").startswith("/"):  # Go prepends a slash, even if Path begins with one
            paths.append(f"/{path}")
        assert unquote_to_bytes(written) in [each.encode() for each in paths], (url, value)


def read(value: str | dict[str, Any]) -> str | None:
    """Return the URL, or None if it is rejected or missing."""
    try:
        return callback_url(value)
    except ValueError as error:
        reason = str(error)
    assert reason.isprintable(), reason
    assert 0 < len(reason) < 9_000
    return None
