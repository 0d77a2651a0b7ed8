"""Evidence over nights as the gate reads it: a recipe that turns is noticed within days."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from sgrec_core.evaluation.ranking import Ranking
from sgrec_core.evaluation.score import OfUsers
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.evaluation import evidence_by_night, evidence_of_recipes
from sgrec_core.settings import EvaluationSettings

USERS = np.array([f"u{number:03d}" for number in range(500)])


def nights(*means: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """A night for each mean: 500 users whose scores scatter by .1."""
    return [(USERS, np.random.default_rng(at).normal(mean, 0.1, len(USERS))) for at, mean in enumerate(means)]


def test_a_recipe_that_was_better_and_is_worse_is_stopped_within_a_week() -> None:
    found = evidence_by_night(nights(*[0.03] * 20, *[-0.03] * 7), alpha=0.05)
    assert found[19].is_enough
    assert found[-1].value >= found[-1].needed, "evidence for it never shrinks"
    assert found[-1].against >= found[-1].needed
    assert not found[-1].is_enough


def test_one_that_stays_better_is_not_stopped_by_looking_at_weeks() -> None:
    found = evidence_by_night(nights(*[0.03] * 30), alpha=0.05)
    assert all(night.is_enough for night in found[5:])
    assert [night.nights for night in found] == list(range(1, 31))


def test_a_score_far_outside_counts_as_the_bound() -> None:
    wild = [(USERS, np.where(np.arange(500) == 0, 40.0, -0.02)) for _ in range(5)]
    assert not evidence_by_night(wild, alpha=0.05)[-1].is_enough


def test_who_loses_much_with_a_few_users_is_not_better_because_a_loss_is_cut() -> None:
    """Everybody gains .02, but for another user each night, who loses 15: worse by .01 on average."""
    lost = [(USERS, np.where(np.arange(500) == night * 37 % 500, -15.0, 0.02)) for night in range(10)]
    found = evidence_by_night(lost, alpha=0.05)[-1]
    assert found.value >= found.needed, "cut to the bound it looks better"
    assert not found.is_enough
    assert "yet -0.0100 on average" in str(found)


def test_what_can_be_shown_hangs_on_the_users_of_all_nights() -> None:
    """A third of them appears each night: with these alone .024 were the least that any number of nights shows."""
    thirds = [(USERS[night % 3 :: 3], np.full(len(USERS[night % 3 :: 3]), 0.015)) for night in range(30)]
    found = evidence_by_night(thirds, alpha=0.05)
    assert found[0].users == 167
    assert found[-1].users == 500
    assert found[-1].is_enough
    assert "500 users can show 0.0080 or more" in str(found[-1])


def test_what_was_worse_for_long_is_not_enough_because_of_a_good_week() -> None:
    found = evidence_by_night(nights(*[0.03] * 10, *[-0.08] * 20, *[0.03] * 7), alpha=0.05)[-1]
    assert found.value >= found.needed
    assert found.against >= found.needed
    assert not found.is_enough


RECIPES = {"optimised": "o", "supervised": "s", "champion": "c"}


def test_evidence_is_of_the_two_recipes_in_their_roles_and_of_earlier_nights(tmp_path: Path) -> None:
    """Five nights say that it is better by .3: one alone of tonight's recipes, of an earlier day."""
    lake, settings = Lake(str(tmp_path)), EvaluationSettings()
    nights_of = {
        "2026-01-05": RECIPES,
        "2026-01-06": {**RECIPES, "optimised": "other"},
        "2026-01-07": {**RECIPES, "supervised": "other"},
        "2026-01-08": {**RECIPES, "optimised": "s", "supervised": "o"},
        "2026-01-20": RECIPES,
    }
    for day, recipes in nights_of.items():
        publish_results(lake, day, recipes, {"optimised": 0.5, "supervised": 0.2, "champion": 0.2})
    tonight = {role: cast(Ranking, Tonight(0.2)) for role in RECIPES}
    found = evidence_of_recipes(lake, "2026-01-10", RECIPES, tonight, settings)
    assert {pair: one.nights for pair, one in found.items()} == {
        ("optimised", "supervised"): 2,
        ("optimised", "champion"): 3,
        ("supervised", "champion"): 3,
    }
    assert found["optimised", "supervised"].mean == pytest.approx(0.15)
    assert found["supervised", "champion"].mean == pytest.approx(0)
    same = evidence_of_recipes(lake, "2026-01-10", {**RECIPES, "champion": "s"}, tonight, settings)
    assert ("supervised", "champion") not in same, "of one recipe there is nothing to show"
    assert not evidence_of_recipes(lake, "2026-01-10", {"optimised": "", "supervised": "s"}, tonight, settings)


@dataclass
class Tonight:
    """What evidence asks of a ranking."""

    ndcg: float

    def of_users(self) -> OfUsers:
        return OfUsers(USERS[:50], {"ndcg": np.full(50, self.ndcg)})


def publish_results(lake: Lake, day: str, recipes: Mapping[str, str], ndcg: Mapping[str, float]) -> None:
    rows = [
        {"day": date.fromisoformat(day), "role": role, "model": "m", "model_version": "1", "recipe": recipes[role],
         "user_id": user, "decisions": 1, "ndcg": ndcg[role], "hit_rate": 1.0, "deep_hit_rate": 1.0}
        for role in recipes
        for user in USERS[:50].tolist()
    ]  # fmt: skip
    schema = load_contract("candidate_results").arrow_schema
    table = pa.Table.from_pylist(rows, schema=schema)
    lake.publish("candidate_results", table, partition={"day": day}, fingerprint="0" * 32)
