"""The law of ``messages`` holds for any text in a message's fields.

The JSON decoder is written in C, where a fuzzer sees no branches. So the input here is the fields themselves, in the
order of :data:`FIELDS`, separated by the byte 255, which UTF-8 never contains. Run it with ``python -m fuzz fields``.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from fuzz import messages

FIELDS = ("Function", "Method", "Path", "QueryString", "CallbackUrl", "Body")
"""The fields in the order of the input; names and values of headers follow them."""


def check(data: bytes) -> None:
    """Make a message of the fields in *data*, and check the law above."""
    texts = [part.decode("utf-8", "replace") for part in data.split(b"\xff")]
    message: dict[str, Any] = {"Function": "echo"} | dict(zip(FIELDS, texts, strict=False))
    message["Body"] = base64.b64encode(message.get("Body", "").encode()).decode()
    names, values = texts[len(FIELDS) :: 2], texts[len(FIELDS) + 1 :: 2]
    message["Header"] = {name: [value, value[::-1]] for name, value in zip(names, values, strict=False)}
    messages.check(json.dumps(message).encode())
    _, _, path, query, host, _ = (*texts, *[""] * 6)[:6]
    message["CallbackUrl"] = {"Scheme": "http", "Host": host, "Path": path, "RawPath": path, "RawQuery": query}
    messages.check(json.dumps(message).encode())
