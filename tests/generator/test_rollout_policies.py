"""Nobody rolls out a decision that it was trained on: seen in the registered models and the table of candidates."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from registered_models import register
from small_world import (
    CODES,
    DAY,
    ITEMS,
    LEVELS,
    NEXT_DAY,
    held_out_users,
    item,
    new_world,
    round_the_circle,
    run_day,
    run_stage,
    start_day,
    world_settings,
    write_scores,
)

import jobs.train_generator
from sgrec_core.errors import SgrecError
from sgrec_core.evaluation.significance import two_proportions
from sgrec_core.generator import Beams, Generator, rank_items
from sgrec_core.generator.dataset import Catalogue, history_matrix, whole_histories
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.queries import decisions
from sgrec_core.night import supervised
from sgrec_core.night.generators import as_generator, generator_of_day
from sgrec_core.night.rollouts import fold_of, rollout_policies, why_cross_fit
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import GENERATOR, ROLLOUT, SUPERVISED, TOKENIZER
from sgrec_core.settings import Settings

THIRD_DAY = "2026-01-07"


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, dict[str, dict[str, Any]]]]:
    settings = new_world(tmp_path_factory.mktemp("world"))
    return settings, {day: run_day(settings, start_day(settings, day)) for day in (DAY, NEXT_DAY)}


@pytest.fixture
def after_two_nights(two_nights: Any, tmp_path: Path) -> Settings:
    """A copy of their home."""
    return world_settings(shutil.copytree(two_nights[0].home, tmp_path / "home"))


def policies_of(settings: Settings, day: str) -> list[ModelVersion]:
    registry = Registry(settings)
    return rollout_policies(registry, of_night(registry, SUPERVISED, day, stage="train_supervised"))


def counted(states: pa.Table) -> list[int]:
    """How often each item is the target of a decision."""
    numbers = [int(name[1:]) for name in states["target_item"].to_pylist()]
    return np.bincount(numbers, minlength=ITEMS).tolist()


def learnt_by(settings: Settings, policy: ModelVersion) -> list[int]:
    """The same of the decisions that a registered policy was trained on: its memory has counted them."""
    return Registry(settings).load(policy)[0]["memory.popularity"].int().tolist()


def groups_of(settings: Settings, day: str) -> dict[str, str]:
    """Who rolled out each decision."""
    rows = Lake(settings.lake_root).read("candidates", where={"day": day}, columns=["decision_id", "policy_version"])
    return dict(zip(*(rows[name].to_pylist() for name in ("decision_id", "policy_version")), strict=True))


def test_a_first_night_rolls_out_each_half_of_its_users_by_what_the_other_half_taught(two_nights: Any) -> None:
    settings, reports = two_nights
    policies = policies_of(settings, DAY)
    assert [policy.name for policy in policies] == [ROLLOUT] * 2
    assert reports[DAY]["train_supervised"]["facts"]["cross_fitted_because"] == "no champion served before"
    assert reports[DAY]["train_supervised"]["facts"]["cross_fitting_seconds"] > 0
    states = decisions(Lake(settings.lake_root), [DAY], "train", ["decision_id", "user_id", "target_item"])
    folds = fold_of(states["user_id"].to_pylist(), settings.rollout.seed)
    for fold, policy in enumerate(policies):
        assert learnt_by(settings, policy) == counted(states.filter(pa.array(folds != fold)))
    fold_of_decision = dict(zip(states["decision_id"].to_pylist(), folds.tolist(), strict=True))
    groups = groups_of(settings, DAY)
    assert len(groups) == 40
    assert {groups[decision] == str(policies[fold_of_decision[decision]]) for decision in groups} == {True}
    assert set(groups.values()) == {str(policy) for policy in policies}


def test_the_next_night_is_rolled_out_by_the_champion_which_knows_the_day_before_alone(two_nights: Any) -> None:
    settings, reports = two_nights
    (champion,) = policies_of(settings, NEXT_DAY)
    assert (champion.name, champion.day) == (GENERATOR, DAY)
    states = decisions(Lake(settings.lake_root), [DAY], "train", ["target_item"])
    assert learnt_by(settings, champion) == counted(states)
    groups = groups_of(settings, NEXT_DAY)
    assert len(groups) == 40
    assert set(groups.values()) == {str(champion)}
    assert all(decision.endswith(NEXT_DAY) for decision in groups)
    assert "cross_fitted_because" not in reports[NEXT_DAY]["train_supervised"]["facts"]
    assert len(Registry(settings).versions(ROLLOUT)) == 2, "none is trained where the champion does"


def as_rolled_out(settings: Settings, model: Generator, catalogue: Catalogue, states: pa.Table) -> Beams:
    """What ``model`` gives for the groups of decisions, as a night asks it."""
    return rank_items(
        model.without_memory(),
        catalogue.trie,
        history_matrix(states["history"], catalogue, model.config.max_items),
        width=settings.rollout.group_size,
        excluded=whole_histories(states["history"], catalogue),
    )


def test_log_probabilities_of_the_table_are_those_of_who_rolled_out(two_nights: Any) -> None:
    settings, _ = two_nights
    lake, (champion,) = Lake(settings.lake_root), policies_of(settings, NEXT_DAY)
    rows = lake.read("candidates", where={"day": NEXT_DAY}).sort_by(
        [("decision_id", "ascending"), ("rank", "ascending")]
    )
    states = decisions(lake, [NEXT_DAY], "train", ["decision_id", "history"]).sort_by("decision_id")
    states = states.filter(pc.is_in(states["decision_id"], value_set=rows["decision_id"].unique()))
    model, catalogue = generator_of_day(lake, Registry(settings), champion, NEXT_DAY)
    beams = as_rolled_out(settings, model, catalogue, states)
    assert rows["item_id"].to_pylist() == catalogue.ids(beams.items.numpy().ravel())
    stored = np.array(rows["log_probs"].to_pylist()).reshape(beams.log_probs.shape)
    np.testing.assert_allclose(stored, beams.log_probs.numpy(), atol=1e-5)


def test_another_tokenizer_cross_fits(after_two_nights: Settings) -> None:
    settings, day = after_two_nights, start_day(after_two_nights, THIRD_DAY)
    registry = Registry(settings)
    codes = np.stack(np.unravel_index(np.arange(ITEMS)[::-1], (CODES,) * LEVELS), axis=1)
    rows = [
        {"tokenizer_version": "t2", "item_id": item(n), "item_hash": f"h{n}", "codes": codes[n].tolist()}
        for n in range(ITEMS)
    ]
    schema = load_contract("item_codes").arrow_schema
    Lake(settings.lake_root).upsert("item_codes", pa.Table.from_pylist(rows, schema=schema))
    config = {"tokenizer_version": "t2", "codebook_size": CODES, "levels": LEVELS}
    other = registry.register(
        TOKENIZER, day=day, fingerprint="b" * 32, tensors={"nothing": torch.zeros(1)}, config=config
    )
    registry.set_alias(other, f"night-{day}")
    facts = run_stage(settings, "train_supervised", day)["facts"]
    assert facts["cross_fitted_because"] == "sgrec-generator version 2 reads other semantic ids"
    assert [policy.name for policy in policies_of(settings, day)] == [ROLLOUT] * 2


def test_days_that_repeat_decisions_cross_fit(after_two_nights: Settings) -> None:
    """A set without time that is given out anew every day: the champion of the day before knows all of it."""
    settings = after_two_nights
    day = start_day(settings, THIRD_DAY, lambda _, user: round_the_circle(DAY, user))
    facts = run_stage(settings, "train_supervised", day)["facts"]
    said = "100% of the day's decisions stand in days that sgrec-generator version 2 was trained on"
    assert facts["cross_fitted_because"] == said


def test_single_decisions_that_the_champion_knows_are_not_rolled_out(after_two_nights: Settings) -> None:
    """As of requests that go on over midnight."""
    settings = world_settings(after_two_nights.home, rollout={"max_groups": 240})
    known = {"u05", "u06"}
    day = start_day(settings, THIRD_DAY, lambda day, user: round_the_circle(DAY if user in (5, 6) else day, user))
    run_stage(settings, "train_supervised", day)
    (champion,) = policies_of(settings, day)
    assert champion.name == GENERATOR
    assert run_stage(settings, "generate_candidates", day)["facts"]["groups"] == (60 - len(known)) * 4
    states = decisions(Lake(settings.lake_root), [day], "train", ["decision_id", "user_id"])
    users = dict(zip(*(states[name].to_pylist() for name in ("decision_id", "user_id")), strict=True))
    assert not {users[decision] for decision in groups_of(settings, day)} & known


def test_a_champion_of_the_night_itself_or_of_a_later_one_rolls_out_nothing(registry_home: Path) -> None:
    settings = Settings()
    lake, registry = Lake(settings.lake_root), Registry(settings)
    for made in (DAY, NEXT_DAY):
        champion = register(registry, made)
        found = why_cross_fit(lake, DAY, settings, champion, "t1")
        assert found == f"{champion} was made by the night of {made}"


def test_targets_that_can_only_be_memorised_are_in_no_more_groups_than_held_out_ones(tmp_path: Path) -> None:
    """The old way for comparison: the policy that learnt the decisions finds nearly all of the chosen items."""

    def anywhere(day: str, user: int) -> list[int]:
        return np.random.default_rng((int(day[-2:]), user)).permutation(ITEMS)[:6].tolist()

    by_heart = {"epochs": 80, "warm_epochs": 80, "warm_learning_rate": 5e-3}
    settings = new_world(tmp_path, supervised=by_heart, rollout={"max_groups": 240})
    lake, registry = Lake(settings.lake_root), Registry(settings)
    chance = settings.rollout.group_size / (ITEMS - 2.5)
    for day in (DAY, NEXT_DAY):
        start_day(settings, day, anywhere)
        if day == NEXT_DAY:
            # Whatever a gate would say of it.
            registry.promote(as_generator(registry, of_night(registry, SUPERVISED, DAY, stage="train_supervised")))
        run_stage(settings, "train_supervised", day)
        report = run_stage(settings, "generate_candidates", day)
        facts = report["facts"]
        # A decision that looks like one of the day before is none of the next one's.
        assert facts["groups"] > 230
        assert facts["held_out_groups"] == 40
        hits = facts["groups_with_target"], round(facts["held_out_target_rate"] * 40)
        assert abs(two_proportions(hits, (facts["groups"], 40))) < 3
        assert facts["target_rate"] < 2 * chance
        assert not any("held-out" in note for note in report["notes"])
        supervised = of_night(registry, SUPERVISED, day, stage="train_supervised")
        model, catalogue = generator_of_day(lake, registry, supervised, day)
        states = decisions(lake, [day], "train", ["history", "target_item"])
        beams = as_rolled_out(settings, model, catalogue, states)
        known = (beams.items.numpy() == catalogue.index(states["target_item"])[:, None]).any(axis=1).mean()
        assert known > 2 * facts["target_rate"], (known, facts)
    assert [policy.name for policy in policies_of(settings, NEXT_DAY)] == [GENERATOR]

    # Fresh groups as well: with the ranking reward those with the chosen item tell their candidates apart.
    fresh = world_settings(
        tmp_path,
        supervised=by_heart,
        rollout={"max_groups": 240},
        fusion={"objective": "business"},
        policy={"mode": "on_policy", "learning_rate": 3e-4},
    )
    write_scores(fresh, NEXT_DAY)
    run_stage(fresh, "materialize_rewards", NEXT_DAY)
    told = run_stage(fresh, "train_generator", NEXT_DAY)["facts"]
    assert told["groups"] == facts["groups"]
    hits = told["groups_with_advantage"], round(facts["held_out_target_rate"] * 40)
    assert abs(two_proportions(hits, (told["groups"], 40))) < 3
    assert 0 < told["signal_share"] < 2 * chance
    # Afterwards it has learnt the decisions as the supervised policy has.
    model, _ = generator_of_day(lake, registry, registry.get(GENERATOR, told["challenger_version"]), NEXT_DAY)
    beams = as_rolled_out(settings, model, catalogue, states)
    learnt = (beams.items.numpy() == catalogue.index(states["target_item"])[:, None]).any(axis=1).mean()
    assert learnt > 0.9 * known > 2 * told["signal_share"]


def test_rates_that_differ_by_more_than_chance_are_told(tmp_path: Path) -> None:
    """Held-out users who walk anywhere, where all others go round the circle."""

    def held_out_anywhere(day: str, user: int) -> list[int]:
        anywhere = np.random.default_rng(user).permutation(ITEMS)[:6].tolist()
        return anywhere if f"u{user:02d}" in held_out_users() else round_the_circle(day, user)

    settings = new_world(tmp_path)
    day = start_day(settings, DAY, held_out_anywhere)
    run_stage(settings, "train_supervised", day)
    report = run_stage(settings, "generate_candidates", day)
    facts = report["facts"]
    rates = (
        f"in {facts['target_rate']:.1%} of training decisions and in {facts['held_out_target_rate']:.1%} of held-out"
    )
    assert any(rates in note for note in report["notes"]), report


def test_a_night_run_again_makes_no_further_policy(after_two_nights: Settings, two_nights: Any) -> None:
    settings, reports = after_two_nights, two_nights[1]
    registry, lake = Registry(settings), Lake(settings.lake_root)
    rows = lake.read("candidates", where={"day": DAY})
    for force in (False, True):
        again = {
            name: run_stage(settings, name, DAY, force=force) for name in ("train_supervised", "generate_candidates")
        }
        assert {report["state"] for report in again.values()} == {"finished" if force else "skipped"}
        for name, report in again.items():
            assert report["facts"] == reports[DAY][name]["facts"]
        assert len(registry.versions(ROLLOUT)) == 2
        assert lake.read("candidates", where={"day": DAY}) == rows


def test_a_night_killed_between_its_trainings_goes_on(
    two_nights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second of three trainings: the first is not done again, and all are as if nothing had happened."""
    settings = new_world(tmp_path, supervised={"checkpoint_steps": 10})
    start_day(settings, DAY)
    train, begun = supervised.train_supervised, []

    def dies_in_the_second(*arguments: Any, progress: Any, **options: Any) -> list[float]:
        begun.append(0)

        def step(count: int, loss: float) -> None:
            begun[-1] += 1
            progress(count, loss)
            if len(begun) == 2 and begun[-1] == 25:
                raise KeyboardInterrupt

        return train(*arguments, progress=step, **options)

    monkeypatch.setattr(supervised, "train_supervised", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_stage(settings, "train_supervised", DAY)
    assert len(Registry(settings).versions(ROLLOUT)) == 1
    run_stage(settings, "train_supervised", DAY)
    # The second from its checkpoint before step 20 of 40, told in one call, and then the night's own policy.
    assert begun == [40, 25, 1 + 20, 40]
    for ours, theirs in zip(policies_of(settings, DAY), policies_of(two_nights[0], DAY), strict=True):
        weights, undisturbed = Registry(settings).load(ours)[0], Registry(two_nights[0]).load(theirs)[0]
        assert all(torch.equal(weights[name], undisturbed[name]) for name in undisturbed)


def test_groups_of_others_than_the_nights_policies_are_refused(after_two_nights: Settings) -> None:
    settings = after_two_nights
    lake = Lake(settings.lake_root)
    rows = lake.read("candidates", where={"day": NEXT_DAY})
    by = rows.column_names.index("policy_version")
    # As tables of before have it: by the policy that knew the decisions.
    lake.publish(
        "candidates",
        rows.set_column(by, "policy_version", pa.repeat("1", rows.num_rows)),
        partition={"day": NEXT_DAY},
        fingerprint="f" * 32,
    )
    run_stage(settings, "materialize_rewards", NEXT_DAY)
    with pytest.raises(SgrecError, match="rolled out by 1, the night's come from sgrec-generator version 2"):
        jobs.train_generator.run(Job("train_generator", NEXT_DAY, settings))
