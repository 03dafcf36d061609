"""The meta data of an object in NATS's own layout (ADR-20). Bytes in, values out."""

from __future__ import annotations

import msgspec

CHUNK = 128 * 1024
"""Bytes of a chunk, as NATS's own clients write it; less where the server's ``max_payload`` has no room for it."""
KEEP_UNTIL = "keep-until"
"""The key in an object's metadata under which the time is that ends its keeping (s since the epoch)."""


class ObjectOptions(msgspec.Struct):
    """The size of an object's chunks."""

    max_chunk_size: int = CHUNK


class ObjectInfo(msgspec.Struct, omit_defaults=True):
    """The meta data of an object, as ADR-20 has it."""

    name: str
    bucket: str
    nuid: str
    """The id of its chunks."""
    size: int
    chunks: int
    digest: str
    mtime: str = "0001-01-01T00:00:00Z"
    """Without a value, as NATS's own clients write it: the message has the time."""
    options: ObjectOptions | None = None
    metadata: dict[str, str] = {}
    deleted: bool = False

    @property
    def keep_until(self) -> float:
        """The time until which the object is kept, whether a message refers to it or not (s since the epoch)."""
        text = self.metadata.get(KEEP_UNTIL, "")
        return float(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0.0


def read_info(data: bytes) -> ObjectInfo:
    """Decode an object's meta data; a ValueError explains why it is none."""
    try:
        return msgspec.json.decode(data, type=ObjectInfo)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"not an object's meta data: {error}") from None
