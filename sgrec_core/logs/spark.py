"""Raw logs of a day as Spark frames: accepted rows, and rejected ones with their reasons.

Files are parsed in Spark tasks with the pure functions of `sgrec_core.logs.parsing`, many small ones in each; what
needs the whole day (unknown items, repeated ids) is settled here: the first row by file and line stays.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.lake import load_contract
from sgrec_core.lake.spark_files import FILE, OfBatches, read_files, repeated_hashes, stage, staged_groups, staged_rows
from sgrec_core.logs import parsing
from sgrec_core.logs.columnar import GoodEvents
from sgrec_core.logs.landing import LeftOut, RawFile, Record
from sgrec_core.logs.mapping import TARGETS, LogMapping
from sgrec_core.logs.rows import GoodRows, Reading

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

KEYS: dict[Record, tuple[str, str]] = {
    "event": ("event_id", "duplicate_event_id"),
    "item": ("item_id", "duplicate_key"),
    "user": ("user_id", "duplicate_key"),
}
"""What must be unique within the day, and the reason for which a repetition is rejected."""

BATCH_ROWS = 5000
TASK_BYTES = 1 << 25
"""Files are put together into one task up to this size."""
FEW = 1_000_000
"""Rows that every executor can hold."""
REJECTED = "record string, reason string, detail string, file string, line long, raw_text string, part int"
REJECTED_COLUMNS = [column.split()[0] for column in REJECTED.split(", ")]
PLACE = pa.schema([("file", pa.string()), ("line", pa.int64()), ("part", pa.int32())])
"""By which a row is known."""
MAPPED = [("session_minutes", pa.float64()), ("updated", pa.timestamp("us", "UTC"))]
"""What a mapping says of a row besides."""
OF_FILE = [
    ("bytes", pa.int64()),
    ("bytes_consumed", pa.int64()),
    ("format", pa.string()),
    ("compression", pa.string()),
    ("rows", pa.int64()),
    ("rows_empty", pa.int64()),
    ("rows_unread", pa.int64()),
    ("ended", pa.string()),
    ("ended_detail", pa.string()),
]
"""What a parsed frame says of a file, in one row of its own, where ``ended`` is not null."""
NO_ROWS = ("invalid_json", "invalid_encoding", "too_long")
"""Reasons of lines that are not even rows."""


class Parsed(NamedTuple):
    """Rows of raw files."""

    frame: "DataFrame"
    paths: list[str]
    """The staged files that it reads."""


def parse_files(
    spark: "SparkSession", files: list[RawFile], record: Record, day: str, options: parsing.Options, folder: str
) -> Parsed:
    """Every row of the files: the columns of its table without ``day``, and of a rejected row.

    ``reason`` is null where the row is accepted; each file has one more row, see `OF_FILE`. The rows are staged in
    ``folder``, since several passes read them.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    columns = [
        field.with_nullable(True) for field in load_contract(parsing.TABLES[record]).arrow_schema if field.name != "day"
    ]
    about = [(name, pa.string()) for name in ("record", "reason", "detail", "file", "raw_text")]
    about += [("line", pa.int64()), ("part", pa.int32()), *MAPPED]
    schema = pa.schema([*columns, *about, *OF_FILE])

    if not files:
        return Parsed(spark.createDataFrame([], from_arrow_schema(schema)), [])

    groups = in_tasks(files, spark.sparkContext.defaultParallelism)

    def parse(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column(0).to_pylist():
                yield from _batches(groups[index], day, options, schema)

    # A range of n rows in n partitions: one task a group, and no Python process to make the list.
    tasks = spark.range(0, len(groups), 1, len(groups))
    paths = stage(tasks, parse, schema, folder)
    return Parsed(read_files(spark, schema, paths).drop(FILE), paths)


def in_tasks(files: Sequence[RawFile], at_least: int) -> list[list[RawFile]]:
    """The files in groups of about `TASK_BYTES`, or of fewer to have ``at_least`` so many groups, in their order."""
    sizes = [_size(file) for file in files]
    most = min(TASK_BYTES, sum(sizes) // max(at_least, 1) + 1)
    groups: list[list[RawFile]] = []
    filled = most
    for file, size in zip(files, sizes, strict=True):
        if not groups or filled + size > most:  # files without a byte fill nothing
            groups.append([])
            filled = 0
        groups[-1].append(file)
        filled += size
    return groups


def _size(file: RawFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError:  # whoever reads it will tell
        return 0


def _batches(
    files: Sequence[RawFile], day: str, options: parsing.Options, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The rows of files as Arrow, `BATCH_ROWS` at a time."""
    rows: list[dict[str, object]] = []
    good = GoodEvents(day, options.nulls, with_roles=options.with_roles)
    for file in files:
        reading = Reading()
        for row in parsing.parse_file_in_batches(file, day, options, reading, good):
            if isinstance(row, GoodRows):
                yield from _good_batches(row, file, schema)
            elif isinstance(row, parsing.Rejected):
                rows.append(row._asdict())
            else:
                told = row._asdict()
                rows.append({**told.pop("values"), **told, "record": file.record, "file": file.name})
            if len(rows) >= BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(rows, schema)
                rows = []
        of_file = {name: getattr(reading, name, None) for name, _ in OF_FILE} | {"ended_detail": reading.detail}
        rows.append({"record": file.record, "file": file.name, **of_file})
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema)


def _good_batches(rows: GoodRows, file: RawFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    size = len(rows.lines)
    said = {
        "record": pa.repeat(file.record, size),
        "file": pa.repeat(file.name, size),
        "line": rows.lines,
        "raw_text": rows.texts,
        "part": pa.repeat(pa.scalar(0, pa.int32()), size),
        **{name: rows.table[name] for name in rows.table.column_names},
    }
    found = (said.get(field.name) for field in schema)
    columns = [
        pa.nulls(size, field.type) if column is None else column for field, column in zip(schema, found, strict=True)
    ]
    yield from pa.table(columns, schema=schema).to_batches()


def rows_of(parsed: "DataFrame") -> "DataFrame":
    """The rows of a parsed frame, without what it says of files."""
    return parsed.where("ended IS NULL").drop(*(name for name, _ in OF_FILE))


def file_rows(
    parsed: dict[Record, "DataFrame"],
    rejected: "DataFrame",
    others: Sequence[LeftOut],
    missing: Sequence[parsing.Rejected],
) -> pa.Table:
    """Rows of ``ingest_files`` without the day: files that were read with their counts, then what was not."""
    from pyspark.sql import functions as F

    is_no_row = F.col("reason").isin(*NO_ROWS).cast("long")
    bad = {
        (row["record"], row["file"]): (row["rows"], row["no_rows"])
        for row in rejected.where("line > 0")
        .groupBy("record", "file")
        .agg(F.count(F.lit(1)).alias("rows"), F.sum(is_no_row).alias("no_rows"))
        .collect()
    }
    found: list[dict[str, object]] = []
    for record, frame in parsed.items():
        # A raw row of which anything was made has one part with the number 0.
        made = {
            row["file"]: row
            for row in frame.where("line > 0")
            .groupBy("file")
            .agg(F.sum((F.col("part") == 0).cast("long")).alias("used"), F.count(F.lit(1)).alias("made"))
            .collect()
        }
        for row in frame.where("ended IS NOT NULL").collect():
            used, count = (made[row["file"]][name] if row["file"] in made else 0 for name in ("used", "made"))
            rows_rejected, no_rows = bad.get((record, row["file"]), (0, 0))
            of_file = {
                **{name: row[name] for name, _ in OF_FILE if name not in ("rows", "ended_detail")},
                "path": row["file"],
                "record": record,
                "rows_seen": row["rows"] + row["rows_unread"],
                "rows_used": used,
                "rows_accepted": count - rows_rejected,
                "rows_rejected": rows_rejected,
                "detail": row["ended_detail"],
            }
            if 0 < row["rows"] - row["rows_empty"] == no_rows and row["ended"] == "complete":
                # The page of a server that failed, say: no line of it is a row.
                of_file |= {"ended": "unreadable", "bytes_consumed": 0, "detail": "no line of it is a row"}
            found.append(of_file)
    schema = pa.schema([field for field in load_contract("ingest_files").arrow_schema if field.name != "day"])
    nothing = {field.name: 0 for field in schema if field.type == pa.int64()}
    for one in others:
        ended = "missing" if one.is_lost else "left_out"
        found.append({**nothing, "path": one.name, "record": one.record, "ended": ended, "detail": one.why})
    for lost in missing:
        found.append({**nothing, "path": lost.file, "record": lost.record, "ended": "missing", "detail": lost.detail})
    return pa.Table.from_pylist(found, schema=schema)


def settle(parsed: dict[Record, "DataFrame"], mapping: LogMapping | None) -> dict[Record, "DataFrame"]:
    """The rows, less what only the whole day shows: repeated ids, then events of unknown items, then repeated events.

    An event of an unknown item is no event, so its id may be used by a later one.
    """
    items, users = rows_of(parsed["item"]), reject_repeated(rows_of(parsed["user"]), "user")
    if not is_long(mapping):
        items = reject_repeated(items, "item")
    events = rows_of(parsed["event"])
    if mapping is None or not mapping.catalogue_from_events:
        events = reject_unknown(events, items.where("reason IS NULL").select("item_id"))
    return {"event": with_sessions(reject_repeated(events, "event"), mapping), "item": items, "user": users}


def is_long(mapping: LogMapping | None) -> bool:
    """Whether the catalogue comes as properties, of which many rows make an item."""
    return mapping is not None and any(files.long is not None for files in mapping.catalogue or ())


def has_sessions(mapping: LogMapping | None) -> bool:
    """Whether requests are made of what users did within some time."""
    return mapping is not None and any(files.session_minutes for files in mapping.events or ())


def with_sessions(events: "DataFrame", mapping: LogMapping | None) -> "DataFrame":
    """Requests for events that have none: what a user did with one item until nothing came for so many minutes.

    One item, because what came before a request is its history: of visits to one item after the other each is a
    decision, with those before it.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    if not has_sessions(mapping):
        return events
    needs_one = F.col("reason").isNull() & F.col("request_id").isNull()
    order = Window.partitionBy(needs_one, "user_id", "item_id").orderBy("event_time", "file", "line", "part")
    seconds = F.unix_micros("event_time") / 1e6
    gap = seconds - F.lag(seconds).over(order)
    begins = F.when(gap.isNull() | (gap > 60 * F.col("session_minutes")), F.col("event_time"))
    session = F.last(begins, ignorenulls=True).over(order)
    named = F.concat("item_id", F.lit(" from "), F.date_format(session, "yyyy-MM-dd'T'HH:mm:ss.SSSSSS"))
    return events.withColumn("request_id", F.when(needs_one, named).otherwise(F.col("request_id")))


def catalogue(settled: dict[Record, "DataFrame"], mapping: LogMapping | None) -> "DataFrame":
    """The day's items: accepted rows, or what properties or events make of them."""
    from pyspark.sql import functions as F

    accepted = settled["item"].where("reason IS NULL")
    if mapping is not None and mapping.catalogue_from_events:
        from_events = settled["event"].where("reason IS NULL").select("item_id").distinct()
        empty = parsing.item_hash(None, None, None, None)
        others = [field for field in accepted.schema if field.name not in ("item_id", "item_hash")]
        nulls = {field.name: F.lit(None).cast(field.dataType) for field in others}
        return from_events.withColumns({**nulls, "item_hash": F.lit(empty)})
    if not is_long(mapping):
        return accepted
    names = [name for name in TARGETS["item"] if name != "item_id"]

    def newest(name: str) -> "Column":
        told = F.struct("updated", "file", "line", "part", name)
        return F.max(F.when(F.col(name).isNotNull(), told))[name].alias(name)

    merged = accepted.groupBy("item_id").agg(*(newest(name) for name in names))
    hashed = F.udf(parsing.item_hash, "string")
    return merged.withColumn("item_hash", hashed("title", "description", "brand", "category"))


def accepted_events(
    spark: "SparkSession", paths: Sequence[str], rejected: "DataFrame", day: str, folder: str
) -> tuple["DataFrame", OfBatches]:
    """Tasks, and what makes rows of ``events`` of them: those of the staged ``paths`` less the ``rejected`` ones.

    In the order of the files, and within `STAGED_ROWS` by event id. What is rejected is staged in ``folder`` as well.
    """
    contract = load_contract("events")
    of_day = pa.scalar(date.fromisoformat(day), contract.column("day").arrow_type)
    names = [field.name for field in contract.arrow_schema if field.name != "day"]
    of_events = rejected.where("record = 'event'").select(*PLACE.names).coalesce(1)
    taken_out = stage(of_events, lambda batches: batches, PLACE, folder)

    def make(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for rows in staged_groups(paths[number], [*names, *PLACE.names, "reason", "ended"]):
                    rows = rows.filter(pc.and_(pc.is_null(rows["reason"]), pc.is_null(rows["ended"])))
                    if not rows.num_rows:
                        continue
                    bad = staged_rows(taken_out, PLACE.names, "file", rows["file"].unique())
                    if bad.num_rows:
                        rows = rows.join(bad, PLACE.names, join_type="left anti")
                    rows = rows.select(names).sort_by("event_id")
                    yield from rows.add_column(0, "day", pa.repeat(of_day, rows.num_rows)).to_batches()

    return spark.range(0, len(paths), 1, len(paths)), make


def reject_unknown(events: "DataFrame", known: "DataFrame") -> "DataFrame":
    """Reject accepted events of items that are not in ``known`` (item_id)."""
    from pyspark.sql import functions as F

    items = events.where("reason IS NULL").select("item_id").distinct()
    unknown = _few(items.join(known, "item_id", "left_anti").withColumn("unknown", F.lit(True)))
    detail = F.concat(F.lit("column item_id: '"), "item_id", F.lit("' is not in the catalogue of the day"))
    return _reject(events.join(unknown, "item_id", "left"), F.col("unknown"), "unknown_item", detail).drop("unknown")


def reject_repeated(frame: "DataFrame", record: Record) -> "DataFrame":
    """Of accepted rows with one key, keep the first by file and line and reject the others."""
    from pyspark.sql import functions as F

    key, reason = KEYS[record]
    accepted = frame.where("reason IS NULL")
    # Few keys have a hash that is there twice, and only these travel between executors.
    twice = _few(repeated_hashes(accepted, key))
    repeated = _few(
        accepted.join(twice, F.xxhash64(key) == F.col("hash"), "left_semi")
        .groupBy(key)
        .agg(F.count(F.lit(1)).alias("copies"), F.min(F.struct("file", "line", "part")).alias("first"))
        .where("copies > 1")
        .select(key, "first")
    )
    again = F.col("first").isNotNull() & (F.struct("file", "line", "part") != F.col("first"))
    detail = F.concat(
        F.lit(f"column {key}: '"), key, F.lit("' was seen before, in "), "first.file", F.lit(" line "), "first.line"
    )
    return _reject(frame.join(repeated, key, "left"), again, reason, detail).drop("first")


def _few(frame: "DataFrame") -> "DataFrame":
    """The rows, worked out once; where they are few, whatever is joined to them stays where it is."""
    from pyspark.sql import functions as F

    kept = frame.cache()
    return F.broadcast(kept) if kept.count() <= FEW else kept


def _reject(frame: "DataFrame", bad: "Column", reason: str, detail: "Column") -> "DataFrame":
    """Give the accepted rows where ``bad`` is true a reason."""
    from pyspark.sql import functions as F

    late = F.col("reason").isNull() & F.coalesce(bad, F.lit(False))
    return frame.withColumns(
        {
            "detail": F.when(late, detail).otherwise(F.col("detail")),
            "reason": F.when(late, reason).otherwise(F.col("reason")),
        }
    )
