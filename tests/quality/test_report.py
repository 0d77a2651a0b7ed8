"""The on-call page and the summary, for nights that ended well, stopped, were killed, or were damaged."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_night import DAY, FACTS, JUDGE_VERSION, damage, rows_of, run_night, table_of

from sgrec_core.lake import Lake
from sgrec_core.quality.data_docs import build_data_docs
from sgrec_core.quality.night import gather_night
from sgrec_core.quality.report import write_report
from sgrec_core.quality.status import status_of_home
from sgrec_core.registry import promotions
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.runs import Run, last_runs, record
from sgrec_core.settings import PROJECT_ROOT, QualitySettings, Settings

ATTACK = (
    '</td></script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">' + "A" * 400
)
SGREC = Path(sys.prefix) / "bin" / "sgrec"
RULE = "scientific: sequences without time were spread by position over 1 declared day"


def summary_and_page() -> tuple[dict[str, Any], str]:
    _, page = write_report(Settings(), DAY)
    text = " ".join(page.read_text(encoding="utf-8").split())  # as a browser reads it
    return json.loads((page.parent / "summary.json").read_text()), text


def broken_states(settings: Settings, stage: str) -> None:
    """Damage ``user_states`` before its gate."""
    if stage == "build_states":
        rows = rows_of("user_states")
        rows[3]["split"], rows[4]["user_id"], rows[5]["user_id"] = "Train", None, None
        damage(settings, "user_states", rows)


@pytest.fixture(scope="module")
def good_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one night that went well; tests take copies."""
    folder = tmp_path_factory.mktemp("good") / "home"
    run_night(Settings(home=folder), notes={"ingest_events": [RULE]})
    return folder


@pytest.fixture
def good_night(good_home: Path, home: Path) -> Path:
    shutil.copytree(good_home, home)
    return home


def test_a_good_night(good_night: Path) -> None:
    summary, page = summary_and_page()
    assert (summary["day"], summary["status"], summary["stopped_at"], summary["reason"]) == (
        DAY,
        "succeeded",
        None,
        None,
    )
    assert summary["rows"] == {
        "in": 74,
        "accepted": 72,
        "rejected": 2,
        "rejected_by_reason": {"invalid_json": 1, "unknown_item": 1},
    }
    assert summary["judge"] == {
        "engine": "embedding",
        "version": JUDGE_VERSION,
        "meaningless": False,
        "asked": 120,
        "cached": 20,
        "skipped": 8,
        "unaffordable": 0,
        "paid": 92,
        "failed": 1,
        "left_format": 0.031,
        "drift": {"s0": 0.0123, "s1": 0.3},
        "flagged_items": 1,
        "flagged_items_shown": {"i<3>": ["markup", "chat marker"]},
        "flagged_users": 2,
        "flagged_users_shown": {"u</code>": ["instruction"]},
    }
    assert summary["reward"] == FACTS["materialize_rewards"]
    assert summary["rollout"] == {
        "target_rate": 0.1421,
        "held_out_target_rate": 0.139,
        "rolled_out_by": "sgrec-generator version 2",
    }
    evaluation = summary["evaluation"]
    assert evaluation["supervised"]["ndcg@10"] == 0.0412
    assert evaluation["champion"]["version"] == "2"
    assert evaluation["popularity"]["hr@10_upper"] == 0.0303
    assert (evaluation["supervised"]["ecpm"], evaluation["supervised"]["ecpm_upper"]) == (212.5, 227.25)
    assert "ecpm" not in evaluation["popularity"]
    assert {(found["of"], found["minus"], found["ndcg@10_lower"]) for found in evaluation["differences"]} == {
        ("supervised", "champion", -0.0006),
        ("optimised", "supervised", -0.0026),
    }
    assert evaluation["serves"] == "supervised"
    assert evaluation["promoted"] is True
    assert [stage["state"] for stage in summary["stages"]] == ["finished"] * 19
    assert summary["notes"] == [{"stage": "ingest_events", "text": RULE}]
    assert summary["paths"]["report"] == f"reports/{DAY}/index.html"
    for text in (
        "The night succeeded",
        "0.0412",
        "events/part-0.jsonl",
        RULE,
        "198 to 227.2",
        "corrected by logged answers",
        "120 asked, 20 cached, 8 skipped",
        "51.30%",
        "groups hold the chosen item in 14.2% of training decisions, 13.9% of held-out ones",
    ):
        assert text in page, text
    assert "scores of this night are meaningless" not in page
    assert "Failed checks</h2>" not in page


def test_a_night_that_stopped_in_its_first_stage(home: Path) -> None:
    run_night(Settings(), fail_at="ingest_events")
    summary, page = summary_and_page()
    assert (summary["status"], summary["stopped_at"]) == ("stopped", "ingest_events")
    assert "cannot be read" in summary["reason"]
    assert summary["rows"] == {"in": None, "accepted": None, "rejected": None, "rejected_by_reason": {}}
    assert summary["evaluation"]["champion"] is None
    assert set(summary["judge"].values()) == {None}
    assert [stage["state"] for stage in summary["stages"]] == ["failed", *["not run"] * 18]
    for text in ("Stopped at ingest_events", "data-platform", f"sgrec nightly --day {DAY}", f"SGREC_HOME={home}"):
        assert text in page, text


def test_a_day_without_any_run(home: Path) -> None:
    summary, page = summary_and_page()
    assert (summary["status"], summary["stopped_at"], summary["reason"]) == (
        "stopped",
        "ingest_events",
        "it has not run",
    )
    assert "Stopped at ingest_events" in page


def test_a_night_that_stopped_at_a_gate_says_how_bad_and_whose(home: Path) -> None:
    run_night(Settings(), before_gate=broken_states)
    summary, page = summary_and_page()
    assert summary["stopped_at"] == "check_build_states"
    assert "table user_states, column user_id, check 'not null': 2 of 30 rows (6.67%)" in summary["reason"]
    assert summary["checks"]["failed_critical"] == 2
    assert summary["since"].startswith("20")
    for text in (
        "Train",
        "Valid is one of train, validation",
        "Compare the number of rows",
        '<td data-label="decision_id">d4</td>',
    ):
        assert text in page, text


def test_what_an_earlier_run_left_is_not_taken_for_this_one(good_night: Path) -> None:
    run_night(Settings(), before_gate=broken_states)
    summary, page = summary_and_page()
    states = {stage["name"]: stage["state"] for stage in summary["stages"]}
    assert summary["stopped_at"] == "check_build_states"
    assert (states["ingest_events"], states["check_build_states"]) == ("finished", "failed")
    assert set(list(states.values())[4:]) == {"not reached"}
    assert summary["judge"]["paid"] is None
    assert summary["evaluation"]["supervised"] is None
    assert summary["reward"]["mean_gate"] is None
    assert "0.0412" not in page
    assert "last run 20" in page

    # A stage that fails is not excused by its facts of the night before, and what follows it is not reached.
    run_night(Settings(), fail_at="ingest_events")
    summary, _ = summary_and_page()
    assert summary["stopped_at"] == "ingest_events"
    assert summary["rows"]["rejected_by_reason"] == {}
    assert summary["checks"]["run"] == 0


def test_a_night_repaired_is_a_good_night(home: Path) -> None:
    run_night(Settings(), before_gate=broken_states)
    shutil.rmtree(home / "lake" / "user_states")
    run_night(Settings())
    assert summary_and_page()[0]["status"] == "succeeded"


def failure(settings: Settings, **fields: Any) -> None:
    """A line as the DAG's failure callback appends it."""
    with (settings.reports(DAY) / "failures.jsonl").open("a") as file:
        file.write(json.dumps({"day": DAY, "try": 2, "run_id": "manual", **fields}) + "\n")


def began_again(step: str) -> Run:
    """A run of a stage or gate that never ended."""
    run = Run(day=DAY, stage=step, input="simulator")
    record(Lake(Settings().lake_root), [run])
    return run


def test_a_stage_that_was_killed_does_not_show_the_success_of_an_earlier_run(good_night: Path) -> None:
    began_again("ingest_events")
    summary, page = summary_and_page()
    assert (summary["stopped_at"], summary["stages"][0]["state"]) == ("ingest_events", "running")
    assert summary["rows"]["in"] is None
    assert summary["stages"][0]["facts"] == {}
    assert {stage["state"] for stage in summary["stages"][1:]} == {"not reached"}
    assert RULE not in page


def test_a_killed_stage_is_known_by_the_schedulers_word(good_night: Path) -> None:
    killed = began_again("train_generator")
    summary, page = summary_and_page()
    assert (summary["stopped_at"], summary["status"]) == ("train_generator", "stopped")
    assert "still running, or killed" in summary["reason"]
    states = {stage["name"]: stage["state"] for stage in summary["stages"]}
    assert (states["train_generator"], states["evaluate_generator"]) == ("running", "not reached")

    failure(
        Settings(),
        time=killed.started.isoformat(),
        stage="train_generator",
        exception="AirflowException: non-zero exit code 137",
    )
    summary, page = summary_and_page()
    assert summary["cause"]["kind"] == "out_of_memory"
    assert summary["reason"].startswith("it was killed, most likely for want of memory: ")
    assert f"SGREC_HOME={good_night} SGREC_INPUT=simulator {SGREC} nightly --day {DAY}</pre>" in page


def test_the_command_to_paste_in_a_copied_home_works_on_the_copy(good_night: Path, tmp_path: Path) -> None:
    began_again("train_generator")
    copy = shutil.copytree(good_night, tmp_path / "a copy")
    cause = gather_night(Settings(home=copy), DAY).cause
    assert cause is not None
    assert cause.command == f"SGREC_HOME='{copy}' SGREC_INPUT=simulator {SGREC} nightly --day {DAY}"


def test_a_failure_of_an_earlier_run_is_history(home: Path) -> None:
    run_night(Settings(), fail_at="train_supervised")
    failure(Settings(), time="2026-01-06T02:10:00+00:00", stage="train_supervised", exception="old")
    failure(Settings(), time="no time", stage="candidates", exception="odd")
    (Settings().reports(DAY) / "failures.jsonl").open("a").write("half a li")
    run_night(Settings())
    assert summary_and_page()[0]["status"] == "succeeded"


def test_a_gate_that_crashed_stops_the_night(good_night: Path) -> None:
    run = began_again("check_score_aspects")
    record(Lake(Settings().lake_root), [run.ended("failed", message="MemoryError")])
    night = gather_night(Settings(), DAY)
    assert night.stopped_at == "check_score_aspects"
    assert night.cause is not None
    assert night.cause.kind == "out_of_memory"


def test_scores_of_the_tiny_judge_are_labelled(home: Path) -> None:
    facts = {**FACTS["score_aspects"], "judge_engine": "vllm", "judge_meaningless": True}
    run_night(Settings(), facts={"score_aspects": facts})
    summary, page = summary_and_page()
    assert summary["judge"]["meaningless"] is True
    assert "The scores of this night are meaningless" in page


def test_all_text_is_escaped(home: Path) -> None:
    run_night(
        Settings(),
        attack=ATTACK,
        notes={"ingest_events": [ATTACK]},
        facts={"train_supervised": {ATTACK: ATTACK}},
        fail_at="evaluate_generator",
    )
    rows = rows_of("events_rejected", attack=ATTACK)
    rows[0]["reason"] = rows[0]["file"] = ATTACK
    damage(Settings(), "events_rejected", rows)
    summary, page = summary_and_page()
    assert "cannot be read" in summary["reason"]
    assert page.count("<script") == 1, "the one that copies the command"
    assert "<script>document" not in page
    assert "<img" not in page
    assert html.escape(ATTACK[:40], quote=False) in page.replace("&#34;", '"').replace("&#39;", "'")


def test_a_damaged_table_costs_a_banner_not_the_page(good_night: Path) -> None:
    for file in (good_night / "lake" / "evaluations").rglob("*.parquet"):
        file.unlink()
    summary, page = summary_and_page()
    assert summary["evaluation"]["champion"] is None
    assert "table evaluations could not be read" in page
    assert summary["rows"]["in"] == 74


def test_page_and_summary_say_that_promotion_is_held(good_night: Path) -> None:
    assert summary_and_page()[0]["hold"] is None
    table = promotions.Promotions(Lake(Settings().lake_root))
    table.decide(lambda decisions: promotions.hold(decisions, f"sale {ATTACK}"))
    summary, page = summary_and_page()
    assert summary["status"] == "succeeded"
    assert summary["hold"].startswith(f"held by {promotions.login()} since ")
    assert summary["hold"].endswith(f": sale {ATTACK}; `sgrec release` lifts it")
    assert f"hold by {promotions.login()}: sale &lt;/td&gt;" in page
    assert html.escape(summary["hold"]) in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    table.decide(lambda decisions: promotions.release(decisions, "over"))
    summary, page = summary_and_page()
    assert summary["hold"] is None
    assert "Promotion is held" not in page
    assert page.index(f" release by {promotions.login()}: over") < page.index(f" hold by {promotions.login()}: sale")
    for file in (good_night / "lake" / "promotions").rglob("*.parquet"):
        file.unlink()
    summary, page = summary_and_page()
    assert summary["hold"] is None
    assert "table promotions could not be read" in page


def out_of_band(settings: Settings, stage: str = "ingest_events", **changes: Any) -> None:
    """A metric behind a stage as it would be after an incident."""
    row = rows_of("night_metrics")[0] | {"low": 60.0, "high": 140.0, "status": "out", "how": "100, median of 3 nights"}
    partition = {"day": DAY, "stage": stage}
    table = table_of("night_metrics", [row | {"stage": stage} | changes])
    Lake(settings.lake_root).publish("night_metrics", table, partition=partition, fingerprint="e" * 32)


def test_a_night_is_green_or_amber_and_the_page_says_so_first(good_night: Path) -> None:
    summary, page = summary_and_page()
    assert (summary["verdict"], summary["alarms"]) == ("green", [])
    assert "<h2>Green. The night succeeded</h2>" in page
    out_of_band(Settings(), severity="warning", metric=f"events{ATTACK}"[:200])
    summary, page = summary_and_page()
    assert summary["verdict"] == "green", "a warning holds nothing"
    assert summary["alarms"][0]["owner"] is None, "of a metric that is not declared any more"
    assert "Metrics out of their bands" in page
    out_of_band(Settings())
    summary, page = summary_and_page()
    assert (summary["status"], summary["verdict"]) == ("succeeded", "amber")
    (alarm,) = summary["alarms"]
    assert (alarm["metric"], alarm["dimension"], alarm["value"], alarm["low"]) == ("events", "click", 30.0, 60.0)
    assert (alarm["severity"], alarm["owner"]) == ("critical", "data-platform")
    assert "<h2>Amber. The night succeeded; a critical metric is out of the band of its past</h2>" in page
    assert "events click 30, not 60 to 140 (100, median of 3 nights)" in page
    record(Lake(Settings().lake_root), [Run(day=DAY, stage="report_quality", input="simulator").ended("finished")])
    found = status_of_home(Settings(), day=None, nights=1, max_age_hours=None)
    assert (found["verdict"], found["exit_code"]) == ("amber", 4)
    assert str(found["cause"]).startswith("events click 30, not 60 to 140")


def test_a_metric_that_is_measured_behind_promotion_comes_too_late_and_the_page_says_so(good_night: Path) -> None:
    out_of_band(Settings(), "evaluate_generator", metric="supervised_ndcg", dimension="")
    page = summary_and_page()[1]
    assert "no other stage reads it. The supervised policy was promoted before this was measured." in page


def test_metrics_that_cannot_be_read_cost_a_banner_not_the_page(good_night: Path) -> None:
    out_of_band(Settings())
    for file in (good_night / "lake" / "night_metrics").rglob("*.parquet"):
        file.unlink()
    assert "table night_metrics could not be read, so the verdict knows no metrics" in summary_and_page()[1]


def test_the_page_needs_nothing_from_outside(good_night: Path) -> None:
    _, page = summary_and_page()
    for word in ("http://", "https://", "<script", "@import", '<link rel="stylesheet"'):
        assert word not in page, word
    assert len(page.encode()) < 100_000


def test_the_job_writes_page_summary_and_data_docs_and_ends_well_though_the_night_did_not(home: Path) -> None:
    run_night(Settings(), before_gate=broken_states)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.report_quality", "--day", DAY],
        cwd=PROJECT_ROOT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stopped at check_build_states" in done.stdout
    summary = json.loads((home / "reports" / DAY / "summary.json").read_text())
    data_docs = home / summary["paths"]["data_docs"]
    assert data_docs.is_file()
    page = (home / "reports" / DAY / "index.html").read_text()
    [link] = [part.split('"')[0] for part in page.split('href="') if "data_docs" in part.split('"')[0]]
    assert (home / "reports" / DAY / link).resolve() == data_docs.resolve()


def test_data_docs_cover_the_newest_nights_only(good_night: Path) -> None:
    reports = Settings().reports(DAY).parent
    for day in ("2026-01-06", "2026-01-07"):
        shutil.copytree(reports / DAY / "quality", reports / day / "quality")
    settings = Settings(quality=QualitySettings(data_docs_nights=2))
    for _ in range(2):
        site = build_data_docs(settings).parent
        nights = {path.parent.parent.name for path in site.glob("validations/*/*/*/*.html")}
        assert nights == {"2026-01-06", "2026-01-07"}
    # Nothing is asked of anybody, nothing runs, and every link leads to a page.
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    for path, text in pages.items():
        for word in ("http:", "https:", "<script", "<img", "onclick", "url("):
            assert word not in text, (path, word)
        for link in re.findall('href="([^"#][^"]*)"', text):
            assert link in ("data:,", "../index.html") or (path.parent / link).resolve() in pages, (path, link)
    index = pages[site / "index.html"]
    assert index.index("Validations of 2026-01-07") < index.index("Validations of 2026-01-06")
    assert index.count("✓ passed") == len(nights) * len(
        list((reports / DAY / "quality" / "great_expectations").iterdir())
    )
    [states] = [text for path, text in pages.items() if path.match("validations/user_states/2026-01-06/*/*.html")]
    assert "Successful Expectations" in states
    assert "values must never be null" in states


def test_values_of_bad_rows_are_escaped_in_data_docs(home: Path) -> None:
    def hostile_reason(settings: Settings, stage: str) -> None:
        if stage == "ingest_events":
            rows = rows_of("events_rejected")
            rows[0]["reason"] = ATTACK
            damage(settings, "events_rejected", rows)

    run_night(Settings(), until="ingest_events", before_gate=hostile_reason)
    site = build_data_docs(Settings()).parent
    assert "✗ failed" in (site / "index.html").read_text()
    [page] = site.glob("validations/events_rejected/*/*/*.html")
    assert "owned" in page.read_text()
    assert "<script>document.title" not in page.read_text()
    assert "<img src=x" not in page.read_text()


def test_a_night_that_was_cut_off_names_the_step_that_is_missing(home: Path) -> None:
    run_night(Settings(), until="generate_candidates")
    summary, _ = summary_and_page()
    assert summary["stopped_at"] == "score_aspects"
    assert summary["reason"] == "it has not run"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a night that went well and of one that stopped, both with hostile texts."""
    good, stopped = (Settings(home=tmp_path_factory.mktemp(name) / "home") for name in ("good", "stopped"))
    run_night(good, attack=ATTACK, notes={"ingest_events": [RULE, ATTACK]})
    out_of_band(good, metric="item_overlap", dimension="")
    run_night(stopped, attack=ATTACK, before_gate=broken_states)
    promotions.Promotions(Lake(good.lake_root)).decide(lambda decisions: promotions.hold(decisions, ATTACK))
    return {"good": write_report(good, DAY)[1], "stopped": write_report(stopped, DAY)[1]}


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("night", ["good", "stopped"])
def test_the_page_reads_well_in_a_browser(browser: Any, pages: dict[str, Path], width: int, night: str) -> None:
    messages: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("requestfailed", lambda request: messages.append(request.url))
    page.goto(pages[night].as_uri())
    assert messages == []
    assert page.title().startswith(f"sgrec {DAY}: {'succeeded' if night == 'good' else 'stopped'}")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # What matters most is on the first screen.
    verdict = page.get_by_role("heading", level=2).first.bounding_box()
    assert verdict["y"] < 300
    # No element sticks out of the page, scrolled regions apart.
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    page.close()


def test_the_report_stage_leaves_its_own_facts(good_night: Path) -> None:
    from jobs.report_quality import run

    assert Job("report_quality", DAY, Settings()).execute(run, Console(quiet=True)) == 0
    facts = last_runs(Lake(Settings().lake_root), DAY)["report_quality"].facts
    assert facts["night"] == "succeeded"
    assert (good_night / facts["data_docs"]).is_file()
