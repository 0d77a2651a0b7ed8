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
from sgrec_core.night.held_out import held_out_requests
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


def test_logged_answers_count_for_the_price_and_bid_that_were_logged(registry_home, rows):  # noqa: F811
    """Even items were on sale, of odd ones no price was logged: theirs is the catalogue's."""
    number = [int(row["item_id"][1:]) for row in rows]
    price = [(item + 1) / 2 if item % 2 == 0 else None for item in number]
    priced = [{**row, "price": value} for row, value in zip(rows, price, strict=True)]
    bought = [{**row, "event_id": f"b-{row['event_id']}", "event_type": "conversion"} for row in priced]
    events = events_table(
        [*priced, *(row for row, made in zip(bought, rows, strict=True) if made["event_type"] == "click")]
    )
    settings = Settings(home=registry_home, states={"validation_share": 0.6}, evaluation={"weight_limit": 7.0})
    publish(settings, events.append_column("propensity", pa.array([1 / ITEMS] * events.num_rows)))
    run(settings)
    appraiser = Appraiser.of_night(Lake(settings.lake_root), Registry(settings), DAY, settings)
    assert appraiser is not None
    requests, logged = appraiser.requests, appraiser.logged
    paid = np.array([int(name[1:]) + 1 for name in requests.item]) * np.where(np.isnan(requests.price), 1.0, 0.5)
    assert np.isnan(requests.price).any()
    np.testing.assert_allclose(logged.rewards["gmv"], 1000 * paid * requests.answered["gmv"])
    np.testing.assert_allclose(logged.rewards["ecpm"], 1000 * requests.bid * requests.answered["ecpm"])
    # What the model expects of what was shown is at the bid that it was shown for.
    item = np.array([appraiser.context.item_index[name] for name in requests.item])
    at = (requests.row, item, requests.position)
    for bid, is_that in ((requests.bid, True), (None, False)):
        predicted = appraiser.model.expected(requests.states, at, appraiser.context, bid)["ecpm"]
        assert np.allclose(logged.predicted["ecpm"], predicted) == is_that
    # Weights are 24 where a list agrees with the log, above the limit of 7.
    ids = sorted(items_table()["item_id"].to_pylist())
    catalogue = Catalogue(pa.array(ids), np.arange(len(ids))[:, None], len(ids), "1")
    lists = np.tile(catalogue.index(pa.array(ids[:4])), (requests.states.num_rows, 1))
    assert appraiser.values(lists, catalogue).covered < 0.5


def test_requests_count_with_enough_history_and_impressions_with_a_place_and_a_bid(home, rows):  # noqa: F811
    share = 0.6
    held_out = is_validation_user([row["user_id"] for row in rows], share)
    mine = [row for row, out in zip(rows, held_out, strict=True) if out and row["event_type"] == "impression"]
    first, second, *_ = {row["request_id"] for row in mine}
    without = {(first, 0): "position", (second, 1): "bid"}
    changed = [
        {**row, **({name: None} if (name := without.get((row["request_id"], row["position"]))) else {})} for row in rows
    ]
    settings = Settings(home=home, states={"validation_share": share})
    publish(settings, events_table(changed).append_column("propensity", pa.nulls(len(rows), pa.float64())))

    def found(least: int) -> tuple[set[tuple[str, int]], set[int]]:
        requests = held_out_requests(
            Lake(settings.lake_root),
            DAY,
            settings.model_copy(update={"states": settings.states.model_copy(update={"min_history": least})}),
        )
        assert requests is not None
        of_user = requests.states["user_id"].to_pylist()
        times = requests.states["as_of"].cast(pa.int64()).to_pylist()
        shown = {
            (of_user[row], times[row], int(place)) for row, place in zip(requests.row, requests.position, strict=True)
        }
        return shown, {len(history) for history in requests.states["history"].to_pylist()}

    everything, lengths = found(0)
    assert {0, 1, 2} <= lengths
    named = {(row["request_id"], row["position"]): (row["user_id"], row["event_time"], row["position"]) for row in mine}
    assert everything < set(named.values())
    assert set(named.values()) - everything == {named[place] for place in without}
    longer, lengths = found(2)
    assert min(lengths) == 2
    assert longer < everything
