"""From an operator's text to a value: what tests/test_config.py, which reads settings whole, cannot tell apart."""

from __future__ import annotations

import pytest

from worker.policy.parse import duration, host, http_url, jetstream_name, nats_urls, whole


def test_a_duration_of_at_least() -> None:
    """The least is long enough, and a nanosecond less is told what would be; without one, nothing is long enough."""
    assert duration(1.5)("1.5s") == 1.5
    with pytest.raises(ValueError, match=r"^too short: at least 1\.5s$"):
        duration(1.5)("1499999999ns")
    assert duration()("0s") == 0.0


def test_a_whole_number_within_bounds() -> None:
    """Both bounds are within; ten digits are read, and more are none that a setting could mean."""
    assert [whole(2, 5)(text) for text in ("2", "5", "0000000003")] == [2, 5, 3]
    assert whole(0)("2147483647") == 2147483647
    for text in ("1", "6", "00000000003"):
        with pytest.raises(ValueError, match=r"^not a whole number from 2 to 5$"):
            whole(2, 5)(text)


def test_names_keep_their_letters() -> None:
    """Nothing but a slash is taken off a URL's end, and a host or a stream is called what it is, in either case."""
    assert http_url("http://gateway/FAX/") == "http://gateway/FAX"
    assert host("Gateway-X.Example") == "Gateway-X.Example"
    assert jetstream_name("FAX") == "FAX"


@pytest.mark.parametrize("apart", [",\t", ",X", "X,", ",\n"])
def test_only_spaces_may_stand_between_servers(apart: str) -> None:
    """A list of servers is cut at commas, and spaces around them do not count; anything else is part of a URL."""
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
def test_an_address_is_one_or_is_refused(given: str, meant: str | None) -> None:
    """Letters of an address count in either case, and a zone keeps its own; four numbers with dots are no name."""
    if meant is not None:
        assert host(given) == meant
        return
    with pytest.raises(ValueError, match=r"^not a host: write a name or an IP address, with no port$"):
        host(given)
