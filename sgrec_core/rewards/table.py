"""The rows of table ``rewards``: candidates, aspect scores and user weights joined and fused."""

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import ContractError
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.rewards.advantages import Groups
from sgrec_core.rewards.advantages.groups import SMALLEST_DEVIATION
from sgrec_core.rewards.fusion import fuse, fusion_facts
from sgrec_core.rewards.semantic import holistic, in_groups


@dataclass(frozen=True)
class RewardTable:
    """Rows of ``rewards`` without day and version, and what they look like from above."""

    rows: pa.Table
    facts: dict[str, float | int]


def fuse_rewards(
    candidates: pa.Table,
    catalogue: Catalogue,
    scores: pa.Table,
    weights: pa.Table,
    *,
    objective: str,
    epsilon: float = 1e-8,
    resolution: float = SMALLEST_DEVIATION,
) -> RewardTable:
    """Reward rows of the day's candidates.

    Args:
        candidates: rows of ``candidates``, groups of one size, and beside them item_hash, the content of the day's item
            (scores of other content do not count), and target_item, what was chosen at the decision.
        catalogue: the day's items.
        scores: rows of ``aspect_scores`` of one judge version.
        weights: rows of ``user_weights`` of the day.
        objective: one of `sgrec_core.rewards.advantages.METHODS`.
        epsilon: the eps of A2PO's gate.
        resolution: of the judge; see `Groups`.

    A group is judged when every candidate has scores and its state has weights for the same aspects. What becomes of
    groups that are not judged is the method's affair.

    Raises:
        ContractError: a candidate is not in the catalogue.
    """
    candidates, count = in_groups(candidates)
    shape = (count, candidates.num_rows // max(count, 1))
    score_row = _rows_of(candidates.select(["state_id", "item_id", "item_hash"]), scores)
    weight_row = _rows_of(candidates.select(["state_id"]), weights)
    found_scores, found_weights = scores.take(score_row), weights.take(weight_row)
    semantic = _semantic_rewards(found_scores, found_weights)
    judged = np.isfinite(semantic).reshape(shape).all(axis=1)

    groups = Groups.of(
        catalogue.trie,
        _known(catalogue, candidates["item_id"]).reshape(shape),
        candidates["business_reward"].to_numpy().reshape(shape),
        semantic.reshape(shape),
        judged,
        catalogue.index(candidates["target_item"]).reshape(shape)[:, 0],
        resolution=resolution,
    )
    fused = fuse(objective, groups, epsilon)
    # A candidate's tokens weigh alike in the loss, so their mean is what it gets as a whole.
    per_code = fused.advantage.ndim == 3
    advantage = fused.advantage.mean(axis=2) if per_code else fused.advantage
    of_codes = fused.advantage.reshape(candidates.num_rows, -1).tolist() if per_code else [None] * candidates.num_rows
    rows = pa.table(
        {
            "decision_id": candidates["decision_id"],
            "state_id": candidates["state_id"],
            "rank": candidates["rank"],
            "item_id": candidates["item_id"],
            "judged": pa.array(judged.repeat(shape[1])),
            "aspects": pc.fill_null(
                pc.coalesce(found_scores["aspects"], found_weights["aspects"]), pa.scalar([], pa.list_(pa.string()))
            ),
            "scores": found_scores["scores"],
            "weights": found_weights["weights"],
            "holistic": pa.array(semantic, from_pandas=True),
            "business_reward": candidates["business_reward"],
            "business_advantage": pa.array(fused.business_advantage.reshape(-1)),
            "semantic_advantage": pa.array(fused.semantic_advantage.reshape(-1)),
            "gate": pa.array(fused.gate.reshape(-1)),
            "advantage": pa.array(advantage.reshape(-1)),
            "code_advantages": pa.array(of_codes, pa.list_(pa.float64())),
        }
    )
    return RewardTable(rows, asdict(fusion_facts(fused, judged)))


def advantages_of(rewards: pa.Table, groups: int) -> np.ndarray:
    """What a method gave ``groups`` groups, in rows of ``rewards``: [N, G, L] if codes have their own, else [N, G]."""
    codes = rewards["code_advantages"].combine_chunks()
    if codes.null_count:
        return rewards["advantage"].to_numpy().reshape(groups, -1)
    return codes.flatten().to_numpy().reshape(groups, rewards.num_rows // groups, -1)


def _known(catalogue: Catalogue, item_ids: pa.ChunkedArray) -> np.ndarray:
    """Indices of items in the catalogue; ContractError where one is not."""
    items = catalogue.index(item_ids)
    if (items < 0).any():
        raise ContractError(
            f"table candidates: item {item_ids[int((items < 0).argmax())]} has no codes of tokenizer"
            f" {catalogue.tokenizer_version} on that day; re-run tokenize_items and generate_candidates"
        )
    return items


def _rows_of(keys: pa.Table, table: pa.Table) -> pa.Array:
    """For each row of ``keys`` the row of ``table`` with the same values in these columns, null where there is none."""
    left = keys.append_column("left", pa.array(np.arange(keys.num_rows)))
    right = table.select(keys.column_names).append_column("right", pa.array(np.arange(table.num_rows)))
    joined = left.join(right, keys.column_names, join_type="left outer").sort_by("left")
    return joined["right"].combine_chunks()


def _semantic_rewards(scores: pa.Table, weights: pa.Table) -> np.ndarray:
    """[rows] holistic scores; NaN where scores or weights are missing or they speak of different aspects."""
    usable = pc.and_(
        pc.and_(scores["scores"].is_valid(), weights["weights"].is_valid()),
        pc.equal(pc.binary_join(scores["aspects"], "\n"), pc.binary_join(weights["aspects"], "\n")),
    ).fill_null(False)
    usable_rows = np.nonzero(usable.to_numpy())[0]
    rewards = np.full(scores.num_rows, np.nan)
    if len(usable_rows):
        score, weight = (
            column.take(pa.array(usable_rows)).combine_chunks().flatten().to_numpy().astype(np.float64)
            for column in (scores["scores"], weights["weights"])
        )
        shape = (len(usable_rows), -1)
        rewards[usable_rows] = holistic(score.reshape(shape), weight.reshape(shape))
    return rewards
