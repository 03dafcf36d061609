"""The proxies of the environment, and the hosts that are reached without one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.proxies import InvalidProxyError, read_proxies

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "http://h/", None),
        ({"http_proxy": PROXY}, "http://h/x?y", PROXY),
        ({"HTTP_PROXY": PROXY}, "http://h/", PROXY),
        ({"HTTP_PROXY": "http://other:1", "http_proxy": PROXY}, "http://h/", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://h/", None),
        ({"HTTPS_PROXY": PROXY}, "https://h:8443/", PROXY),
        ({"ALL_PROXY": PROXY}, "https://h/", PROXY),
        ({"ALL_PROXY": "http://other:1", "HTTP_PROXY": PROXY}, "http://h/", PROXY),
        ({"http_proxy": "proxy:3128"}, "http://h/", PROXY),
        ({"http_proxy": "http://u:p@proxy:3128"}, "http://h/", "http://u:p@proxy:3128"),
        ({"http_proxy": ""}, "http://h/", None),
    ],
)
def test_proxy_of_the_environment(environment: dict[str, str], url: str, proxy: str | None) -> None:
    """Each variable applies to its scheme, in either case; ALL_PROXY to the schemes without one."""
    assert read_proxies(environment).proxy_of(url) == proxy


EXCLUDED = {
    "*": ["http://any/"],
    "example.com": ["http://example.com/", "http://a.EXAMPLE.com:8080/", "http://example.com./"],
    ".svc, .cluster.local": ["http://gateway.openfaas.svc/", "http://x.svc.cluster.local:8080/"],
    "*.example.com": ["http://a.example.com/"],
    "127.0.0.1": ["http://127.0.0.1:9000/"],
    "::1": ["http://[::1]:9000/"],
    "localhost,127.0.0.1,[::1]": ["http://[::1]:9000/", "http://localhost/", "http://127.0.0.1/"],
    "10.0.0.0/8": ["http://10.1.2.3/"],
    "127.0.0.1,fd00::/8": ["http://[fd00::1]/", "http://127.0.0.1/"],
    "[fd00::]/8": ["http://[fd00::1]/"],
    "example.com:8080": ["http://example.com:8080/"],
    "[::1]:9000": ["http://[::1]:9000/"],
    "http://example.com": ["http://example.com/"],
    ",,example.com,": ["http://example.com/"],
    "EXAMPLE.com": ["http://example.com/"],
}


@pytest.mark.parametrize("no_proxy", EXCLUDED)
def test_proxy_is_not_used_for_hosts_of_no_proxy(no_proxy: str) -> None:
    """NO_PROXY lists names, also with their subdomains, addresses, networks and ports; all others use the proxy."""
    proxies = read_proxies({"http_proxy": PROXY, "NO_PROXY": no_proxy})
    for url in EXCLUDED[no_proxy]:
        assert proxies.proxy_of(url) is None, url
    if no_proxy != "*":
        for url in ("http://other.org/", "http://notexample.com/", "http://11.1.2.3/", "http://[fc00::1]/"):
            assert proxies.proxy_of(url) == PROXY, url


@pytest.mark.parametrize("no_proxy", ["fd00::/200", "[::1", "a:b:c", "\x00", "]", "[]", ":80", "/8", "::1]:"])
def test_proxy_entry_that_is_nothing_matches_nothing(no_proxy: str) -> None:
    """An entry of NO_PROXY that is neither a name nor an address excludes no host, and breaks no callback."""
    assert read_proxies({"http_proxy": PROXY, "NO_PROXY": no_proxy}).proxy_of("http://h/") == PROXY


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    "value",
    ["socks5://u:secret@127.0.0.1:1080", "foo://127.0.0.1:9", "http://", "http://a:b", "http://u:secret@", "a b"],
)
def test_proxy_that_cannot_be_used_is_refused(name: str, value: str) -> None:
    """A proxy that no callback could use is refused with its variable and its value, without its password."""
    with pytest.raises(InvalidProxyError) as refused:
        read_proxies({name: value})
    text = str(refused.value)
    assert text.startswith(f"{name.upper()} = ")
    assert text.endswith("write http://host:port, or unset it")
    assert "secret" not in text


@given(st.text(), st.sampled_from(["http://h/", "https://[::1]:1/", "http://10.0.0.1"]))
def test_proxy_any_environment_is_read_or_refused(text: str, url: str) -> None:
    """No value of a variable raises anything but an InvalidProxyError."""
    read_proxies({"http_proxy": PROXY, "no_proxy": text}).proxy_of(url)
    try:
        read_proxies({"all_proxy": text}).proxy_of(url)
    except InvalidProxyError as error:
        assert str(error).startswith("ALL_PROXY = ")  # noqa: PT017 -- the other values are read
