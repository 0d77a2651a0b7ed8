"""Rows of ``rewards``: what is joined to what, and which groups count as judged."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rewarded_groups import fused

from sgrec_core.errors import ContractError
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.lake import load_contract
from sgrec_core.rewards.advantages import METHODS, Fused, Groups, Method, standardise
from sgrec_core.rewards.table import RewardTable, advantages_of, fuse_rewards

GROUPS, SIZE = 3, 4
ASPECTS = ["s0", "s1"]
TARGETS = {"d0": "i1", "d1": "i9", "d2": "i4"}
"""Of which the catalogue lacks i9."""
BUSINESS = np.array([[1.0, -0.5, -0.3, -0.2], [0.0, 0.0, 0.0, 0.0], [0.3, 0.1, 0.2, 0.9]])


def rows_of(table: str, rows: list[dict[str, Any]]) -> pa.Table:
    schema = load_contract(table).arrow_schema
    columns = [name for name in schema.names if not rows or name in rows[0]]
    return pa.Table.from_pylist(rows, schema=pa.schema([schema.field(name).with_nullable(True) for name in columns]))


def candidates() -> pa.Table:
    rows = [
        {
            "decision_id": f"d{g}",
            "state_id": f"s{g}",
            "rank": r,
            "item_id": f"i{(g + r) % 5}",
            "business_reward": BUSINESS[g, r],
        }
        for g in range(GROUPS)
        for r in range(SIZE)
    ]
    table = rows_of("candidates", rows[::-1])
    hashes = [f"h{item[1:]}" for item in table["item_id"].to_pylist()]
    targets = [TARGETS[decision] for decision in table["decision_id"].to_pylist()]
    return table.append_column("item_hash", pa.array(hashes)).append_column("target_item", pa.array(targets))


def catalogue(count: int = 5) -> Catalogue:
    """Codes of item 4 begin alone, those of the others in pairs."""
    ids = [f"i{number}" for number in range(count)]
    codes = pa.table({"item_id": ids, "codes": [[number // 2, number % 2] for number in range(count)]})
    return Catalogue.build(codes["item_id"], codes, codebook_size=3, tokenizer_version="t1")


def scores(**changes: Any) -> list[dict[str, Any]]:
    """Every candidate scored: s0 grows with the item's number; ``changes`` apply to the rows of group 2."""
    return [
        {"state_id": f"s{g}", "item_id": f"i{n}", "item_hash": f"h{n}", "aspects": ASPECTS, "scores": [n / 4, 0.5]}
        | (changes if g == 2 else {})
        for g in range(GROUPS)
        for n in range(5)
    ]


def weights() -> pa.Table:
    return rows_of(
        "user_weights",
        [{"state_id": f"s{g}", "aspects": ASPECTS, "weights": [0.25, 0.75]} for g in range(GROUPS)],
    )


def fuse(score_rows: list[dict[str, Any]], objective: str = "a2po", weight_rows: pa.Table | None = None) -> RewardTable:
    return fuse_rewards(
        candidates(),
        catalogue(),
        rows_of("aspect_scores", score_rows),
        weights() if weight_rows is None else weight_rows,
        objective=objective,
    )


def matrix(table: RewardTable, column: str) -> np.ndarray:
    return table.rows[column].to_numpy().reshape(GROUPS, SIZE)


def test_rows_hold_the_joined_scores_and_their_fusion() -> None:
    table = fuse(scores())
    number = np.array([[int(item[1:]) for item in row] for row in matrix(table, "item_id")])
    np.testing.assert_allclose(matrix(table, "holistic"), 0.25 * number / 4 + 0.75 * 0.5, rtol=1e-6)
    expected = fused("a2po", BUSINESS, 0.25 * number / 4)
    np.testing.assert_allclose(matrix(table, "advantage"), expected.advantage, rtol=1e-5)
    assert matrix(table, "judged").all()
    assert table.rows["rank"].to_pylist() == [0, 1, 2, 3] * GROUPS
    assert table.facts["groups"] == 3
    assert table.facts["groups_with_business_variance"] == 2
    assert table.facts["covered_groups"] == 2
    assert table.facts["mean_gate"] == pytest.approx(expected.gate[[0, 2]].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scores": None}, "the calls failed"),
        ({"item_hash": "old"}, "the items' content has changed since"),
        ({"aspects": ["s0", "s9"]}, "the weights are of other aspects"),
    ],
)
def test_groups_without_usable_scores_keep_their_business_advantage(changes: dict[str, Any], why: str) -> None:
    table = fuse(scores(**changes))
    assert matrix(table, "judged").tolist() == [[True] * SIZE, [True] * SIZE, [False] * SIZE], why
    np.testing.assert_allclose(matrix(table, "advantage")[2], standardise(BUSINESS)[2])
    assert (matrix(table, "gate")[2] == 0).all()
    assert table.facts["covered_groups"] == 1


def test_one_missing_candidate_leaves_the_whole_group_unjudged() -> None:
    table = fuse([row for row in scores() if (row["state_id"], row["item_id"]) != ("s0", "i2")])
    assert matrix(table, "judged").tolist() == [[False] * SIZE, [True] * SIZE, [True] * SIZE]
    found = table.rows.slice(0, SIZE)
    assert [value is None for value in found["scores"].to_pylist()] == [False, False, True, False]
    assert found["aspects"].to_pylist() == [ASPECTS] * SIZE


@pytest.mark.parametrize("without", ["scores", "weights", "both"])
def test_without_judge_or_aggregator_rewards_are_business_only(without: str) -> None:
    table = fuse(
        scores() if without == "weights" else [],
        weight_rows=rows_of("user_weights", []) if without != "scores" else None,
    )
    np.testing.assert_allclose(matrix(table, "advantage"), standardise(BUSINESS))
    assert not matrix(table, "judged").any()
    assert table.facts["agreement_rate"] == 0
    assert table.rows["aspects"].null_count == 0


def test_centred_a2po_takes_the_mean_of_each_group_off_and_keeps_what_was_not_judged() -> None:
    gated, centred = fuse(scores(scores=None)), fuse(scores(scores=None), objective="a2po_centred")
    advantage = matrix(gated, "advantage")
    np.testing.assert_allclose(matrix(centred, "advantage"), advantage - advantage.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(matrix(centred, "advantage")[2], standardise(BUSINESS)[2], atol=1e-12)


def test_objectives_that_need_every_group_judged_leave_the_others_out() -> None:
    summed = fuse(scores(scores=None), objective="adv_sum")
    semantic = matrix(summed, "semantic_advantage")
    np.testing.assert_allclose(matrix(summed, "advantage")[:2], (standardise(BUSINESS) + semantic)[:2])
    assert (matrix(summed, "advantage")[2] == 0).all()
    rewards = fuse(scores(), objective="reward_sum")
    expected = standardise(BUSINESS + matrix(rewards, "holistic"))
    np.testing.assert_allclose(matrix(rewards, "advantage"), expected, rtol=1e-6)
    alone = fuse(scores(), objective="business")
    np.testing.assert_allclose(matrix(alone, "advantage"), standardise(BUSINESS))


def test_methods_that_give_codes_their_own_advantages_fill_the_list_column(monkeypatch: pytest.MonkeyPatch) -> None:
    def right_codes(groups: Groups, epsilon: float) -> Fused:
        right = (groups.codes == groups.target_codes[:, None]) & ~groups.forced
        return Fused(right.astype(float), np.zeros_like(groups.business))

    assert fuse(scores()).rows["code_advantages"].null_count == GROUPS * SIZE
    monkeypatch.setitem(METHODS, "right_codes", Method(fuse=right_codes, reads_semantic=False))
    table = fuse(scores(), objective="right_codes")
    # The groups hold i0 to i3, i1 to i4, and i2, i3, i4, i0; the second code of i4 has no rival.
    expected = [[1, 0], [1, 1], [0, 0], [0, 1]], [[0, 0]] * 4, [[0, 1], [0, 0], [1, 0], [0, 1]]
    assert advantages_of(table.rows, GROUPS).tolist() == list(expected)
    assert matrix(table, "advantage").tolist() == np.mean(expected, axis=2).tolist()


def test_a_candidate_without_codes_is_named() -> None:
    with pytest.raises(ContractError, match="item i4 has no codes of tokenizer t1"):
        fuse_rewards(candidates(), catalogue(4), rows_of("aspect_scores", []), weights(), objective="a2po")


def test_groups_of_different_sizes_are_told() -> None:
    with pytest.raises(ValueError, match="11 candidates do not make 3 groups of one size"):
        fuse_rewards(candidates().slice(1), catalogue(), rows_of("aspect_scores", []), weights(), objective="a2po")
