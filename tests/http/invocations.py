"""An invocation with everything that a message can contain."""

from __future__ import annotations

from worker.model import Invocation


def invocation(**change: object) -> Invocation:
    """Return it with *change* to its fields."""
    fields: dict[str, object] = {
        "call_id": "c",
        "function": "f",
        "label": "f.ns",
        "method": "PATCH",
        "target": b"/function/f/a%2Fb//..;/c?x=<1>&y=%zz",
        "headers": ((b"X-Call-Id", b"c"), (b"X-a", b"1"), (b"X-a", "é".encode())),
        "body": b"\x00\xff",
        "annotations": {},
        "callback": None,
        "started": "1",
    }
    return Invocation(**(fields | change))  # type: ignore[arg-type]  # a table of fields
