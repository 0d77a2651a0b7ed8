"""The judge's training from label files to an active judge: real jobs on a small lake, real TRL, real vLLM."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from judged_night import DAY, ITEMS, publish_night
from rich.console import Console
from stage_runs import last_run

from jobs import (
    evaluate_judge,
    import_judge_labels,
    score_aspects,
    train_aggregator,
    train_judge,
    train_judge_weights,
)
from sgrec_core.errors import InputError, SettingsError
from sgrec_core.judge.engines import judge_version
from sgrec_core.judge.engines.tiny_model import make_tiny_model
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.training.samples import day_samples
from sgrec_core.judge.versions import adapters
from sgrec_core.judge.versions.accepted import accept, accepted_judges, check_accepted
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.lake import Lake
from sgrec_core.registry import Registry
from sgrec_core.runtime.code import stage_digest
from sgrec_core.runtime.job import Job
from sgrec_core.settings import PROJECT_ROOT, AggregatorSettings, Settings

RUBRIC = PROJECT_ROOT / "benchmarks" / "short_rubric.yaml"
JOBS = {
    "import_judge_labels": import_judge_labels.run,
    "train_judge": train_judge.run,
    "train_judge_weights": train_judge_weights.run,
    "evaluate_judge": evaluate_judge.run,
}
NEXT_DAY = "2026-01-06"


def label_rows() -> list[dict[str, Any]]:
    """Lamps are all that is wanted."""
    return [
        {
            "sample_id": f"s{number}",
            "user_id": f"user-{number}",
            "source": "human",
            "history": ["red tent", ITEMS[number]],
            "item": item,
            "labels": {"s0": "A", "s1": "A", "s2": "A"} if "lamp" in item else {"s0": "E", "s1": "C", "s2": "C"},
        }
        for number, item in enumerate(["red lamp", "red desk", "blue lamp", "blue tent"] * 12)
    ]


def settings_of(home: Path, **judge: Any) -> Settings:
    return Settings(
        home=home,
        threads=1,
        judge={
            "engine": "vllm",
            "model": str(home / "model"),
            "rubric": RUBRIC,
            "kv_cache_gib": 0.25,
            **judge,
        },
        judge_training={
            "labels": home / "labels",
            "sft_batch_size": 12,
            "grpo_batch_size": 16,
            "sft_epochs": 10,
            "sft_learning_rate": 5e-3,
            "grpo_learning_rate": 1e-4,
            "max_pairs": 12,
            "max_test_pairs": 8,
            "min_users": 5,
        },
        states={"validation_share": 0.3},
    )


def execute(stage: str, settings: Settings, *, force: bool = False) -> Job:
    job = Job(stage, DAY, settings, force=force)
    assert job.execute(JOBS[stage], Console(quiet=True)) == 0
    return job


def score_labels(settings: Settings) -> dict[str, Any]:
    """The stage in the judge's own environment; its facts."""
    judge = settings.judge
    environment = {
        **os.environ,
        "SGREC_HOME": str(settings.home),
        "SGREC_THREADS": "1",
        "SGREC_JUDGE__ENGINE": "vllm",
        "SGREC_JUDGE__MODEL": judge.model,
        "SGREC_JUDGE__RUBRIC": str(judge.rubric),
        "SGREC_JUDGE__KV_CACHE_GIB": str(judge.kv_cache_gib),
        "SGREC_JUDGE_TRAINING__MAX_TEST_PAIRS": str(settings.judge_training.max_test_pairs),
    }
    interpreter = PROJECT_ROOT / ".venv-judge" / "bin" / "python"
    process = subprocess.run(
        [interpreter, "-m", "jobs.score_labels", "--day", DAY],
        cwd=PROJECT_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return last_run(settings, DAY, "score_labels")["facts"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home in which the judge and the weights were trained."""
    home = tmp_path_factory.mktemp("home")
    corpus = [RUBRIC.read_text(), *ITEMS, *(json.dumps(row) for row in label_rows())] * 3
    make_tiny_model(home / "model", corpus)
    (home / "labels").mkdir()
    lines = [json.dumps(row) for row in label_rows()]
    (home / "labels" / "people.jsonl").write_text("\n".join([*lines, '{"sample_id": "broken"']) + "\n")
    settings = settings_of(home)
    publish_night(settings, groups=40)
    for stage in ("import_judge_labels", "train_judge", "train_judge_weights"):
        execute(stage, settings)
    return settings


def test_labels_become_tables(trained: Settings) -> None:
    lake = Lake(trained.lake_root)
    rows = lake.read("judge_labels").to_pylist()
    assert {row["sample_id"] for row in rows} == {row["sample_id"] for row in label_rows()}
    assert {row["split"] for row in rows} == {"train", "validation"}
    (rejected,) = lake.read("judge_labels_rejected").to_pylist()
    assert (rejected["reason"], rejected["line"]) == ("invalid_json", len(rows) + 1)


def test_too_many_bad_rows_stop_the_training(trained: Settings, tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text(json.dumps(label_rows()[0]) + "\n" + '{"item": 7}\n' * 3)
    training = trained.judge_training.model_copy(update={"labels": tmp_path})
    settings = trained.model_copy(update={"home": tmp_path / "home", "judge_training": training})
    with pytest.raises(InputError, match=r"75\.0% of the rows were rejected.*labels\.jsonl line 2: column sample_id"):
        import_judge_labels.run(Job("import_judge_labels", DAY, settings))
    assert Lake(settings.lake_root).count("judge_labels_rejected") == 3, "nothing is lost"


def test_both_adapters_are_registered_with_what_they_were_made_from(trained: Settings) -> None:
    registry = Registry(trained)
    (judge,), (weights,) = registry.versions("sgrec-judge"), registry.versions("sgrec-judge-weights")
    for version in (judge, weights):
        tensors, config = registry.load(version)
        assert any("lora_A" in name for name in tensors)
        assert config["adapter"]["peft_type"] == "LORA"
        assert version.tags["sgrec.git_revision"]
    assert judge.tags["sgrec.table.judge_labels"] == str(Lake(trained.lake_root).version("judge_labels"))
    run = registry.client.get_run(judge.run_id).data
    assert run.metrics["point_acc_base"] < run.metrics["point_acc_supervised"]
    assert run.params["sft_epochs"] == "10.0"


def test_the_weights_are_compared_with_the_small_network(trained: Settings) -> None:
    metrics = Registry(trained).client.get_run(Registry(trained).versions("sgrec-judge-weights")[0].run_id).data.metrics
    for name in ("uniform", "form", "grpo", "network"):
        assert 0 <= metrics[f"pair_auc_{name}"] <= 1
    assert metrics["pair_auc_gain_grpo_over_network_lower"] <= metrics["pair_auc_gain_grpo_over_network_upper"]


def test_without_pairs_of_held_out_users_no_weights_are_trained(trained: Settings) -> None:
    """As on sets without slates: the judge is trained and compared on labels alone."""
    lake = publish_night(trained, day="2026-01-04", groups=12)
    pairs = lake.read("preference_pairs", where={"day": "2026-01-04"})
    states = lake.read("user_states", where={"day": "2026-01-04", "split": "train"})
    kept = pairs.filter(pc.is_in(pairs["decision_id"], value_set=states["decision_id"]))
    lake.publish("preference_pairs", kept, partition={"day": "2026-01-04"}, fingerprint="1" * 16)
    adapters.remember(trained, replace(adapters.trained(trained, DAY), day="2026-01-04"))
    job = Job("train_judge_weights", "2026-01-04", trained)
    train_judge_weights.run(job)
    assert any("none were trained" in note for note in job.notes)
    assert [version.day for version in Registry(trained).versions("sgrec-judge-weights")] == [DAY]


def test_labels_of_held_out_calls_are_not_trained_on(trained: Settings, tmp_path: Path) -> None:
    """Two people label the same items of the same states."""
    rows = [
        {**row, "sample_id": f"{row['sample_id']}-{n}", "user_id": f"{n}-{row['user_id']}"}
        for row in label_rows()
        for n in range(2)
    ]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    labels = trained.judge_training.model_copy(update={"labels": tmp_path / "labels"})
    settings = trained.model_copy(update={"home": tmp_path / "home", "judge_training": labels})
    publish_night(settings)
    execute("import_judge_labels", settings)
    job = Job("train_judge", DAY, settings)
    samples = day_samples(job.lake, DAY, load_rubric(False, RUBRIC), job.settings.judge_training.seed, job.note)
    asked = {(sample.request.state_id, sample.request.item_id) for sample in samples.held_out}
    assert asked
    assert not asked & {(sample.request.state_id, sample.request.item_id) for sample in samples.training}
    assert any("held-out users have the same item" in note for note in job.notes)


def test_a_later_night_can_have_its_weights_named(trained: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = publish_night(trained, day=NEXT_DAY, groups=12)
    by_name = trained.model_copy(
        update={
            "judge": trained.judge.model_copy(update={"engine": "embedding"}),
            "aggregator": AggregatorSettings(engine="language_model"),
        }
    )
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "metrics", lambda *_: {"pair_auc_gain_grpo_over_network_lower": -0.3})
        with pytest.raises(SettingsError, match="may order pairs worse than the small network by 0.3000, above 0.02"):
            train_aggregator.run(Job("train_aggregator", NEXT_DAY, by_name))
    kind = trained.judge_training.model_copy(update={"tolerance": 1.0})
    by_name = by_name.model_copy(update={"judge_training": kind})
    for stage, run in (("score_aspects", score_aspects.run), ("train_aggregator", train_aggregator.run)):
        assert Job(stage, NEXT_DAY, by_name).execute(run, Console(quiet=True)) == 0
    rows = lake.read("user_weights", where={"day": NEXT_DAY}).to_pylist()
    assert {row["aggregator_version"] for row in rows} == {f"sgrec-judge-weights/1/{stage_digest('train_aggregator')}"}
    assert all(sum(row["weights"]) == pytest.approx(1) for row in rows)
    with pytest.raises(SettingsError, match="no sgrec-judge-weights was trained for .* and a day before"):
        train_aggregator.run(Job("train_aggregator", DAY, by_name))


def test_training_again_registers_nothing(trained: Settings) -> None:
    for stage in ("import_judge_labels", "train_judge", "train_judge_weights"):
        assert execute(stage, trained)._skipped
    assert len(Registry(trained).versions("sgrec-judge")) == 1


@pytest.mark.vllm
def test_a_better_judge_becomes_active_and_nights_after_it_use_it(trained: Settings) -> None:
    """Nights had the embedding judge so far: each is asked in its own way, in one environment."""
    embedding = trained.model_copy(update={"judge": trained.judge.model_copy(update={"engine": "embedding"})})
    accept(embedding, DAY, "first", "the first judge of this home")
    facts = score_labels(trained)
    assert facts["active_version"] == judge_version(embedding, False)
    assert facts["candidate_failed"] == facts["active_failed"] == 0
    assert facts["candidate_paid"] == facts["active_paid"] > 0
    job = execute("evaluate_judge", trained)
    assert not job.facts["activated"]
    assert "SGREC_JUDGE_TRAINING__TOLERANCE" in job.facts["reason"], "eight pairs cannot say that order is kept"
    assert "Not activated" in (trained.reports(DAY, "judge_training") / "index.html").read_text()
    training = trained.judge_training.model_copy(update={"tolerance": 1.0})
    bold = trained.model_copy(update={"judge_training": training})
    job = execute("evaluate_judge", bold)
    assert job.facts["activated"], job.facts["reason"]
    assert job.facts["point_acc_candidate"] > job.facts["point_acc_active"]

    with_active = settings_of(trained.home, adapter="active")
    base = judge_version(trained, False)
    of_day = {day: resolve_adapter(Job("score_aspects", day, with_active)).settings for day in (DAY, NEXT_DAY)}
    assert judge_version(of_day[DAY], False) == base, "the day's own night has run before"
    assert judge_version(of_day[NEXT_DAY], False) == facts["candidate_version"] != base
    assert Registry(trained).aliases("sgrec-judge")["active"] == "1"
    *_, accepted = accepted_judges(trained)
    assert (accepted.how, accepted.day, accepted.reason) == ("gate", DAY, job.facts["reason"])
    assert facts["candidate_version"] in accepted.versions
    check_accepted(of_day[NEXT_DAY])
    with pytest.raises(SettingsError, match="has passed no gate"):
        check_accepted(trained)

    rows = Lake(trained.lake_root).read("judge_evaluations").to_pylist()
    assert {row["role"] for row in rows} == {"candidate", "active"}
    metrics = {"point_acc", "pair_auc", "calibration_error", "confusion", "agreement", "difference_point_acc"}
    assert metrics <= {row["metric"] for row in rows}
    page = (trained.reports(DAY, "judge_training") / "index.html").read_text()
    assert "Activated" in page
    assert facts["candidate_version"] in page

    # Again: nothing is paid, the same comes out.
    again = score_labels(trained)
    assert (again["candidate_paid"], again["active_paid"]) == (0, 0)
    version = Lake(trained.lake_root).version("judge_evaluations")
    assert execute("evaluate_judge", bold).facts["activated"]
    assert Lake(trained.lake_root).version("judge_evaluations") == version

    # Another base model: the adapter would not fit.
    with pytest.raises(SettingsError, match="is for judge.model="):
        resolve_adapter(Job("score_aspects", NEXT_DAY, settings_of(trained.home, adapter="active", model="tiny")))


def test_evaluating_before_asking_says_so(trained: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no judge was trained for 2026-02-01"):
        train_judge_weights.run(Job("train_judge_weights", "2026-02-01", trained))


def test_only_the_judge_that_is_asked_can_be_trained(trained: Settings) -> None:
    for judge in ({"engine": "embedding"}, {"mode": "reasoning"}):
        with pytest.raises(SettingsError, match="SGREC_JUDGE__ENGINE=vllm and SGREC_JUDGE__MODE=labels"):
            train_judge.run(Job("train_judge", DAY, settings_of(trained.home, **judge)))
