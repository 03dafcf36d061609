from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.addresses import destination, ends_in_number, read_address, special_kind, special_name

IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("loopback", "127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 ::1 :: ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::7f00:1"),
        ("loopback", "64:ff9b:1::7f00:1 64:ff9b:1:7f00:0:100:: 2002:7f00:1:: ::ffff:0:127.0.0.1 ::ffff:0.0.0.0"),
        ("loopback", "2001:0:1:2:3:4:80ff:fffe 2001:0:7f00:1:: 2001:db8::5efe:7f00:1 2001:db8::200:5efe:127.0.0.1"),
        ("link-local", "169.254.169.254 169.254.170.2 169.254.0.23 fe80::1 febf::1 ::ffff:169.254.169.254"),
        ("link-local", "64:ff9b::a9fe:a9fe 2002:a9fe:a9fe:: fe80::a9fe:a9fe"),
        ("metadata", "100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 fd00:ec2::23 fd20:ce::254"),
        ("metadata", "fd00:42::42 fd00:c1::a9fe:a9fe ::ffff:168.63.129.16 64:ff9b::6464:64c8"),
        (None, "1.1.1.1 10.0.0.1 192.168.1.1 172.16.0.1 100.64.0.1 128.0.0.1 126.255.255.255 169.253.255.255"),
        (None, "2606:4700::1111 fd00::1 fec0::1 64:ff9b::a00:1 ::ffff:10.0.0.1 2002:a00:1:: 100.100.100.199"),
    ],
)
def test_special_kind_of_each_address_is_found(kind: str | None, texts: str) -> None:
    """Loopback, link-local and metadata addresses are found in each form in which they can be written."""
    assert {text: special_kind(ip_address(text)) for text in texts.split()} == dict.fromkeys(texts.split(), kind)


@given(IPV4)
def test_special_kind_is_the_same_inside_of_ipv6(address: IPv4Address) -> None:
    """An IPv4 address is special inside of an IPv6 address if and only if it is special alone."""
    for prefix in ("64:ff9b::", "64:ff9b:1::", "::ffff:0:0", "::ffff:0:0:0", "2001:db8::5efe:0:0"):
        inside = IPv6Address(int(IPv6Address(prefix)) | int(address))
        assert special_kind(inside) == special_kind(address), inside


@given(IPV4)
def test_destination_of_a_translated_address_is_the_ipv4_address(address: IPv4Address) -> None:
    """IPv4-mapped and NAT64 addresses lead to the embedded IPv4 address; others to themselves."""
    assert destination(IPv6Address(int(IPv6Address("64:ff9b::")) | int(address))) == address
    assert destination(IPv6Address(int(IPv6Address("::ffff:0:0")) | int(address))) == address
    other = IPv6Address(int(IPv6Address("2001:db8::")) | int(address))
    assert (destination(address), destination(other)) == (address, other)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7F.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("0x", "0.0.0.0"),
        ("4294967295", "255.255.255.255"),
        ("[::1]", "::1"),
        ("[::ffff:10.0.0.1]", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("4294967296", None),
        ("1.2.3.256", None),
        ("256.1", None),
        ("1.2.3.4.5", None),
        ("089.1", None),
        ("example.com", None),
        ("", None),
        ("1..2", None),
    ],
)
def test_read_address_reads_each_form(host: str, address: str | None) -> None:
    """Each form of an IPv4 address that resolvers read is read, and nothing else."""
    assert read_address(host) == (None if address is None else ip_address(address))


@given(
    st.lists(st.sampled_from(["0", "1", "9", "127", "0x7f", "0177", "255", "256", "65535", "0x0", "08"]), min_size=1)
)
def test_read_address_is_the_systems(parts: list[str]) -> None:
    """A host is read as the system's ``inet_aton`` reads it."""
    text = ".".join(parts)
    try:
        expected: str | None = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        expected = None
    assert str(read_address(text)) == str(expected)


def test_special_name_is_one_that_everybody_knows() -> None:
    """Names of this machine and of metadata servers are known without a look-up."""
    names = ("localhost", "a.localhost", "metadata.google.internal", "example.com", "notlocalhost")
    assert [special_name(name) for name in names] == ["loopback", "loopback", "metadata", None, None]


def test_ends_in_number_finds_what_is_no_name() -> None:
    """A host whose last part is a number is an address or nothing."""
    assert [ends_in_number(host) for host in ("1.2.3.4", "a.1", "0x7f", "a1", "1.a", "")] == [True] * 3 + [False] * 3
