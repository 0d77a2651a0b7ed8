"""train_aggregator behind the real embedding judge, on a small lake and a real registry."""

import numpy as np
import pyarrow as pa
import pytest
from judged_night import DAY, publish_night
from rich.console import Console

from jobs import score_aspects, train_aggregator
from sgrec_core.aggregator.network import AspectWeights
from sgrec_core.lake import Lake
from sgrec_core.registry import Registry
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import AGGREGATOR
from sgrec_core.settings import JudgeSettings, Settings


@pytest.fixture(scope="module")
def text_cache(tmp_path_factory):
    """One cache of text vectors for all homes of this module."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture
def settings(registry_home, text_cache) -> Settings:
    (registry_home / "cache").mkdir(parents=True)
    (registry_home / "cache" / "embeddings").symlink_to(text_cache)
    return Settings(home=registry_home)


def run(settings: Settings, force: bool = False) -> Job:
    job = Job("train_aggregator", DAY, settings, force=force)
    assert job.execute(train_aggregator.run, Console(quiet=True)) == 0
    return job


def judge(settings: Settings) -> None:
    score_aspects.run(Job("score_aspects", DAY, settings))


def rows(settings: Settings) -> list[dict]:
    return Lake(settings.lake_root).read("user_weights", where={"day": DAY}).to_pylist()


def test_every_candidate_state_gets_a_distribution_from_the_registered_model(settings):
    lake = publish_night(settings, groups=40)
    judge(settings)
    job = run(settings)
    states = lake.read("user_states", where={"day": DAY}).to_pylist()
    train = {state["user_id"] for state in states if state["split"] == "train"}
    assert {row["state_id"] for row in rows(settings)} == {state["state_id"] for state in states}
    for row in rows(settings):
        assert row["aspects"] == ["s0", "s1", "s2"]
        assert min(row["weights"]) >= 0
        assert sum(row["weights"]) == pytest.approx(1, abs=1e-6)
    # One pair a state; those of validation users are not read, and those with the item without text have no score.
    assert 20 <= job.facts["judged_pairs"] <= job.facts["preference_pairs"] == len(train)
    assert job.facts["pair_auc_uniform_lower"] <= job.facts["pair_auc_uniform"] <= job.facts["pair_auc_uniform_upper"]
    registry = Registry(settings)
    version = registry.get(AGGREGATOR, rows(settings)[0]["aggregator_version"])
    tensors, config = registry.load(version)
    assert AspectWeights.from_tensors(tensors, config).aspects == ["s0", "s1", "s2"]


def test_a_rerun_changes_nothing_and_new_candidates_make_no_new_aggregator(settings):
    lake = publish_night(settings, groups=40)
    judge(settings)
    first, before = run(settings), rows(settings)
    version = lake.version("user_weights")
    assert run(settings).facts == first.facts
    assert lake.version("user_weights") == version
    run(settings, force=True)
    assert rows(settings) == before
    candidates = lake.read("candidates", where={"day": DAY})
    fewer = candidates.filter(pa.array([state < "state-020" for state in candidates["state_id"].to_pylist()]))
    lake.publish("candidates", fewer, partition={"day": DAY}, fingerprint="12" * 8)
    run(settings)
    assert {row["state_id"] for row in rows(settings)} == set(fewer["state_id"].to_pylist())
    assert [row for row in before if row["state_id"] < "state-020"] == rows(settings)
    assert len(Registry(settings).versions(AGGREGATOR)) == 1


def test_without_judged_pairs_the_weights_are_uniform_and_it_is_said(settings):
    publish_night(settings)
    settings = settings.model_copy(update={"judge": JudgeSettings(max_pairs=0)})
    judge(settings)
    job = run(settings)
    np.testing.assert_allclose([row["weights"] for row in rows(settings)], 1 / 3, atol=1e-7)
    assert any("uniform" in note for note in job.notes)


def test_without_scores_there_are_no_weights_and_it_is_said(settings):
    lake = publish_night(settings, with_text=False)
    judge(settings)
    job = run(settings)
    assert rows(settings) == []
    assert lake.fingerprint("user_weights", {"day": DAY}) is not None
    assert any("business only" in note for note in job.notes)
    assert Registry(settings).versions(AGGREGATOR) == []
