from __future__ import annotations

import string
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.decode import callback_url


def go_url(**parts: Any) -> dict[str, Any]:
    """Return Go's ``url.URL`` as encoding/json writes it, all fields empty but *parts*."""
    texts = dict.fromkeys(("Scheme", "Opaque", "Host", "Path", "RawPath", "RawQuery", "Fragment", "RawFragment"), "")
    return texts | {"User": None, "ForceQuery": False, "OmitHost": False} | parts


@pytest.mark.parametrize("value", [None, ""])
def test_callback_url_null_or_empty_is_none(value: str | None) -> None:
    """Null and the empty string request no callback."""
    assert callback_url(value) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway:8080/function/receive",
        "https://example.com",
        "https://example.com/?q=a%20b&r=/?:@",
        "HTTP://Example.com/A",
        "http://[::1]:9000/x",
        "http://user:word@example.com/",
        "http://127.0.0.1:65535/a%2Fb",
        f"http://h/{'a' * 8183}",
    ],
)
def test_callback_url_string_is_unchanged(url: str) -> None:
    """The worker posts to an absolute http or https URL exactly as the caller wrote it."""
    assert callback_url(url) == url


def test_callback_url_host_accepts_rfc_3986_characters() -> None:
    """A host has the characters of RFC 3986, section 3.2.2, or is an IPv6 address in brackets, in either case."""
    allowed = string.ascii_letters + string.digits + "-._~%!$&'()*+,;="
    for character in map(chr, range(33, 127)):
        accepted = None
        with suppress(ValueError):
            accepted = callback_url(f"http://a{character}:80/")
        if character not in "/?#@":  # these end the host, or the user info before it
            assert (accepted is not None) == (character in allowed), character
    address = "http://[0123:4567:89ab:cdef:ABCD:EF01:192.0.2.1]:80/"
    assert callback_url(address) == address


def test_callback_url_raw_path_in_valid_encoding_is_used() -> None:
    """Go's RawPath is used where it encodes Path: with its own characters, and escapes in either case.

    The escaped A distinguishes it from the path that the worker would write itself.
    """
    allowed = string.ascii_letters + string.digits + "/:@!$&'()*+,;=-._~[]"
    for character in map(chr, {*range(33, 127)} - {ord("%")}):
        raw = f"/a{character}%41"
        url = callback_url(go_url(Scheme="http", Host="h", Path=f"/a{character}A", RawPath=raw))
        assert (url == f"http://h{raw}") == (character in allowed), character
    for escaped in (
        "%01%23%45%67%09",
        "%c3%a9%DF%BF%e2%82%ac%F0%9F%98%80%2a%4b%6d%7e",
        "%C3%A9%df%bf%2A%4B%6D%7E%5f%0f",
    ):
        parts = go_url(Scheme="http", Host="h", Path=f"/{unquote(escaped)}", RawPath=f"/{escaped}")
        assert callback_url(parts) == f"http://h/{escaped}"


@pytest.mark.parametrize(
    ("url", "posted"),
    [("http://h/a#b", "http://h/a"), ("http://h#", "http://h"), ("http://h/a?b#c?d#e", "http://h/a?b")],
)
def test_callback_url_fragment_is_removed(url: str, posted: str) -> None:
    """A fragment is removed, because it is no part of a request."""
    assert callback_url(url) == posted


NOT_A_URL = "it has a space, a control character or a letter outside ASCII; escape it"

NO_HOST = "what stands for its host and port can be neither"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.com/", "its scheme is 'ftp'; only http and https can be posted to"),
        ("/just/a/path", "its scheme is ''; only http and https can be posted to"),
        ("example.com/x", "its scheme is ''; only http and https can be posted to"),
        ("//example.com/x", "its scheme is ''; only http and https can be posted to"),
        ("file:///etc/passwd", "its scheme is 'file'; only http and https can be posted to"),
        ("http://", "it names no host"),
        ("http:///x", "it names no host"),
        ("http://:80/", "it names no host"),
        ("http:example.com", "it names no host"),
        ("http://user@/", "it names no host"),
        ("http://h:65536/", NO_HOST),
        ("http://h:a/", NO_HOST),
        ("http://user:pass/word@h/", NO_HOST),
        ("http://[::1/", NO_HOST),
        ("http://[::1]]/", NO_HOST),
        ("http://[::1];/", NO_HOST),
        ("http://[::1]x:80/", NO_HOST),
        ("http://good\\@evil\\/", NO_HOST),
        ("http://good@evil@worse/", NO_HOST),
        ("http://a<b/", NO_HOST),
        ("http://h/a b", NOT_A_URL),
        ("http://h/a\r\nX-Evil: 1", NOT_A_URL),
        ("http://h/\x00", NOT_A_URL),
        ("http://h/\x7f", NOT_A_URL),
        ("http://h\t/", NOT_A_URL),
        (" http://h/", NOT_A_URL),
        ("http://h/\u00e9", NOT_A_URL),
        ("http://\u0435xample.com/", NOT_A_URL),
        ("#only", NOT_A_URL),
        pytest.param(f"http://h/{'a' * 8184}", "longer than 8192 characters", id="too long"),
    ],
)
def test_callback_url_unusable_string_is_refused(url: str, why: str) -> None:
    """Another scheme, no host, a bad port, a wrong character or 8193 characters: refused, with the reason."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- its whole text is compared
        callback_url(url)
    assert str(refused.value) == why


@pytest.mark.parametrize(
    ("parts", "posted"),
    [
        (
            {"Scheme": "http", "Host": "gateway:8080", "Path": "/function/receive"},
            "http://gateway:8080/function/receive",
        ),
        ({"Scheme": "https", "Host": "h"}, "https://h"),
        ({"Scheme": "https", "Host": "h", "Path": "/a b/\u00e9?#%"}, "https://h/a%20b/%C3%A9%3F%23%25"),
        ({"Scheme": "https", "Host": "h", "Path": "/a:@&=+$,;/"}, "https://h/a:@&=+$,;/"),
        ({"Scheme": "https", "Host": "h", "Path": "/a!'()*[]"}, "https://h/a%21%27%28%29%2A%5B%5D"),
        ({"Scheme": "https", "Host": "h", "Path": "/a!'()*", "RawPath": "/a!'()*"}, "https://h/a!'()*"),
        ({"Scheme": "https", "Host": "h", "Path": "/a/b", "RawPath": "/a%2Fb"}, "https://h/a%2Fb"),
        ({"Scheme": "https", "Host": "h", "Path": "/a/b", "RawPath": "/elsewhere"}, "https://h/a/b"),
        ({"Scheme": "https", "Host": "h", "Path": "/a b", "RawPath": "/a b"}, "https://h/a%20b"),
        ({"Scheme": "https", "Host": "h", "Path": "/%zz", "RawPath": "/%zz"}, "https://h/%25zz"),
        ({"Scheme": "https", "Host": "h", "Path": "relative"}, "https://h/relative"),
        ({"Scheme": "https", "Host": "h", "Path": "/", "RawQuery": "a=1&b=%20"}, "https://h/?a=1&b=%20"),
        ({"Scheme": "https", "Host": "h", "RawQuery": "a"}, "https://h?a"),
        ({"Scheme": "https", "Host": "h", "Path": "/", "ForceQuery": True}, "https://h/?"),
        ({"Scheme": "https", "Host": "h", "Path": "/", "ForceQuery": "yes"}, "https://h/"),
        ({"Scheme": "https", "Host": "h", "Path": "/", "Fragment": "f"}, "https://h/"),
        ({"Scheme": "https", "Host": "h", "User": {}}, "https://h"),
        ({"Scheme": "https", "Host": "[::1]:1", "Path": "/"}, "https://[::1]:1/"),
        ({"Scheme": "http", "Opaque": "//h/a", "RawQuery": "b"}, "http://h/a?b"),
    ],
)
def test_callback_url_object_is_written_as_go_does(parts: dict[str, Any], posted: str) -> None:
    """For a ``url.URL`` of Go, the worker posts to the text of its String method, without the fragment."""
    assert callback_url(go_url(**parts)) == posted


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({}, "it is empty"),
        (go_url(), "it is empty"),
        (go_url(Path="/just/a/path"), "its scheme is ''; only http and https can be posted to"),
        (go_url(Host="h"), "its scheme is ''; only http and https can be posted to"),
        (go_url(Host="h", Path="/x"), "its scheme is ''; only http and https can be posted to"),
        (go_url(Scheme="http"), "it names no host"),
        (go_url(Scheme="http", Path="/x"), "it names no host"),
        (
            go_url(Scheme="mailto", Opaque="a@example.com"),
            "its scheme is 'mailto'; only http and https can be posted to",
        ),
        (go_url(Scheme="http", Host="h x"), NOT_A_URL),
        (go_url(Scheme="http", Host="h", RawQuery="a\r\nb"), NOT_A_URL),
        (go_url(Scheme="http\n", Host="h"), NOT_A_URL),
        (go_url(Scheme=1, Host="h"), "its Scheme is not a string"),
        (go_url(Scheme="http", Host=["h"]), "its Host is not a string"),
        (go_url(Scheme="http", Host="h", Path=1), "its Path is not a string"),
        (go_url(Scheme="http", Host="h", Path="\u00e9" * 2000), "longer than 8192 characters"),
    ],
)
def test_callback_url_unusable_object_is_refused(value: dict[str, Any], why: str) -> None:
    """The rules for strings apply to objects too, and the error names the reason."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- its whole text is compared
        callback_url(value)
    assert str(refused.value) == why


@given(st.text())
def test_callback_url_object_path_is_escaped_without_loss(path: str) -> None:
    """Any Path of an object is escaped so that the receiver, which unescapes it, reads the same path."""
    posted = callback_url(go_url(Scheme="http", Host="h", Path=f"/{path}"))
    assert posted is not None
    assert unquote(urlsplit(posted).path) == f"/{path}"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.sampled_from(sorted(go_url())), st.text() | anything)
strings = st.text() | st.text("ab1:/@[]\\?#%.\r\n ").map("http://".__add__)


@given(strings | objects)
@example(go_url(Scheme="http", Host="h", Path="\ud800"))
def test_callback_url_any_value_is_refused_or_usable(value: Any) -> None:
    """Any value raises ValueError, or gives a URL in visible ASCII that the client reads as http or https."""
    try:
        url = callback_url(value)
    except ValueError:
        return
    if url is None:
        assert not value
        return
    assert all("!" <= character <= "~" for character in url)
    assert "#" not in url
    assert httpx.URL(url).scheme in ("http", "https")
    assert httpx.URL(url).host
