"""Turn the day's events into decision points, and slates into preference pairs (`sgrec_core.states`)."""

import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.lake.queries import days_until, has_labels
from sgrec_core.lake.spark import publish_spark, read_spark, spark_session
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.states.decisions import chosen_items, decision_points, history_lengths, with_split, with_states
from sgrec_core.states.pairs import sampled_pairs, shown_pairs


def run(job: Job) -> None:
    settings = job.settings.states
    days = days_until(job.day, settings.history_days)
    fingerprint = job.inputs_fingerprint(
        {
            "states": settings.model_dump(),
            "events": {day: job.lake.fingerprint("events", {"day": day}) for day in days},
        }
    )
    partition = {"day": job.day}
    if job.skip_if_published(dict.fromkeys(job.stage.publishes, partition), fingerprint):
        return

    from pyspark.sql import functions as F

    with job.starting_engine():
        spark = spark_session(job.settings, "build_states")
    try:
        today = read_spark(spark, job.lake, "events", {"day": [job.day], "role": ["logged", "validation"]})
        before = read_spark(spark, job.lake, "events", {"day": days, "role": ["logged"]})
        profiles = read_spark(spark, job.lake, "users", partition)
        items = read_spark(spark, job.lake, "items", partition)

        chosen = chosen_items(before, items).cache()
        decisions = decision_points(today, job.day).join(history_lengths(today, chosen), ["user_id", "as_of"], "left")
        everything = with_states(decisions, chosen, profiles, settings)
        everything = with_split(everything, settings, has_labels(job.lake, job.day)).cache()
        states = everything.where(F.size("history") >= settings.min_history)
        too_early = everything.where(F.size("history") < settings.min_history).count()
        count = publish_spark(job.lake, "user_states", states, partition=partition, fingerprint=fingerprint)

        train = states.where("split = 'train'")
        has_impressions = not today.where("event_type = 'impression'").isEmpty()
        if has_impressions:
            pairs = shown_pairs(states, today, settings)
        else:
            job.note("The events hold no impressions: each preference pair sets the chosen item against one sampled "
                     "from the catalogue, which the user had not chosen before.")  # fmt: skip
            pairs = sampled_pairs(train, chosen, items)
        pair_count = publish_spark(job.lake, "preference_pairs", pairs, partition=partition, fingerprint=fingerprint)
    finally:
        spark.stop()

    published = job.lake.read("user_states", where=partition, columns=["split", "user_id"], ordered=False)
    splits = counted(published["split"])
    sources = counted(job.lake.read("preference_pairs", where=partition, columns=["source"], ordered=False)["source"])
    job.fact("states", count)
    for split in ("train", "validation"):
        job.fact(f"states_{split}", splits.get(split, 0))
    job.fact("users", pc.count_distinct(published["user_id"]).as_py())
    job.fact("decisions_without_history", too_early)
    job.fact("preference_pairs", pair_count)
    job.fact("pairs_by_source", dict(sorted(sources.items())))


def counted(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    return {row["values"]: row["counts"] for row in values.value_counts().to_pylist()}


main = stage_command("build_states", run)

if __name__ == "__main__":
    main()
