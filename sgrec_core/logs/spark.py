"""Raw logs of a day as Spark frames: accepted rows, and rejected ones with their reasons.

Each file is parsed by one Spark task with the pure functions of `sgrec_core.logs.parsing`; what needs the whole day
(unknown items, repeated ids) is settled here: the first row by file and line stays.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from sgrec_core.lake import load_contract
from sgrec_core.logs import parsing
from sgrec_core.logs.landing import RawFile, Record
from sgrec_core.logs.readers import Limits

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

KEYS: dict[Record, tuple[str, str]] = {
    "event": ("event_id", "duplicate_event_id"),
    "item": ("item_id", "duplicate_key"),
    "user": ("user_id", "duplicate_key"),
}
"""What must be unique within the day, and the reason for which a repetition is rejected."""

BATCH_ROWS = 5000
REJECTED = "record string, reason string, detail string, file string, line long, raw_text string"
REJECTED_COLUMNS = [column.split()[0] for column in REJECTED.split(", ")]


def parse_files(spark: "SparkSession", files: list[RawFile], record: Record, day: str, limits: Limits) -> "DataFrame":
    """Every row of the files, one Spark task a file: the columns of its table without ``day``, and of a rejected row.

    ``reason`` is null where the row is accepted. The frame is cached, since several passes read it.
    """
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.storagelevel import StorageLevel

    columns = [
        field.with_nullable(True) for field in load_contract(parsing.TABLES[record]).arrow_schema if field.name != "day"
    ]
    about = [("record", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("file", pa.string())]
    schema = pa.schema([*columns, *about, ("line", pa.int64()), ("raw_text", pa.string())])

    if not files:
        return spark.createDataFrame([], from_arrow_schema(schema))

    def parse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                yield from _batches(files[index], day, limits, schema)

    # A range of n rows in n partitions: one task a file, and no Python process to make the list.
    tasks = spark.range(0, len(files), 1, len(files))
    return tasks.mapInArrow(parse, from_arrow_schema(schema)).persist(StorageLevel.MEMORY_AND_DISK)


def _batches(file: RawFile, day: str, limits: Limits, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a file as Arrow, `BATCH_ROWS` at a time."""
    rows: list[dict[str, object]] = []
    for row in parsing.parse_file(file, day, limits):
        if isinstance(row, parsing.Rejected):
            rows.append(row._asdict())
        else:
            about = {"record": file.record, "file": file.name, "line": row.line, "raw_text": row.raw_text}
            rows.append({**row.values, **about})
        if len(rows) == BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema)


def settle(parsed: dict[Record, "DataFrame"]) -> dict[Record, "DataFrame"]:
    """Reject what only the whole day shows: repeated ids, then events of unknown items, then repeated events.

    An event of an unknown item is no event, so its id may be used by a later one.
    """
    from pyspark.sql import functions as F

    items, users = (reject_repeated(parsed[record], record) for record in ("item", "user"))
    known = items.where("reason IS NULL").select("item_id", F.lit(True).alias("known"))
    events = parsed["event"].join(known, "item_id", "left")
    unknown = F.col("reason").isNull() & F.col("known").isNull()
    detail = F.concat(F.lit("column item_id: '"), "item_id", F.lit("' is not in the catalogue of the day"))
    events = events.withColumns(
        {
            "detail": F.when(unknown, detail).otherwise(F.col("detail")),
            "reason": F.when(unknown, "unknown_item").otherwise(F.col("reason")),
        }
    ).drop("known")
    return {"event": reject_repeated(events, "event"), "item": items, "user": users}


def reject_repeated(frame: "DataFrame", record: Record) -> "DataFrame":
    """Of accepted rows with one key, keep the first by file and line and reject the others."""
    from pyspark.sql import functions as F

    key, reason = KEYS[record]
    # Only the keys travel between executors, and only the few repeated ones are joined back.
    repeated = (
        frame.where("reason IS NULL")
        .groupBy(key)
        .agg(F.count(F.lit(1)).alias("copies"), F.min(F.struct("file", "line")).alias("first"))
        .where("copies > 1")
        .select(key, "first")
    )
    again = F.col("reason").isNull() & F.col("first").isNotNull() & (F.struct("file", "line") != F.col("first"))
    detail = F.concat(
        F.lit(f"column {key}: '"), key, F.lit("' was seen before, in "), "first.file", F.lit(" line "), "first.line"
    )
    return (
        frame.join(repeated, key, "left")
        .withColumns(
            {
                "detail": F.when(again, detail).otherwise(F.col("detail")),
                "reason": F.when(again, reason).otherwise(F.col("reason")),
            }
        )
        .drop("first")
    )
