"""Parse and validate the raw logs, the catalogue and the profiles of a day.

Every row of every raw file of the day ends in ``events``, ``items`` or ``users``, or in ``events_rejected`` with
reason, file, line and text (`sgrec_core.logs.spark`).
"""

import functools

from sgrec_core.errors import SettingsError
from sgrec_core.judge.calls.ledger import judged_with
from sgrec_core.judge.versions.accepted import check_accepted
from sgrec_core.judge.versions.adapters import resolve_adapter, unpin
from sgrec_core.lake.spark import publish_spark, spark_session
from sgrec_core.logs import adaptors, landing, parsing
from sgrec_core.logs.readers import Limits
from sgrec_core.logs.spark import REJECTED, REJECTED_COLUMNS, parse_files, settle
from sgrec_core.night.sources import prepare_landing
from sgrec_core.runtime.job import Job, stage_command


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
            "rules": parsing.rules(),
            "raw files": landing.content_fingerprint(landing_root, job.day),
            "limits": [limits.line_bytes, limits.raw_text],
        }
    )
    partition = {"day": job.day}
    if job.skip_if_published(dict.fromkeys(job.stage.publishes, partition), fingerprint):
        return

    from pyspark.sql import DataFrame

    with job.starting_engine():
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


main = stage_command("ingest_events", run)

if __name__ == "__main__":
    main()
