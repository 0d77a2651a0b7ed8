"""fit_business_reward on a real lake and registry."""

import json

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from test_business_reward import CATEGORIES, ITEMS, USERS, events_table, items_table, rows, users_table  # noqa: F401

from jobs import fit_business_reward
from sgrec_core.evaluation.value import Values
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.hashing import is_validation_user
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.business import day_context
from sgrec_core.night.rewards import business_reward
from sgrec_core.night.value import Appraiser
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.rewards.business import EcpmModel
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import BUSINESS_REWARD
from sgrec_core.settings import Settings

DAY = "2026-01-05"


def publish(settings: Settings, events: pa.Table, fingerprint: str = "ab" * 8, users: pa.Table | None = None) -> None:
    lake = Lake(settings.lake_root)
    for table, data in (("events", events), ("items", items_table()), ("users", users or users_table())):
        for column in load_contract(table).columns:
            if column.name not in (*data.column_names, "day"):
                values = ["h"] * data.num_rows if column.name == "item_hash" else [None] * data.num_rows
                data = data.append_column(column.name, pa.array(values, column.arrow_type))
        lake.publish(table, data, partition={"day": DAY}, fingerprint=fingerprint)


def run(settings: Settings, force: bool = False) -> Job:
    job = Job("fit_business_reward", DAY, settings, force=force)
    assert job.execute(fit_business_reward.run, Console(quiet=True)) == 0
    return job


def rewards(settings: Settings, states: pa.Table, items: list[list[str]]) -> np.ndarray:
    """What a later stage gets for these states and candidates."""
    ids = sorted(items_table()["item_id"].to_pylist())
    catalogue = Catalogue(pa.array(ids), np.arange(len(ids))[:, None], len(ids), "1")
    candidates = np.array([catalogue.index(pa.chunked_array([group])) for group in items])
    reward = business_reward(night_config(settings), Lake(settings.lake_root), DAY, settings, states, catalogue)
    return reward(np.arange(len(items)), candidates)


def night_config(settings: Settings) -> dict:
    registry = Registry(settings)
    return registry.load(of_night(registry, BUSINESS_REWARD, DAY, stage="fit_business_reward"))[1]


def test_impressions_with_bids_make_a_click_model_without_validation_users(registry_home, rows):  # noqa: F811
    settings = Settings(home=registry_home)
    publish(settings, events_table(rows))
    job = run(settings)
    config = night_config(settings)
    assert config["kind"] == "ecpm"
    assert job.facts["auc"] > 0.65
    held_out = is_validation_user([f"u{user}" for user in range(USERS)], settings.states.validation_share).sum()
    assert held_out > 0
    impressions = sum(row["event_type"] == "impression" for row in rows)
    assert job.facts["impressions"] == impressions - held_out * impressions // USERS
    # What a later stage does with it.
    context = day_context(Lake(settings.lake_root), DAY, settings)
    states = pa.table(
        {
            "user_id": ["u1"],
            "as_of": pa.array([rows[-1]["event_time"]], pa.timestamp("us", "UTC")),
            "profile": pa.array([None], pa.string()),
            "context": pa.array([json.dumps({"placement": "home"})]),
        }
    )
    reward = EcpmModel.from_config(config).reward(states, [[f"i{item}" for item in range(ITEMS)]], context)
    assert (reward > 0).all()
    assert reward.std() > 0


def test_nothing_changed_means_no_second_version_and_validation_users_change_nothing(registry_home, rows):  # noqa: F811
    settings = Settings(home=registry_home)
    publish(settings, events_table(rows))
    first = run(settings)
    assert run(settings).facts == first.facts
    run(settings, force=True)
    registry = Registry(settings)
    assert len(registry.versions(BUSINESS_REWARD)) == 1
    held_out = is_validation_user([row["user_id"] for row in rows], settings.states.validation_share)
    publish(settings, events_table([row for row, out in zip(rows, held_out, strict=True) if not out]), "cd" * 8)
    before = night_config(settings)
    run(settings)
    assert len(registry.versions(BUSINESS_REWARD)) == 2
    assert night_config(settings) == before


@pytest.mark.parametrize("changes", [{"bid": None}, {"event_type": "click"}])
def test_without_bids_or_impressions_the_ranking_rule_is_declared(registry_home, rows, changes):  # noqa: F811
    settings = Settings(home=registry_home)
    publish(settings, events_table([{**row, **changes} for row in rows[:200]]))
    job = run(settings)
    assert night_config(settings)["kind"] == "ranking"
    assert any("next-item ranking reward" in note for note in job.notes)
    states = pa.table({"user_id": ["u1", "u2"], "target_item": ["i0", "i5"]})
    assert [row.argmax() for row in rewards(settings, states, [["i3", "i0"], ["i5", "i4"]])] == [1, 0]


@pytest.mark.parametrize("known", [True, False])
def test_lists_of_what_users_like_are_worth_more_and_logged_answers_say_how_much(registry_home, rows, known):  # noqa: F811
    """Users click 40% in their favourite category and 5% elsewhere; slates were drawn alike, 1 of 24 at any place."""
    settings = Settings(home=registry_home, states={"validation_share": 0.6})
    propensity = pa.array([1 / ITEMS if known else None] * len(rows), pa.float64())
    publish(settings, events_table(rows).append_column("propensity", propensity))
    run(settings)
    appraiser = Appraiser.of_night(Lake(settings.lake_root), Registry(settings), DAY, settings)
    assert appraiser is not None
    users = [int(user[1:]) for user in appraiser.requests.states["user_id"].to_pylist()]
    ids = sorted(items_table()["item_id"].to_pylist())
    catalogue = Catalogue(pa.array(ids), np.arange(len(ids))[:, None], len(ids), "1")

    def expected(category: int) -> Values:
        lists = [[f"i{item}" for item in range(ITEMS) if (item - user) % CATEGORIES == category][:4] for user in users]
        return appraiser.values(np.stack([catalogue.index(pa.array(items)) for items in lists]), catalogue)

    liked, others = expected(0), expected(1)
    estimator = "doubly_robust" if known else "direct"
    assert (("ecpm", "doubly_robust") in liked.per_user) == known
    assert liked.estimator == "direct", "so few answers count in no score"
    # Bids lie between .1 and 1, .55 on average.
    assert liked.per_user["ecpm", estimator].mean() == pytest.approx(220, rel=0.35)
    assert others.per_user["ecpm", estimator].mean() == pytest.approx(27.5, abs=35)
    assert not any(outcome == "dislikes" for outcome, _ in liked.per_user), "nobody disliked anything: no model"
