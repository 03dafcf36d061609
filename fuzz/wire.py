"""A reply subject is a delivery's, as ADR-15 defines it, or no delivery's; and a header has a status or none.

The first line of the input is the subject, each other one a header's name and value, with a colon between.
"""

from __future__ import annotations

import re

from worker.nats.pull_messages import Status, parse_ack_subject, parse_status

WORDS = (
    "$JS.ACK.", "$JS.ACK.s.c.3.17.21.1700000000000000001.5", "$JS.ACK.hub.ACC.s.c.3.17.21.1700000000000000001.5",
    "Status: 404", "Description: No Messages", "Description: Consumer Deleted", "\u0661", "1_0", "-1",
)  # fmt: skip
_GONE = re.compile(r"deleted", re.IGNORECASE)


def check(data: bytes) -> None:
    """Read *data*'s first line as a reply subject and the rest as a header, and check the law above."""
    subject, *lines = data.decode("utf-8", "replace").split("\n")
    _check_ack_subject(subject)
    headers = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    _check_status(headers)


def _check_ack_subject(subject: str) -> None:
    try:
        (sequence, stored), count, behind = parse_ack_subject(subject)
    except ValueError as error:
        reason = str(error)
    else:
        assert expected(subject) == ((sequence, stored), count, behind), subject
        assert min(sequence, stored, count, behind) >= 0
        return
    assert expected(subject) is None, subject
    assert reason.isprintable()
    assert len(reason) < 2500


def expected(subject: str) -> tuple[tuple[int, int], int, int] | None:
    """Return the values of the subject's tokens, or None. There are 9 or at least 11; numbers have 1 to 20 digits."""
    tokens = subject.split(".")
    if tokens[:2] != ["$JS", "ACK"] or len(tokens) < 9 or len(tokens) == 10:
        return None
    first = 4 if len(tokens) == 9 else 6
    if not all(re.fullmatch("[0-9]{1,20}", token) for token in tokens[first : first + 5]):
        return None
    count, sequence, _, stored, behind = (int(token) for token in tokens[first : first + 5])
    return (sequence, stored), count, behind


def _check_status(headers: dict[str, str]) -> None:
    status = parse_status(headers)
    if not re.fullmatch("[0-9]{3}", headers.get("Status", "")):
        assert status is None
        return
    code, description = int(headers["Status"]), headers.get("Description", "")
    assert status == Status(code, description)
    assert status.consumer_gone == (code == 503 or (code == 409 and _GONE.search(description) is not None))
    assert status.rejected == (code not in (100, 404, 408))
    assert not (code == 100 and (status.rejected or status.consumer_gone))
