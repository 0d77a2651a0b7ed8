"""A home that revision 28dea4c made goes on under this one, with what that revision answered about it (answers.json).

``tests/support/home_of_before.tar.xz`` was made by that revision with SGREC_SIMULATOR__USERS=40, __ITEMS=40,
__NEW_ITEMS_PER_DAY=2, SGREC_SUPERVISED__WIDTH=8, __LAYERS=1, __HEADS=2, __EPOCHS=1, SGREC_BUSINESS__TREES=3,
SGREC_ROLLOUT__MAX_GROUPS=16, __GROUP_SIZE=4 and SGREC_JUDGE__MAX_PAIRS=20: two nights, with `sgrec promote`
of version 1 between them, then `sgrec promote` of version 2 and `sgrec rollback`. Of the second night the stages from
build_states on were run one by one (`python -m jobs.<stage>`), without gates and report. Logs, caches, Airflow, Data
Docs and pages are left out.
"""

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from typer.testing import CliRunner

from sgrec_core.cli import app
from sgrec_core.errors import ContractError, SettingsError
from sgrec_core.generator.recommend import Recommender
from sgrec_core.hashing import digest
from sgrec_core.items import TextEncoder, embeddings_cache
from sgrec_core.items.encoder import item_text
from sgrec_core.items.tokenizer import load_tokenizer
from sgrec_core.judge.calls.ledger import has_judged_nights, judged_with, paid_before, uncounted_workers
from sgrec_core.judge.calls.plan import plan_day
from sgrec_core.judge.calls.scores import CALL, scores_of_states
from sgrec_core.judge.engines import judge_version, make_engine
from sgrec_core.judge.prompt import label_question, reasoning_question, system_message, user_message
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.versions.accepted import accepted_judges, check_accepted
from sgrec_core.lake import Lake, contracts, load_contract, table_names
from sgrec_core.lake.maintenance import maintain
from sgrec_core.night import migration
from sgrec_core.night.migration.judges import judges_now
from sgrec_core.night.migration.promotions import decisions_of_before
from sgrec_core.night.tokenizers import current_tokenizer
from sgrec_core.registry import GENERATOR, ModelVersion, Registry
from sgrec_core.registry.promotions import champion, pinned, why_not
from sgrec_core.runtime.job import Job, load_settings
from sgrec_core.runtime.layout import LAYOUT, layout_of
from sgrec_core.runtime.runs import last_runs
from sgrec_core.runtime.stages import TOKENIZER
from sgrec_core.settings import PROJECT_ROOT, Settings

MADE_WITH = {"simulator": {"users": 40, "items": 40, "new_items_per_day": 2}, "judge": {"max_pairs": 20}}
JUDGE_BEFORE, JUDGE_NOW = "65bd6ebc298ee9a1", judge_version(Settings(), has_context=True)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(PROJECT_ROOT / "tests" / "support" / "home_of_before.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def answers(unpacked: Path) -> dict[str, Any]:
    """What revision 28dea4c said about the home."""
    return json.loads((unpacked / "answers.json").read_text())


@pytest.fixture
def before(unpacked: Path, home: Path) -> Path:
    """The home as that revision left it."""
    return shutil.copytree(unpacked / "home", home)


@pytest.fixture(scope="module")
def migrated_once(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = shutil.copytree(unpacked / "home", tmp_path_factory.mktemp("after") / "home")
    list(migration.migrate(Settings(home=home)))
    return home


@pytest.fixture
def migrated(migrated_once: Path, home: Path) -> Settings:
    """Settings of a home that was migrated; with those that it was made with."""
    shutil.copytree(migrated_once, home)
    return Settings.model_validate({"home": home, **MADE_WITH})


def sgrec(*arguments: str, fails: bool = False, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    if fails:
        assert isinstance(result.exception, SettingsError), result.output
        return str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def state(home: Path) -> dict[str, Any]:
    """All that a migration makes, without when it did."""
    lake = Lake(home / "lake")
    tables = {
        table: [
            {name: value for name, value in row.items() if name != "decided_at"} for row in lake.read(table).to_pylist()
        ]
        for table in ("stage_runs", "promotions", "judge_ledger", "aspect_scores", "judge_versions", "rewards")
    }
    files = sorted(str(path.relative_to(home)) for path in (home / "reports").rglob("*"))
    return {**tables, "files": files, "judges": (home / "judge" / "accepted.json").read_text()}


def test_a_home_of_before_is_refused_in_words(before: Path) -> None:
    assert "run `sgrec migrate`" in sgrec("status", fails=True)
    assert "run `sgrec migrate`" in sgrec("nightly", fails=True)
    with pytest.raises(SettingsError, match="run `sgrec migrate`"):  # as every job begins
        load_settings()


@pytest.mark.parametrize("gone", [("reports",), ("reports", "lake/aspect_scores")])
def test_a_home_of_before_whose_reports_were_cleaned_away_is_known_and_migrated(
    before: Path, answers: dict[str, Any], gone: tuple[str, ...]
) -> None:
    for folder in gone:
        shutil.rmtree(before / folder)
    settings = Settings(home=before)
    aliases = Registry(settings).aliases(GENERATOR)
    assert aliases["champion"] == answers["champion"]
    assert "run `sgrec migrate`" in sgrec("status", fails=True)
    assert Registry(settings).champion() is None, "nothing was decided that this version knows of"
    assert Registry(settings).aliases(GENERATOR) == aliases
    sgrec("migrate")
    serving = Registry(settings).champion()
    assert serving is not None
    assert serving.version == answers["champion"]
    assert layout_of(before) == LAYOUT


def test_a_home_of_now_without_its_note_is_one_of_now(home: Path) -> None:
    lake = Lake(home / "lake")
    lake.append("judge_versions", pa.Table.from_pylist([{"judge_version": "v", "facts": "{}", "rubric": "r"}]))
    assert layout_of(home) == LAYOUT


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(before: Path) -> None:
    Registry(Settings(home=before))  # whichever command comes first puts MLflow's paths right
    whole = contents(before)
    told = sgrec("migrate", "--dry-run")
    assert "column code_advantages added" in told
    assert f"judge {JUDGE_BEFORE} is {JUDGE_NOW} now" in told
    after = contents(before)
    assert {path: content for path, content in after.items() if path != "night.lock"} == whole
    done = sgrec("migrate")
    assert done.splitlines() == told.splitlines()[1:]


def test_runs_are_rows_with_their_facts(migrated: Settings, answers: dict[str, Any]) -> None:
    lake = Lake(migrated.lake_root)
    for day, of_stages in answers["facts"].items():
        runs = last_runs(lake, day)
        for stage, facts in of_stages.items():
            wanted = {**facts, **({"judge_version": JUDGE_NOW} if "judge_version" in facts else {})}
            assert (runs[stage].state, runs[stage].facts) == ("finished", wanted)
            assert runs[stage].code_digest is None
        assert runs["check_ingest_events"].state == "finished"
    assert runs["score_aspects"].tables_written.keys() >= {"aspect_scores"}
    shown = sgrec("status", code=1)  # not every gate of the second night was noted
    assert "succeeded" in shown
    assert "night 2026-01-06 is unfinished at check_build_states: it has not run" in shown
    assert f"champion: version {answers['champion']}" in shown
    assert not [*migrated.home.glob("reports/*/stages"), *migrated.home.glob("reports/*/judge_counted.json")]


def test_champion_and_pins_are_those_of_before(migrated: Settings, answers: dict[str, Any]) -> None:
    registry = Registry(migrated)
    champion = registry.champion()
    assert champion is not None
    assert champion.version == answers["champion"]
    pins = {day: pin and pin.version for day in answers["pins"] for pin in [registry.pinned_champion(day)]}
    assert pins == answers["pins"]
    sgrec("rollback")


def test_models_answer_as_before(migrated: Settings, answers: dict[str, Any]) -> None:
    registry = Registry(migrated)
    for version, wanted in answers["recommendations"].items():
        found = Recommender(*registry.load(registry.get(GENERATOR, version))).recommend([wanted["history"]], count=5)
        assert [[item, pytest.approx(score)] for item, score in wanted["answer"]] == [list(pair) for pair in found[0]]


def test_nights_find_their_tokenizer(migrated: Settings, answers: dict[str, Any]) -> None:
    registry = Registry(migrated)
    assert [current_tokenizer(registry, day)[0] for day in answers["facts"]] == answers["tokenizer"] * len(
        answers["facts"]
    )
    encoder = TextEncoder(embeddings_cache(migrated), threads=1)
    items = migrated.items.model_dump_json(exclude={"codes"})
    parts = {"kind": "text", "source": "simulator", "encoder": encoder.version, "settings": items}
    found = registry.find(TOKENIZER, digest("tokenizer", json.dumps(parts, sort_keys=True), length=32))
    assert found is not None
    assert load_tokenizer(*registry.load(found), encoder).version == answers["tokenizer"][0]


def test_no_call_is_paid_twice(migrated: Settings, answers: dict[str, Any]) -> None:
    lake = Lake(migrated.lake_root)
    check_accepted(migrated)
    for day, paid in answers["paid"].items():
        assert paid_before(lake, day, JUDGE_NOW) == paid
        assert judged_with(lake, day) == JUDGE_NOW
        plan = plan_day(Job("score_aspects", day, migrated, looks_only=True))
        assert plan is not None
        assert (plan.new, len(plan.known & plan.wanted)) == ([], len(plan.wanted))
    assert scores_by_call(migrated.home) == answers["scores"]


def scores_by_call(home: Path, day: str = "2026-01-31") -> dict[str, list[float]]:
    """As a night finds them: by the ledger."""
    lake = Lake(home / "lake")
    states = lake.read("user_states")["state_id"].to_pylist()
    found = scores_of_states(lake, day, JUDGE_NOW, states, [*CALL, "scores"]).to_pylist()
    return {"/".join(row[name] for name in CALL): row["scores"] for row in found}


def test_tables_are_configured_as_new_ones_are(migrated: Settings) -> None:
    lake = Lake(migrated.lake_root)
    for table in table_names():
        delta = lake.open(table)
        if delta is not None:
            contract = load_contract(table)
            assert contract.delta_properties.items() <= delta.metadata().configuration.items()
            assert tuple(delta.metadata().partition_columns) == contract.partition_by
            assert lake.read(table).num_rows or contract.may_be_empty


def test_a_migration_runs_once(migrated: Settings) -> None:
    Registry(migrated)  # puts MLflow's paths right, as any command does
    whole = contents(migrated.home)
    assert "nothing to do" in sgrec("migrate")
    assert contents(migrated.home) == whole


def test_a_table_made_before_a_column_came_gets_it_and_takes_in_the_next_day(migrated: Settings) -> None:
    lake, contract = Lake(migrated.lake_root), load_contract("events")
    rows = lake.read("events")
    shutil.rmtree(lake.uri("events"))
    write_deltalake(lake.uri("events"), rows.drop(["propensity"]), partition_by=list(contract.partition_by))
    with pytest.raises(ContractError, match="events lacks column propensity.*`sgrec migrate`"):
        lake.read("events")
    with pytest.raises(ContractError, match="events lacks column propensity.*`sgrec migrate`"):
        lake.create("events")
    told = sgrec("migrate", "--dry-run")
    assert "table events: column propensity added" in told
    assert sgrec("migrate").splitlines() == told.splitlines()[1:]
    assert "nothing to do" in sgrec("migrate")
    assert lake.read("events").equals(rows)
    tomorrow = rows.slice(0, 1).drop(["day", "propensity"]).append_column("propensity", pa.array([0.5]))
    lake.publish("events", tomorrow, partition={"day": "2026-02-01"}, fingerprint="aa")
    assert lake.read("events", where={"day": "2026-02-01"})["propensity"].to_pylist() == [0.5]
    assert "delta.constraints.propensity_is_valid" in lake.open("events").metadata().configuration


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            ("name: price, type: float64", "name: price, type: string"),
            "column price is string in the contract, double in the table",
        ),
        (
            ("  - {name: placement,", "  - {name: shop, type: string, description: where}\n  - {name: placement,"),
            "new column shop may not be null, but the rows of before have none",
        ),
        (("  - {name: bid,", "  - {name: offer,"), "column bid is not in the contract"),
    ],
)
def test_other_changes_of_a_contract_are_refused_in_words_and_change_nothing(
    migrated: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, edit: tuple[str, str], says: str
) -> None:
    edited = tmp_path / "schemas"
    shutil.copytree(contracts.SCHEMAS, edited)
    text = (edited / "events.yaml").read_text()
    assert edit[0] in text
    (edited / "events.yaml").write_text(text.replace(*edit))
    monkeypatch.setattr(contracts, "SCHEMAS", edited)
    contracts.load_contract.cache_clear()
    try:
        before = Lake(migrated.lake_root).version("events")
        with pytest.raises(ContractError, match=re.escape(says)):
            list(migration.migrate(migrated))
        assert Lake(migrated.lake_root).version("events") == before
    finally:
        contracts.load_contract.cache_clear()


@pytest.mark.parametrize("done", range(len(migration.STEPS) + 1))
def test_a_migration_that_was_killed_goes_on(
    before: Path, migrated_once: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    def killed(_: object) -> Iterator[str]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(migration, "STEPS", (*migration.STEPS[:done], killed))
        with pytest.raises(KeyboardInterrupt):
            list(migration.migrate(Settings(home=before)))
    assert "run `sgrec migrate`" in sgrec("status", fails=True)
    sgrec("migrate")
    assert state(before) == state(migrated_once)


def test_facts_of_earlier_runs_are_kept_where_the_last_one_did_not_end(before: Path) -> None:
    path = before / "reports" / "2026-01-05" / "stages" / "train_aggregator.json"
    content = json.loads(path.read_text())
    earlier = [{"fingerprint": content["fingerprint"], "facts": content["facts"], "notes": []}]
    path.write_text(json.dumps({**content, "state": "failed", "message": "out of memory", "earlier": earlier}))
    torn = before / "reports" / "2026-01-05" / "stages" / "build_states.json"
    torn.write_text(torn.read_text()[:40])
    training = before / "reports" / "2026-01-05" / "judge_training" / "stages" / "train_judge.json"
    training.parent.mkdir(parents=True)
    training.write_text(json.dumps({**content, "stage": "train_judge", "state": "running", "earlier": []}))
    sgrec("migrate")
    runs = [run for run in runs_of(before) if run["stage"] == "train_aggregator"]
    assert [run["state"] for run in runs] == ["finished", "failed"]
    assert [run["fingerprint"] for run in runs] == [content["fingerprint"]] * 2
    assert runs[0]["started"] < runs[1]["started"]
    assert not [run for run in runs_of(before) if run["stage"] == "build_states"], "nothing is known of it"
    (killed,) = [run for run in runs_of(before) if run["folder"] == "judge_training"]
    assert (killed["stage"], killed["state"], killed["sequence"]) == ("train_judge", "running", 0)
    assert not training.exists()


def runs_of(home: Path) -> list[dict[str, Any]]:
    """Rows of the first night, the oldest first."""
    rows = Lake(home / "lake").read("stage_runs", where={"day": "2026-01-05"}).to_pylist()
    return sorted(rows, key=lambda run: run["started"])


def add_commit(home: Path, day: str, worker: str, state: str) -> None:
    """Scores of one call as that revision published them."""
    row = Lake(home / "lake").open("aspect_scores").to_pyarrow_table().slice(0, 1).to_pylist()[0] | {"state_id": state}
    spent = {"asked": 3, "unanswered": 1, "failed": 2, "format_measured": 0, "left_format": 0.0, "prompt": 5}
    facts = {"day": day, "judge_version": row["judge_version"], "judge_worker": worker, "judge_kind": "kind"}
    facts |= {
        f"judge_{name}": json.dumps(v) for name, v in {**spent, "cached": 0, "generated": 0, "seconds": 1}.items()
    }
    table = DeltaTable(home / "lake" / "aspect_scores")
    rows = pa.Table.from_pylist([row], schema=table.to_pyarrow_table().schema)
    properties = CommitProperties(custom_metadata={f"sgrec.{name}": value for name, value in facts.items()})
    write_deltalake(table, rows, mode="append", commit_properties=properties)


def test_what_workers_and_labels_took_is_told_as_before(before: Path, answers: dict[str, Any]) -> None:
    lake = Lake(before / "lake")
    add_commit(before, "2026-01-05", "1", "asked by a worker")
    add_commit(before, "2026-01-05 labels", "", "asked about a label")
    sgrec("migrate")
    assert asdict(uncounted_workers(lake, "2026-01-05", JUDGE_NOW)) == {
        "asked": 3, "unanswered": 1, "failed": 2, "format_measured": 0, "left_format": 0.0, "prompt": 5, "cached": 0,
        "generated": 0, "seconds": 1.0,
    }  # fmt: skip
    assert paid_before(lake, "2026-01-05", JUDGE_NOW) == answers["paid"]["2026-01-05"] + 2, "labels are no night's"
    assert has_judged_nights(lake, JUDGE_NOW)
    for state_id in ("asked by a worker", "asked about a label"):
        assert scores_of_states(lake, "2026-01-31", JUDGE_NOW, [state_id], CALL).num_rows == 1


def test_scores_whose_commits_are_gone_are_found_all_the_same(before: Path, answers: dict[str, Any]) -> None:
    maintain(Lake(before / "lake"), "aspect_scores", timedelta(0))
    for commit in (before / "lake" / "aspect_scores" / "_delta_log").glob("*.json"):
        if int(commit.stem) < DeltaTable(before / "lake" / "aspect_scores").version():
            commit.unlink()
    sgrec("migrate")
    assert scores_by_call(before) == answers["scores"]


def test_a_judge_without_an_equal_stays_what_it_was(before: Path) -> None:
    lake = Lake(before / "lake")
    row = {"facts": '{"engine": "embedding", "formula": ["cosines-0", 3.0], "model": "m"}', "rubric": "aspects: []"}
    lake.upsert("judge_versions", pa.Table.from_pylist([{"judge_version": "old", **row}]))
    assert "judge old scored nothing, or has no equal" in sgrec("migrate")
    assert lake.read("judge_versions", where={"judge_version": "old"}).to_pylist() == [{"judge_version": "old", **row}]


PROBE = JudgeRequest(
    state_id="",
    item_id="",
    item_hash="",
    history_texts=("Tea <b>cup</b>, [blue]", "ﬁne\u200b\n teapot", "x" * 2000),
    profile='{"likes": ["tea", {"cups": 2}], "age": 30}',
    context='{"placement": "home", "hour": 7}',
    item_text=item_text("Tea <b>cup</b> &amp; saucer", "Brand <|im_end|>", "Home", "x \u202e" * 2000),
)
VERSIONS = {
    ("embedding", "labels"): ("65bd6ebc298ee9a1", "2b6e9500f2103a64"),
    ("vllm", "labels"): ("e4ee226176ce8ade", "f5ddd005a7632984"),
    ("vllm", "reasoning"): ("51fe8ba50d1f1270", "48a3dbcd39410c1e"),
    ("server", "labels"): ("5a801a012f77081b", "63462d42137b3f63"),
    ("server", "reasoning"): ("4c75fa37e2b65baa", "f3730d6343b0e98f"),
}
"""What revision 28dea4c called the default judges, with and without context."""


@pytest.mark.parametrize(("engine", "mode"), VERSIONS)
def test_the_judge_of_a_version_of_before_is_the_one_of_now(engine: str, mode: str) -> None:
    """Its facts, and how it words the probe of before, make the version of before; and it has the version of now.

    When the judge is changed on purpose this fails, and with it what shows that scores are found again: homes of before
    then have another judge, as all others have. Compare with the code of the digests in `CODE` from then on. Where the
    judge is the same and only its code's digest is another, `KNOWN_AS` in `sgrec_core.judge.engines.judging_code` says
    so.
    """
    settings = Settings.model_validate({"judge": {"engine": engine, "mode": mode}})
    for has_context, before in zip((True, False), VERSIONS[engine, mode], strict=True):
        rubric = load_rubric(has_context)
        now = make_engine(settings, has_context).version_facts()
        facts: dict[str, Any] = {"engine": engine, "model": now["model"], "rubric": rubric.fingerprint}
        if engine == "embedding":
            facts |= {"formula": ["cosines-1", 3.0]}
        else:
            decoding = {name: value for name, value in now["decoding"].items() if name != "max_tokens"}
            questions = [label_question(rubric, aspect) for aspect in rubric.aspects]
            if mode == "reasoning":
                decoding["temperature"] = 0
                questions = [reasoning_question(rubric)]
            facts |= {"decoding": decoding, "chat_template_arguments": {"enable_thinking": False}}
            facts["wording"] = [system_message(rubric), *(user_message(rubric, PROBE, one) for one in questions)]
        assert digest(json.dumps(facts, sort_keys=True)) == before
        kept = {name: fact for name, fact in facts.items() if name not in ("rubric", "wording")}
        (judge,) = [one for one in judges_now(kept, rubric.text) if one.aspects == rubric.aspect_ids]
        assert judge.version == judge_version(settings, has_context)
        assert judge.facts == {name: fact for name, fact in now.items() if name not in ("rubric", "code")}


def test_both_versions_of_an_accepted_judge_come_over(migrated: Settings) -> None:
    (judge,) = accepted_judges(migrated)
    assert judge.versions == [judge_version(Settings(), has_context) for has_context in (True, False)]


def test_the_history_adds_up_to_the_champions_of_before() -> None:
    """Version 2 was promoted by its night and taken back; 3 by its night; then 1 again, by hand."""

    def version(number: int, **tags: str) -> ModelVersion:
        day = f"2026-01-0{4 + number}"
        named = {f"sgrec.{name}": value for name, value in tags.items()}
        return ModelVersion(GENERATOR, str(number), day, f"f{number}", tags=named, source="", run_id="")

    versions = [
        version(1, promoted_day="2026-01-07", promotion="4", rolled_back="true"),
        version(2, rolled_back="true"),
        version(3, promoted_day="2026-01-07", promotion="3"),
    ]
    nights = ["2026-01-05", "2026-01-06", "2026-01-07", "2026-01-08"]
    decisions = decisions_of_before(versions, nights)
    assert champion(decisions) == "1"
    assert [pinned(decisions, night) for night in nights] == [None, None, None, "1"]
    assert pinned(decisions, "2026-01-31") == "1"
    assert why_not(decisions, "2", "2026-01-31"), "what a person took back, no night promotes"
    assert not why_not(decisions, "3", "2026-01-31")
    days = [decision.day for decision in decisions]
    assert days == sorted(days), "days never go back"


def test_a_new_home_needs_no_migration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgrec_core.cli import homes

    settings = homes.settle_home("simulator", starts_anew=True)
    assert json.loads((settings.home / "home.json").read_text()) == {"layout": 1}
    assert "nothing to do" in sgrec("migrate")
    (settings.home / "home.json").write_text('{"layout": 99}')
    assert "newer version" in sgrec("status", fails=True)
