"""Parquet, column by column: what is not needed is not read, and a value that cannot be converted costs its row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgrec_core.logs.rows import (
    BrokenOffError,
    GoodRows,
    Layout,
    Limits,
    Problem,
    RawRow,
    Reading,
    Unreadable,
    UnreadableFileError,
    clipped,
    not_utf8,
    too_long,
)
from sgrec_core.logs.text import row_json

BATCH = 16_384
"""Rows that are looked at together."""


def parquet_rows(path: Path, limits: Limits, layout: Layout, reading: Reading) -> Iterator[RawRow | GoodRows]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names, metadata = file.schema_arrow.names, file.metadata
            problem = layout.problem(names)
            if problem is not None:
                raise UnreadableFileError(problem, metadata.num_rows)
            wanted = [name for name in names if layout.wants(name)]
            for group in range(metadata.num_row_groups):
                for batch in file.iter_batches(BATCH, row_groups=[group], columns=wanted):
                    numbers = pa.array(range(number + 1, number + 1 + batch.num_rows))
                    number += batch.num_rows
                    found = layout.good.of(batch) if layout.good is not None else None
                    if found is not None:
                        good, table = found
                        yield GoodRows(numbers.filter(good), table)
                        rest = pc.invert(good)
                        numbers, batch = numbers.filter(rest), batch.filter(rest)
                    # By place: a name may hold a dot.
                    columns = [_python_values(column) for column in batch.columns]
                    for line, *values in zip(numbers.to_pylist(), *columns, strict=True):
                        yield _parquet_row(line, dict(zip(batch.schema.names, values, strict=True)), limits)
                of_group = metadata.row_group(group)
                reading.bytes_consumed += sum(
                    of_group.column(place).total_compressed_size for place in range(of_group.num_columns)
                )
            reading.bytes_consumed = reading.bytes
    except (pa.ArrowException, OSError, ValueError) as error:
        left = ""
        if number:
            reading.rows_unread = metadata.num_rows - number
            left = f", {reading.rows_unread:,} are left"
        detail = f"not readable as Parquet after {number:,} rows{left}: {str(error).splitlines()[0][:200]}"
        raise BrokenOffError(Problem("truncated_file", detail)) from error


def _parquet_row(number: int, fields: dict[str, Any], limits: Limits) -> RawRow:
    text = row_json(fields)
    if len(text) > limits.line_bytes:
        return too_long(number, text[: limits.line_bytes].encode("utf-8", "replace"), len(text), limits)
    return RawRow(number, fields, clipped(text, limits.raw_text))


def _python_values(column: pa.Array) -> list[Any]:
    """The values of a column, `Unreadable` where Python has no such value."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        # An instant is UTC whatever its zone is called. Python has no nanoseconds.
        zone = "UTC" if kind.tz else None
        column = column.cast(pa.int64()).cast(pa.timestamp(kind.unit, zone))
        if kind.unit == "ns":
            column = pc.floor_temporal(column, unit="microsecond").cast(pa.timestamp("us", zone))
    try:
        return column.to_pylist()
    except Exception:  # one value is enough for all kinds of errors; it costs its row and no other
        return [_python_value(column[place]) for place in range(len(column))]


def _python_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(not_utf8(error))
    except Exception as error:
        return Unreadable(Problem("invalid_value", f"a {scalar.type} that cannot be read: {str(error)[:200]}"))
