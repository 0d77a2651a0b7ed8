"""The generator's stages on two days of a small world."""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from pydantic import ValidationError
from rewarded_groups import fused
from small_night import rows_of
from small_world import (
    CODES,
    DAY,
    ITEMS,
    LEVELS,
    NEXT_DAY,
    STAGES,
    item,
    new_world,
    publish,
    run_day,
    run_stage,
    start_day,
    world_settings,
    write_day,
)
from source import change_gate, copied, run_in

import jobs.evaluate_generator
import jobs.generate_candidates
import jobs.materialize_rewards
import jobs.train_generator
import jobs.train_supervised
from sgrec_core.errors import InputError, SettingsError, SgrecError
from sgrec_core.generator import rank_items
from sgrec_core.generator.language_model import LanguageModel
from sgrec_core.generator.recommend import Recommender
from sgrec_core.hashing import is_validation_user
from sgrec_core.judge.engines.tiny_model import make_tiny_model
from sgrec_core.judge.versions.accepted import accept
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.evaluation import compare_versions, evaluate_version
from sgrec_core.night.generators import generator_of_day
from sgrec_core.night.rewards import version_of_day
from sgrec_core.registry import CHALLENGER, CHAMPION, ModelVersion, Registry, promotions
from sgrec_core.registry.nights import of_night
from sgrec_core.rewards.advantages import METHODS, Fused, Groups, Method, standardise
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import GENERATOR, SUPERVISED, TOKENIZER
from sgrec_core.settings import PROJECT_ROOT, PolicySettings, Settings


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, dict[str, dict[str, Any]]]]:
    settings = new_world(tmp_path_factory.mktemp("world"))
    return settings, {day: run_day(settings, start_day(settings, day)) for day in (DAY, NEXT_DAY)}


def facts_of(reports: dict[str, dict[str, Any]], stage: str) -> dict[str, Any]:
    return reports[stage]["facts"]


def test_the_first_night_learns_and_is_promoted_over_popularity(two_nights: Any) -> None:
    settings, reports = two_nights
    first = reports[DAY]
    assert facts_of(first, "train_supervised")["decisions"] == 60 * 4
    assert facts_of(first, "train_supervised")["sequences"] == 60
    assert facts_of(first, "train_supervised")["warm_started_from"] == "scratch"
    evaluation = facts_of(first, "evaluate_generator")
    assert evaluation["ndcg@10_supervised"] > 0.5 > evaluation["ndcg@10_popularity"]
    assert evaluation["ndcg@10_optimised"] > 0.5
    assert evaluation["promoted"] is True
    assert "popularity" in evaluation["reason"]
    assert evaluation["champion_version"] is None


def test_a_fresh_home_serves_its_supervised_policy_until_evidence_says_otherwise(two_nights: Any) -> None:
    settings, reports = two_nights
    evaluation = facts_of(reports[DAY], "evaluate_generator")
    assert evaluation["serves"] == "supervised"
    assert "its recipe is not shown to be better than its start (evidence" in evaluation["reason"]
    registry = Registry(settings)
    serving = registry.pinned_champion(NEXT_DAY)
    assert serving is not None
    assert serving.tags["sgrec.copy_of"] == f"{SUPERVISED} version {evaluation['supervised_version']}"
    assert serving.version != evaluation["optimised_version"]
    start = registry.get(SUPERVISED, evaluation["supervised_version"])
    ours, theirs = (registry.load(version)[0] for version in (serving, start))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert of_night(registry, GENERATOR, DAY, stage="train_generator").version == evaluation["optimised_version"]


def test_results_of_users_are_kept_for_every_candidate_with_what_made_it(two_nights: Any) -> None:
    settings, reports = two_nights
    lake = Lake(settings.lake_root)
    nights = [lake.read("candidate_results", where={"day": day}) for day in (DAY, NEXT_DAY)]
    for day, rows in zip((DAY, NEXT_DAY), nights, strict=True):
        roles = {"supervised", "optimised", "popularity"} | ({"champion"} if day == NEXT_DAY else set())
        assert set(rows["role"].to_pylist()) == roles
        for role in roles:
            of_role = rows.filter(pc.equal(rows["role"], role))
            assert of_role["decisions"].to_pylist() == [4] * 10
            mean = facts_of(reports[day], "evaluate_generator")[f"ndcg@10_{role}"]
            assert pc.mean(of_role["ndcg"]).as_py() == pytest.approx(mean)
    recipes = [dict(zip(rows["role"].to_pylist(), rows["recipe"].to_pylist(), strict=True)) for rows in nights]
    assert recipes[0]["optimised"] == recipes[1]["optimised"] != recipes[0]["supervised"] == recipes[1]["champion"]
    assert recipes[0]["popularity"] == ""
    facts = [facts_of(reports[day], "evaluate_generator")["recipe_nights"] for day in (DAY, NEXT_DAY)]
    assert facts == [1, 2], "evidence goes on from night to night"


def test_the_second_night_starts_from_the_first_champion(two_nights: Any) -> None:
    settings, reports = two_nights
    second = reports[NEXT_DAY]
    assert facts_of(second, "train_supervised")["warm_started_from"] == "sgrec-generator version 2"
    assert facts_of(second, "train_supervised")["epochs"] == 2
    assert (
        facts_of(second, "train_supervised")["loss_first_epoch"]
        < facts_of(reports[DAY], "train_supervised")["loss_first_epoch"]
    )
    assert facts_of(second, "evaluate_generator")["champion_version"] == "2"
    assert "ndcg@10_champion" in facts_of(second, "evaluate_generator")
    registry = Registry(settings)
    assert registry.pinned_champion(DAY) is None
    assert registry.get(GENERATOR, CHALLENGER).day == NEXT_DAY


def test_another_catalogue_keeps_what_the_champion_knows_of_its_items(two_nights: Any, tmp_path: Path) -> None:
    """An item is gone and a new one has come: the next night still starts from the champion."""
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    settings = world_settings(home, supervised={"followers": 5})
    lake, registry = Lake(settings.lake_root), Registry(settings)
    codes = {"tokenizer_version": "t1", "item_id": "i48", "item_hash": "h48", "codes": [3, 0, 0]}
    lake.upsert("item_codes", pa.Table.from_pylist([codes], schema=load_contract("item_codes").arrow_schema))
    rows = [
        {"day": date.fromisoformat(NEXT_DAY), "item_id": f"i{n}", "title": f"item {n}", "item_hash": f"h{n}"}
        for n in [f"{number:02d}" for number in range(1, ITEMS + 1)]
    ]
    publish(lake, "items", rows, day=NEXT_DAY)
    champion = registry.get(GENERATOR, "2")
    before = registry.load(champion)[0]["item_head.own"]
    model, catalogue = generator_of_day(lake, registry, champion, NEXT_DAY)
    assert (len(catalogue), catalogue.item_ids[-1].as_py()) == (ITEMS, "i48")
    assert before.any(dim=1).all()
    assert torch.equal(model.item_head.own[:-1], before[1:])
    assert not model.item_head.own[-1].any()
    facts = run_stage(settings, "train_supervised", NEXT_DAY)["facts"]
    assert facts["warm_started_from"] == "sgrec-generator version 2"
    assert facts["items"] == ITEMS
    trained, _ = registry.load(of_night(registry, SUPERVISED, NEXT_DAY, stage="train_supervised"))
    assert trained["memory.followers"].shape == (ITEMS, 5), (
        "what is remembered is counted anew, in the shape of the settings"
    )


def test_a_champion_without_item_head_is_of_another_shape(two_nights: Any, tmp_path: Path) -> None:
    settings = world_settings(shutil.copytree(two_nights[0].home, tmp_path / "home"))
    registry = Registry(settings)
    tensors, config = registry.load(registry.get(GENERATOR, "1"))
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith(("item_head.", "memory."))}
    shape = {key: value for key, value in config["generator"].items() if key not in ("followers", "memory_weight")}
    old = registry.register(
        GENERATOR, day=DAY, fingerprint="old", tensors=plain, config={**config, "generator": {**shape, "items": 0}}
    )
    registry.promote(old)
    day = start_day(settings, "2026-01-07")
    report = run_stage(settings, "train_supervised", day)
    assert report["facts"]["warm_started_from"] == "scratch"
    assert any(f"trained from scratch: {old} has the shape" in note for note in report["notes"])


def test_every_generator_of_a_night_remembers_the_transitions_of_its_training(two_nights: Any) -> None:
    settings, reports = two_nights
    registry = Registry(settings)
    for day in (DAY, NEXT_DAY):
        supervised, _ = registry.load(of_night(registry, SUPERVISED, day, stage="train_supervised"))
        optimised, _ = registry.load(of_night(registry, GENERATOR, day, stage="train_generator"))
        assert supervised["memory.popularity"].sum() == facts_of(reports[day], "train_supervised")["decisions"]
        for name in ("followers", "counts", "totals", "popularity"):
            assert torch.equal(supervised[f"memory.{name}"], optimised[f"memory.{name}"])
        # Users walk round the circle of items in steps of one, and what follows next weighs most.
        followed = supervised["memory.totals"] > 0
        nearest = (torch.arange(ITEMS) + 1) % ITEMS
        assert torch.equal(supervised["memory.followers"][followed, 0], nearest[followed].int())


def test_candidates_are_real_different_items_with_valid_probabilities(two_nights: Any) -> None:
    settings, _ = two_nights
    rows = Lake(settings.lake_root).read("candidates", where={"day": DAY}).to_pylist()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["decision_id"], []).append(row)
    assert len(groups) == 40
    for group in groups.values():
        assert [row["rank"] for row in group] == list(range(6))
        assert len({row["item_id"] for row in group}) == 6
        totals = [sum(row["log_probs"]) for row in group]
        assert totals == sorted(totals, reverse=True)
        assert sum(np.exp(totals)) <= 1 + 1e-5
    states = {
        row["decision_id"]: row for row in Lake(settings.lake_root).read("user_states", where={"day": DAY}).to_pylist()
    }
    assert all(states[decision]["split"] == "train" for decision in groups)
    hit = next(
        group
        for decision, group in groups.items()
        if any(r["item_id"] == states[decision]["target_item"] for r in group)
    )
    assert sorted(row["business_reward"] for row in hit)[-1] == 1


def test_rewards_are_the_fusion_of_candidates_scores_and_weights(two_nights: Any) -> None:
    settings, reports = two_nights
    rows = (
        Lake(settings.lake_root)
        .read("rewards", where={"day": DAY})
        .sort_by([("decision_id", "ascending"), ("rank", "ascending")])
    )
    business = rows["business_reward"].to_numpy().reshape(40, 6)
    semantic = np.array([int(i[1:]) / ITEMS for i in rows["item_id"].to_pylist()], dtype=np.float32).reshape(40, 6)
    judged = rows["judged"].to_numpy().reshape(40, 6)
    # Who did not learn from the decisions finds not all of the chosen items, and without one there is nothing to weigh.
    assert (judged[1:] == (np.ptp(business, axis=1) > 0)[1:, None]).all()
    assert 30 < judged.all(axis=1).sum() < 40
    assert not judged[0].any()
    expected = fused("a2po", business, semantic.astype(np.float64), judged[:, 0])
    np.testing.assert_allclose(rows["advantage"].to_numpy().reshape(40, 6), expected.advantage, rtol=1e-9)
    np.testing.assert_allclose(rows["gate"].to_numpy().reshape(40, 6), expected.gate, rtol=1e-9)
    facts = facts_of(reports[DAY], "materialize_rewards")
    varied = expected.business_advantage.any(axis=1)
    assert facts["groups"] == 40
    assert facts["covered_groups"] == (varied & judged[:, 0]).sum()
    assert facts["mean_gate"] == pytest.approx(expected.gate[varied & judged[:, 0]].mean())


def test_running_a_day_again_changes_nothing(two_nights: Any) -> None:
    settings, reports = two_nights
    lake, registry = Lake(settings.lake_root), Registry(settings)
    tables = ("candidates", "rewards", "evaluations", "candidate_results")
    before = {table: (lake.version(table), lake.read(table, where={"day": NEXT_DAY})) for table in tables}
    models = {name: len(registry.versions(name)) for name in (SUPERVISED, GENERATOR)}
    again = {stage: run_stage(settings, stage, NEXT_DAY) for stage in STAGES}
    for table, (version, _) in before.items():
        assert lake.version(table) == version, table
    for stage, report in again.items():
        assert report["state"] == "skipped", stage
        assert report["facts"] == reports[NEXT_DAY][stage]["facts"], stage
    forced = run_day(settings, NEXT_DAY, force=True)
    for table, (_, rows) in before.items():
        assert lake.read(table, where={"day": NEXT_DAY}) == rows, table
    assert {name: len(registry.versions(name)) for name in (SUPERVISED, GENERATOR)} == models
    assert facts_of(forced, "evaluate_generator") == facts_of(reports[NEXT_DAY], "evaluate_generator")


def test_other_settings_make_another_reward_version_and_challenger_beside_the_old(two_nights: Any) -> None:
    settings, _ = two_nights
    other = world_settings(settings.home, fusion={"objective": "business"})
    run_stage(other, "materialize_rewards", NEXT_DAY)
    facts = run_stage(other, "train_generator", NEXT_DAY)["facts"]
    lake, registry = Lake(settings.lake_root), Registry(settings)
    versions = set(
        lake.read("rewards", where={"day": NEXT_DAY}, columns=["reward_version"])["reward_version"].to_pylist()
    )
    assert len(versions) == 2
    assert of_night(registry, GENERATOR, NEXT_DAY, stage="train_generator").version == facts["challenger_version"]
    # Back to the old settings: the old version is the night's again, and nothing new is made.
    back = run_stage(settings, "train_generator", NEXT_DAY)["facts"]
    assert of_night(registry, GENERATOR, NEXT_DAY, stage="train_generator").version != facts["challenger_version"]
    assert back["started_from"] == facts["started_from"]


def test_another_formula_makes_another_reward_version_beside_the_old(two_nights: Any, tmp_path: Path) -> None:
    settings, _ = two_nights
    lake = Lake(settings.lake_root)
    columns = ["decision_id", "rank", "reward_version", "gate", "advantage"]

    def rewards() -> pa.Table:
        rows = lake.read("rewards", where={"day": DAY}, columns=columns)
        return rows.sort_by([(name, "ascending") for name in columns[:3]])

    before, scores = rewards(), lake.version("aspect_scores")
    root = copied(tmp_path, change_gate)
    run_in(root, "-m", "jobs.materialize_rewards", "--day", DAY, SGREC_HOME=str(settings.home))
    after = rewards()
    old, new = (
        after.filter(pc.is_in(after["reward_version"], value_set=before["reward_version"]))
        if kept
        else after.filter(pc.invert(pc.is_in(after["reward_version"], value_set=before["reward_version"])))
        for kept in (True, False)
    )
    assert old == before
    assert new.num_rows == before.num_rows
    assert new["gate"].to_pylist() != old["gate"].to_pylist()
    assert lake.version("aspect_scores") == scores, "no call is paid for again"
    # What this code makes of the day is up to date still.
    assert run_stage(settings, "materialize_rewards", DAY)["state"] == "skipped"


VERSION_OF_DAY = """
import sys
from sgrec_core.lake import Lake
from sgrec_core.night.rewards import version_of_day
from sgrec_core.runtime.job import load_settings
settings = load_settings()
print(version_of_day(Lake(settings.lake_root), sys.argv[1], settings))
"""


@pytest.fixture(scope="module")
def version_of_rewards(two_nights: Any) -> str:
    return run_in(PROJECT_ROOT, "-c", VERSION_OF_DAY, DAY, SGREC_HOME=str(two_nights[0].home))


@pytest.mark.parametrize(
    ("file", "before", "after", "differs"),
    [
        pytest.param("judge/engines/embedding.py", "resolution = 1e-5", "resolution = 0.2", True, id="resolution"),
        pytest.param("rewards/semantic.py", "order / ratio", "order", True, id="queue of groups"),
        pytest.param("judge/calls/plan.py", "place / len(pairs)", "place", True, id="queue of pairs"),
        pytest.param("judge/calls/plan.py", "if len(new) > left", "if len(new) >= left", True, id="budget"),
        pytest.param("judge/calls/estimate.py", "BLOCK = ", "BLOCK = 1 + ", False, id="estimate"),
        pytest.param("judge/calls/drift.py", "def tell_drift(", "UNUSED = 1\n\n\ndef tell_drift(", False, id="drift"),
    ],
)
def test_whatever_changes_rewards_changes_their_version(
    two_nights: Any, version_of_rewards: str, tmp_path: Path, file: str, before: str, after: str, differs: bool
) -> None:
    """``two_nights`` and an edited copy of the project: what version the copy gives the day's rewards."""

    def edit(root: Path) -> None:
        path = root / "sgrec_core" / file
        assert path.read_text().count(before) == 1
        path.write_text(path.read_text().replace(before, after))

    edited = run_in(copied(tmp_path, edit), "-c", VERSION_OF_DAY, DAY, SGREC_HOME=str(two_nights[0].home))
    assert (edited != version_of_rewards) == differs


@pytest.mark.parametrize("judge", [{"sampling_ratio": 0.5}, {"max_calls": 7}, {"seed": 1}, {"max_pairs": 3}])
def test_what_is_asked_is_part_of_the_version_of_rewards(two_nights: Any, judge: dict[str, Any]) -> None:
    settings, _ = two_nights
    other = world_settings(settings.home, judge=judge)
    lake = Lake(settings.lake_root)
    assert version_of_day(lake, DAY, other) != version_of_day(lake, DAY, settings)


def test_a_policy_that_leaves_its_trust_region_is_a_finding_of_the_night(two_nights: Any, tmp_path: Path) -> None:
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    far = world_settings(home, policy={"learning_rate": 0.05, "epochs": 5, "batch_size": 4})
    notes = run_stage(far, "train_generator", NEXT_DAY)["notes"]
    assert any("outside its trust region: clip fraction" in note for note in notes), notes
    near = world_settings(home, policy={"learning_rate": 1e-6})
    assert not any("trust region" in note for note in run_stage(near, "train_generator", NEXT_DAY)["notes"])


@pytest.mark.parametrize("mode", ["stored", "on_policy"])
def test_groups_that_teach_nothing_are_a_finding_where_they_are_many(
    mode: str, two_nights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group in four tells its candidates apart, as on a set with a ranking reward."""

    def few(groups: Groups, epsilon: float) -> Fused:
        told = groups.items.sum(axis=1) % 4 == 0
        return Fused(groups.business_advantage * told[:, None], np.zeros_like(groups.business))

    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    policy = {"mode": mode, "batch_size": 2, "learning_rate": 1e-6}
    settings = world_settings(home, policy=policy, fusion={"objective": "reward_sum"})
    run_stage(settings, "materialize_rewards", NEXT_DAY)
    usual = run_stage(settings, "train_generator", NEXT_DAY)
    assert usual["facts"]["signal_share"] > 0.5
    assert not any("little signal" in note for note in usual["notes"])

    monkeypatch.setitem(METHODS, "reward_sum", Method(fuse=few, reads_semantic=False))
    run_stage(settings, "materialize_rewards", NEXT_DAY, force=True)
    report = run_stage(settings, "train_generator", NEXT_DAY, force=True)
    facts = report["facts"]
    assert 0.1 < facts["signal_share"] < 0.5
    assert facts["groups_with_advantage"] == pytest.approx(facts["signal_share"] * facts["groups"])
    assert any("little signal" in note for note in report["notes"])
    quiet = world_settings(
        home, policy=policy, fusion={"objective": "reward_sum"}, quality={"least_signal_share": 0.05}
    )
    again = run_stage(quiet, "train_generator", NEXT_DAY, force=True)
    assert not any("little signal" in note for note in again["notes"])


def test_an_older_night_moves_no_alias(two_nights: Any) -> None:
    settings, reports = two_nights
    registry = Registry(settings)
    promoted = registry.get(GENERATOR, of_night(registry, GENERATOR, NEXT_DAY, stage="train_generator").version)
    registry.promote(promoted)
    other = world_settings(settings.home, supervised={"learning_rate": 4e-3})
    facts = run_day(other, DAY)["evaluate_generator"]["facts"]
    assert facts["promoted"] is False
    assert "2026-01-06; an older night moves no alias" in facts["reason"]
    assert registry.get(GENERATOR, CHAMPION).version == promoted.version
    assert registry.get(GENERATOR, CHALLENGER).day == NEXT_DAY
    run_day(settings, DAY)


def test_a_held_night_does_all_but_promote(two_nights: Any, tmp_path: Path) -> None:
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    settings = world_settings(home, policy={"learning_rate": 2e-4})
    registry = Registry(settings)
    # Of another night than the one that is run again: that would keep what it has made serve.
    registry.promote(of_night(registry, GENERATOR, NEXT_DAY, stage="train_generator"))
    champion = registry.champion()
    registry.promotions.decide(lambda decisions: promotions.hold(decisions, "sale"))
    trained = run_stage(settings, "train_generator", NEXT_DAY)
    assert not [note for note in trained["notes"] if "alias" in note]
    assert registry.get(GENERATOR, CHALLENGER).version == trained["facts"]["challenger_version"]
    other = world_settings(home, supervised={"learning_rate": 4e-3})
    evaluated = run_day(other, DAY)["evaluate_generator"]
    assert evaluated["state"] == "finished"
    assert evaluated["facts"]["champion_version"] is None, "it was pinned to none"
    assert evaluated["facts"]["promoted"] is False
    assert evaluated["facts"]["reason"].startswith(str(promotions.held(registry.promotions.read())))
    assert registry.champion() == champion
    registry.promotions.decide(lambda decisions: promotions.release(decisions, "over"))
    assert run_stage(other, "evaluate_generator", DAY)["state"] == "skipped"
    assert registry.champion() == champion, "nights do not come back to what was held"


@pytest.mark.parametrize(("severity", "of_day"), [("critical", DAY), ("warning", DAY), ("critical", "2026-01-04")])
def test_a_critical_metric_out_of_its_band_holds_promotion_until_it_is_in_again(
    two_nights: Any, tmp_path: Path, severity: str, of_day: str
) -> None:
    """Of the night, or of a day that it learns from."""
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    settings = world_settings(home)
    shutil.rmtree(home / "lake" / "promotions")  # as if the night had not come to its decision
    lake, registry = Lake(settings.lake_root), Registry(settings)
    row = rows_of("night_metrics", of_day)[0] | {
        "value": 9.0,
        "low": 20.0,
        "high": 40.0,
        "how": "30, median of 1 night",
    }
    publish(lake, "night_metrics", [row | {"severity": severity, "status": "out"}], day=of_day, stage="ingest_events")
    facts = run_stage(settings, "evaluate_generator", DAY)["facts"]
    assert facts["promoted"] is (severity == "warning")
    if severity == "warning":
        return
    assert "events click 9, not 20 to 40 (30, median of 1 night)" in facts["reason"]
    assert registry.champion() is None
    assert (f"learns from {of_day}, which is amber: " in facts["reason"]) == (of_day != DAY)
    publish(lake, "night_metrics", [row | {"status": "in"}], day=of_day, stage="ingest_events")
    assert run_stage(settings, "evaluate_generator", DAY)["facts"]["promoted"] is True
    assert registry.champion() is not None


def test_a_registered_generator_serves_by_itself(two_nights: Any) -> None:
    settings, _ = two_nights
    registry = Registry(settings)
    recommender = Recommender(*registry.load(registry.get(GENERATOR, "1")))
    answers = recommender.recommend([[item(3), item(4)], []], count=5)
    assert [len(answer) for answer in answers] == [5, 5]
    assert answers[0][0][0] == item(5)
    assert [score for _, score in answers[0]] == sorted((score for _, score in answers[0]), reverse=True)
    with pytest.raises(InputError, match="item 'nowhere' is not among the 48 items"):
        recommender.recommend([["nowhere"]])


def test_the_test_split_is_scored_on_request_only(two_nights: Any) -> None:
    settings, _ = two_nights
    version, rows = evaluate_version(settings, "1", "test")
    assert version.version == "1"
    of = {(row["metric"], row["cutoff"]): row for row in rows if row["bucket"] == "all"}
    assert of["hit_rate", 10]["split"] == "test"
    assert of["hit_rate", 10]["users"] == 70
    for row in rows:
        if row["metric"] in ("coverage", "gini"):
            assert row["lower"] is row["upper"] is None, "no mean over users"
        else:
            assert row["lower"] <= row["value"] <= row["upper"]
    assert {row["bucket"] for row in rows} > {"all"}
    splits = set(Lake(settings.lake_root).read("evaluations", columns=["split"])["split"].to_pylist())
    assert splits == {"validation"}
    with pytest.raises(InputError, match="unknown split 'holdout'; valid are validation and test"):
        evaluate_version(settings, "1", "holdout")


def test_a_night_without_any_advantage_registers_its_starting_policy(two_nights: Any, tmp_path: Path) -> None:
    settings, _ = two_nights
    lake, registry = Lake(settings.lake_root), Registry(settings)
    day = start_day(settings, "2026-01-07")
    run_stage(settings, "train_supervised", day)
    run_stage(settings, "generate_candidates", day)
    flat = lake.read("candidates", where={"day": day})
    flat = flat.set_column(flat.column_names.index("business_reward"), "business_reward", pa.repeat(0.0, flat.num_rows))
    lake.publish("candidates", flat, partition={"day": day}, fingerprint="f" * 32)
    run_stage(settings, "materialize_rewards", day)
    report = run_stage(settings, "train_generator", day)
    assert report["facts"]["groups_with_advantage"] == 0
    assert any("equals the night's starting policy" in note for note in report["notes"])
    start, _ = registry.load(of_night(registry, SUPERVISED, day, stage="train_supervised"))
    challenger, _ = registry.load(of_night(registry, GENERATOR, day, stage="train_generator"))
    assert all(torch.equal(start[name], challenger[name]) for name in start)


def test_advantages_of_codes_go_from_the_method_through_the_table_into_training(
    two_nights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method of the papers to come, which `METHODS` alone knows: a code is right or wrong, whatever follows."""

    def right_codes(groups: Groups, epsilon: float) -> Fused:
        right = (groups.codes == groups.target_codes[:, None]) & ~groups.forced
        levels = [standardise(right[:, :, level].astype(float)) for level in range(LEVELS)]
        return Fused(np.stack(levels, axis=2), np.zeros_like(groups.business))

    monkeypatch.setitem(METHODS, "reward_sum", Method(fuse=right_codes, reads_semantic=False))
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    settings = world_settings(home, fusion={"objective": "reward_sum"}, policy={"learning_rate": 1e-3})
    lake = Lake(settings.lake_root)
    version = run_stage(settings, "materialize_rewards", NEXT_DAY)["facts"]["reward_version"]
    rows = lake.read("rewards", where={"day": NEXT_DAY, "reward_version": version})
    codes = np.stack(np.unravel_index(np.arange(ITEMS), (CODES,) * LEVELS), axis=1)
    states = lake.read("user_states", where={"day": NEXT_DAY}, columns=["decision_id", "target_item"])
    target = dict(zip(*(states[name].to_pylist() for name in ("decision_id", "target_item")), strict=True))
    groups: dict[str, list[tuple[int, list[float], float]]] = {}
    for row in rows.to_pylist():
        found = int(row["item_id"][1:]), row["code_advantages"], row["advantage"]
        groups.setdefault(row["decision_id"], []).append(found)
    for decision, candidates in groups.items():
        right = np.array([codes[number] == codes[int(target[decision][1:])] for number, _, _ in candidates])
        deviation = right.std(axis=0)
        expected = (right - right.mean(axis=0)) / np.where(deviation, deviation, np.inf)
        np.testing.assert_allclose([per_code for _, per_code, _ in candidates], expected, atol=1e-12)
        np.testing.assert_allclose([whole for _, _, whole in candidates], expected.mean(axis=1), atol=1e-12)

    per_code = run_stage(settings, "train_generator", NEXT_DAY)["facts"]
    told_apart = sum(np.ptp([codes for _, codes, _ in candidates], axis=0).any() for candidates in groups.values())
    assert per_code["groups_with_advantage"] == told_apart > 0
    registry = Registry(settings)
    learnt, _ = registry.load(registry.get(GENERATOR, per_code["challenger_version"]))
    flat = rows.set_column(
        rows.column_names.index("code_advantages"), "code_advantages", pa.nulls(rows.num_rows, pa.list_(pa.float64()))
    )
    partition = {"day": NEXT_DAY, "reward_version": version}
    lake.publish("rewards", flat, partition=partition, fingerprint="e" * 32)
    whole = run_stage(settings, "train_generator", NEXT_DAY)["facts"]
    other, _ = registry.load(registry.get(GENERATOR, whole["challenger_version"]))
    assert whole["steps"] == per_code["steps"] > 0
    assert any(not torch.equal(learnt[name], weights) for name, weights in other.items())

    fresh = world_settings(
        home, fusion={"objective": "reward_sum"}, policy={"mode": "on_policy", "learning_rate": 1e-3}
    )
    facts = run_stage(fresh, "train_generator", NEXT_DAY)["facts"]
    assert facts["groups_with_advantage"] > 0 == facts["on_policy_judge_paid"]


def test_on_policy_training_asks_the_judge_once_and_publishes_what_it_said(two_nights: Any, tmp_path: Path) -> None:
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    settings = world_settings(
        home, policy={"mode": "on_policy", "rollout": "sampling", "learning_rate": 1e-3}, judge={"sampling_ratio": 0.5}
    )
    lake = Lake(settings.lake_root)
    run_stage(settings, "materialize_rewards", NEXT_DAY)
    scored = lake.read("aspect_scores").num_rows

    facts = run_stage(settings, "train_generator", NEXT_DAY)["facts"]
    assert facts["on_policy_judge_paid"] > 0
    assert 0 < facts["covered_groups"] < facts["groups"]
    assert 0 <= facts["agreement_rate"] <= 1
    new = lake.read("aspect_scores")
    assert new.num_rows == scored + facts["on_policy_judge_paid"]

    # New scores of these states move neither the rewards nor what the night made.
    versions = Lake(settings.lake_root).version("rewards"), len(Registry(settings).versions(GENERATOR))
    run_stage(settings, "materialize_rewards", NEXT_DAY)
    run_stage(settings, "train_generator", NEXT_DAY)
    assert (lake.version("rewards"), len(Registry(settings).versions(GENERATOR))) == versions

    again = run_stage(settings, "train_generator", NEXT_DAY, force=True)["facts"]
    assert again == {**facts, "on_policy_judge_paid": 0}
    assert lake.read("aspect_scores").num_rows == new.num_rows


def test_on_policy_training_pays_no_more_than_it_may(two_nights: Any, tmp_path: Path) -> None:
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    policy = {"mode": "on_policy", "rollout": "sampling", "learning_rate": 1e-3}
    settings = world_settings(home, policy=policy, judge={"max_calls": 7})
    run_stage(settings, "materialize_rewards", NEXT_DAY)
    limited = run_stage(settings, "train_generator", NEXT_DAY)
    assert 0 < limited["facts"]["on_policy_judge_paid"] <= 7
    no_more = world_settings(home, policy={**policy, "seed": 1}, judge={"max_calls": 7})
    assert (
        run_stage(no_more, "train_generator", NEXT_DAY)["facts"]["on_policy_judge_paid"]
        <= 7 - limited["facts"]["on_policy_judge_paid"]
    )


FRESH: dict[str, dict[str, Any]] = {
    "policy": {"mode": "on_policy", "learning_rate": 1e-4},
    "fusion": {"objective": "business"},
}


def trained(home: Path, copy: Path, day: str = NEXT_DAY, **changes: Any) -> tuple[dict[str, Any], ModelVersion, Any]:
    """What a night makes on fresh groups in a copy of a home: the report of its stage, the challenger, its weights."""
    settings = world_settings(shutil.copytree(home, copy), **FRESH, **changes)
    registry = Registry(settings)
    run_stage(settings, "train_supervised", day)
    run_stage(settings, "materialize_rewards", day)
    report = run_stage(settings, "train_generator", day)
    assert not list((settings.home / "training").glob("*"))
    challenger = of_night(registry, GENERATOR, day, stage="train_generator")
    assert challenger.version == report["facts"]["challenger_version"]
    return report, challenger, registry.load(challenger)[0]


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], part: str = "") -> bool:
    names = {name for name in ours if name.startswith(part)}
    assert names
    assert names == {name for name in theirs if name.startswith(part)}
    return all(torch.equal(ours[name], theirs[name]) for name in names)


def test_on_policy_training_begins_with_the_champion_and_ends_with_the_clicks(two_nights: Any, tmp_path: Path) -> None:
    home, registry = two_nights[0].home, Registry(two_nights[0])
    champion = registry.pinned_champion(NEXT_DAY)
    assert champion is not None
    assert champion.day < NEXT_DAY
    report, challenger, weights = trained(home, tmp_path / "one")
    facts = report["facts"]
    assert report["notes"] == []
    assert facts["started_from"] == challenger.tags["sgrec.policy_version"] == str(champion)
    assert facts["policy_mode"] == challenger.tags["sgrec.policy_mode"] == "on_policy"
    assert facts["groups"] >= facts["groups_with_advantage"] > 20

    supervised = of_night(registry, SUPERVISED, NEXT_DAY, stage="train_supervised")
    assert challenger.tags["sgrec.held_out_share"] == supervised.tags["sgrec.held_out_share"]
    clicks, _ = registry.load(supervised)
    assert not same(weights, clicks), "rewards are in it"
    assert same(weights, clicks, "memory."), "and all the day's clicks"
    assert facts["loss_of_clicks"] == pytest.approx(registry.metrics(supervised)["loss_last_epoch"], rel=0.05)
    again, _, same_weights = trained(home, tmp_path / "again")
    assert again["facts"] == facts
    assert same(same_weights, weights), "the same inputs give the same weights"


def test_on_policy_training_without_any_advantage_is_the_clicks_alone(
    two_nights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the champion on, bit for bit as the supervised policy learns them."""

    def nothing(groups: Groups, epsilon: float) -> Fused:
        return Fused(np.zeros_like(groups.business), np.zeros_like(groups.business))

    monkeypatch.setitem(METHODS, "business", Method(fuse=nothing, reads_semantic=False))
    registry = Registry(two_nights[0])
    supervised, _ = registry.load(of_night(registry, SUPERVISED, NEXT_DAY, stage="train_supervised"))
    report, _, weights = trained(two_nights[0].home, tmp_path / "home")
    assert report["facts"]["policy_mode"] == "on_policy"
    assert any("equals the night's starting policy" in note for note in report["notes"])
    assert same(weights, supervised)


@pytest.mark.parametrize(("day", "changes"), [(DAY, {}), (NEXT_DAY, {"supervised": {"width": 16}})])
def test_where_no_champion_can_be_optimised_on_policy_training_is_on_stored_groups(
    two_nights: Any, tmp_path: Path, day: str, changes: dict[str, Any]
) -> None:
    """A first night, and a night of another shape than its champion's."""
    report, challenger, weights = trained(two_nights[0].home, tmp_path / "home", day, **changes)
    supervised = of_night(Registry(world_settings(tmp_path / "home")), SUPERVISED, day, stage="train_supervised")
    said = "policy.mode=on_policy: trained on the stored groups all the same"
    assert any(note.startswith(said) for note in report["notes"]), report["notes"]
    assert report["facts"]["started_from"] == challenger.tags["sgrec.policy_version"] == str(supervised)
    assert report["facts"]["policy_mode"] == challenger.tags["sgrec.policy_mode"] == "stored"
    assert "loss_of_clicks" not in report["facts"]
    as_stored = world_settings(
        tmp_path / "home", fusion=FRESH["fusion"], policy={**FRESH["policy"], "mode": "stored"}, **changes
    )
    stored = run_stage(as_stored, "train_generator", day)
    assert stored["facts"]["challenger_version"] == challenger.version, "and so is its recipe"


def test_settings_of_the_clicks_count_in_on_policy_training_alone(two_nights: Any, tmp_path: Path) -> None:
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    more, other_shape = {"warm_epochs": 3}, {"width": 16}

    def version(supervised: dict[str, Any], **changes: Any) -> str:
        settings = world_settings(home, supervised=supervised, **changes)
        run_stage(settings, "materialize_rewards", NEXT_DAY)
        return str(run_stage(settings, "train_generator", NEXT_DAY)["facts"]["challenger_version"])

    assert version({}) == version(more)
    assert version({}, **FRESH) != version(more, **FRESH)
    settings = world_settings(home, supervised=other_shape, **FRESH)
    with pytest.raises(SgrecError, match="run `python -m jobs.train_supervised --day 2026-01-06` first"):
        jobs.train_generator.run(Job("train_generator", NEXT_DAY, settings))


def test_on_policy_training_rolls_out_no_decision_twice() -> None:
    with pytest.raises(ValidationError, match="mode=on_policy needs epochs=1"):
        PolicySettings(mode="on_policy", epochs=2)
    assert PolicySettings(mode="on_policy", updates=2).epochs == 1
    assert PolicySettings(mode="stored", epochs=2).epochs == 2


def test_on_policy_training_refuses_an_engine_of_another_environment(two_nights: Any) -> None:
    settings = world_settings(two_nights[0].home, policy={"mode": "on_policy"}, judge={"engine": "vllm"})
    with pytest.raises(SettingsError, match="policy.mode=stored"):
        jobs.train_generator.run(Job("train_generator", NEXT_DAY, settings))


def test_on_policy_training_asks_no_judge_that_passed_no_gate(two_nights: Any, tmp_path: Path) -> None:
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    accept(world_settings(home, judge={"engine": "vllm"}), NEXT_DAY, "first", "the first judge of this home")
    settings = world_settings(home, policy={"mode": "on_policy", "rollout": "sampling", "learning_rate": 1e-3})
    with pytest.raises(SettingsError, match="has passed no gate"):
        jobs.train_generator.run(Job("train_generator", NEXT_DAY, settings))


def test_a_killed_training_job_goes_on_where_it_was(two_nights: Any) -> None:
    """Really killed, and compared with a forced run from the start, which the same inputs give the same figures."""
    settings, _ = two_nights
    changes = {"epochs": 100, "dropout": 0.1, "checkpoint_steps": 20}
    other = world_settings(settings.home, supervised=changes)
    sections = other.model_dump(include={"supervised"})["supervised"]
    environment = {f"SGREC_SUPERVISED__{name.upper()}": str(value) for name, value in sections.items()}
    environment |= {**os.environ, "SGREC_HOME": str(settings.home), "SGREC_THREADS": "1"}
    checkpoints = settings.home / "training"
    command = [sys.executable, "-m", "jobs.train_supervised", "--day", DAY]
    with subprocess.Popen(command, env=environment, cwd=PROJECT_ROOT) as job:
        while not list(checkpoints.glob(f"{DAY}-*/checkpoints/step-*")):
            assert job.poll() is None
            time.sleep(0.01)
        job.kill()
    reached = int(next(checkpoints.glob(f"{DAY}-*/checkpoints/step-*")).name[5:])
    lines = settings.reports(DAY) / "progress.jsonl"
    before = len(lines.read_text().splitlines())
    resumed = run_stage(other, "train_supervised", DAY)
    done = [json.loads(line).get("done") for line in lines.read_text().splitlines()[before:]]
    assert next(count for count in done if count) >= 60 * reached
    assert not list(checkpoints.iterdir())
    undisturbed = run_stage(other, "train_supervised", DAY, force=True)
    assert resumed["facts"] == undisturbed["facts"]
    run_stage(settings, "train_supervised", DAY)


def test_a_training_job_of_two_processes_does_what_one_does(two_nights: Any) -> None:
    settings, _ = two_nights
    losses = []
    for processes in (1, 2):
        other = world_settings(settings.home, supervised={"epochs": 3, "processes": processes})
        facts = run_stage(other, "train_supervised", DAY)["facts"]
        losses.append([facts["loss_first_epoch"], facts["loss"]])
    run_stage(settings, "train_supervised", DAY)
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-3)


def test_a_language_model_reads_the_histories_of_a_night_by_a_setting(two_nights: Any, tmp_path: Path) -> None:
    """Trained, rolled out, improved, evaluated and served; the next night starts from it."""
    home = shutil.copytree(two_nights[0].home, tmp_path / "home")
    backbone = make_tiny_model(tmp_path / "model")
    changes = {"backbone": backbone, "epochs": 2, "learning_rate": 1e-3, "warm_epochs": 1}
    settings = world_settings(home, supervised=changes, rollout={"max_groups": 10})
    reports = run_day(settings, NEXT_DAY)
    facts = facts_of(reports, "train_supervised")
    assert facts["warm_started_from"] == "scratch"
    assert any("has the shape" in note for note in reports["train_supervised"]["notes"])
    assert facts["loss"] < facts["loss_first_epoch"]
    assert facts_of(reports, "evaluate_generator")["ndcg@10_optimised"] > 0.1
    registry = Registry(settings)
    champion = of_night(registry, GENERATOR, NEXT_DAY, stage="train_generator")
    recommender = Recommender(*registry.load(champion))
    assert isinstance(recommender.model.encoder, LanguageModel)
    assert recommender.model.item_head is not None
    assert recommender.model.memory is not None
    (answer,) = recommender.recommend([[item(3), item(4)]], count=5, exclude_history=False)
    model, catalogue = generator_of_day(Lake(settings.lake_root), registry, champion, NEXT_DAY)
    best = rank_items(model, catalogue.trie, np.array([[3, 4]]), width=50, count=5).items[0].tolist()
    assert [found for found, _ in answer] == [item(number) for number in best]
    assert run_stage(settings, "train_supervised", NEXT_DAY)["state"] == "skipped"

    registry.promote(champion)
    write_day(Lake(settings.lake_root), "2026-01-08")
    registry.set_alias(registry.versions(TOKENIZER)[0], "night-2026-01-08")
    following = run_stage(settings, "train_supervised", "2026-01-08")
    assert following["facts"]["warm_started_from"] == str(champion), following["notes"]
    (backbone / "chat_template.jinja").write_text("other words")
    assert run_stage(settings, "train_supervised", "2026-01-08")["state"] == "finished", "its content counts"
    nowhere = world_settings(home, supervised={"backbone": tmp_path / "nowhere"})
    with pytest.raises(SettingsError, match="nowhere holds no config.json; valid are 'transformer'"):
        jobs.train_supervised.run(Job("train_supervised", NEXT_DAY, nowhere))


def test_missing_inputs_are_named_with_the_command_to_run(tmp_path: Path) -> None:
    settings = world_settings(tmp_path)
    with pytest.raises(SgrecError, match="python -m jobs.tokenize_items --day 2026-01-05"):
        jobs.train_supervised.run(Job("train_supervised", DAY, settings))
    with pytest.raises(SgrecError, match="python -m jobs.train_supervised --day 2026-01-05"):
        jobs.generate_candidates.run(Job("generate_candidates", DAY, settings))
    with pytest.raises(SgrecError, match="python -m jobs.generate_candidates --day 2026-01-05"):
        jobs.materialize_rewards.run(Job("materialize_rewards", DAY, settings))
    with pytest.raises(SgrecError, match="python -m jobs.train_supervised --day 2026-01-05"):
        jobs.train_generator.run(Job("train_generator", DAY, settings))
    with pytest.raises(SgrecError, match="python -m jobs.train_supervised --day 2026-01-05"):
        jobs.evaluate_generator.run(Job("evaluate_generator", DAY, settings))


def test_a_larger_share_compares_on_no_user_that_a_model_has_read(tmp_path: Path) -> None:
    """`states.validation_share` is raised between two nights: whom it adds the champion was trained on."""
    few, many = (new_world(tmp_path, states={"validation_share": share}) for share in (0.15, 0.4))
    first = run_day(few, start_day(few, DAY, share=0.15))
    assert facts_of(first, "evaluate_generator")["promoted"] is True
    second = run_day(many, start_day(many, NEXT_DAY, share=0.4))

    users = [f"u{number:02d}" for number in range(70)]
    never_read = {user for user, out in zip(users, is_validation_user(users, 0.15), strict=True) if out}
    lake = Lake(many.lake_root)
    held_out = set(lake.read("user_states", where={"day": NEXT_DAY, "split": "validation"})["user_id"].to_pylist())
    assert never_read < held_out
    asked = lake.read("candidate_results", where={"day": NEXT_DAY})["user_id"].to_pylist()
    assert set(asked) == never_read
    (note,) = second["evaluate_generator"]["notes"]
    assert "compared on 0.15 of the users, not on states.validation_share=0.4" in note
    optimised = of_night(Registry(many), GENERATOR, NEXT_DAY, stage="train_generator")
    assert optimised.tags["sgrec.held_out_share"] == "0.15", "its start says it, and it is what may serve"

    # From scratch as well: the first day, which the second trains on too, was split otherwise.
    other = world_settings(tmp_path, states={"validation_share": 0.4}, supervised={"width": 16})
    run_day(other, NEXT_DAY)
    asked = lake.read("candidate_results", where={"day": NEXT_DAY, "role": "supervised"})["user_id"].to_pylist()
    assert set(asked) == never_read


def test_a_day_whose_night_stopped_before_it_trained_counts_among_what_models_have_read(tmp_path: Path) -> None:
    """It was split by a smaller share and made no policy that would say so."""
    few, many = (new_world(tmp_path, states={"validation_share": share}) for share in (0.15, 0.4))
    start_day(few, DAY, share=0.15)
    run_day(many, start_day(many, NEXT_DAY, share=0.4))
    lake = Lake(many.lake_root)
    read = lake.read("user_states", where={"day": DAY, "split": "train"})["user_id"].to_pylist()
    asked = lake.read("candidate_results", where={"day": NEXT_DAY})["user_id"].to_pylist()
    assert asked
    assert not set(asked) & set(read)


def test_a_comparison_by_hand_says_what_a_night_asks_of_other_nights(two_nights: Any) -> None:
    """It used to say that the gate would pass what its night had refused for want of evidence."""
    settings, _ = two_nights
    registry = Registry(settings)
    optimised = of_night(registry, GENERATOR, NEXT_DAY, stage="train_generator")
    champion = registry.pinned_champion(NEXT_DAY)
    assert champion is not None
    _, _, asked, day = compare_versions(settings, optimised.version, champion.version)
    assert day == NEXT_DAY
    assert asked == ["than its start", f"than that of {champion}"]
    assert not compare_versions(settings, champion.version, champion.version)[2]


def test_a_rerun_with_another_recipe_does_not_replace_what_the_night_has_made_serve(tmp_path: Path) -> None:
    settings = new_world(tmp_path)
    run_day(settings, start_day(settings, DAY))
    serving = Registry(settings).champion()
    assert serving is not None
    other = world_settings(tmp_path, supervised={"epochs": 30})
    evaluation = facts_of(run_day(other, DAY), "evaluate_generator")
    assert Registry(other).champion() == serving
    assert evaluation["promoted"] is False
    assert f"{serving}, which this night has made serve, is of another recipe and stays" in evaluation["reason"]
