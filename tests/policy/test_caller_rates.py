"""The rate of each caller, and the caller's address: in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model import Rate
from worker.policy.caller_rates import CallerRates, caller_of, client_address, parse_networks

TRUSTED = parse_networks("10.0.0.0/8, fd00::/8,192.0.2.1")


def test_caller_may_send_as_many_at_once_as_the_rate_has() -> None:
    """Ten calls of 10/s are taken at once; the next is taken a tenth of a second later, and that is its wait."""
    rates = CallerRates(Rate(10, 1.0))
    assert [rates.take("a", 5.0) for _ in range(10)] == [0.0] * 10
    assert rates.take("a", 5.0) == pytest.approx(0.1)
    assert rates.take("b", 5.0) == 0.0
    assert rates.take("a", 5.1) == 0.0
    assert rates.take("a", 5.1) > 0
    assert [rates.take("a", 50.0) for _ in range(10)] == [0.0] * 10


@given(
    starts=st.integers(1, 50),
    window=st.sampled_from([1.0, 60.0, 3600.0]),
    steps=st.lists(st.floats(0, 2, allow_subnormal=False), min_size=1, max_size=300),
)
def test_caller_never_exceeds_its_rate(starts: int, window: float, steps: list[float]) -> None:
    """In each window, and from the start, no more calls are taken than a token bucket holds; a wait is exact."""
    rates = CallerRates(Rate(starts, window))
    now, tokens = 0.0, float(starts)
    for each in steps:
        step = each * window / starts
        now, tokens = now + step, min(float(starts), tokens + step * starts / window)
        wait = rates.take("a", now)
        if wait == 0.0:
            tokens -= 1
            assert tokens > -1e-3
        else:
            assert tokens < 1
            assert wait == pytest.approx((1 - tokens) * window / starts, abs=1e-3 * window / starts)


def test_callers_are_bounded() -> None:
    """Of more callers than are remembered, the one seen first is forgotten."""
    rates = CallerRates(Rate(1, 60.0), most=100)
    for number in range(1000):
        assert rates.take(str(number), 0.0) == 0.0
    assert len(rates) == 100
    assert rates.take("999", 0.0) > 0
    assert rates.take("0", 0.0) == 0.0
    for number in range(2000, 2200):
        rates.take(str(number), 1000.0)
    assert len(rates) <= 100


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0db8:0001:0002::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_caller_is_an_ipv4_address_or_an_ipv6_network(address: str, caller: str) -> None:
    """The machine chooses the last 64 bits of an IPv6 address, so they do not count."""
    assert caller_of(address) == caller


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9 , 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["10.0.0.5"], "10.0.0.5"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["x" * 10_000], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("fd00::1", ["192.0.2.1"], "192.0.2.1"),
    ],
)
def test_client_is_the_last_address_that_is_no_trusted_proxy_s(peer: str, forwarded: list[str], client: str) -> None:
    """X-Forwarded-For counts from its end, as far as trusted proxies wrote it; what is no address ends it."""
    assert client_address(peer, forwarded, TRUSTED) == client
    assert client_address(peer, forwarded, ()) == peer


@pytest.mark.parametrize("text", ["", "x", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/8,", "10.0.0.0 /8"])
def test_networks_that_are_none_are_refused(text: str) -> None:
    """A list with anything else than addresses and networks is refused."""
    with pytest.raises(ValueError, match="not a list of networks"):
        parse_networks(text)


def test_client_behind_endless_proxies_is_searched_for_a_while() -> None:
    """Invented entries of trusted networks are followed through a few proxies only, from the end."""
    entries = [f"10.1.{number // 250}.{number % 250}" for number in range(5_000)]
    found = client_address("10.0.0.1", [", ".join(entries)], parse_networks("10.0.0.0/8"))
    assert found == entries[-20]
    assert client_address("192.0.2.1", [",".join(entries)], parse_networks("10.0.0.0/8")) == "192.0.2.1"
