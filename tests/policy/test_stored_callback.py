"""The stored form of a callback."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model import Callback, StoredBody, StoredCallback
from worker.policy.stored_callback import decode_callback, encode_callback

texts = st.text(st.characters(codec="latin-1"), max_size=30).map(lambda text: text.encode("latin-1"))
callbacks = st.builds(
    StoredCallback,
    st.builds(
        Callback,
        st.text(max_size=30).map("http://a/".__add__),
        st.lists(st.tuples(texts, texts), max_size=5).map(tuple),
        st.binary(max_size=200),
    ),
    st.text(max_size=10),
    st.text(max_size=10),
    st.floats(0, 2e9),
    st.floats(0, 2e9),
)


@given(callbacks)
def test_stored_callback_is_read_as_it_was_written(stored: StoredCallback) -> None:
    """What is read is what was written, to the byte."""
    assert decode_callback(encode_callback(stored)) == stored


def test_stored_callback_with_a_reference_is_read_as_it_was_written() -> None:
    """The reference to a large body is read as it was written, and the callback has its size."""
    body = StoredBody("0" * 42, 5_000_000, f"SHA-256={'A' * 43}=")
    stored = StoredCallback(Callback("http://a", (), b"", body), "c", "f.ns", 1.0, 2.0)
    assert decode_callback(encode_callback(stored)) == stored
    assert stored.callback.size == 5_000_000


@pytest.mark.parametrize(
    ("body", "behind"),
    [
        (StoredBody("*", 5, f"SHA-256={'A' * 43}="), b""),
        (StoredBody("0" * 42, -5, f"SHA-256={'A' * 43}="), b""),
        (StoredBody("0" * 42, 5, "SHA-256="), b""),
        (StoredBody("0" * 42, 5, f"SHA-256={'A' * 43}="), b"another body"),
    ],
)
def test_reference_that_is_none_is_no_stored_callback(body: StoredBody, behind: bytes) -> None:
    """A reference that no object store returned, or one beside a body, is foreign: nothing is read or deleted."""
    payload = encode_callback(StoredCallback(Callback("http://a", (), behind, body), "", "", 0.0, 0.0))
    assert str(decode_callback(payload)).startswith("not a stored callback")


@given(st.binary(max_size=300) | callbacks.map(encode_callback).flatmap(lambda it: st.just(it[: len(it) // 2])))
def test_foreign_payload_is_no_stored_callback(payload: bytes) -> None:
    """Any payload is read without an error; what is no callback has a reason of bounded length."""
    result = decode_callback(payload)
    assert isinstance(result, StoredCallback) or 0 < len(result) < 300


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"{}\n",
        b"[]\nbody",
        b'{"url":5,"headers":[],"call_id":"","function":""}\n',
        b'{"url":"ftp://a","headers":[],"call_id":"","function":""}\n',
        b'{"url":"http://a","headers":[["a"]],"call_id":"","function":""}\n',
        b'{"url":"http://a","headers":[["\\u20ac","b"]],"call_id":"","function":""}\n',
        b'{"url":"http://a","headers":[],"call_id":"","function":"","ended_at":"x"}\n',
    ],
)
def test_payload_of_another_form_has_a_reason(payload: bytes) -> None:
    """A payload that is not of this form is no callback."""
    assert str(decode_callback(payload)).startswith("not a stored callback")
