"""Whole log lines on a standard output that several processes share.

A pipe takes what is written at once in one piece only up to PIPE_BUF bytes; of more, a part can stand in the middle of
another process's line when the reader is slow. So each line is written at once, and one that is longer is cut. Those
are tracebacks, and hardly anything else.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

import orjson

MOST = select.PIPE_BUF
"""Bytes of a line, its end included: 4,096 on Linux; POSIX asks for 512 at least."""
_CUT = " ... "


class Lines(io.RawIOBase):
    """A file to write lines to, which adds to each the number of the process.

    Args:
        file: the number of the file that they go to.
        process: the number of the process, 0 for the parent.
        json: whether each line is a JSON object; where not, it is for people.
    """

    def __init__(self, file: int, process: int, *, json: bool) -> None:
        super().__init__()
        self._file, self._json, self._rest = file, json, b""
        self._before, self._after = (b'{"process":%d,' % process, b"\n") if json else (b"", b" process=%d\n" % process)

    def writable(self) -> bool:
        """It is."""
        return True

    def isatty(self) -> bool:
        """Whether a person reads."""
        return os.isatty(self._file)

    def write(self, data: Any) -> int:
        """Write the lines that are complete, each in one piece.

        Raises:
            OSError: the file does not take it.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._put(line)
        return len(data)

    def _put(self, line: bytes) -> None:
        whole = self._marked(line)
        if len(whole) > MOST:
            over = len(whole) - MOST
            whole = self._marked(shortened(line, over) if self._json else cut(line, len(line) - over))
        self._put_all(whole)

    def _put_all(self, whole: bytes) -> None:
        while whole:  # a pipe takes it in one piece, and so do files and terminals; a full disk may take a part
            whole = whole[os.write(self._file, whole) :]

    def _marked(self, line: bytes) -> bytes:
        if not self._json:
            return line + self._after
        return self._before + line[1:] + self._after if line.startswith(b'{"') else line + self._after


def share_stdout(process: int, *, json: bool) -> None:
    """From now on, what goes to ``sys.stdout`` goes through :class:`Lines`."""
    lines: Any = Lines(sys.stdout.fileno(), process, json=json)  # the type checker does not see that it is a file
    sys.stdout = io.TextIOWrapper(lines, encoding="utf-8", errors="backslashreplace", write_through=True)


def cut(text: bytes, most: int) -> bytes:
    """*text* in UTF-8 in at most so many bytes, its middle left out."""
    if len(text) <= most:
        return text
    kept = max(0, most - len(_CUT))
    head, tail = text[: kept - kept // 2], text[len(text) - kept // 2 :]
    return (head.decode(errors="ignore") + _CUT + tail.decode(errors="ignore")).encode()[: max(0, most)]


def shortened(line: bytes, over: int) -> bytes:
    """A JSON object less at least *over* bytes, taken from its longest values; with none left if that is too little."""
    fields = orjson.loads(line)
    for name in sorted(fields, key=lambda name: -len(orjson.dumps(fields[name]))):
        before = len(line)
        if over <= 0:
            break
        text = fields[name] if isinstance(fields[name], str) else orjson.dumps(fields[name]).decode()
        # JSON takes a byte for each of the text, or more: as many off as there are too many is never too few.
        fields[name] = cut(text.encode(), len(text.encode()) - over - len(_CUT)).decode()
        line = orjson.dumps(fields)
        over -= before - len(line)
    return line
