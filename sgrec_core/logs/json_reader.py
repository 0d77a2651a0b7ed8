"""JSON Lines, and JSON arrays."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from sgrec_core.logs.rows import BrokenOffError, Layout, Limits, Problem, RawRow, Reading, clipped, not_utf8, too_long
from sgrec_core.logs.streams import lines_of, text_chunks

SHOWN = 4096
"""Bytes of what follows damage that are kept."""


def jsonl_rows(path: Path, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow]:
    for line in lines_of(path, limits.line_bytes, reading):
        if line.length > limits.line_bytes:
            yield too_long(line.number, line.data, line.length, limits)
        elif line.data and not line.data.isspace():
            yield _json_row(line.number, line.data, limits)


def _json_row(number: int, data: bytes, limits: Limits) -> RawRow:
    raw_text = clipped(data, limits.raw_text)
    try:
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
        if isinstance(value, dict) and len(_KEY.findall(text)) != len(value):
            # A key may be there twice, or an object stands within: slower, and only then, is looked who it is.
            json.loads(text, object_pairs_hook=_no_key_twice)
    except UnicodeDecodeError as error:
        return RawRow(number, None, raw_text, not_utf8(error))
    except _RepeatedKeyError as error:
        return RawRow(number, None, raw_text, Problem("repeated_field", str(error)))
    except (ValueError, RecursionError) as error:
        return RawRow(number, None, raw_text, Problem("invalid_json", f"not one JSON object: {str(error)[:200]}"))
    if not isinstance(value, dict):
        return RawRow(number, None, raw_text, Problem("wrong_type", f"a {_json_type(value)}, not a JSON object"))
    return RawRow(number, value, raw_text)


def json_rows(path: Path, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow]:
    """The elements of one JSON array, which may be spread over lines in any way."""
    decoder, held, line, opened = codecs.getincrementaldecoder("utf-8")(), "", 1, False
    pieces = text_chunks(path, reading)

    def broken(reason: str, what: str) -> BrokenOffError:
        return BrokenOffError(Problem(reason, f"line {line}: {what}"), held[:SHOWN].encode())

    for piece in chain(pieces, [None]):
        try:
            held += decoder.decode(piece or b"", final=piece is None)
        except UnicodeDecodeError as error:
            raise broken(*not_utf8(error)) from error
        at = 0
        while True:
            begin = _BETWEEN.match(held, at).end() if opened else len(held) - len(held.lstrip())  # type: ignore[union-attr]
            line, at = line + held.count("\n", at, begin), begin
            if at == len(held):
                if piece is None:
                    raise broken("truncated_file", "the array is not closed")
                break
            if not opened:
                opened, at = True, at + 1
                continue
            if held[at] == "]":
                if held[at + 1 :].strip() or any(more.strip() for more in pieces):
                    raise broken("invalid_json", "the array is closed, and more follows")
                return
            try:
                _, end = _DECODER.raw_decode(held, at)
                is_whole = end < len(held) or piece is None  # a number may go on
            except (ValueError, RecursionError) as error:
                if piece is None or len(held) - at > limits.line_bytes:
                    raise broken("truncated_file", f"no JSON value that ends: {str(error)[:200]}") from error
                is_whole = False
            if not is_whole:
                break
            yield _json_row(line, held[at:end].encode(), limits)
            line, at = line + held.count("\n", at, end), end
        held = held[at:]


_DECODER = json.JSONDecoder(parse_constant=lambda name: _no_constant(name))
_KEY = re.compile(r'"\s*:')
_BETWEEN = re.compile(r"[\s,]*")


class _RepeatedKeyError(ValueError):
    pass


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise _RepeatedKeyError(f"the object has {', '.join(twice)} more than once; which one counts is not known")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _json_type(value: object) -> str:
    return {list: "list", str: "text", bool: "truth value", type(None): "null"}.get(type(value), "number")
