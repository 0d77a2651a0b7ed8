"""Parse and validate the raw logs, the catalogue and the profiles of a day.

Every row of every raw file of the day ends in ``events``, ``items`` or ``users``, or in ``events_rejected`` with
reason, file, line and text (`sgrec_core.logs.spark`); every file ends in ``ingest_files``.
"""

import functools

import pyarrow.compute as pc

from sgrec_core.errors import SettingsError
from sgrec_core.judge.calls.ledger import judged_with
from sgrec_core.judge.versions.accepted import check_accepted
from sgrec_core.judge.versions.adapters import resolve_adapter, unpin
from sgrec_core.lake.spark import publish_spark, spark_session
from sgrec_core.lake.spark_files import staging
from sgrec_core.logs import adaptors, landing, parsing
from sgrec_core.logs.spark import (
    REJECTED,
    REJECTED_COLUMNS,
    accepted_events,
    catalogue,
    file_rows,
    has_sessions,
    is_long,
    parse_files,
    settle,
)
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
    options = parsing.Options.of(settings)
    from_events = options.mapping is not None and options.mapping.catalogue_from_events
    landed = landing.landed(landing_root, job.day, needs_catalogue=not from_events)
    landing.check_settled(landed, landing_root, job.day, settings.ingest.settle_seconds)

    fingerprint = job.inputs_fingerprint(
        {
            "rules": parsing.rules(),
            "raw files": landing.content_fingerprint(landed, landing_root, job.day),
            "limits": [options.limits.line_bytes, options.limits.raw_text],
            "nulls": sorted(options.nulls),
            "mapping": options.mapping and options.mapping.model_dump(mode="json"),
            "roles": options.with_roles,
            "left out": [[one.name, one.why] for one in landed.left_out],
        }
    )
    partition = {"day": job.day}
    if job.skip_if_published(dict.fromkeys(job.stage.publishes, partition), fingerprint):
        return

    from pyspark.sql import DataFrame

    with job.starting_engine():
        spark = spark_session(settings, "ingest_events")
    with spark, staging(job.lake) as folder:
        parsed = {
            record: parse_files(
                spark, [file for file in landed.files if file.record == record], record, job.day, options, folder
            )
            for record in landing.RECORDS
        }
        lost = [parsing.lost(one) for one in landed.left_out if one.is_lost]
        names = {one.file for one in lost}
        missing = [one for one in parsing.missing_files(landed, landing_root, job.day) if one.file not in names]
        frames = {record: of_record.frame for record, of_record in parsed.items()}
        settled = settle(frames, options.mapping)
        bad = [frame.where("reason IS NOT NULL").select(*REJECTED_COLUMNS) for frame in settled.values()]
        if missing or lost:
            bad.append(spark.createDataFrame([*missing, *lost], REJECTED))
        rejected = functools.reduce(DataFrame.unionByName, bad).cache()

        by_reason = {row["reason"]: row["count"] for row in rejected.groupBy("reason").count().collect()}
        of_files = file_rows(frames, rejected, landed.left_out, missing)
        # Events go last: once they are there, everything that they refer to is there.
        accepted = {
            record: publish_spark(
                job.lake,
                parsing.TABLES[record],
                catalogue(settled, options.mapping) if record == "item" else settled[record].where("reason IS NULL"),
                partition=partition,
                fingerprint=fingerprint,
            )
            for record in ("item", "user")
        }
        publish_spark(job.lake, "events_rejected", rejected, partition=partition, fingerprint=fingerprint)
        job.lake.publish("ingest_files", of_files, partition=partition, fingerprint=fingerprint)
        events, make = settled["event"].where("reason IS NULL"), None
        if not has_sessions(options.mapping):
            events, make = accepted_events(spark, parsed["event"].paths, rejected, job.day, folder)
        accepted["event"] = publish_spark(
            job.lake, "events", events, partition=partition, fingerprint=fingerprint, make=make
        )

    rows = {name: pc.sum(of_files[name]).as_py() for name in of_files.column_names if name.startswith("rows_")}
    merged = from_events or is_long(options.mapping)
    assert merged or rows["rows_accepted"] == sum(accepted.values()), f"{rows} and {accepted}"
    left_out = pc.sum(pc.equal(of_files["ended"], "left_out")).as_py()
    job.fact("raw_files", len(landed.files))
    job.fact("items_merged", merged)
    for name, number in (("files_left_out", left_out), *((n, rows[n]) for n in ("rows_unread", "rows_empty"))):
        if number:
            job.fact(name, number)
    job.fact("rows_in", rows["rows_seen"])
    job.fact("rows_accepted", rows["rows_accepted"])
    job.fact("rows_rejected", rows["rows_rejected"])
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
