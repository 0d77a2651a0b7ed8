"""Streams of raw rows out of JSON, delimited text and Parquet files, in bounded memory and whatever the bytes are.

A reader yields one `RawRow` for each row with its line, decoded fields or the `Problem` that it met. Nothing is raised
for bad content: a file that breaks off yields its last row as a problem of the file (line 0), after all rows before it.
How the file ended, and how much of it was read, is left in its `Reading`.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sgrec_core.logs.array_reader import json_rows
from sgrec_core.logs.csv_reader import csv_rows
from sgrec_core.logs.json_reader import jsonl_rows
from sgrec_core.logs.parquet_reader import parquet_rows
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
)
from sgrec_core.logs.streams import CHUNK, COMPRESSIONS, chunks, compression_of

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    # What these hold, their first bytes say.
    ".json": None,
    ".dat": None,
    ".txt": None,
    "": None,
}


def read_rows(path: Path, name: str, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow]:
    """`read_in_batches`, row by row."""
    for row in read_in_batches(path, name, limits, layout, reading):
        assert isinstance(row, RawRow), "the layout takes no batches out"
        yield row


def read_in_batches(
    path: Path, name: str, limits: Limits, layout: Layout, reading: Reading
) -> Iterator[RawRow | GoodRows]:
    """All rows of one raw file; the ending of ``name``, or else the first bytes, decide format and compression.

    At least one row, if only a problem; `GoodRows` only where the layout takes them out.
    """
    for row in _read(path, name, limits, layout, reading):
        if isinstance(row, GoodRows):
            reading.rows += len(row.lines)
            yield row
            continue
        reading.rows += row.line > 0
        if row.line == 0 and row.problem is not None and row.problem.reason != "empty_file":
            reading.detail = row.problem.detail
        yield row


def _read(path: Path, name: str, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow | GoodRows]:
    def ended(how: str, problem: Problem, raw_text: str | None = None) -> RawRow:
        reading.ended = how
        return RawRow(0, None, raw_text, problem)

    try:
        reading.bytes = path.stat().st_size
        reading.format, reading.compression = kind_of(path, name)
        if reading.bytes:
            yield from _READERS[reading.format](path, limits, layout, reading)
        if not reading.rows:
            yield RawRow(0, None, None, Problem("empty_file", "the file holds no row"))
    except FileNotFoundError:
        yield ended("missing", Problem("missing_file", "the file vanished before it was read"))
    except UnreadableFileError as error:
        reading.rows_unread, reading.bytes_consumed = error.rows, 0
        of = f"; its {error.rows:,} rows are not read" if error.rows else ""
        yield ended("unreadable", error.problem._replace(detail=error.problem.detail + of))
    except BrokenOffError as end:
        yield ended("broken_off", end.problem, clipped(end.tail, limits.raw_text))
    except OSError as error:
        detail = f"cannot be read after {reading.rows} rows: {error}"
        yield ended("broken_off", Problem("truncated_file", detail))
    except Exception as error:  # a file of a kind that nobody has thought of must not end the night without its name
        detail = f"cannot be read after {reading.rows} rows: {type(error).__name__}: {str(error)[:500]}"
        yield ended("unreadable", Problem("unreadable_file", detail))


def kind_of(path: Path, name: str) -> tuple[str, str | None]:
    """Format and compression of a file.

    Raises:
        UnreadableFileError: it has an ending that no reader knows.
    """
    with path.open("rb") as stream:
        compression = compression_of(name, stream.read(8))
    stem = Path(name.lower())
    ending = (stem.with_suffix("") if stem.suffix in COMPRESSIONS else stem).suffix
    if ending.removeprefix(".").isdigit():
        ending = ""  # part-0.1
    if ending not in FORMATS or (ending == ".parquet" and compression):
        endings = ", ".join(filter(None, FORMATS))
        valid = f"{endings}, the text formats also with {', '.join(COMPRESSIONS)}"
        raise UnreadableFileError(Problem("unreadable_file", f"unknown kind of file; valid endings are {valid}"))
    format = FORMATS[ending]
    if format is None:
        format = _format_of(_head(path, compression, 4), compression)
    elif format == "jsonl" and _is_array(_head(path, compression, CHUNK)):
        format = "json"
    return format, compression


def _head(path: Path, compression: str | None, size: int) -> bytes:
    """The first bytes that are not blank, ``size`` of them or a chunk more."""
    head = b""
    try:
        for chunk in chunks(path, compression, Reading()):
            head = (head + chunk).lstrip()
            if len(head) >= size or (head and not head.startswith(b"[")):
                break
    except BrokenOffError:
        pass  # whoever reads it will tell
    return head


def _format_of(begin: bytes, compression: str | None) -> str:
    if begin.startswith(b"PAR1") and not compression:
        return "parquet"
    return {b"[": "json", b"{": "jsonl"}.get(begin[:1], "csv")


def _is_array(begin: bytes) -> bool:
    """Whether a file of JSON Lines by its name is one array: of objects, and more than a first line of others."""
    first, _, more = begin.partition(b"\n")
    return begin[:1] == b"[" and begin[1:].lstrip()[:1] == b"{" and not (first.rstrip().endswith(b"]") and more.strip())


_READERS: Mapping[str, Callable[[Path, Limits, Layout, Reading], Iterator[RawRow | GoodRows]]] = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": csv_rows,
    "parquet": parquet_rows,
}
