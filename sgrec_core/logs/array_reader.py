"""JSON arrays, an element at a time: one that is no JSON costs itself alone, as a line of JSON Lines does."""

import codecs
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from sgrec_core.logs.json_reader import DECODER, json_row
from sgrec_core.logs.rows import BrokenOffError, Layout, Limits, Problem, RawRow, Reading
from sgrec_core.logs.streams import text_chunks

SHOWN = 4096
"""Characters of what follows damage that are kept."""
AS_IT_IS = "surrogateescape"
"""Bytes that are no UTF-8 go through, so that the element that holds them is known by them."""

_BETWEEN = re.compile(r"[\s,]*")
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)
"""A text, a bracket, or a quote that nothing closes."""
_WORD = re.compile(r'[^\s,\[\]{}"]+|.', re.DOTALL)


def json_rows(path: Path, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow]:
    """The elements of one JSON array, which may be spread over lines in any way, by their numbers."""
    decoder, held, line, opened = codecs.getincrementaldecoder("utf-8")(AS_IT_IS), "", 1, False
    pieces, number = text_chunks(path, reading), 0

    def broken(reason: str, what: str, at: int) -> BrokenOffError:
        unread = len(held[at:].encode("utf-8", AS_IT_IS)) + len(decoder.getstate()[0])
        # Where in compressed bytes it was, nobody knows.
        reading.bytes_consumed = 0 if reading.compression else reading.bytes_consumed - unread
        return BrokenOffError(Problem(reason, f"line {line}: {what}"), held[at : at + SHOWN].encode("utf-8", AS_IT_IS))

    for piece in chain(pieces, [None]):
        held += decoder.decode(piece or b"", final=piece is None)
        at = 0
        while True:
            begin = _BETWEEN.match(held, at).end() if opened else len(held) - len(held.lstrip())  # type: ignore[union-attr]
            line, at = line + held.count("\n", at, begin), begin
            if at == len(held):
                if piece is None:
                    raise broken("truncated_file", "the array is not closed", at)
                break
            if not opened:
                opened, at = True, at + 1
                continue
            if held[at] == "]":
                consumed = reading.bytes_consumed
                if held[at + 1 :].strip() or any(more.strip() for more in pieces):
                    reading.bytes_consumed = consumed
                    raise broken("invalid_json", "the array is closed, and more follows", at + 1)
                return
            end, why = _end_of(held, at)
            # At the end of what is held, a number may go on.
            if end is None or (end == len(held) and piece is not None):
                if piece is None:
                    detail = "no JSON value that ends: it is cut short, or lacks a quote or bracket"
                    raise broken("truncated_file", f"{detail}: {why}", at)
                if len(held) - at > limits.line_bytes:
                    raise broken("invalid_json", f"no JSON value that ends within {limits.line_bytes:,} bytes", at)
                break
            number += 1  # many elements may stand on one line
            yield json_row(number, held[at:end].encode("utf-8", AS_IT_IS), limits)
            line, at = line + held.count("\n", at, end), end
        held = held[at:]


def _end_of(text: str, at: int) -> tuple[int | None, str]:
    """Where the element at ``at`` ends, by its brackets and quotes where it is no JSON; None: not here, and why."""
    try:
        return DECODER.raw_decode(text, at)[1], ""
    except (ValueError, RecursionError) as error:
        why = str(error)[:200]
    if text[at] not in '[{"':
        return _WORD.match(text, at).end(), why  # type: ignore[union-attr]
    depth = 0
    for token in _TOKEN.finditer(text, at):
        if token[0] == '"':
            return None, why
        depth += (token[0] in "[{") - (token[0] in "]}")
        if not depth:
            return token.end(), why
    return None, why
