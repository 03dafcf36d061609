"""Redirects to a clean path, as Go's ServeMux and OpenFaaS's gateway write them."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.redirect import clean_path, clean_target

ROOT = "/function/f"
SENT = f"http://gw:8080{ROOT}//x//y/?a=%20b"
CLEAN = f"{ROOT}/x/y/?a=%20b"

FOLLOWED = [
    CLEAN,
    f"http://gw:8080{CLEAN}",
    f"HTTP://GW:8080{CLEAN}",
    f"//gw:8080{CLEAN}",
    "../../../../x/y/?a=%20b",
    f"/function/./f{CLEAN.removeprefix(ROOT)}",
    "/x/y/?a=%20b",
    "http://gw:8080/x/y/?a=%20b",
]


@pytest.mark.parametrize("location", FOLLOWED)
def test_clean_target_same_target_is_followed(location: str) -> None:
    """A Location that is the same target with a clean path is followed, also one as the function writes it."""
    assert clean_target(SENT, ROOT, location) == CLEAN


@pytest.mark.parametrize(
    "location",
    [
        "",
        "#",
        SENT,
        "/",
        "/login",
        f"{ROOT}/x/y?a=%20b",
        f"{ROOT}/x/y/",
        f"{ROOT}/x/y/?a=b",
        f"{ROOT}/x/y/?a=%20b&c",
        f"{ROOT}/x/y/?a=%20b#there",
        f"{ROOT}/x/z/?a=%20b",
        "/function/g/x/y/?a=%20b",
        "/system/functions?a=%20b",
        f"https://gw:8080{CLEAN}",
        f"http://gw{CLEAN}",
        f"http://gw:8081{CLEAN}",
        f"http://evil:8080{CLEAN}",
        f"http://gw:8080@evil{CLEAN}",
        f"http://user:pw@gw:8080{CLEAN}",
        f"http://gw:99999{CLEAN}",
        f"http://[gw{CLEAN}",
        f"//evil{CLEAN}",
        f"ftp://gw:8080{CLEAN}",
        f"{CLEAN} ",
        f"{CLEAN}\r\nX: y",
        f"{CLEAN}\u00e9",
    ],
)
def test_clean_target_any_other_redirect_is_an_answer(location: str) -> None:
    """A redirect to another server, path or query, or to nothing that can be a request line, is not followed."""
    assert clean_target(SENT, ROOT, location) is None


def test_clean_target_of_a_clean_path_is_never_followed() -> None:
    """A request with a clean path is never repeated, so that no redirect can loop."""
    for location in (f"{ROOT}/x/y", f"{ROOT}/x/y/", "/x/y", f"{ROOT}//x/y"):
        assert clean_target(f"http://gw:8080{ROOT}/x/y", ROOT, location) is None


@pytest.mark.parametrize(
    ("requested", "location"),
    [
        (f"http://gw{ROOT}//", f"http://gw:80{ROOT}/"),
        (f"https://gw{ROOT}//a", f"https://gw:443{ROOT}/a"),
        (f"http://[::1]:8080{ROOT}/a/.", f"http://[::1]:8080{ROOT}/a"),
        (f"http://gw/base{ROOT}//a%2Fb", f"/base{ROOT}/a/b"),
        (f"http://gw{ROOT}//%C3%A9%20", f"{ROOT}/%C3%A9%20"),
        (f"http://gw{ROOT}/a/../b", f"{ROOT}/b"),
    ],
)
def test_clean_target_compares_decoded_paths(requested: str, location: str) -> None:
    """Paths are compared without escapes, as Go cleans them, and default ports are the same as none."""
    root = f"/base{ROOT}" if "/base" in requested else ROOT
    assert clean_target(requested, root, location) == urlsplit(location).path


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("a", "/a"),
        ("/a//b", "/a/b"),
        ("//a", "/a"),
        ("/a/", "/a/"),
        ("/a//", "/a/"),
        ("/a/.", "/a"),
        ("/a/./", "/a/"),
        ("/a/..", "/"),
        ("/a/../", "/"),
        ("/a/b/..", "/a"),
        ("/a/b/../", "/a/"),
        ("/../../a", "/a"),
        ("/...", "/..."),
        ("///..//./a/.//b//", "/a/b/"),
    ],
)
def test_clean_path_is_gos(path: str, clean: str) -> None:
    """Each path is cleaned as ``cleanPath`` of Go's net/http does it, by its documented rules."""
    assert clean_path(path) == clean


segments = st.lists(st.sampled_from(["", ".", "..", "a", "b%", "é", " ", "..."]), max_size=6)


@given(segments)
@example(["", "", "a"])
def test_clean_target_leads_to_the_function_only(path: list[str]) -> None:
    """Where a redirect is followed, the target is the function that was invoked, or below it."""
    sent = quote(f"{ROOT}/{'/'.join(path)}")
    if not f"{clean_path(unquote(sent))}/".startswith(f"{ROOT}/"):
        return  # no message has such a path
    for location in (quote(clean_path(unquote(sent))), quote(clean_path("/" + "/".join(path)))):
        target = clean_target(f"http://gw{sent}", ROOT, location)
        if target is not None:
            followed = clean_path(unquote(target))
            assert followed.rstrip("/") == clean_path(unquote(sent)).rstrip("/")
