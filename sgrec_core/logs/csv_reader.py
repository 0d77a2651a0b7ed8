"""Delimited text: CSV and its kin."""

import csv
import re
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from sgrec_core.logs.rows import (
    BrokenOffError,
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

DELIMITERS = (",", "\t", ";", "|", "::", "\x01")
RAREST = (",", ";", "|", "\t", "::", "\x01")
"""The same by how seldom they stand in a value, the rarest last."""
QUOTED = (",", ";", "|")
"""Delimiters beside which a value may be quoted; beside others where the header's names are, or a mapping says so."""
CSV_LINES_PER_ROW = 1000
"""A quoted CSV value may span lines, but an opening quote that nothing closes must not swallow the file."""

_NAME = re.compile(r"[A-Za-z_][\w .:-]*")
"""What a column may be called; a first line with other values is a row."""


def csv_rows(path: Path, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow]:
    csv.field_size_limit(max(limits.line_bytes, csv.field_size_limit()))
    lines = lines_of(path, limits.line_bytes, reading)
    first = next((line for line in lines if line.data and not line.data.isspace()), None)
    if first is None:
        return
    dialect = _dialect(first.data, layout)
    lines = chain([first], lines)
    records = _csv_records(lines, dialect.delimiter, limits) if dialect.quoted else lines
    header = list(layout.header) if layout.header else None
    for number, data, length in records:
        if length > limits.line_bytes:
            yield too_long(number, data, length, limits)
        elif not data or data.isspace():
            continue
        elif header is None:
            header = _header(data, dialect, layout, records)
            reading.header = data.decode("utf-8")
        else:
            yield _csv_row(number, data, header, dialect, limits)


def first_values(path: Path, limits: Limits, reading: Reading) -> list[str]:
    """The values of the first line, as far as it can be read; ``reading`` has the compression.

    Raises:
        BrokenOffError: the compressed bytes are damaged.
    """
    lines = lines_of(path, limits.line_bytes, reading)
    data = next((line.data for line in lines if line.data and not line.data.isspace()), b"")
    return _dialect(data, Layout()).values(data.decode("utf-8", "replace"))


def is_header(values: list[str]) -> bool:
    """Whether the values of a first line can be names of columns."""
    return len(set(values)) == len(values) and all(map(_NAME.fullmatch, values))


class _Dialect(NamedTuple):
    delimiter: str
    quoted: bool
    """Whether values may stand in quotes."""

    def values(self, text: str) -> list[str]:
        return _csv_values(text, self.delimiter) if self.quoted else text.split(self.delimiter)


def _dialect(first: bytes, layout: Layout) -> _Dialect:
    """By the first line, as far as nothing is said."""
    delimiter = layout.delimiter or _delimiter(first, layout)
    quoted = layout.quoted
    if quoted is None:
        names = first.decode("utf-8", "replace").split(delimiter)
        quoted = delimiter in QUOTED or (
            len(delimiter) == 1 and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names)
        )
    return _Dialect(delimiter, quoted)


def _delimiter(line: bytes, layout: Layout) -> str:
    """What parts the first line into as many columns as are named, most of known names, or most.

    Where several do, the one that is the rarest in a text counts.
    """
    text = line.decode("utf-8", "replace")

    def columns(delimiter: str) -> tuple[int, int, int]:
        if layout.header:
            try:
                parts = len(_Dialect(delimiter, delimiter in QUOTED).values(text))
            except csv.Error:
                parts = 0
            return parts == len(layout.header), parts, RAREST.index(delimiter)
        names = [name.strip().strip('"') for name in text.split(delimiter)]
        return sum(name in (layout.known or layout.required) for name in names), len(names), 0

    return max(DELIMITERS, key=columns)


def _header(data: bytes, dialect: _Dialect, layout: Layout, others: Iterator[Line]) -> list[str]:
    """The names of the columns.

    Raises:
        UnreadableFileError: no row can be read under them.
    """
    problem, names = None, []
    try:
        names = [column.strip() for column in dialect.values(data.decode("utf-8"))]
        problem = layout.problem(names)
    except UnicodeDecodeError as error:
        problem = Problem(*not_utf8(error))._replace(detail=f"the header: {not_utf8(error).detail}; valid is UTF-8")
    except csv.Error as error:
        problem = Problem("invalid_value", f"the header is not CSV: {error}")
    if problem is not None:
        rows = sum(1 for line in others if line.data and not line.data.isspace())
        is_row = problem.reason == "missing_field" and not is_header(names)
        raise UnreadableFileError(problem, rows + is_row)
    return names


def _csv_row(number: int, data: bytes, header: list[str], dialect: _Dialect, limits: Limits) -> RawRow:
    raw_text = clipped(data, limits.raw_text)
    try:
        values = dialect.values(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RawRow(number, None, raw_text, not_utf8(error))
    except csv.Error as error:
        return RawRow(number, None, raw_text, Problem("invalid_value", f"not CSV: {error}"))
    if len(values) != len(header):
        detail = f"{len(values)} values, but the header names {len(header)}: {', '.join(header)[:200]}"
        reason = "missing_field" if len(values) < len(header) else "invalid_value"
        return RawRow(number, None, raw_text, Problem(reason, detail))
    return RawRow(number, dict(zip(header, values, strict=True)), raw_text, loose=True)


def _csv_records(lines: Iterator[Line], delimiter: str, limits: Limits) -> Iterator[Line]:
    """CSV records as byte strings: lines joined while a quote is open.

    Where a quote does not close within `CSV_LINES_PER_ROW` lines, ``line_bytes`` bytes or the file, its line stands
    alone (and will be rejected as not CSV), and reading goes on at the next line.
    """
    pending: deque[Line] = deque()
    broken: BrokenOffError | None = None
    while True:
        taken: list[Line] = []
        size = 0
        closed = False
        while not closed and len(taken) < CSV_LINES_PER_ROW and size <= limits.line_bytes:
            if len(pending) == len(taken):
                try:
                    pending.append(next(lines))
                except StopIteration:
                    break
                except BrokenOffError as end:
                    broken = end
                    lines = iter(())
                    break
            line = pending[len(taken)]
            taken.append(line)
            size += line.length + 1
            quotes = "closed" if line.length > limits.line_bytes else _quotes(taken, delimiter)
            if quotes == "misplaced":
                break
            closed = quotes == "closed"
        if not taken:
            break
        if closed and size - 1 <= limits.line_bytes:
            yield Line(taken[0].number, b"\n".join(line.data for line in taken), size - 1)
            for _ in taken:
                pending.popleft()
        else:
            yield pending.popleft()
    if broken is not None:
        raise broken


def _quotes(lines: list[Line], delimiter: str) -> str:
    """Whether the quoted values in the lines are ``open``, ``closed``, or ``misplaced`` so that they are no CSV."""
    if b'"' not in lines[-1].data:
        return "closed" if len(lines) == 1 else "open"
    try:
        # Latin-1 decodes any bytes, and leaves quotes and commas where they are.
        _csv_values(b"\n".join(line.data for line in lines).decode("latin-1"), delimiter)
    except csv.Error as error:
        return "open" if "unexpected end of data" in str(error) else "misplaced"
    return "closed"


def _csv_values(text: str, delimiter: str) -> list[str]:
    """The values of one CSV record, which may span lines.

    Raises:
        csv.Error: it is not one record; "unexpected end of data" where a quote is still open.
    """
    lines = [line + "\n" for line in text.split("\n")] if "\n" in text else [text]
    records = list(csv.reader(lines, strict=True, delimiter=delimiter))
    if len(records) != 1:
        raise csv.Error(f"{len(records)} records where one is expected")
    return records[0]
