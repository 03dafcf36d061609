"""The callback URL of a message: a string, or Go's ``url.URL`` as encoding/json writes it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

_LONGEST = 8192
"""Characters: what web servers commonly accept as a request line."""
_VISIBLE = re.compile(r"[!-~]+")
_AUTHORITY = re.compile(r"(?:[^@\[\]]*@)?(?:\[[0-9A-Fa-f:.]+\]|[-A-Za-z0-9._~%!$&'()*+,;=]+)(?::[0-9]*)?")
"""User, host and port (RFC 3986, section 3.2), so strictly that no two readers can take another host from it."""
_NEITHER = "what stands for its host and port can be neither"
_SAFE_PATH = "/:@$&+,;="
"""Characters that Go does not escape in a path, less those that ``quote`` keeps anyway."""
_ENCODED_PATH = re.compile(r"(?:[A-Za-z0-9/:@!$&'()*+,;=\-._~\[\]]|%[0-9A-Fa-f]{2})*")


def callback_url(value: Any) -> str | None:
    """Return the absolute URL of a message's ``CallbackUrl``, without its fragment; None if it has none.

    A ValueError explains why it cannot be posted to: not http or https, no host, a character that no URL has.
    """
    if value is None or value == "":
        return None
    url = value if isinstance(value, str) else _from_go(value)
    if len(url) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    url = url.partition("#")[0]
    if not _VISIBLE.fullmatch(url):
        raise ValueError("it has a space, a control character or a letter outside ASCII; escape it")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # without its text, which may quote a password
        raise ValueError(_NEITHER) from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"its scheme is {parts.scheme!r}; only http and https can be posted to")
    if not parts.hostname:
        raise ValueError("it names no host")
    if not _AUTHORITY.fullmatch(parts.netloc):
        raise ValueError(_NEITHER)
    return url


def _from_go(url: dict[str, Any]) -> str:
    """Return what Go's ``URL.String`` returns, without user information, which encoding/json loses."""
    scheme, host, path = (_text(url, key) for key in ("Scheme", "Host", "Path"))
    raw_path, query = _text(url, "RawPath"), _text(url, "RawQuery")
    if query or url.get("ForceQuery") is True:
        query = f"?{query}"
    if opaque := _text(url, "Opaque"):
        return f"{scheme}:{opaque}{query}"
    if not scheme and not host and not path:
        raise ValueError("it is empty")
    # RawPath is a hint how to write Path, and counts only where it is a way to write it.
    if not (_ENCODED_PATH.fullmatch(raw_path) and unquote_to_bytes(raw_path) == path.encode()):
        raw_path = quote(path, safe=_SAFE_PATH)
    if raw_path and not raw_path.startswith("/"):
        raw_path = f"/{raw_path}"
    return f"{scheme}://{host}{raw_path}{query}"


def _text(url: dict[str, Any], key: str) -> str:
    value = url.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"its {key} is not a string")  # noqa: TRY004 -- of the message, so a value to callers
    return value
