"""Messages that Go's encoding/json reads: the same fields must come out here.

The table follows the rules that Go documents for encoding/json (``Unmarshal``) and encoding/base64, and their source in
Go 1.23; no Go was at hand to print it. A value of None means the zero value of the field: none, or empty.
"""

from __future__ import annotations

import json
import string
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.decode import callback_url
from worker.policy.queue_request import QueueRequest, fold, read_queue_request

U = "\ufffd"
GO: dict[str, tuple[bytes, dict[str, Any]]] = {
    "key in lower case": (b'{"function":"f"}', {}),
    "key in upper case": (b'{"FUNCTION":"f","QUERYSTRING":"q"}', {"QueryString": "q"}),
    "key in mixed case": (b'{"Function":"f","callbackURL":"http://h/"}', {"CallbackUrl": "http://h/"}),
    "key with the long s": ('{"Function":"f","Query\u017fTring":"q"}'.encode(), {"QueryString": "q"}),
    "key with the Kelvin sign": (
        '{"Function":"f","Callbac\u212aUrl":"http://h/"}'.encode(),
        {"CallbackUrl": "http://h/"},
    ),
    "key with escapes": (b'{"\\u0066unction":"f","\\u004dethod":"PUT"}', {"Method": "PUT"}),
    "key with a ligature is another key": ('{"Function":"f","Query\ufb06ring":"q"}'.encode(), {}),
    "key with a dotted I is another key": ('{"Function":"f","Funct\u0130on":"g"}'.encode(), {}),
    "key with a space is another key": (b'{"Function":"f","Method ":"PUT"}', {}),
    "last of two keys, exact first": (b'{"Function":"g","function":"f"}', {}),
    "last of two keys, exact last": (b'{"function":"g","Function":"f"}', {}),
    "last of three keys": (
        b'{"Function":"a","METHOD":"PUT","FUNCTION":"b","method":"GET","function":"f"}',
        {"Method": "GET"},
    ),
    "null changes no string": (b'{"Function":"f","function":null,"Method":"PUT","method":null}', {"Method": "PUT"}),
    "null empties an object": (b'{"Function":"f","Annotations":{"a":"1"},"annotations":null}', {}),
    "objects are merged": (
        b'{"Function":"f","Header":{"A":["1"],"B":["1"]},"header":{"B":["2"],"b":["3"]}}',
        {"Header": {"A": ["1"], "B": ["2"], "b": ["3"]}},
    ),
    "URLs are merged": (
        b'{"Function":"f","CallbackUrl":{"Scheme":"http","Host":"a"},"callbackurl":{"Host":"h"}}',
        {"CallbackUrl": {"Scheme": "http", "Host": "h"}},
    ),
    "null in a list is an empty string": (b'{"Function":"f","Header":{"A":[null,"1"]}}', {"Header": {"A": ["", "1"]}}),
    "null for a list": (b'{"Function":"f","Header":{"A":null}}', {"Header": {"A": None}}),
    "null for an annotation": (
        b'{"Function":"f","Annotations":{"a":null,"b":"1"}}',
        {"Annotations": {"a": "", "b": "1"}},
    ),
    "null for each field": (
        (
            b'{"Function":"f","Method":null,"Header":null,"Host":null,"Path":null,"QueryString":null,"Body":null,'
            b'"QueueName":null,"Annotations":null,"Labels":null,"Environment":null,"CallbackUrl":null}'
        ),
        {},
    ),
    "fields without a meaning here": (
        b'{"Function":"f","Host":"h","QueueName":"q","Labels":{"a":"b"},"Environment":{"c":"d"},"Else":[{"function":"g"}]}',
        {},
    ),
    "lines in base64": (b'{"Function":"f","Body":"aGVs\\nbG8s\\r\\nIHdvcmxk\\n"}', {"Body": b"hello, world"}),
    "a line end between the padding": (b'{"Function":"f","Body":"aA=\\n=\\r"}', {"Body": b"h"}),
    "bits after the end of base64": (b'{"Function":"f","Body":"aGl="}', {"Body": b"hi"}),
    "a body of numbers": (b'{"Function":"f","Body":[0,104,255,null]}', {"Body": b"\0h\xff\0"}),
    "an empty body of numbers": (b'{"Function":"f","Body":[]}', {}),
    "bytes that are not UTF-8": (b'{"Function":"f","Path":"/a\xff\xfeb"}', {"Path": f"/a{U}{U}b"}),
    "a cut sequence, one mark a byte": (
        b'{"Function":"f","Path":"/\xe2\x82/\xf0\x9f\x9a"}',
        {"Path": f"/{U * 2}/{U * 3}"},
    ),
    "an encoded surrogate": (b'{"Function":"f","Path":"/\xed\xa0\x80"}', {"Path": f"/{U * 3}"}),
    "an overlong sequence": (b'{"Function":"f","Path":"/\xc0\xaf"}', {"Path": f"/{U * 2}"}),
    "not UTF-8 in an ignored key and value": (b'{"Function":"f","\xff":"\xff"}', {}),
    "half a pair": (
        b'{"Function":"f","Path":"/\\ud800","QueryString":"\\udc00x"}',
        {"Path": f"/{U}", "QueryString": f"{U}x"},
    ),
    "two first halves": (b'{"Function":"f","Path":"\\ud800\\ud83d\\ude80"}', {"Path": f"{U}\U0001f680"}),
    "halves in the wrong order": (b'{"Function":"f","Path":"\\udc00\\ud800"}', {"Path": U * 2}),
    "half a pair before another escape": (
        b'{"Function":"f","Path":"\\ud800\\u0041\\ud800\\n"}',
        {"Path": f"{U}A{U}\n"},
    ),
    "half a pair in names and values": (
        b'{"Function":"f","Header":{"X":["\\ud800"]},"Annotations":{"\\udfff":"\\udfff"}}',
        {"Header": {"X": [U]}, "Annotations": {U: U}},
    ),
    "any number in an ignored field": (b'{"function":"f","A":1e999,"B":-0.0E-1,"C":' + b"9" * 5_000 + b"}", {}),
    "space around": (b' \t\r\n{ "function" :\n"f" }\n', {}),
}
REFUSED = [
    b'{"function":1}',
    b'{"Function":"f","body":"aGk"}',
    b'{"Function":"f","body":"aGk=\\t"}',
    b'{"Function":"f","body":"aG k="}',
    b'{"Function":"f","Body":[256]}',
    b'{"Function":"f","Body":[-1]}',
    b'{"Function":"f","Body":[1.5]}',
    b'{"Function":"f","Body":{}}',
    b'{"Function":"f","header":{"A":"1"}}',
    b'{"Function":"f","header":{"A":{}}}',
    b'{"Function":"f","annotations":[]}',
    b'{"function":"f","A":NaN}',
    b'{"function":"f","A":Infinity}',
    b'{"function":"f"} x',
    b'{"function":"f\x01"}',
    b'{"function":"f",}',
    b'\xef\xbb\xbf{"function":"f"}',
    b'{"Header":{}}',
    b"[]",
    b"null",
]


@pytest.mark.parametrize("case", GO)
def test_read_queue_request_has_the_fields_that_go_reads(case: str) -> None:
    """Each field has the value that Go's encoding/json gives it."""
    payload, fields = GO[case]
    request = read_queue_request(payload)
    found = {name: getattr(request, name) for name in QueueRequest.__struct_fields__[:8] if getattr(request, name)}
    assert found == {"Function": "f"} | fields


@pytest.mark.parametrize("payload", REFUSED)
def test_read_queue_request_refuses_what_go_refuses(payload: bytes) -> None:
    """What Go cannot read is refused here too, with a reason; a message without a function is useless to both."""
    with pytest.raises(ValueError, match=r"\S"):
        read_queue_request(payload)


def test_fold_is_equal_for_exactly_the_keys_that_go_takes_as_one() -> None:
    """Of all characters, only the two cases of a letter fold to it, and for k and s one more each."""
    folded: dict[str, set[str]] = {}
    for character in map(chr, range(0x110000)):
        if (key := fold(character)) in string.ascii_lowercase:
            folded.setdefault(key, set()).add(character)
    more = {"k": {"\u212a"}, "s": {"\u017f"}}
    assert folded == {each: {each, each.upper()} | more.get(each, set()) for each in string.ascii_lowercase}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(
    st.fixed_dictionaries(
        {"Function": texts},
        optional={
            "Method": texts,
            "Header": st.dictionaries(texts, st.none() | st.lists(texts, max_size=2), max_size=2),
            "Path": texts,
            "QueryString": texts,
            "Body": st.sampled_from(["", "aGk=", "AAEC", None]),
            "Annotations": st.dictionaries(texts, texts, max_size=2),
            "CallbackUrl": st.none() | texts | st.dictionaries(st.sampled_from(["Scheme", "Host", "x"]), texts),
        },
    ),
    st.randoms(use_true_random=False),
)
def test_read_queue_request_reads_the_same_in_any_case(message: dict[str, Any], rng: Any) -> None:
    """A message reads the same whatever the case of its keys, and with an unknown key: neither takes the fast way."""
    other = {rng.choice([str.lower, str.upper, str.title])(key): value for key, value in message.items()}
    usual = read_queue_request(json.dumps(message).encode())
    assert read_queue_request(json.dumps(other | {"unknown": 1}).encode()) == usual
    assert read_queue_request(json.dumps(message | {"unknown": 1}).encode()) == usual


@given(st.binary())
def test_read_queue_request_raises_nothing_but_its_errors(payload: bytes) -> None:
    """No bytes raise anything but a ValueError or a RecursionError, which the caller turns into a dead letter."""
    with suppress(ValueError, RecursionError):
        read_queue_request(b'{"function":"f","Path":"' + payload + b'"}')


@pytest.mark.parametrize("scheme", ["s", "S", "\u017f"])
def test_callback_url_object_has_keys_in_any_case(scheme: str) -> None:
    """The keys of a CallbackUrl object match in any case too, the last one wins, and null changes none."""
    url: dict[str, Any] = {
        f"{scheme}cheme": "http",
        "HOST": "a",
        "host": "h",
        "hOST": None,
        "path": "/p",
        "rawquery": "q",
        "user": {},
    }
    assert callback_url(url) == "http://h/p?q"


def test_repeated_maps_are_merged_and_later_values_count() -> None:
    """Go adds the keys of a repeated map to the first; of one key the last value counts, and a null empties the map."""
    head = b'{"Function":"f","Header":{"A":["1"],"B":["2"]},"Annotations":{"x":"1"},'
    request = read_queue_request(head + b'"Header":{"B":["3"],"C":null},"Annotations":{"y":"2","x":"3"}}')
    assert request.Header == {"A": ["1"], "B": ["3"], "C": None}
    assert request.Annotations == {"x": "3", "y": "2"}
    assert not read_queue_request(head + b'"Header":null}').Header
    assert read_queue_request(head + b'"Header":null,"Header":{"D":["4"]}}').Header == {"D": ["4"]}
    assert read_queue_request(b'{"Function":"f","Header":{"Header":["1"]}}').Header == {"Header": ["1"]}
    assert read_queue_request(b'{"Function":"f","Function":"g"}').Function == "g"


def test_repeated_map_with_a_wrong_value_is_refused() -> None:
    """A repeat hides no error of the first value."""
    with pytest.raises(ValueError, match="Header"):
        read_queue_request(b'{"Function":"f","Header":{"A":["1"]},"Header":{"B":[1]}}')
