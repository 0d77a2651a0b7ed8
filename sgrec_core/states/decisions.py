"""Decision points and preference pairs, in Spark SQL: memory is bounded by the longest history that is kept.

A decision is one positive item (clicked or bought) of one request. Its state is what was known strictly before the
request's first event: the items that the user chose before, the profile and the context. Label events of leave-one-out
sets (role ``validation``) become decisions to evaluate on; they, like role ``test``, are never history.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from sgrec_core.hashing import is_validation_user
from sgrec_core.logs.context import DAYPARTS
from sgrec_core.settings import StateSettings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def decision_points(today: "DataFrame", day: str) -> "DataFrame":
    """One row per request and positive item of the day, with moment, context and place among the user's decisions.

    Clicking and then buying one item of a request is one decision.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    request = ["user_id", "request_id", "role"]
    requests = today.groupBy(*request).agg(
        F.min("event_time").alias("as_of"), F.min_by("placement", F.struct("event_time", "event_id")).alias("placement")
    )
    hour = F.hour("as_of")
    daypart = F.lit(None).cast("string")
    for name, hours in DAYPARTS.items():
        daypart = F.when(hour.between(hours.start, hours.stop - 1), name).otherwise(daypart)
    # Sorted names, no spaces: the text is canonical.
    context = F.to_json(
        F.struct(daypart.alias("daypart"), "placement", F.date_format("as_of", "EEEE").alias("weekday"))
    )
    decisions = (
        today.where("event_type IN ('click', 'conversion')")
        .groupBy(*request, F.col("item_id").alias("target_item"))
        # Of the two words the later in the alphabet is the stronger signal.
        .agg(F.max("event_type").alias("target_type"), F.min("event_time").alias("chosen_at"))
        .join(requests, request)
    )
    order = Window.partitionBy("user_id").orderBy("as_of", "request_id", "chosen_at", "target_item", "role")
    return decisions.select(
        "user_id",
        "request_id",
        "role",
        "as_of",
        "target_item",
        "target_type",
        F.when(F.col("placement").isNotNull(), context).alias("context"),
        (F.row_number().over(order) - 1).alias("position"),
        _digest("user_id", "request_id", "target_item", F.lit(day)).alias("decision_id"),
    )


def chosen_items(events: "DataFrame", items: "DataFrame") -> "DataFrame":
    """What users chose, one row per request and item, numbered from 1 in order of time; consecutive repeats are kept.

    ``content`` is the item and what the day's catalogue says of it.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    order = Window.partitionBy("user_id").orderBy("chosen_at", "request_id", "item_id")
    return (
        events.where("event_type IN ('click', 'conversion')")
        .groupBy("user_id", "request_id", "item_id")
        .agg(F.min("event_time").alias("chosen_at"))
        .withColumn("number", F.row_number().over(order))
        .join(items.select("item_id", "item_hash"), "item_id", "left")
        .withColumn("content", F.struct("item_id", "item_hash"))
        .drop("item_hash")
    )


def history_lengths(today: "DataFrame", chosen: "DataFrame") -> "DataFrame":
    """For each user and moment of a request: how many items the user had chosen strictly before it."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    moments = today.groupBy("user_id", "request_id", "role").agg(F.min("event_time").alias("as_of"))
    moments = moments.select("user_id", F.col("as_of").alias("time"), F.lit(0).alias("is_choice")).distinct()
    choices = chosen.select("user_id", F.col("chosen_at").alias("time"), F.lit(1).alias("is_choice"))
    strictly_before = (
        Window.partitionBy("user_id").orderBy(F.unix_micros("time")).rangeBetween(Window.unboundedPreceding, -1)
    )
    return (
        moments.unionByName(choices)
        .withColumn("number", F.coalesce(F.sum("is_choice").over(strictly_before), F.lit(0)).cast("int"))
        .where("is_choice = 0")
        .select("user_id", F.col("time").alias("as_of"), "number")
    )


def with_states(
    decisions: "DataFrame", chosen: "DataFrame", profiles: "DataFrame", settings: StateSettings
) -> "DataFrame":
    """Decisions with history (oldest first, at most ``max_history`` items), profile and the hash of the state.

    The hash is of what a judge would read: an item of the history with a new title makes another state.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    # The last items up to and including each choice, so that a decision looks its history up by number.
    latest = Window.partitionBy("user_id").orderBy("number").rowsBetween(1 - settings.max_history, 0)
    histories = chosen.select("user_id", "number", F.collect_list("content").over(latest).alias("contents"))
    states = decisions.join(histories, ["user_id", "number"], "left").join(
        profiles.select("user_id", "profile"), "user_id", "left"
    )
    states = states.withColumn("history", F.coalesce("contents.item_id", F.array().cast("array<string>")))
    return states.withColumn("state_id", _digest(F.to_json(F.struct("contents", "profile", "context")))).drop(
        "contents"
    )


def with_split(states: "DataFrame", settings: StateSettings, has_labels: bool) -> "DataFrame":
    """Who is held out: the label events where the source brings them, a hashed share of users elsewhere."""
    from pyspark.sql import functions as F

    if has_labels:
        return states.withColumn("split", F.when(F.col("role") == "validation", "validation").otherwise("train"))
    share = settings.validation_share

    def held_out(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for users in batches:
            yield pd.Series(is_validation_user(users, share))

    is_held_out = F.pandas_udf(held_out, "boolean")  # type: ignore[call-overload]
    users = states.select("user_id").distinct().withColumn("held_out", is_held_out("user_id"))
    return states.join(users, "user_id").withColumn("split", F.when(F.col("held_out"), "validation").otherwise("train"))


def _digest(*parts: "Column | str") -> "Column":
    """32 hex characters; the parts' lengths keep ("ab", "c") and ("a", "bc") apart."""
    from pyspark.sql import functions as F

    columns = [F.col(part) if isinstance(part, str) else part for part in parts]
    return F.left(F.sha2(F.concat_ws(":", *(F.concat_ws(":", F.length(c), c) for c in columns)), 256), F.lit(32))
