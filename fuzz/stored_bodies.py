"""A reference to a body is rejected in one line, or names one object; an object's meta data is read alike or rejected.

The input is the JSON of a reference, as ``BodyObject`` of a message has it, and in the next line the meta data of an
object. The standard library's JSON parser reads both, too.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from typing import Any

import msgspec

from worker.model import StoredBody
from worker.nats.object_info import ObjectInfo, read_info
from worker.policy.stored_body import check_reference, created_at, is_object_name

WORDS = (
    '"Name":', '"Size":', '"Digest":', "SHA-256=", "0" * 42, "A" * 43 + "=", "9007199254740992", "9007199254740993",
    '"name":', '"bucket":', '"nuid":', '"size":', '"chunks":', '"digest":', '"mtime":', '"options":', '"metadata":',
    '{"max_chunk_size":1}', '{"keep-until":"1700000000"}', '"deleted":true', "null", "-1", "1e3",
)  # fmt: skip


def check(data: bytes) -> None:
    """Read *data* as a reference and as the meta data of an object, and check the law above."""
    reference, _, meta = data.partition(b"\n")
    _check_reference(reference)
    _check_info(meta)


def _check_reference(data: bytes) -> None:
    try:
        body = msgspec.json.decode(data, type=StoredBody)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return  # the target ``messages`` reads whole messages
    try:
        check_reference(body)
    except ValueError as error:
        reason = str(error)
        assert reason.isprintable(), reason
        assert len(reason) < 600
        return
    fields = _read(data)
    assert (body.name, body.size, body.digest) == (fields["Name"], fields["Size"], fields["Digest"])
    assert re.fullmatch(r"[0-9a-f]{42}", body.name, re.ASCII)
    assert body.name not in ("", ".", "..")
    assert 0 <= body.size <= 2**53
    assert len(urlsafe_b64decode(body.digest.removeprefix("SHA-256="))) == 32
    assert is_object_name(body.name)
    assert created_at(body.name) >= 0


def _read(data: bytes) -> dict[str, Any]:
    """Read a JSON object. Only fields without a meaning may be invalid UTF-8."""
    fields: dict[str, Any] = json.loads(data.decode("utf-8", "replace"), strict=False)
    return fields


def _check_info(data: bytes) -> None:
    try:
        info = read_info(data)
    except ValueError as error:
        reason = str(error)
        assert reason.startswith("not an object's meta data: ")
        assert reason.isprintable(), reason
        return
    fields = _read(data)
    assert (info.name, info.nuid, info.size) == (fields["name"], fields["nuid"], fields["size"])
    assert 0 <= info.keep_until < 10**11
    assert msgspec.json.decode(msgspec.json.encode(info), type=ObjectInfo) == info
