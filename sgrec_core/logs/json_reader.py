"""JSON Lines, many at once where nothing is odd about them."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pj

from sgrec_core.logs.columnar import GoodEvents
from sgrec_core.logs.rows import (
    BrokenOffError,
    GoodRows,
    Layout,
    Limits,
    Problem,
    RawRow,
    Reading,
    UnreadableFileError,
    clipped,
    not_utf8,
    too_long,
)
from sgrec_core.logs.streams import Line, lines_of

BATCH, BATCH_BYTES = 16_384, 1 << 23
"""Lines that are looked at together, at most, and bytes of them but for the last."""
FEW = 16
"""Lines by which it is known what a file holds."""


def jsonl_rows(path: Path, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow | GoodRows]:
    for lines in _batches(lines_of(path, limits.line_bytes, reading), BATCH if layout.good is not None else FEW):
        if reading.rows == 0 and _is_spread([line.data for line in lines[:FEW] if line.data.strip()]):
            detail = "an object over several lines; valid is one object a line: jq -c . FILE makes them, or, where they"
            raise UnreadableFileError(Problem("invalid_json", f"{detail} are a list within, jq -c '.NAME[]' FILE"))
        good, lines = _good_lines(lines, limits, layout)
        if good is not None:
            yield good
        for line in lines:
            if line.length > limits.line_bytes:
                yield too_long(line.number, line.data, line.length, limits)
            elif line.data and not line.data.isspace():
                yield json_row(line.number, line.data, limits)


def _is_spread(lines: list[bytes]) -> bool:
    """Whether a file is one object over several lines: the first opens it, and at most half of those after are rows."""
    if not lines or not _OPENED.fullmatch(lines[0]):
        return False
    rows = 0
    for line in lines[1:]:
        with suppress(ValueError, RecursionError):
            rows += isinstance(DECODER.decode(line.decode("utf-8")), dict)
    return 2 * rows <= len(lines) - 1


def _batches(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    """Up to ``size`` lines at a time, and what came before an error before it."""
    held: list[Line] = []
    filled = 0
    try:
        for line in lines:
            held.append(line)
            filled += len(line.data)
            if len(held) == size or filled >= BATCH_BYTES:
                yield held
                held, filled = [], 0
    except (BrokenOffError, OSError):
        yield held
        raise
    yield held


def _good_lines(lines: list[Line], limits: Limits, layout: Layout) -> tuple[GoodRows | None, list[Line]]:
    """Rows that ``layout.good`` takes out, and the lines of all others.

    Arrow's reader refuses what `json_row` refuses, for the whole batch; but for four things, which are looked for
    here: several objects on a line, numbers that JSON does not have, bytes that are no UTF-8, and what is so deep or so
    long that only `json_row` knows whether it is refused.
    """
    if layout.good is None or layout.known is None or not lines:
        return None, lines
    if not all(line.data[:1] == b"{" and line.data[-1:] == b"}" for line in lines):
        return None, lines
    longest = max(line.length for line in lines)
    if longest > limits.line_bytes:
        return None, lines
    plain: list[Line] = lines
    huge: list[Line] = []
    if longest > 2 * DEEP:
        plain = []
        for line in lines:
            (huge if line.length > 2 * DEEP and _is_huge(line.data) else plain).append(line)
    good, rest = _good_among(plain, limits, layout, layout.good) if plain else (None, [])
    return good, [*rest, *huge]


def _is_huge(data: bytes) -> bool:
    """Whether a line may hold what Python refuses to nest so deep, or a number that it refuses as too long."""
    if data.count(b"[") + data.count(b"{") > DEEP:
        return True
    # Twice as many digits in a row fill such a piece.
    return any(data[at : at + DIGITS].isdigit() for at in range(0, len(data), DIGITS))


def _good_among(
    lines: list[Line], limits: Limits, layout: Layout, taker: GoodEvents
) -> tuple[GoodRows | None, list[Line]]:
    data = b"\n".join(line.data for line in lines)
    if b"NaN" in data or b"Inf" in data:
        return None, lines
    try:
        texts = pa.array([line.data for line in lines], pa.binary()).cast(pa.string())
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=taker.types(json.loads(lines[0].data))),
        )
    except (pa.ArrowException, UnicodeDecodeError, ValueError, RecursionError):
        return None, lines
    # An object over two lines cannot begin the second of them; so as many objects as lines are one on each.
    if table.num_rows != len(lines):
        return None, lines
    table = table.select([name for name in table.column_names if layout.wants(name)]).combine_chunks()
    found = taker.of(table.to_batches()[0])
    if found is None:
        return None, lines
    good, rows = found
    if max(line.length for line in lines) > limits.raw_text:
        texts = pa.array([clipped(line.data, limits.raw_text) for line in lines], pa.string())
    numbers = pa.array([line.number for line in lines])
    rest = [line for line, is_good in zip(lines, good.to_pylist(), strict=True) if not is_good]
    return GoodRows(numbers.filter(good), rows, texts.filter(good)), rest


def json_row(number: int, data: bytes, limits: Limits) -> RawRow:
    """The row of one JSON object, by its line or its number."""
    raw_text = clipped(data, limits.raw_text)
    try:
        text = data.decode("utf-8")
        value = DECODER.decode(text)
        if isinstance(value, dict) and len(_KEY.findall(text)) != len(value):
            # A key may be there twice, or an object stands within: slower, and only then, is looked who it is.
            json.loads(text, object_pairs_hook=_no_key_twice)
    except UnicodeDecodeError as error:
        return RawRow(number, None, raw_text, not_utf8(error))
    except _RepeatedKeyError as error:
        return RawRow(number, None, raw_text, Problem("repeated_field", str(error)))
    except RecursionError:
        return RawRow(number, None, raw_text, Problem("invalid_json", "not one JSON object: it is nested too deep"))
    except ValueError as error:
        return RawRow(number, None, raw_text, Problem("invalid_json", f"not one JSON object: {str(error)[:200]}"))
    if not isinstance(value, dict):
        return RawRow(number, None, raw_text, Problem("wrong_type", f"a {_json_type(value)}, not a JSON object"))
    return RawRow(number, value, raw_text)


DEEP = 600
"""Brackets that a line may open before it is looked at by itself: Python gives up somewhere below 1,000 within each
other, by how deep it stands itself."""
DIGITS = 2000
"""Python reads numbers of 4,300 digits, and no longer ones."""
DECODER = json.JSONDecoder(parse_constant=lambda name: _no_constant(name))
_OPENED = re.compile(rb'\s*\{\s*(?:"[^"]*"\s*:\s*[\[{]\s*)?')
"""A first line that only opens an object, or also the list within."""
_KEY = re.compile(r'"\s*:')


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
