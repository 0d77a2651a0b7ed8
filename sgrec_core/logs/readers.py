"""Streams of raw rows out of JSONL, CSV and Parquet files, in bounded memory and whatever the bytes are.

A reader yields one `RawRow` for each row with its line, decoded fields or the `Problem` that it met. Nothing is raised
for bad content: a file that breaks off yields its last row as a problem of the file (line 0), after all rows before it.
"""

import bz2
import csv
import gzip
import json
import lzma
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 1 << 16
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
CSV_LINES_PER_ROW = 1000
"""A quoted CSV value may span lines, but an opening quote that nothing closes must not swallow the file."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one row may cost."""

    line_bytes: int = 1_000_000
    raw_text: int = 2000
    """Characters of a bad row's text that are kept."""


class Problem(NamedTuple):
    """Why a row is not accepted: a reason of the contract of ``events_rejected``, and the details in words."""

    reason: str
    detail: str


class RawRow(NamedTuple):
    """One row as read, before anyone asked whether it makes sense."""

    line: int
    """Physical line where the row begins, or row number of a Parquet file, from 1; 0: the file as a whole."""
    fields: dict[str, Any] | None
    raw_text: str | None
    problem: Problem | None = None
    loose: bool = False
    """Whether values are untyped text (CSV): numbers come as digits and nothing tells empty from absent."""


class _Line(NamedTuple):
    number: int
    data: bytes
    """Content without the line end; the first ``line_bytes`` bytes where the line is longer."""
    length: int
    """Bytes of the whole line."""


class _BrokenOffError(Exception):
    """The bytes of a file end early; ``tail`` is the unfinished last line."""

    def __init__(self, problem: Problem, tail: bytes = b"") -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.tail = tail


def read_rows(path: Path, name: str, limits: Limits) -> Iterator[RawRow]:
    """All rows of one raw file; ``name`` decides format and compression. At least one row, if only a problem."""
    suffixes = Path(name.lower()).suffixes
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    format = FORMATS.get(suffixes[-2] if compression and len(suffixes) > 1 else suffixes[-1]) if suffixes else None
    if format is None or (format == "parquet" and compression):
        valid = f"{', '.join(FORMATS)}, the text formats also with {', '.join(COMPRESSIONS)}"
        yield RawRow(0, None, None, Problem("invalid_encoding", f"unknown kind of file; valid endings are {valid}"))
        return
    reader = {"jsonl": _jsonl_rows, "csv": _csv_rows, "parquet": _parquet_rows}[format]
    seen = 0
    try:
        for row in reader(path, compression, limits):
            seen += 1
            yield row
    except FileNotFoundError:
        yield RawRow(0, None, None, Problem("missing_file", "the file vanished before it was read"))
    except OSError as error:
        yield RawRow(0, None, None, Problem("truncated_file", f"cannot be read after {seen} rows: {error}"))
    else:
        if not seen:
            yield RawRow(0, None, None, Problem("empty_file", "the file holds no row"))


def _jsonl_rows(path: Path, compression: str | None, limits: Limits) -> Iterator[RawRow]:
    try:
        for line in _lines(path, compression, limits.line_bytes):
            if line.length > limits.line_bytes:
                yield _too_long(line.number, line.data, line.length, limits)
            elif line.data and not line.data.isspace():
                yield _json_row(line.number, line.data, limits)
    except _BrokenOffError as end:
        yield RawRow(0, None, clipped(end.tail, limits.raw_text), end.problem)


def _json_row(number: int, data: bytes, limits: Limits) -> RawRow:
    raw_text = clipped(data, limits.raw_text)
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return RawRow(number, None, raw_text, _not_utf8(error))
    except (ValueError, RecursionError) as error:
        return RawRow(number, None, raw_text, Problem("invalid_json", f"not one JSON object: {str(error)[:200]}"))
    if not isinstance(value, dict):
        return RawRow(number, None, raw_text, Problem("wrong_type", f"a {_json_type(value)}, not a JSON object"))
    return RawRow(number, value, raw_text)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _csv_rows(path: Path, compression: str | None, limits: Limits) -> Iterator[RawRow]:
    csv.field_size_limit(max(limits.line_bytes, csv.field_size_limit()))
    header: list[str] | None = None
    try:
        for number, data, length in _csv_records(path, compression, limits):
            if length > limits.line_bytes:
                yield _too_long(number, data, length, limits)
                continue
            if not data or data.isspace():
                continue
            row = _csv_row(number, data, header, limits)
            if header is None and row.problem is None:
                header = [column.strip() for column in _csv_values(data.decode("utf-8"))]
            else:
                yield row
    except _BrokenOffError as end:
        yield RawRow(0, None, clipped(end.tail, limits.raw_text), end.problem)


def _csv_row(number: int, data: bytes, header: list[str] | None, limits: Limits) -> RawRow:
    raw_text = clipped(data, limits.raw_text)
    try:
        values = _csv_values(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RawRow(number, None, raw_text, _not_utf8(error))
    except csv.Error as error:
        return RawRow(number, None, raw_text, Problem("invalid_value", f"not CSV: {error}"))
    if header is None:
        return RawRow(number, {}, raw_text)
    if len(values) != len(header):
        detail = f"{len(values)} values, but the header names {len(header)}: {', '.join(header)[:200]}"
        reason = "missing_field" if len(values) < len(header) else "invalid_value"
        return RawRow(number, None, raw_text, Problem(reason, detail))
    return RawRow(number, dict(zip(header, values, strict=True)), raw_text, loose=True)


def _csv_records(path: Path, compression: str | None, limits: Limits) -> Iterator[_Line]:
    """CSV records as byte strings: lines joined while a quote is open.

    Where a quote does not close within `CSV_LINES_PER_ROW` lines, ``line_bytes`` bytes or the file, its line stands
    alone (and will be rejected as not CSV), and reading goes on at the next line.
    """
    lines = _lines(path, compression, limits.line_bytes)
    pending: deque[_Line] = deque()
    broken: _BrokenOffError | None = None
    while True:
        taken: list[_Line] = []
        size = 0
        closed = False
        while not closed and len(taken) < CSV_LINES_PER_ROW and size <= limits.line_bytes:
            if len(pending) == len(taken):
                try:
                    pending.append(next(lines))
                except StopIteration:
                    break
                except _BrokenOffError as end:
                    broken = end
                    lines = iter(())
                    break
            line = pending[len(taken)]
            taken.append(line)
            size += line.length + 1
            quotes = "closed" if line.length > limits.line_bytes else _quotes(taken)
            if quotes == "misplaced":
                break
            closed = quotes == "closed"
        if not taken:
            break
        if closed and size - 1 <= limits.line_bytes:
            yield _Line(taken[0].number, b"\n".join(line.data for line in taken), size - 1)
            for _ in taken:
                pending.popleft()
        else:
            yield pending.popleft()
    if broken is not None:
        raise broken


def _quotes(lines: list[_Line]) -> str:
    """Whether the quoted values in the lines are ``open``, ``closed``, or ``misplaced`` so that they are no CSV."""
    if b'"' not in lines[-1].data:
        return "closed" if len(lines) == 1 else "open"
    try:
        # Latin-1 decodes any bytes, and leaves quotes and commas where they are.
        _csv_values(b"\n".join(line.data for line in lines).decode("latin-1"))
    except csv.Error as error:
        return "open" if "unexpected end of data" in str(error) else "misplaced"
    return "closed"


def _csv_values(text: str) -> list[str]:
    """The values of one CSV record, which may span lines.

    Raises:
        csv.Error: it is not one record; "unexpected end of data" where a quote is still open.
    """
    records = list(csv.reader([line + "\n" for line in text.split("\n")] if "\n" in text else [text], strict=True))
    if len(records) != 1:
        raise csv.Error(f"{len(records)} records where one is expected")
    return records[0]


def _parquet_rows(path: Path, compression: str | None, limits: Limits) -> Iterator[RawRow]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for fields in batch.to_pylist():
                    number += 1
                    text = json.dumps(fields, ensure_ascii=False, default=str)
                    if len(text) > limits.line_bytes:
                        yield _too_long(number, text[: limits.line_bytes].encode("utf-8", "replace"), len(text), limits)
                    else:
                        yield RawRow(number, fields, clipped(text, limits.raw_text))
    except (pa.ArrowException, OSError, ValueError, OverflowError, UnicodeDecodeError) as error:
        if path.stat().st_size:
            detail = f"not readable as Parquet after {number} rows: {str(error).splitlines()[0][:200]}"
            yield RawRow(0, None, None, Problem("truncated_file", detail))


def _lines(path: Path, compression: str | None, line_bytes: int) -> Iterator[_Line]:
    """Physical lines; at most ``line_bytes`` bytes of each, plus one chunk, are held.

    Raises:
        _BrokenOffError: the compressed bytes end early or are damaged.
    """
    number = 1
    parts: list[bytes] = []
    length = 0
    chunks = _chunks(path, compression)
    try:
        for chunk in chunks:
            *complete, rest = chunk.split(b"\n")
            for data in complete:
                if parts:
                    length += len(data)
                    parts.append(data[: max(0, line_bytes - length + len(data))])
                    data = b"".join(parts)
                    parts = []
                else:
                    length = len(data)
                yield _Line(number, data.removesuffix(b"\r") if length <= line_bytes else data, length)
                number += 1
                length = 0
            if rest:
                # An endless line is counted to its end but kept only as far as it may be long.
                parts.append(rest[: max(0, line_bytes - length)])
                length += len(rest)
    except _BrokenOffError as end:
        raise _BrokenOffError(end.problem, b"".join(parts)) from end
    if length:
        yield _Line(number, b"".join(parts), length)


def _chunks(path: Path, compression: str | None) -> Iterator[bytes]:
    """The decompressed bytes, without a leading byte-order mark, in chunks of at most `CHUNK` bytes.

    Raises:
        _BrokenOffError: the compressed bytes end early or are damaged; everything decoded before was yielded.
    """
    first = True
    size = 0
    try:
        with _opened(path, compression) as stream:
            # read1 returns what one step decoded, so an error later in the file loses nothing that came before it.
            read = getattr(stream, "read1", stream.read)
            while chunk := read(CHUNK):
                size += len(chunk)
                yield chunk.removeprefix(b"\xef\xbb\xbf") if first else chunk
                first = False
    except (EOFError, OSError, lzma.LZMAError, ValueError, zlib.error) as error:
        if isinstance(error, FileNotFoundError) or compression is None:
            raise
        if size == 0 and path.stat().st_size == 0:
            return
        detail = f"{compression} data break off or are damaged after {size:,} decoded bytes: {error}"
        raise _BrokenOffError(Problem("truncated_file", detail)) from error


def _opened(path: Path, compression: str | None) -> BinaryIO:
    if compression == "gzip":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if compression == "bzip2":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if compression == "xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if compression == "zstandard":
        return pa.input_stream(str(path), compression="zstd", buffer_size=0)
    return path.open("rb")


def clipped(text: str | bytes, characters: int) -> str:
    """At most ``characters`` characters of ``text`` that any UTF-8 table can hold, with the full length told."""
    unit = "characters" if isinstance(text, str) else "bytes"
    head = text[: 4 * characters] if isinstance(text, bytes) else text[:characters]
    decoded = (head if isinstance(head, bytes) else head.encode("utf-8", "backslashreplace")).decode(
        "utf-8", "backslashreplace"
    )
    if len(decoded) <= characters and len(head) == len(text):
        return decoded
    return f"{decoded[:characters]}... [{len(text):,} {unit} in all]"


def _too_long(number: int, data: bytes, length: int, limits: Limits) -> RawRow:
    raw_text = f"{clipped(data, limits.raw_text)[: limits.raw_text]}... [{length:,} bytes in all]"
    detail = f"the row has {length:,} bytes; valid is at most {limits.line_bytes:,} (setting ingest.max_line_bytes)"
    return RawRow(number, None, raw_text, Problem("too_long", detail))


def _not_utf8(error: UnicodeDecodeError) -> Problem:
    return Problem("invalid_encoding", f"byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8")


def _json_type(value: object) -> str:
    return {list: "list", str: "text", bool: "truth value", type(None): "null"}.get(type(value), "number")
