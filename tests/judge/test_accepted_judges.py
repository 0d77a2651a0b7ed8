"""Which judges nights may use, and how one that needs no training gets in: real jobs on small homes."""

import json
import shutil
import threading
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from judged_night import DAY, ITEMS, publish_night
from rich.console import Console
from stage_runs import last_run
from typer.testing import CliRunner

from jobs import estimate_judge, evaluate_judge, import_judge_labels, ingest_events, score_aspects, score_labels
from sgrec_core.cli import app
from sgrec_core.errors import InputError, SettingsError, SgrecError
from sgrec_core.judge.calls.plan import work
from sgrec_core.judge.engines import EmbeddingEngine, judge_version
from sgrec_core.judge.rubric import DEFAULT, load_rubric
from sgrec_core.judge.training.labels import label_request
from sgrec_core.judge.versions.accepted import (
    Accepted,
    accept,
    accepted_judges,
    check_accepted,
    find_accepted,
    settings_of,
    take_back,
)
from sgrec_core.judge.versions.adapters import Adapter, activate, resolve_adapter, rubric_digest, with_adapter
from sgrec_core.judge.versions.comparison import settings_of_roles
from sgrec_core.lake import Lake
from sgrec_core.quality.gates import check_stage
from sgrec_core.runtime.job import Job
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


def first(settings: Settings) -> Accepted:
    return accept(settings, DAY, "first", "the first judge of this home")


def test_the_first_judge_that_scores_is_accepted_with_and_without_context(home: Home) -> None:
    settings = home()
    check_accepted(settings)
    publish_night(settings)
    job = Job("score_aspects", DAY, settings)
    score_aspects.run(job)
    (found,) = accepted_judges(settings)
    assert (found.how, found.day) == ("first", DAY)
    assert found.versions == [judge_version(settings, True), judge_version(settings, False)]
    assert job.facts["judge_gate"] == f"first, {DAY}: the first judge of this home"
    check_accepted(settings)


def test_a_judge_that_never_answered_is_not_the_first(home: Home) -> None:
    """As one whose address, name or revision is misspelt."""
    unreachable = home(engine="server", served_name="x", server_url="http://127.0.0.1:9/v1", retries=0, timeout=1)
    publish_night(home())
    with pytest.raises(SgrecError):
        score_aspects.run(Job("score_aspects", DAY, unreachable))
    assert accepted_judges(home()) == []
    score_aspects.run(Job("score_aspects", DAY, home()))


def test_a_changed_word_is_refused_with_what_differs_and_what_to_do(home: Home, reworded: Path) -> None:
    first(home())
    with pytest.raises(SettingsError) as refused:
        check_accepted(home(rubric=reworded))
    words = str(refused.value)
    for chosen in (home(), home(rubric=reworded)):
        for context in (True, False):
            assert judge_version(chosen, context) in words
    assert "They differ in SGREC_JUDGE__RUBRIC (" in words
    assert "sgrec compare-judge --day D" in words
    assert "sgrec accept-judge" in words


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"engine": "vllm", "mode": "reasoning"}, "SGREC_JUDGE__MODE (labels before, now reasoning)"),
        ({"engine": "vllm", "max_model_len": 512}, "SGREC_JUDGE__MAX_MODEL_LEN (8192 before, now 512)"),
        (
            {"engine": "vllm", "model": "some/model", "revision": "abc"},
            "SGREC_JUDGE__MODEL (tiny before, now some/model)",
        ),
        ({"engine": "embedding"}, "SGREC_JUDGE__ENGINE (vllm before, now embedding)"),
        ({"engine": "server", "served_name": "x"}, "SGREC_JUDGE__SERVED_NAME (None before, now x)"),
    ],
)
def test_another_model_mode_or_engine_is_refused(home: Home, changes: dict[str, Any], named: str) -> None:
    first(home(engine="vllm"))
    with pytest.raises(SettingsError) as refused:
        check_accepted(home(**changes))
    assert named in str(refused.value)


def test_limits_and_speed_make_no_other_judge(home: Home) -> None:
    first(home(engine="server", served_name="x", server_url="http://me:secret@a/v1"))
    others = {"server_url": "http://b/v1", "max_calls": 7, "shard_size": 3, "workers": 2}
    check_accepted(home(engine="server", served_name="x", **others))
    with pytest.raises(SettingsError) as refused:
        check_accepted(home(engine="server", served_name="y"))
    assert "secret" not in str(refused.value)


def test_a_model_whose_files_were_changed_is_refused(home: Home, tmp_path: Path) -> None:
    model = model_folder(tmp_path, "model")
    settings = home(engine="vllm", model=str(model))
    first(settings)
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(SettingsError, match="They differ in the model's files, or in how this version of sgrec words"):
        check_accepted(settings)
    with pytest.raises(InputError, match=r"cannot be asked any more.*sgrec accept-judge"):
        settings_of_roles(comparing(settings), DAY)
    accept(settings, NEXT_DAY, "hand", "it was retrained")
    check_accepted(settings)


def test_what_was_accepted_before_stays_accepted(home: Home, reworded: Path) -> None:
    first(home())
    accept(home(rubric=reworded), NEXT_DAY, "hand", "clearer")
    check_accepted(home())
    check_accepted(home(rubric=reworded))
    assert [judge.how for judge in accepted_judges(home())] == ["first", "hand"]


def test_an_aspect_that_the_judge_has_no_formula_for_matters_only_where_it_is_judged(
    home: Home, tmp_path: Path
) -> None:
    """It needs a context, and the data have none."""
    settings = home(rubric=rubric(tmp_path, "s9.yaml", lambda text: text.replace("id: s3", "id: s9")))
    assert first(settings).versions == [judge_version(settings, False)]
    check_accepted(settings)


def at_once(*calls: Callable[[], Any]) -> None:
    together = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> None:
        together.wait()
        call()

    threads = [threading.Thread(target=begin, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_of_two_first_judges_one_counts(home: Home, reworded: Path) -> None:
    both = [home(), home(rubric=reworded)]
    at_once(*[partial(first, settings) for settings in both * 4])
    (found,) = accepted_judges(home())
    assert found.versions in [[judge_version(settings, context) for context in (True, False)] for settings in both]
    assert not list((home().home / "judge").glob(".*")), "nothing is left lying about"


def test_none_of_many_acceptances_is_lost(home: Home) -> None:
    at_once(*[partial(accept, home(), DAY, "hand", f"reason {number}") for number in range(16)])
    assert sorted(judge.reason for judge in accepted_judges(home())) == sorted(f"reason {n}" for n in range(16))


def test_a_damaged_file_is_named_and_not_written_over(home: Home) -> None:
    first(home())
    path = home().home / "judge" / "accepted.json"
    path.write_text('{"judges": [')
    for call in (partial(check_accepted, home()), partial(accept, home(), DAY, "hand", "")):
        with pytest.raises(SettingsError, match=r"accepted\.json: not what `sgrec` writes"):
            call()
    assert path.read_text() == '{"judges": ['


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


def test_a_judge_that_moved_is_asked_where_it_is(home: Home, tmp_path: Path, reworded: Path) -> None:
    """Nights go on: address and path are no part of the version."""
    old, new = (home(engine="server", served_name="x", server_url=f"http://{name}/v1") for name in ("old", "new"))
    accepted = accept(old, DAY, "hand", "")
    check_accepted(new)
    assert settings_of(new, accepted).judge.server_url == "http://new/v1"
    assert settings_of(home(), accepted).judge.server_url == "http://old/v1"


def test_a_judge_whose_model_is_gone_is_named_with_the_way_on(home: Home, tmp_path: Path) -> None:
    model = model_folder(tmp_path, "model")
    first(home(engine="vllm", model=str(model)))
    shutil.rmtree(model)
    with pytest.raises(InputError, match=r"cannot be asked any more \(judge.model=.* is no folder.*sgrec accept-judge"):
        settings_of_roles(comparing(home()), DAY)


@pytest.fixture
def adapter(home: Home) -> Adapter:
    """One that a training of `DAY` made for the tiny model."""
    made = Adapter(
        day=DAY, folder="sgrec-judge-1", model="tiny", revision=None, rubric=rubric_digest(home()), version="1"
    )
    folder = made.path(home())
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return made


def test_a_refused_night_takes_what_is_activated_until_it_begins(home: Home, adapter: Adapter) -> None:
    """Its first stage was refused; then the training passed its gate."""
    first(home())
    following = home(engine="vllm", adapter="active")
    job = Job("ingest_events", NEXT_DAY, following)
    with pytest.raises(SettingsError, match="has passed no gate"):
        ingest_events.run(job)
    activate(home(), DAY, adapter)
    with pytest.raises(SettingsError, match=r"SGREC_JUDGE__ADAPTER=\S+sgrec-judge-1$"):
        ingest_events.run(Job("ingest_events", NEXT_DAY, following))
    accept(with_adapter(following, adapter), DAY, "gate", "better")
    check_accepted(resolve_adapter(Job("ingest_events", NEXT_DAY, following)).settings)


def test_the_command_accepts_the_active_adapter(home: Home, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    first(home())
    activate(home(), DAY, adapter)
    (home().home / "source.json").write_text('{"input": "simulator"}')
    for name, value in {"HOME": str(home().home), "JUDGE__ENGINE": "vllm", "JUDGE__ADAPTER": "active"}.items():
        monkeypatch.setenv(f"SGREC_{name}", value)
    monkeypatch.setenv("SGREC_INTERPRETERS__JUDGE", "python")
    done = CliRunner().invoke(app, ["accept-judge"], catch_exceptions=False)
    assert "adapter sgrec-judge-1" in done.stdout
    check_accepted(with_adapter(home(engine="vllm", adapter="active"), adapter))


def test_taking_back_forgets_what_that_comparison_let_pass_and_nothing_else(home: Home, reworded: Path) -> None:
    other = home(rubric=reworded)
    ours, theirs = judge_version(home(), False), judge_version(other, False)
    first(home())
    accept(other, DAY, "gate", "better")
    accept(home(), DAY, "gate", "better still")
    take_back(home(), NEXT_DAY, theirs)
    assert find_accepted(home(), theirs)
    for version in (ours, theirs):
        take_back(home(), DAY, version)
    assert not find_accepted(home(), theirs)
    assert [judge.how for judge in accepted_judges(home())] == ["first"], "how it got in at first still stands"


def test_a_night_ends_before_it_has_cost_anything(
    home: Home, reworded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first(home())
    job = Job("ingest_events", DAY, home(rubric=reworded))
    assert job.execute(ingest_events.run, Console(quiet=True)) == 2
    assert "has passed no gate" in capsys.readouterr().err
    assert last_run(home(), DAY, "ingest_events")["state"] == "failed"
    assert not (home().home / "landing").exists()


def test_nobody_is_asked_and_nothing_written_by_a_judge_that_is_not_accepted(home: Home, reworded: Path) -> None:
    lake = publish_night(home())
    score_aspects.run(Job("score_aspects", DAY, home()))
    version = lake.version("aspect_scores")
    other = home(rubric=reworded)
    with pytest.raises(SettingsError, match="has passed no gate"):
        score_aspects.run(Job("score_aspects", DAY, other))
    with pytest.raises(SettingsError, match="has passed no gate"):
        work(Job("score_aspects", DAY, other), 0)
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
    first(settings)
    (settings.home / "source.json").write_text('{"input": "simulator"}')
    monkeypatch.setenv("SGREC_HOME", str(settings.home))
    monkeypatch.setenv("SGREC_JUDGE__RUBRIC", str(reworded))
    done = CliRunner().invoke(app, ["accept-judge", "--reason", "ticket 7"], catch_exceptions=False)
    assert done.exit_code == 0
    version = judge_version(home(rubric=reworded), False)
    assert f" / {version} (engine embedding, rubric " in done.stdout.replace("\n", "")
    found = find_accepted(settings, version)
    assert found is not None
    assert (found.how, found.reason) == ("hand", "ticket 7")


# The comparison


def flattened(text: str) -> str:
    """The same labels for other scores: nearly everything is the best level but one."""
    for score, other in (("0.5", "-0.97"), ("0.0", "-0.98"), ("-0.5", "-0.99")):
        text = text.replace(f"value: {score}", f"value: {other}")
    return text


def comparing(settings: Settings, labels: Path | None = None) -> Settings:
    """As in the DAG sgrec_judge_comparison."""
    training = {"labels": labels, "max_test_pairs": 0, "min_users": 5, "candidate": "settings"}
    return Settings(home=settings.home, judge=settings.judge, judge_training=training, states={"validation_share": 0.5})


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
    things = product(("red", "blue", "green", "white"), ("lamp", "desk lamp", "tent", "novel", "drill"))
    rows = [
        {
            "sample_id": f"s{number}",
            "user_id": f"u{number}",
            "source": "human",
            "history": [ITEMS[number % 40], f"{colour} desk"],
            "item": f"{colour} {thing}",
        }
        for number, (colour, thing) in enumerate(things)
    ]
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
    job = compare(comparing(home(rubric=worse), labelled))
    assert not job.facts["activated"]
    # What the first comparison of the day found is still there, row by row and as a page.
    rows = lake.read("judge_evaluations", columns=["candidate_version"])["candidate_version"].to_pylist()
    assert set(rows) == {judge_version(better, False), judge_version(home(rubric=worse), False)}
    assert check_stage(better, "evaluate_judge", DAY).state == "finished"
    pages = {path.stem for path in better.reports(DAY, "judge_training").glob("*.html")}
    assert pages == {"index", *rows}
    assert (better.reports(DAY, "judge_training") / f"{found.versions[1]}.html").read_text() == page
    assert "not surely better" in job.facts["reason"]
    with pytest.raises(SettingsError, match="has passed no gate"):
        score_aspects.run(Job("score_aspects", NEXT_DAY, comparing(home(rubric=worse), labelled)))


def test_what_has_judged_a_night_stays_though_its_gate_says_otherwise_now(
    home: Home, labelled: Path, tmp_path: Path
) -> None:
    """Its nights must be able to run again."""
    publish_night(home())
    score_aspects.run(Job("score_aspects", DAY, home(rubric=rubric(tmp_path, "flat.yaml", flattened))))
    better = comparing(home(), labelled)
    strict = better.model_copy(update={"judge_training": better.judge_training.model_copy(update={"min_users": 1000})})
    assert compare(better).facts["activated"]
    assert not compare(strict).facts["activated"]
    assert not find_accepted(better, judge_version(better, False))
    assert compare(better).facts["activated"]
    publish_night(home(), day=NEXT_DAY)
    score_aspects.run(Job("score_aspects", NEXT_DAY, better))
    assert not compare(strict).facts["activated"]
    score_aspects.run(Job("score_aspects", NEXT_DAY, better))


def test_the_night_decides_whom_a_candidate_is_compared_with(home: Home, reworded: Path, tmp_path: Path) -> None:
    publish_night(home())
    third = home(rubric=rubric(tmp_path, "third.yaml", lambda text: text + "# third\n"))
    with pytest.raises(InputError, match="no judge of .* was accepted yet: run a night"):
        settings_of_roles(comparing(third), DAY)
    score_aspects.run(Job("score_aspects", DAY, home()))
    with pytest.raises(InputError, match="is the only one of"):
        settings_of_roles(comparing(home()), DAY)
    accept(home(rubric=reworded), DAY, "hand", "")
    # A run that was refused does not change what the night judged with.
    assert Job("score_aspects", DAY, third).execute(score_aspects.run, Console(quiet=True)) == 2
    roles = settings_of_roles(comparing(third), DAY)
    assert roles["candidate"].judge == third.judge
    assert judge_version(roles["active"], False) == judge_version(home(), False), "what the night judged with"
    roles = settings_of_roles(comparing(third), NEXT_DAY)
    assert judge_version(roles["active"], False) == judge_version(home(rubric=reworded), False), "accepted last"
    with pytest.raises(InputError, match="no judge was trained for"):
        settings_of_roles(home(engine="vllm"), DAY)


def test_a_day_without_a_night_is_no_day_to_compare_on(home: Home, labelled: Path, reworded: Path) -> None:
    first(home())
    settings = comparing(home(rubric=reworded), labelled)
    import_judge_labels.run(Job("import_judge_labels", DAY, settings))
    with pytest.raises(InputError, match=f"user_states has nothing of {DAY}: compare judges on a day whose night has"):
        score_labels.run(Job("score_labels", DAY, settings))
