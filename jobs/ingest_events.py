"""Parse and validate the raw logs, the catalogue and the profiles of a day.

Every row of every raw file of the day ends in ``events``, ``items`` or ``users``, or in ``events_rejected`` with reason,
file, line and text. Each file is parsed by one Spark task with the pure functions of `sgrec_core.logs.parsing`; what needs
the whole day (unknown items, repeated ids) is settled here: the first row by file and line stays.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from sgrec_core.errors import SettingsError
from sgrec_core.judge.calls.ledger import judged_with
from sgrec_core.judge.versions.accepted import check_accepted
from sgrec_core.judge.versions.adapters import resolve_adapter, unpin
from sgrec_core.lake import load_contract
from sgrec_core.lake.spark import publish_spark, spark_session
from sgrec_core.logs import adaptors, landing, parsing
from sgrec_core.logs.landing import RawFile, Record
from sgrec_core.logs.readers import Limits
from sgrec_core.night.sources import prepare_landing
from sgrec_core.runtime.job import Job, stage_command

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

KEYS: dict[Record, tuple[str, str]] = {
    "event": ("event_id", "duplicate_event_id"),
    "item": ("item_id", "duplicate_key"),
    "user": ("user_id", "duplicate_key"),
}
"""What must be unique within the day, and the reason for which a repetition is rejected."""

BATCH_ROWS = 5000


def run(job: Job) -> None:
    resolve_adapter(job)
    settings = job.settings
    try:
        # The night would end at its judge: better before it has cost anything.
        check_accepted(settings)
    except SettingsError:
        if judged_with(job.lake, job.day) is None:
            # It has not begun: what is activated until it does is its judge then.
            unpin(settings, job.day)
        raise
    source = adaptors.parse_source(settings.input)
    for rule in adaptors.declared_rules(source, settings.adaptor.days):
        job.note(rule)
    landing_root = prepare_landing(settings, job.day)
    files = landing.raw_files(landing_root, job.day)
    limits = Limits(line_bytes=settings.ingest.max_line_bytes, raw_text=settings.ingest.max_raw_text)

    fingerprint = job.inputs_fingerprint(
        {
            "parsing": parsing.REVISION,
            "raw files": landing.content_fingerprint(landing_root, job.day),
            "limits": [limits.line_bytes, limits.raw_text],
        }
    )
    partition = {"day": job.day}
    if job.skip_if_published(dict.fromkeys(job.stage.publishes, partition), fingerprint):
        return

    from pyspark.sql import DataFrame

    spark = spark_session(settings, "ingest_events")
    try:
        parsed = {
            record: parse_files(spark, [file for file in files if file.record == record], record, job.day, limits)
            for record in landing.RECORDS
        }
        missing = parsing.missing_files(landing_root, job.day)
        settled = settle(parsed)
        bad = [frame.where("reason IS NOT NULL").select(*REJECTED_COLUMNS) for frame in settled.values()]
        if missing:
            bad.append(spark.createDataFrame(missing, REJECTED))
        rejected = functools.reduce(DataFrame.unionByName, bad).cache()

        everything = functools.reduce(DataFrame.union, (frame.select("record", "reason") for frame in parsed.values()))
        rows_in = everything.count() + len(missing)
        by_reason = {row["reason"]: row["count"] for row in rejected.groupBy("reason").count().collect()}
        # Events go last: once they are there, everything that they refer to is there.
        accepted = {
            record: publish_spark(
                job.lake,
                parsing.TABLES[record],
                settled[record].where("reason IS NULL"),
                partition=partition,
                fingerprint=fingerprint,
            )
            for record in ("item", "user")
        }
        rows_rejected = publish_spark(
            job.lake, "events_rejected", rejected, partition=partition, fingerprint=fingerprint
        )
        accepted["event"] = publish_spark(
            job.lake, "events", settled["event"].where("reason IS NULL"), partition=partition, fingerprint=fingerprint
        )
    finally:
        spark.stop()

    assert rows_in == sum(accepted.values()) + rows_rejected, f"{rows_in} != {accepted} + {rows_rejected}"
    job.fact("raw_files", len(files))
    job.fact("rows_in", rows_in)
    job.fact("rows_accepted", sum(accepted.values()))
    job.fact("rows_rejected", rows_rejected)
    job.fact("rejected_by_reason", dict(sorted(by_reason.items())))
    job.fact("events", accepted["event"])
    for role in ("validation", "test"):
        if labels := job.lake.count("events", where={**partition, "role": role}):
            job.fact(f"{role}_labels", labels)
    job.fact("items", accepted["item"])
    job.fact("users", accepted["user"])


REJECTED = "record string, reason string, detail string, file string, line long, raw_text string"
REJECTED_COLUMNS = [column.split()[0] for column in REJECTED.split(", ")]


def parse_files(spark: "SparkSession", files: list[RawFile], record: Record, day: str, limits: Limits) -> "DataFrame":
    """Every row of the files, one Spark task a file: the columns of its table without ``day``, and those of a rejected row.

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


main = stage_command("ingest_events", run)

if __name__ == "__main__":
    main()
