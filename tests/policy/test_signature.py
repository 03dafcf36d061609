from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.signature import MAX_SIZE, BodySignatures, SigningKeys, parse_keys, sign

SPEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
"""The secret in the documentation of Standard Webhooks."""


def secrets(*lines: str, host: str = "h", port: int = 80) -> tuple[bytes, ...]:
    return parse_keys("\n".join(lines).encode()).secrets_for(host, port)


def standard_webhooks(secret: bytes, message_id: bytes, now: int, body: bytes) -> bytes:
    """Return a signature as the specification describes it."""
    signed = message_id + b"." + str(now).encode() + b"." + body
    return b"v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest())


def test_sign_agrees_with_the_example_of_standard_webhooks() -> None:
    """The signature of the specification's libraries' own example is theirs, to the byte."""
    headers = dict(sign(secrets(SPEC), b"msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', now=1614265330))
    assert headers[b"webhook-timestamp"] == b"1614265330"
    assert headers[b"webhook-signature"] == b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=3), st.lists(st.binary()))
def test_body_in_parts_has_the_signatures_of_the_whole(keys: list[bytes], parts: list[bytes]) -> None:
    """A body that is read part by part gets the same signatures, however it is split."""
    signatures = BodySignatures(tuple(keys), b"msg_1", now=1)
    for part in parts:
        signatures.update(part)
    assert signatures.headers() == sign(tuple(keys), b"msg_1", b"".join(parts), now=1)


@given(st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=3), st.binary(), st.integers(0, 2**33))
def test_sign_with_each_key_and_openfaas_with_the_first(keys: list[bytes], body: bytes, now: int) -> None:
    """webhook-signature has the signature of each key in order, X-Openfaas-Signature-256 that of the first alone."""
    headers = dict(sign(tuple(keys), b"msg_1", body, now=now))
    expected = [standard_webhooks(key, b"msg_1", now, body) for key in keys]
    assert headers[b"webhook-signature"].split(b" ") == expected
    digest = hmac.new(keys[0], body, hashlib.sha256).hexdigest()
    assert headers[b"X-Openfaas-Signature-256"] == b"sha256=" + digest.encode()


def test_sign_without_key_adds_nothing() -> None:
    """A callback without a key has no signature and no time."""
    assert sign((), b"msg_1", b"", now=1) == ()
    assert SigningKeys().secrets_for("h", 80) == ()


def test_keys_are_base64_with_the_prefix_and_text_without() -> None:
    """`whsec_` introduces base64; other secrets are the text, and base64 too if they can be a Standard Webhooks key."""
    key = base64.b64decode(SPEC.removeprefix("whsec_"))
    assert secrets(SPEC) == (key,)
    assert secrets("geheim-ß") == ("geheim-ß".encode(),)
    assert secrets(SPEC.removeprefix("whsec_")) == (SPEC.removeprefix("whsec_").encode(), key)
    assert secrets("abcd") == (b"abcd",)
    unpadded = base64.b64encode(b"x" * 31).decode().rstrip("=")
    assert secrets(f"whsec_{unpadded}") == (b"x" * 31,)


def test_keys_have_an_order_and_blank_lines_do_not_count() -> None:
    """The first line signs first, whatever is around the lines."""
    assert secrets("", " one \r", "\t", "two", "") == (b"one", b"two")


def test_keys_of_a_receiver_are_those_of_its_patterns() -> None:
    """A receiver gets the keys of the lines whose pattern it matches, else those of the lines without one."""
    lines = "all", "*.example.com ours", "a.example.com:8080 special", "10.0.0.1 ten"
    assert secrets(*lines, host="other.org") == (b"all",)
    assert secrets(*lines, host="B.example.com.") == (b"ours",)
    assert secrets(*lines, host="a.example.com", port=8080) == (b"ours", b"special")
    assert secrets(*lines, host="10.0.0.1") == (b"ten",)
    assert secrets("*.example.com ours", host="other.org") == ()


def test_keys_after_a_byte_order_mark_are_the_same() -> None:
    """The mark that some editors write at the start of a file is no part of the first key."""
    assert secrets(f"\ufeff{SPEC}", "b") == secrets(SPEC, "b")


def test_keys_of_different_receivers_may_be_many() -> None:
    """The limit is for one receiver: a worker may have many receivers."""
    assert secrets(*(f"h{number} key{number}" for number in range(500)), host="h7") == (b"key7",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has no signing key: write one a line"),
        (b" \n\n", "it has no signing key: write one a line"),
        (b"\xff\xfe", "it is not text in UTF-8"),
        (b"good\nwhsec_!!!", "line 2: what follows whsec_ is not base64"),
        (b"whsec_", "line 1: what follows whsec_ is not base64"),
        (b"a b c", "line 1 has 3 words: write a secret, or a pattern of receivers and a secret"),
        (b"hunter2! word", "line 1: the first of two words is no pattern of receivers, such as *.example.com"),
        (b"10.0.0.0/8 word", "line 1: a network cannot choose a key; write a host, as callback URLs name it"),
        (b"x" * (MAX_SIZE + 1), "it is larger than 65536 bytes"),
        ("secret".encode("utf-16-le"), "line 1 has a control character: it is no text, or not in UTF-8"),
        (b"good\nbad\x00", "line 2 has a control character: it is no text, or not in UTF-8"),
        (b"a\n" * 17, "it has 17 keys for the same receivers: each callback is signed with all, so keep at most 16"),
        (b"h a\n" * 17, "it has 17 keys for the same receivers: each callback is signed with all, so keep at most 16"),
    ],
)
def test_keys_that_cannot_be_used_are_rejected(content: bytes, reason: str) -> None:
    """A file that cannot be used is rejected with a text that names the line and quotes no secret."""
    with pytest.raises(ValueError, match=r".") as error:
        parse_keys(content)
    assert str(error.value) == reason


@given(st.binary(max_size=300))
def test_any_file_is_parsed_or_rejected_without_its_content(content: bytes) -> None:
    """Any bytes are keys, or rejected; and no text that may be logged contains a secret."""
    try:
        keys = parse_keys(b"SECRET" + content)
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017 -- parsed or rejected
        assert "SECRET" not in str(error)  # noqa: PT017 -- the same
    else:
        assert "SECRET" not in repr(keys)
