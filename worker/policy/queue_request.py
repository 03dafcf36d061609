"""OpenFaaS's ``QueueRequest`` from its JSON, by the rules of Go's encoding/json.

Other programs than Go publish too, and Go's worker reads what they write: keys in any case, base64 in lines, null
anywhere, bytes that are not UTF-8. msgspec reads what Go itself writes, in a tenth of the time, and refuses the rest.
What it refuses is read again here, key by key, and so is a message that repeats Header or Annotations: Go merges their
objects, and msgspec uses the last one. Of other keys that are repeated in the same case the last value counts.
"""

from __future__ import annotations

import binascii
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import msgspec

from ..model import StoredBody


class QueueRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The fields of a message. The last four are Go's too, but have no meaning here; BodyObject is not Go's."""

    Function: str
    Method: str | None = None
    Header: dict[str, list[str] | None] | None = None
    Path: str | None = None
    QueryString: str | None = None
    Body: bytes | None = None
    Annotations: dict[str, str] | None = None
    CallbackUrl: str | dict[str, Any] | None = None
    BodyObject: StoredBody | None = None
    Host: Any = None
    QueueName: Any = None
    Labels: Any = None
    Environment: Any = None


_Object = tuple[tuple[str, Any], ...]
"""A JSON object: its keys and values in order. An array is a list."""
_decoder = msgspec.json.Decoder(QueueRequest)
_objects_of = attrgetter("Header", "Annotations", "CallbackUrl", "Labels", "Environment")
_LONGEST_NUMBER = 20
"""Characters of a number that is read. No field holds a longer one, and the time of ``int`` grows with it."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_ENDS = str.maketrans("", "", "\r\n")
_ONE_BYTE_ONE_MARK = "go-utf-8"
"""Name of the error handler that replaces each byte that is not UTF-8 by U+FFFD, as Go does; Python replaces runs."""


def read_queue_request(payload: bytes) -> QueueRequest:
    """Return the request in a message; a ValueError or RecursionError explains why there is none."""
    try:
        request = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):  # an unknown key is one of these
        return _read_as_go(payload)
    # A key that is repeated shows as an object too many. A brace in a text does too, which costs time only.
    return (
        request
        if payload.count(b"{") <= 1 + list(map(type, _objects_of(request))).count(dict)
        else _read_as_go(payload)
    )


def fold(key: str) -> str:
    """Return *key* without case: two keys are the same field to Go if these are equal (``strings.EqualFold``)."""
    # Only two other letters fold to one of ASCII: the Kelvin sign, which lower() knows, and the long s.
    return key.lower().replace("\u017f", "s")


def _read_as_go(payload: bytes) -> QueueRequest:
    text = payload.decode(errors=_ONE_BYTE_ONE_MARK)
    parsed = json.loads(
        text, object_pairs_hook=tuple, parse_int=_number, parse_float=_number, parse_constant=_refuse_constant
    )
    if not isinstance(parsed, tuple):
        raise ValueError("Expected `object`")  # noqa: TRY004 -- of the message, so a value to callers
    fields: dict[str, Any] = {}
    for name, value in known_fields(parsed, _FIELDS):
        fields[name] = _merge(name, fields.get(name), value)
    try:
        return msgspec.convert(fields, QueueRequest)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def known_fields(pairs: Iterable[tuple[str, Any]], known: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Return the pairs whose key is *known* in some case, with the key in the right one, in order."""
    return ((known[folded], value) for key, value in pairs if (folded := fold(key)) in known)


def _merge(name: str, before: Any, value: Any) -> Any:
    """Return the value of a field that was *before*: a null changes no string, and an object adds to the one before."""
    match value:
        case None:
            return before if name in _STRINGS else None
        case tuple():
            inner = {_clean(key): _inner(name, each) for key, each in value}
            return before | inner if isinstance(before, dict) else inner
        case list() if name == "Body":
            return _bytes(value)
        case str() if name == "Body":
            return _from_base64(value)
        case _:
            return _clean(value)


def _inner(name: str, value: Any) -> Any:
    """Return a value in an object. Where Go expects a string, it reads null as an empty one."""
    if name == "Annotations" and value is None:
        return ""
    if name == "Header" and isinstance(value, list):
        return ["" if each is None else _clean(each) for each in value]
    return _clean(value)


def _clean(value: Any) -> Any:
    """Return a text with each half of a surrogate pair replaced by U+FFFD, and an object as a dict."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    return dict(value) if isinstance(value, tuple) else value


def _from_base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text.translate(_LINE_ENDS), strict_mode=True)
    except ValueError:
        raise ValueError("Invalid base64 encoded string - at `$.Body`") from None


def _bytes(values: list[Any]) -> bytes:
    numbers = [0 if value is None else value for value in values]
    if not all(type(number) is int and 0 <= number <= 255 for number in numbers):
        raise ValueError("Expected `bytes`, got `array` with something else - at `$.Body`")
    return bytes(numbers)


def _number(text: str) -> int | float:
    try:
        return int(text) if len(text) <= _LONGEST_NUMBER else 0.0
    except ValueError:
        return 0.0


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _mark_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_ONE_BYTE_ONE_MARK, _mark_each_byte)
_IGNORED = {"Host", "QueueName", "Labels", "Environment"}
_FIELDS = {fold(name): name for name in QueueRequest.__struct_fields__ if name not in _IGNORED}
_STRINGS = {"Function", "Method", "Path", "QueryString"}
