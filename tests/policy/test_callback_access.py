from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.addresses import special_kind
from worker.policy.callback_access import CallbackAccess
from worker.policy.receiver_patterns import parse_patterns

ADDRESSES = st.ip_addresses()


def access(allow: str = "", deny: str = "") -> CallbackAccess:
    return CallbackAccess(("http", "gateway", 8080), parse_patterns(allow), parse_patterns(deny))


def allowed(rules: CallbackAccess, host: str, address: str | None = None, port: int = 80) -> bool:
    return rules.refusal(host, port, None if address is None else ip_address(address)) is None


@given(ADDRESSES)
def test_access_by_default_is_to_all_but_special_addresses(address: object) -> None:
    """Without rules, the address decides and not the name."""
    assert allowed(access(), "example.com", str(address)) == (special_kind(ip_address(str(address))) is None)


@pytest.mark.parametrize(
    ("allow", "deny", "host", "address", "expected"),
    [
        # The allowed ones first.
        ("10.0.0.5", "10.0.0.0/8", "h", "10.0.0.5", True),
        ("10.0.0.5", "10.0.0.0/8", "h", "10.0.0.6", False),
        ("*.example.com", "*", "a.example.com", "203.0.113.1", True),
        ("*.example.com", "*", "example.org", "203.0.113.1", False),
        ("*", "*", "example.org", "169.254.169.254", True),
        ("10.0.0.0/8", "*", "h", "::ffff:10.0.0.1", True),
        ("10.0.0.0/8", "*", "h", "64:ff9b::a00:1", True),
        ("10.0.0.0/8", "*", "h", "2002:a00:1::", False),
        # The denied ones: in each form, by name and by address.
        ("", "10.0.0.0/8", "h", "10.0.0.1", False),
        ("", "10.0.0.0/8", "h", "64:ff9b::a00:1", False),
        ("", "10.0.0.0/8", "h", "2002:a00:1::", False),
        ("", "evil.example", "EVIL.example.", "203.0.113.1", False),
        ("", "evil.example", "good.example", "203.0.113.1", True),
        ("", "evil.example:81", "evil.example", "203.0.113.1", True),
        ("", "203.0.113.1:80", "h", "203.0.113.1", False),
        # Loopback: by address, or by a whole name; the owner of a domain must not choose.
        ("127.0.0.0/8", "", "h", "127.0.0.1", True),
        ("127.0.0.1:80", "", "h", "127.0.0.1", True),
        ("127.0.0.1:81", "", "h", "127.0.0.1", False),
        ("127.0.0.0/8", "", "h", "::1", False),
        ("localhost", "", "localhost", "127.0.0.1", True),
        ("localhost:80", "", "localhost", "::1", True),
        ("*.example.com", "", "a.example.com", "127.0.0.1", False),
        # Link-local and metadata: by address only.
        ("a.example.com", "", "a.example.com", "169.254.169.254", False),
        ("a.example.com", "", "a.example.com", "168.63.129.16", False),
        ("169.254.169.254", "", "h", "169.254.169.254", True),
        ("169.254.0.0/16", "", "h", "::ffff:169.254.1.1", True),
        # A proxy looks names up: what is written decides.
        ("", "", "example.com", None, True),
        ("", "", "localhost", None, False),
        ("", "", "2130706433", None, False),
        ("", "", "[::1]", None, False),
        ("", "", "metadata.google.internal", None, False),
        ("", "*.internal", "a.internal", None, False),
        ("a.internal", "*.internal", "a.internal", None, True),
        ("localhost", "", "localhost", None, True),
        ("127.0.0.1", "", "0x7f.1", None, True),
        ("", "10.0.0.0/8", "10.0.0.1", None, False),
    ],
)
def test_access_with_rules(allow: str, deny: str, host: str, address: str | None, expected: bool) -> None:
    """The allowed receivers come first, then the denied ones, then the default."""
    assert allowed(access(allow, deny), host, address) == expected


@given(st.sampled_from(["", "example.com", "*.com"]), st.sampled_from(["", "10.0.0.0/8", "*.com"]), ADDRESSES)
def test_access_by_names_never_leads_to_special_addresses(allow: str, deny: str, address: object) -> None:
    """No name in callback_allow leads to link-local or metadata addresses, and no wildcard to loopback."""
    kind = special_kind(ip_address(str(address)))
    if allowed(access(allow, deny), "example.com", str(address)):
        assert kind is None or (kind, allow) == ("loopback", "example.com")


@given(st.integers(0, 2**32 - 1).map(IPv4Address), st.sampled_from(["10.0.0.0/8", "0.0.0.0/1", "192.0.2.0/24"]))
def test_access_denied_by_network_holds_in_each_form(address: IPv4Address, deny: str) -> None:
    """A network in callback_deny also holds for its addresses inside of IPv6 addresses."""
    rules = access(deny=deny)
    if not allowed(rules, "h", str(address)):
        for form in (f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}"):
            assert not allowed(rules, "h", form)


def test_refusal_names_rule_and_setting() -> None:
    """A refusal names host, address, the rule, and the setting to change."""
    assert access(deny="10.0.0.0/8").refusal("Hook.example.", 81, ip_address("10.0.0.1")) == (
        "hook.example (10.0.0.1) port 81 matches 10.0.0.0/8 in callback_deny"
    )
    assert access().refusal("hook.example", 80, ip_address("127.0.0.1")) == (
        "hook.example (127.0.0.1) is a loopback address, which callbacks may not reach by default: "
        "to allow it, list the address in callback_allow, such as 127.0.0.1"
    )
    assert "localhost is a loopback address" in (access().refusal("localhost", 80, None) or "")


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (("http", "gateway", 8080), True),
        (("http", "GATEWAY.", 8080), True),
        (("https", "gateway", 8080), False),
        (("http", "gateway", 80), False),
        (("http", "gateway.evil.example", 8080), False),
    ],
)
def test_gateway_is_an_origin(origin: tuple[str, str, int], expected: bool) -> None:
    """The gateway is recognized by scheme, host and port together."""
    assert access().is_gateway(origin) == expected


@pytest.mark.parametrize(
    ("target", "admin"),
    [
        ("/system/functions", True),
        ("/system", True),
        ("//system/functions?x", True),
        ("/./SYSTEM/functions", True),
        ("/%73ystem%2ffunctions", True),
        ("/%2573ystem/functions", True),
        ("/function/../system/functions", True),
        ("/function/%2e%2e/system/functions", True),
        ("/\\system/functions", True),
        ("/system;a/functions", True),
        ("/", False),
        ("/function/system", False),
        ("/function/f/system/functions", False),
        ("/async-function/f?/system/", False),
        ("/systems", False),
        ("/below/system/functions", True),
        ("/below/function/system", False),
    ],
)
def test_gateway_refusal_of_a_path_in_any_form(target: str, admin: bool) -> None:
    """Callbacks reach all of the gateway but what deploys functions, unless a rule lists the gateway."""
    assert (access().gateway_refusal(target) is not None) == admin
    assert access(allow="gateway:8080").gateway_refusal(target) is None
    assert (access(allow="gateway:81").gateway_refusal(target) is not None) == admin
    rules = CallbackAccess(("http", "127.0.0.1", 80), parse_patterns("127.0.0.0/8"), parse_patterns(""))
    assert rules.gateway_refusal(target) is None
