"""Parsers of settings: the cases that tests/test_config.py, which loads all settings, does not distinguish."""

from __future__ import annotations

import pytest

from worker.policy.parse import duration, host, http_url, jetstream_name, nats_urls, whole


def test_parse_duration_below_the_minimum_is_rejected() -> None:
    """The minimum itself is accepted; the message of a nanosecond less has the minimum."""
    assert duration(1.5)("1.5s") == 1.5
    with pytest.raises(ValueError, match=r"^too short: at least 1\.5s$"):
        duration(1.5)("1499999999ns")
    assert duration()("0s") == 0.0


def test_parse_whole_number_accepts_both_bounds() -> None:
    """A whole number is accepted at both bounds, and numbers of more than ten digits are rejected."""
    assert [whole(2, 5)(text) for text in ("2", "5", "0000000003")] == [2, 5, 3]
    assert whole(0)("2147483647") == 2147483647
    for text in ("1", "6", "00000000003"):
        with pytest.raises(ValueError, match=r"^not a whole number from 2 to 5$"):
            whole(2, 5)(text)


def test_parse_names_keeps_their_case() -> None:
    """Names and URLs keep their case; only a slash at the end of a URL is removed."""
    assert http_url("http://gateway/FAX/") == "http://gateway/FAX"
    assert host("Gateway-X.Example") == "Gateway-X.Example"
    assert jetstream_name("FAX") == "FAX"


@pytest.mark.parametrize("apart", [",\t", ",X", "X,", ",\n"])
def test_parse_nats_urls_splits_at_commas(apart: str) -> None:
    """Spaces around an entry are ignored; other characters are part of the URL."""
    assert nats_urls("nats://a , nats://me:word@b:1") == "nats://a , nats://me:word@b:1"
    with pytest.raises(ValueError, match=r"^not a list of NATS servers"):
        nats_urls(f"nats://a:1{apart}nats://b")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("[::1]", "::1"),
        ("FE80::ABCD", "fe80::abcd"),
        ("fe80::abcdef%eth0_z.-9", None),
        ("fe80::abcd%eth0_z.-9", "fe80::abcd%eth0_z.-9"),
        ("[FE80::ABCD%ETHZ]", "fe80::abcd%ETHZ"),
        ("fe80::1%", None),
        ("256.0.0.1", None),
        ("10.0.0.07", None),
        ("10.0.0.7.", "10.0.0.7."),
        ("1.2.3", "1.2.3"),
    ],
)
def test_parse_host_with_an_invalid_address_is_rejected(given: str, meant: str | None) -> None:
    """An address may be in either case, and a zone keeps its own; four numbers with dots are no name."""
    if meant is not None:
        assert host(given) == meant
        return
    with pytest.raises(ValueError, match=r"^not a host: write a name or an IP address, with no port$"):
        host(given)
