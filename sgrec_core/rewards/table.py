"""The rows of table ``rewards``: candidates, aspect scores and user weights joined and fused."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.rewards import fusion

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class RewardTable:
    """Rows of ``rewards`` without day and version, and what they look like from above."""

    rows: pa.Table
    facts: dict[str, float | int]


def varied_groups(candidates: pa.Table) -> pa.ChunkedArray:
    """decision_id of the groups whose business rewards vary; to A2PO the others have no advantage to gate."""
    spread = candidates.group_by("decision_id").aggregate([("business_reward", "stddev")])
    return spread.filter(pc.greater(spread["business_reward_stddev"], fusion.SMALLEST_DEVIATION))["decision_id"]


def fuse_rewards(
    candidates: pa.Table,
    item_hashes: pa.Table,
    scores: pa.Table,
    weights: pa.Table,
    *,
    objective: str,
    epsilon: float = 1e-8,
) -> RewardTable:
    """Reward rows of the day's candidates.

    Args:
        candidates: rows of ``candidates``, groups of one size.
        item_hashes: item_id and item_hash of the day's items; scores of other content of an item do not count.
        scores: rows of ``aspect_scores`` of one judge version.
        weights: rows of ``user_weights`` of the day.
        objective: one of `fusion.OBJECTIVES`.
        epsilon: the eps of A2PO's gate.

    A group is judged when every candidate has scores and its state has weights for the same aspects. Groups that are
    not judged keep their business advantage; under the objectives `fusion.UNGATED` they get none.
    """
    candidates = candidates.sort_by([("decision_id", "ascending"), ("rank", "ascending")])
    groups = pc.count_distinct(candidates["decision_id"]).as_py()
    if candidates.num_rows % max(groups, 1):
        raise ValueError(f"{candidates.num_rows} candidates do not make {groups} groups of one size")
    size = candidates.num_rows // max(groups, 1)

    hashes = item_hashes["item_hash"].take(pc.index_in(candidates["item_id"], item_hashes["item_id"].combine_chunks()))
    score_row = _rows_of(
        pa.table({"state_id": candidates["state_id"], "item_id": candidates["item_id"], "item_hash": hashes}), scores
    )
    weight_row = _rows_of(candidates.select(["state_id"]), weights)
    found_scores, found_weights = scores.take(score_row), weights.take(weight_row)
    holistic = _holistic(found_scores, found_weights)
    judged = np.isfinite(holistic).reshape(groups, size).all(axis=1)

    business_reward = candidates["business_reward"].to_numpy().reshape(groups, size)
    fused = fusion.fuse(objective, business_reward, holistic.reshape(groups, size), judged, epsilon)
    rows = pa.table(
        {
            "decision_id": candidates["decision_id"],
            "state_id": candidates["state_id"],
            "rank": candidates["rank"],
            "item_id": candidates["item_id"],
            "judged": pa.array(np.repeat(judged, size)),
            "aspects": pc.fill_null(
                pc.coalesce(found_scores["aspects"], found_weights["aspects"]), pa.scalar([], pa.list_(pa.string()))
            ),
            "scores": found_scores["scores"],
            "weights": found_weights["weights"],
            "holistic": pa.array(holistic, from_pandas=True),
            "business_reward": candidates["business_reward"],
            "business_advantage": pa.array(fused.business_advantage.reshape(-1)),
            "semantic_advantage": pa.array(fused.semantic_advantage.reshape(-1)),
            "gate": pa.array(fused.gate.reshape(-1)),
            "advantage": pa.array(fused.advantage.reshape(-1)),
        }
    )
    return RewardTable(rows, asdict(fusion.fusion_facts(fused, judged)))


def _rows_of(keys: pa.Table, table: pa.Table) -> pa.Array:
    """For each row of ``keys`` the row of ``table`` with the same values in these columns, null where there is none."""
    left = keys.append_column("left", pa.array(np.arange(keys.num_rows)))
    right = table.select(keys.column_names).append_column("right", pa.array(np.arange(table.num_rows)))
    joined = left.join(right, keys.column_names, join_type="left outer").sort_by("left")
    return joined["right"].combine_chunks()


def _holistic(scores: pa.Table, weights: pa.Table) -> np.ndarray:
    """[rows] sum of weight times score; NaN where either is missing or they speak of different aspects."""
    usable = pc.and_(
        pc.and_(scores["scores"].is_valid(), weights["weights"].is_valid()),
        pc.equal(pc.binary_join(scores["aspects"], "\n"), pc.binary_join(weights["aspects"], "\n")),
    ).fill_null(False)
    usable_rows = np.nonzero(usable.to_numpy())[0]
    holistic = np.full(scores.num_rows, np.nan)
    if len(usable_rows):
        score, weight = (
            column.take(pa.array(usable_rows)).combine_chunks().flatten().to_numpy().astype(np.float64)
            for column in (scores["scores"], weights["weights"])
        )
        holistic[usable_rows] = (score * weight).reshape(len(usable_rows), -1).sum(axis=1)
    return holistic
