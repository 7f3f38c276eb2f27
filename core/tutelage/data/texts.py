"""Plain text files as documents. A long document comes in pieces, so that no more than one is held in memory."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO, Literal

Documents = Literal["line", "paragraph", "file"]

PIECE = 1 << 16
"Characters (of lines, bytes) after which a document is cut at the next line."


def pieces(file: BinaryIO, documents: Documents) -> Iterator[tuple[int, str, bool, bool]]:
    """The documents of a UTF-8 file, without the line ends that close them; blank ones are passed over.

    Args:
        documents: what a document is: each line, what stands between blank lines, or the whole file.
    Yields:
        the number of the line where a piece starts, its text, and whether a document starts and ends with it.
    Raises:
        NotText: at the line that is not UTF-8.
    """
    held: list[str] = []
    size = first = 0
    gap = ""
    starts = True
    for number, text, closed in _lines(file):
        blank = not text.strip()
        if blank and documents == "file" and held:
            gap += text
        if not blank:
            if size >= PIECE:
                yield first, "".join(held), starts, False
                held, size, starts = [], 0, False
            first = first if held else number
            held.append(gap + text)
            size, gap = size + len(held[-1]), ""
        if held and ((documents == "line" and closed) or (documents == "paragraph" and blank)):
            yield first, "".join(held).rstrip("\n"), starts, True
            held, size, starts = [], 0, True
    if held:
        yield first, "".join(held).rstrip("\n"), starts, True


class NotText(Exception):
    """A line is not UTF-8 text."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} is not UTF-8 text")
        self.line = line


def _lines(file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
    """Each line's number, its text, and whether it ends there: one longer than a piece comes in parts."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number = 1
    try:
        while part := file.readline(PIECE):
            closed = part.endswith(b"\n")
            yield number, decoder.decode(part).replace("\r\n", "\n"), closed
            number += closed
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise NotText(number) from None
