"""Which judges nights may use, and how one that needs no training gets in: real jobs on small homes."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judged_night import DAY, ITEMS, publish_night
from rich.console import Console
from typer.testing import CliRunner

from jobs import estimate_judge, evaluate_judge, import_judge_labels, ingest_events, score_aspects, score_labels
from sgrec_core.cli import app
from sgrec_core.errors import InputError, SettingsError
from sgrec_core.job import Job
from sgrec_core.judge import EmbeddingEngine, judge_version, load_rubric
from sgrec_core.judge.accepted import (
    accept,
    accepted_judges,
    find_accepted,
    require_accepted,
    settings_of,
    take_back,
)
from sgrec_core.judge.comparison import settings_of_roles
from sgrec_core.judge.labels import label_request
from sgrec_core.judge.rubric import DEFAULT
from sgrec_core.lake import Lake
from sgrec_core.settings import JudgeSettings, Settings

RUBRIC = DEFAULT.read_text()
NEXT_DAY = "2026-01-06"

Home = Callable[..., Settings]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A function that gives settings for one home, with a judge of one's own."""

    def make(**judge: Any) -> Settings:
        return Settings(home=tmp_path / "home", judge=JudgeSettings(**judge))

    return make


def rubric(folder: Path, name: str, change: Callable[[str], str]) -> Path:
    """The default rubric, changed."""
    path = folder / name
    path.write_text(change(RUBRIC))
    assert path.read_text() != RUBRIC
    return path


@pytest.fixture
def reworded(tmp_path: Path) -> Path:
    return rubric(tmp_path, "reworded.yaml", lambda text: text.replace("profile", "portrait", 1))


def model_folder(tmp_path: Path, name: str, weights: bytes = b"1") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_homes_first_judge_is_accepted_with_and_without_context(home: Home) -> None:
    settings = home()
    found = require_accepted(settings, DAY)
    assert (found.how, found.day) == ("first", DAY)
    assert found.versions == [judge_version(settings, True), judge_version(settings, False)]
    assert require_accepted(settings, NEXT_DAY) == found


def test_a_changed_word_is_refused_with_what_differs_and_what_to_do(home: Home, reworded: Path) -> None:
    require_accepted(home(), DAY)
    with pytest.raises(SettingsError) as refused:
        require_accepted(home(rubric=reworded), NEXT_DAY)
    words = str(refused.value)
    assert judge_version(home(rubric=reworded), False) in words
    assert judge_version(home(), False) in words
    assert "They differ in SGREC_JUDGE__RUBRIC (" in words
    assert f"sgrec compare-judge --day {NEXT_DAY}" in words
    assert "sgrec accept-judge" in words


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"engine": "vllm", "mode": "reasoning"}, "SGREC_JUDGE__MODE (labels before, now reasoning)"),
        ({"engine": "vllm", "max_model_len": 512}, "SGREC_JUDGE__MAX_MODEL_LEN (8192 before, now 512)"),
        ({"engine": "vllm", "model": "some/model", "revision": "abc"}, "SGREC_JUDGE__MODEL (tiny before, now some/model)"),
        ({"engine": "embedding"}, "SGREC_JUDGE__ENGINE (vllm before, now embedding)"),
        ({"engine": "server", "served_name": "x"}, "SGREC_JUDGE__SERVED_NAME (None before, now x)"),
    ],
)  # fmt: skip
def test_another_model_mode_or_engine_is_refused(home: Home, changes: dict[str, Any], named: str) -> None:
    require_accepted(home(engine="vllm"), DAY)
    with pytest.raises(SettingsError) as refused:
        require_accepted(home(**changes), NEXT_DAY)
    assert named in str(refused.value)


def test_limits_and_speed_make_no_other_judge(home: Home) -> None:
    require_accepted(home(engine="server", served_name="x", server_url="http://a/v1"), DAY)
    elsewhere = home(engine="server", served_name="x", server_url="http://b/v1", max_calls=7, shard_size=3, workers=2)
    assert require_accepted(elsewhere, NEXT_DAY).how == "first"


def test_a_model_whose_files_were_changed_is_refused(home: Home, tmp_path: Path) -> None:
    model = model_folder(tmp_path, "model")
    settings = home(engine="vllm", model=str(model))
    require_accepted(settings, DAY)
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(SettingsError, match="They differ in the model's files, or in how this version of sgrec words"):
        require_accepted(settings, NEXT_DAY)
    accept(settings, NEXT_DAY, "hand", "it was retrained")
    assert require_accepted(settings, NEXT_DAY).reason == "it was retrained"


def test_what_was_accepted_before_stays_accepted(home: Home, reworded: Path) -> None:
    require_accepted(home(), DAY)
    accept(home(rubric=reworded), NEXT_DAY, "hand", "clearer")
    assert require_accepted(home(), NEXT_DAY).how == "first", "going back asks no gate"
    assert [judge.how for judge in accepted_judges(home())] == ["first", "hand"]


def test_of_two_first_judges_one_counts(home: Home, reworded: Path) -> None:
    together, results = threading.Barrier(8), []

    def begin(settings: Settings) -> None:
        together.wait()
        try:
            results.append(require_accepted(settings, DAY).versions)
        except SettingsError:
            results.append(None)

    both = [home(), home(rubric=reworded)]
    threads = [threading.Thread(target=begin, args=[both[number % 2]]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,) = accepted_judges(home())
    assert sorted(map(str, results)) == sorted([str(first.versions)] * 4 + ["None"] * 4)
    assert not list((home().home / "judge").glob(".*")), "nothing is left lying about"


def test_a_judge_can_be_asked_again_as_it_was(home: Home, tmp_path: Path, reworded: Path) -> None:
    model = model_folder(tmp_path, "model")
    adapter = home().home / "judge" / "sgrec-judge-1"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    asked = home(engine="vllm", model=str(model), rubric=reworded, adapter=adapter, max_model_len=600)
    accepted = accept(asked, DAY, "hand", "")
    reworded.unlink()
    now = home(engine="embedding", max_calls=3)
    again = settings_of(now, accepted)
    assert judge_version(again, False) == accepted.versions[1]
    assert again.judge.max_calls == 3
    # Also after the home has moved.
    shutil.copytree(now.home, tmp_path / "moved")
    moved = settings_of(now.model_copy(update={"home": tmp_path / "moved"}), accepted)
    assert moved.judge.adapter == tmp_path / "moved" / "judge" / "sgrec-judge-1"


def test_taking_back_forgets_what_that_comparison_let_pass_and_nothing_else(home: Home, reworded: Path) -> None:
    other = home(rubric=reworded)
    version = judge_version(other, False)
    require_accepted(home(), DAY)
    accept(other, DAY, "gate", "better")
    take_back(home(), NEXT_DAY, version)
    assert find_accepted(home(), version)
    take_back(home(), DAY, version)
    assert not find_accepted(home(), version)
    take_back(home(), DAY, judge_version(home(), False))
    assert [judge.how for judge in accepted_judges(home())] == ["first"]


def test_a_night_ends_before_it_has_cost_anything(
    home: Home, reworded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_accepted(home(), DAY)
    job = Job("ingest_events", DAY, home(rubric=reworded))
    assert job.execute(ingest_events.run, Console(quiet=True)) == 2
    assert "has passed no gate" in capsys.readouterr().err
    facts = json.loads((job.reports / "stages" / "ingest_events.json").read_text())
    assert facts["state"] == "failed"
    assert not (home().home / "landing").exists()


def test_nobody_is_asked_and_nothing_written_by_a_judge_that_is_not_accepted(home: Home, reworded: Path) -> None:
    lake = publish_night(home())
    score_aspects.run(Job("score_aspects", DAY, home()))
    version = lake.version("aspect_scores")
    other = home(rubric=reworded)
    with pytest.raises(SettingsError, match="has passed no gate"):
        score_aspects.run(Job("score_aspects", DAY, other))
    assert lake.version("aspect_scores") == version
    # What it would cost may be asked all the same.
    estimate_judge.print_estimate(Job("score_aspects", DAY, other, looks_only=True))
    accept(other, DAY, "hand", "clearer words")
    job = Job("score_aspects", DAY, other)
    score_aspects.run(job)
    assert job.facts["judge_gate"] == f"hand, {DAY}: clearer words"
    rows = lake.read("aspect_scores", columns=["judge_version"])["judge_version"].to_pylist()
    assert set(rows) == {judge_version(home(), False), judge_version(other, False)}, "old scores stay"


def test_the_command_accepts_the_judge_of_the_settings(
    home: Home, reworded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = home()
    require_accepted(settings, DAY)
    (settings.home / "source.json").write_text('{"input": "simulator"}')
    monkeypatch.setenv("SGREC_HOME", str(settings.home))
    monkeypatch.setenv("SGREC_JUDGE__RUBRIC", str(reworded))
    done = CliRunner().invoke(app, ["accept-judge", "--reason", "ticket 7"], catch_exceptions=False)
    assert done.exit_code == 0
    version = judge_version(home(rubric=reworded), False)
    assert f"nights may use judge {version} (engine embedding, rubric " in done.stdout.replace("\n", "")
    found = find_accepted(settings, version)
    assert found is not None
    assert (found.how, found.reason) == ("hand", "ticket 7")


# The comparison


def flattened(text: str) -> str:
    """The same labels for other scores: nearly everything is the best level but one."""
    return text.replace("value: 0.5", "value: -0.97").replace("value: 0.0", "value: -0.98").replace("value: -0.5", "value: -0.99")  # fmt: skip


def comparing(home: Settings, labels: Path, rubric: Path | None = None) -> Settings:
    training = {"labels": labels, "max_test_pairs": 0, "min_users": 5}
    return Settings(home=home.home, judge={"rubric": rubric}, judge_training=training, states={"validation_share": 0.5})


def compare(settings: Settings) -> Job:
    """The stages of the DAG sgrec_judge_comparison."""
    for stage, run in (("import_judge_labels", import_judge_labels.run), ("score_labels", score_labels.run)):
        run(Job(stage, DAY, settings))
    job = Job("evaluate_judge", DAY, settings)
    evaluate_judge.run(job)
    return job


@pytest.fixture
def labelled(home: Home, tmp_path: Path) -> Path:
    """Label files that say what the embedding judge says with the default rubric."""
    engine = EmbeddingEngine(home(), load_rubric(False))
    rows = [
        {"sample_id": f"s{number}", "user_id": f"u{number}", "source": "human", "history": [ITEMS[number % 40], f"{colour} desk"], "item": f"{colour} {thing}"}
        for number, (colour, thing) in enumerate((c, t) for c in ("red", "blue", "green", "white") for t in ("lamp", "desk lamp", "tent", "novel", "drill"))
    ]  # fmt: skip
    asked = [label_request({**row, "profile": None, "context": None, "item_text": row["item"]}) for row in rows]
    for row, result in zip(rows, engine.score(asked), strict=True):
        row["labels"] = {
            aspect.id: min(aspect.value_of, key=lambda label: abs(aspect.value_of[label] - score))
            for aspect, score in zip(engine.rubric.aspects, result.scores, strict=True)
        }
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "people.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_a_better_rubric_passes_its_gate_and_a_worse_one_does_not(home: Home, labelled: Path, tmp_path: Path) -> None:
    flat = rubric(tmp_path, "flat.yaml", flattened)
    publish_night(home())
    score_aspects.run(Job("score_aspects", DAY, home(rubric=flat)))
    better = comparing(home(), labelled)
    with pytest.raises(SettingsError, match="has passed no gate"):
        score_aspects.run(Job("score_aspects", NEXT_DAY, better))

    job = compare(better)
    assert job.facts["activated"], job.facts["reason"]
    assert job.facts["point_acc_candidate"] == 1 > job.facts["point_acc_active"]
    found = find_accepted(better, judge_version(better, False))
    assert found is not None
    assert (found.how, found.day, found.reason) == ("gate", DAY, job.facts["reason"])
    page = (better.reports(DAY, "judge_training") / "index.html").read_text()
    assert "Activated" in page
    assert found.versions[1] in page
    rows = Lake(better.lake_root).read("judge_evaluations", columns=["role", "judge_version"]).to_pylist()
    assert {(row["role"], row["judge_version"]) for row in rows} == {
        ("candidate", judge_version(better, False)),
        ("active", judge_version(home(rubric=flat), False)),
    }
    publish_night(home(), day=NEXT_DAY)
    score_aspects.run(Job("score_aspects", NEXT_DAY, better))

    # The same again pays nothing and says the same; the worse one against the better one does not pass.
    lake = Lake(better.lake_root)
    version = lake.version("judge_evaluations")
    assert compare(better).facts["activated"]
    assert lake.version("judge_evaluations") == version
    worse = rubric(tmp_path, "worse.yaml", lambda text: flattened(text) + "# otherwise the same\n")
    job = compare(comparing(home(), labelled, worse))
    assert not job.facts["activated"]
    assert "not surely better" in job.facts["reason"]
    with pytest.raises(SettingsError, match="has passed no gate"):
        score_aspects.run(Job("score_aspects", NEXT_DAY, comparing(home(), labelled, worse)))


def test_the_night_decides_whom_a_candidate_is_compared_with(home: Home, reworded: Path, tmp_path: Path) -> None:
    publish_night(home())
    score_aspects.run(Job("score_aspects", DAY, home()))
    with pytest.raises(InputError) as refused:
        job = Job("score_aspects", DAY, home())
        job.execute(score_aspects.run, Console(quiet=True))
        settings_of_roles(home(), DAY)
    assert "is the only one of" in str(refused.value)
    accept(home(rubric=reworded), DAY, "hand", "")
    third = home(rubric=rubric(tmp_path, "third.yaml", lambda text: text + "# third\n"))
    roles = settings_of_roles(third, DAY)
    assert roles["candidate"] == third
    assert judge_version(roles["active"], False) == judge_version(home(), False), "what the night judged with"
    roles = settings_of_roles(third, NEXT_DAY)
    assert judge_version(roles["active"], False) == judge_version(home(rubric=reworded), False), "accepted last"
