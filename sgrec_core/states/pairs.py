"""Pairs of a preferred and a passed-over item."""

from typing import TYPE_CHECKING

from sgrec_core.settings import StateSettings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

SAMPLED_TRIES = 8
"""Items drawn for a sampled pair; the first that the user has not chosen before is taken."""


def shown_pairs(states: "DataFrame", today: "DataFrame", settings: StateSettings) -> "DataFrame":
    """The chosen item over those that the same request showed and the user passed over or disliked.

    At most ``max_pairs_per_decision`` a decision: disliked ones first, then by hash.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    def seen(*types: str) -> "Column":
        return F.max(F.col("event_type").isin(*types))

    passed_over = (
        today.groupBy("user_id", "request_id", F.col("item_id").alias("other_item"))
        .agg(seen("dislike").alias("disliked"), seen("click", "conversion").alias("positive"))
        .where("NOT positive")
    )
    best = Window.partitionBy("decision_id").orderBy(
        F.desc("disliked"), F.xxhash64("decision_id", "other_item"), "other_item"
    )
    return (
        states.join(passed_over, ["user_id", "request_id"])
        .withColumn("choice", F.row_number().over(best))
        .where(F.col("choice") <= settings.max_pairs_per_decision)
        .select(
            "decision_id",
            "state_id",
            F.col("target_item").alias("preferred_item"),
            "other_item",
            F.when(F.col("disliked"), "dislike").otherwise("impression").alias("source"),
        )
    )


def sampled_pairs(train: "DataFrame", chosen: "DataFrame", items: "DataFrame") -> "DataFrame":
    """The chosen item over one of the catalogue, drawn by hash, that the user had not chosen before."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    catalogue = items.select(
        F.col("item_id").alias("other_item"), (F.row_number().over(Window.orderBy("item_id")) - 1).alias("index")
    )
    size = items.count()
    drawn = train.select("decision_id", "state_id", "user_id", "as_of", "target_item", F.explode(
        F.sequence(F.lit(0), F.lit(SAMPLED_TRIES - 1))).alias("try"))  # fmt: skip
    drawn = (
        drawn.withColumn("index", F.pmod(F.xxhash64("decision_id", "try"), F.lit(size)).cast("int"))
        .join(F.broadcast(catalogue), "index")
        .where("other_item <> target_item")
    )
    earlier = chosen.select("user_id", F.col("item_id").alias("other_item"), "chosen_at")
    earlier = earlier.groupBy("user_id", "other_item").agg(F.min("chosen_at").alias("first_chosen"))
    drawn = drawn.join(earlier, ["user_id", "other_item"], "left").where(
        "first_chosen IS NULL OR first_chosen >= as_of"
    )
    return (
        drawn.groupBy("decision_id", "state_id", F.col("target_item").alias("preferred_item"))
        .agg(F.min_by("other_item", "try").alias("other_item"))
        .withColumn("source", F.lit("sampled"))
    )
