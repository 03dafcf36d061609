from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.receiver_patterns import host_of, parse_pattern, parse_patterns


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("example.com", "example.com:80 EXAMPLE.com:443 example.com.:80", "a.example.com:80 example.com.evil.org:80"),
        ("example.com:8080", "example.com:8080", "example.com:80 example.com:18080"),
        ("Example.Com.", "example.com:1", "example.org:1"),
        ("*.example.com", "a.example.com:1 a.b.example.com:1", "example.com:1 badexample.com:1 example.com.x:1"),
        ("*.example.com:443", "a.example.com:443", "a.example.com:444"),
        ("10.0.0.0/8", "10.0.0.1:1 10.255.255.255:2 [::ffff:10.1.2.3]:3 0xa000001:1", "11.0.0.1:1 ten.example:1"),
        ("10.0.0.1", "10.0.0.1:1 167772161:1", "10.0.0.2:1"),
        ("10.0.0.1:80", "10.0.0.1:80", "10.0.0.1:81"),
        ("::1", "[::1]:1 [0:0::1]:2", "[::2]:1"),
        ("[::1]", "[::1]:1", "[::2]:1"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080", "[2001:db8::1]:80"),
        ("2001:db8::/32", "[2001:db8:1::]:1", "[2001:db9::]:1 10.0.0.1:1"),
        ("::ffff:10.0.0.0/104", "10.1.1.1:1 [::ffff:10.1.1.1]:1", "11.0.0.0:1"),
        ("*", "example.com:1 10.0.0.1:2 [::1]:3", ""),
    ],
)
def test_pattern_matches_its_receivers(pattern: str, matching: str, others: str) -> None:
    """A pattern matches the hosts, ports and addresses that it names, in each form, and no other."""
    parsed = parse_pattern(pattern)

    def matches(receiver: str) -> bool:
        host, _, port = receiver.rpartition(":")
        name, address = host_of(host)
        return parsed.matches_name(name, int(port)) or parsed.matches_address(
            () if address is None else (address,), int(port)
        )

    assert [each for each in matching.split() if not matches(each)] == []
    assert [each for each in others.split() if matches(each)] == []


@pytest.mark.parametrize(
    "text",
    [
        *(
            "http://example.com",
            "example.com/path",
            "a*b",
            "*example.com",
            "*.*.com",
            "a..b",
            "10.0.0.1/8",
            "10.0.0.0/33",
        ),
        *("http://example.com", "example.com/path", "a*b", "*example.com", "*.*.com", "a..b", "10.0.0.1/8"),
        *("example.com:", "example.com:99999", "example.com:x", "[::1", "::1]:80", "fe80::1%eth0", "127.1"),
        *("1.2.3.4.5", "-a", "10.0.0.0/33", "exämple.com", "a b", "user@example.com", "*:80", "", "2130706433"),
        *(":80", "\x00", "0x7f000001"),
    ],
)
def test_pattern_that_is_none_is_rejected_in_one_line(text: str) -> None:
    """What can be no pattern is rejected with a text that quotes it and shows what to write."""
    with pytest.raises(ValueError, match=r"write ") as error:
        parse_pattern(text)
    assert repr(text[:80]) in str(error.value)
    assert str(error.value).isprintable()


def test_patterns_are_shown_as_they_were_written() -> None:
    """`queue-worker config` shows patterns in their order, without the spaces between them."""
    assert str(parse_patterns(" *.Example.com, 10.0.0.0/8 ,,[::1]:80")) == "*.Example.com,10.0.0.0/8,[::1]:80"


@given(st.ip_addresses())
def test_pattern_of_an_address_matches_it(address: object) -> None:
    """Each address is a pattern, which matches itself in brackets or not."""
    text = str(address)
    pattern = parse_pattern(text)
    _, read = host_of(f"[{text}]" if ":" in text else text)
    assert read is not None
    assert pattern.matches_address((read,), 80)
    assert not pattern.matches_address((ip_address("203.0.113.77"),), 80) or text == "203.0.113.77"


@given(st.text())
def test_any_text_is_a_pattern_or_rejected(text: str) -> None:
    """Any text is parsed, or rejected with a text of one line."""
    try:
        parse_pattern(text)
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017 -- parsed or rejected
