from __future__ import annotations

import string
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.callback_url import callback_url


def go_url(**parts: Any) -> dict[str, Any]:
    """Go's ``url.URL`` as encoding/json writes it, all fields empty but *parts*."""
    texts = dict.fromkeys(("Scheme", "Opaque", "Host", "Path", "RawPath", "RawQuery", "Fragment", "RawFragment"), "")
    return texts | {"User": None, "ForceQuery": False, "OmitHost": False} | parts


@pytest.mark.parametrize("value", [None, ""])
def test_no_callback(value: str | None) -> None:
    """Null and the empty string ask for no callback."""
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
def test_a_string_is_posted_to_as_it_is(url: str) -> None:
    """An absolute http or https URL goes out to the byte as the caller wrote it."""
    assert callback_url(url) == url


def test_which_characters_make_a_host() -> None:
    """Those of RFC 3986, section 3.2.2, of all visible ones; between brackets, an IPv6 address in either case."""
    allowed = string.ascii_letters + string.digits + "-._~%!$&'()*+,;="
    for character in map(chr, range(33, 127)):
        taken = None
        with suppress(ValueError):
            taken = callback_url(f"http://a{character}:80/")
        if character not in "/?#@":  # which end the host, or what stands before it
            assert (taken is not None) == (character in allowed), character
    address = "http://[0123:4567:89ab:cdef:ABCD:EF01:192.0.2.1]:80/"
    assert callback_url(address) == address


def test_which_characters_make_a_raw_path() -> None:
    """Go's RawPath is used where it is a way to write the path: with its characters, and escapes in either case.

    The escaped A tells it from what we would write ourselves.
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
def test_a_fragment_stays_at_home(url: str, posted: str) -> None:
    """A fragment is no part of a request."""
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
def test_what_cannot_be_posted_to_is_refused(url: str, why: str) -> None:
    """Another scheme, no host, a bad port, a character no URL has, or too long: refused, and the text says which."""
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
def test_an_object_is_what_go_makes_of_it(parts: dict[str, Any], posted: str) -> None:
    """Go's ``url.URL`` is posted to at what its String method gives, less the fragment."""
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
        (go_url(Scheme=None, Host="h"), "its Scheme is not a string"),
        (go_url(Scheme="http", Host=["h"]), "its Host is not a string"),
        (go_url(Scheme="http", Host="h", Path=1), "its Path is not a string"),
        (go_url(Scheme="http", Host="h", Path="\u00e9" * 2000), "longer than 8192 characters"),
    ],
)
def test_an_object_that_cannot_be_posted_to_is_refused(value: dict[str, Any], why: str) -> None:
    """An object is held to the same rules as a string, and the text says what is wrong with it."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- its whole text is compared
        callback_url(value)
    assert str(refused.value) == why


@given(st.text())
def test_a_path_of_go_says_the_same_escaped(path: str) -> None:
    """Whatever a path holds, the receiver that unescapes it reads it back."""
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
def test_what_is_accepted_can_be_posted_to(value: Any) -> None:
    """Anything is refused by ValueError, or is a URL in visible ASCII that the client reads as http or https."""
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
