"""The first cause of a night that is not green: the first thing wrong in the order of data flow, and one for all."""

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_night import DAY, damage, rows_of, run_night, table_of

from jobs import ingest_events
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.damage import Damage
from sgrec_core.logs import landing
from sgrec_core.quality.alarms import Alarm
from sgrec_core.quality.cause import Cause, cause
from sgrec_core.quality.evidence import Evidence, RawFileRead, Rejects
from sgrec_core.quality.gates import RAW_LOGS, check_stage
from sgrec_core.quality.night import gather_night
from sgrec_core.quality.report import write_report
from sgrec_core.quality.status import status_of_home
from sgrec_core.quality.steps import Step
from sgrec_core.quality.validation import Check, TableResult
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.runs import Run, record
from sgrec_core.settings import PROJECT_ROOT, Settings, SimulatorSettings
from sgrec_core.simulator.raw_logs import catalogue_rows, event_rows, profile_rows
from sgrec_core.simulator.requests import simulate_day

NEXT_DAY = "2026-01-06"
LOGS, CATALOGUE, JUDGE = (load_contract(table).owner for table in ("events", "items", "aspect_scores"))


def step(name: str, message: str = "", state: str = "failed") -> Step:
    return Step(name=name, state=state, started=datetime(2026, 1, 6, tzinfo=UTC), seconds=3.0, message=message)


def raw_file(path: str, record: str, seen: int, rejected: int = 0, **what: Any) -> RawFileRead:
    told = {"bytes": 100, "bytes_consumed": 100, "rows_unread": 0, "ended": "complete", "detail": None}
    accepted = {"rows_seen": seen, "rows_accepted": seen - rejected, "rows_rejected": rejected}
    return RawFileRead(path=path, record=record, **{**told, **accepted, **what})


def rejects(reason: str, rows: int, detail: str = "", *, file: str = "events/a.jsonl", **what: Any) -> Rejects:
    told = {"record": "event", "column": None, "absent": detail.endswith("is missing"), **what}
    return Rejects(reason=reason, file=file, detail=detail, rows=rows, **told)


def failed(*names: str, table: str = RAW_LOGS) -> TableResult:
    checks = [
        Check(name=name, column=None, severity="critical", success=False, observed="much", expected="little")
        for name in names
    ]
    return TableResult(table=table, day=DAY, rows=1000, owner="its owner", runbook="Look.", checks=checks)


EVENTS, ITEMS = raw_file("events/a.jsonl", "event", 1000), raw_file("catalogue/c.jsonl", "item", 100)
NO_CHOICE = {"impression": 9}
NOT_FINITE = "sgrec-supervised version 3: 5 of 9 numbers of tensor 'w' are NaN or infinite"
AT_GATE = Evidence(
    day=DAY,
    step=step("check_ingest_events", "table raw_logs, check 'rejected share'"),
    results=[failed("rejected share")],
    files=[EVENTS, ITEMS],
    events={"impression": 600, "click": 60},
    items=100,
)
NOISE = [rejects("invalid_json", 5, "not JSON"), rejects("duplicate_event_id", 6, "again")]
"""What every day has."""


def told(evidence: Evidence, home: Path) -> Cause:
    found = cause(Settings(home=home), evidence, None)
    assert found is not None
    return found


RENAMED = [
    rejects("missing_field", 90, "column item_id is missing", column="item_id"),
    rejects("missing_field", 80, "column item_id is missing", column="item_id", file="events/b.jsonl"),
    rejects("unknown_item", 100, "column item_id: 'x' is not in the catalogue", column="item_id"),
]
UNKNOWN = [rejects("unknown_item", 300, "column item_id: 'x' is not in the catalogue of the day", column="item_id")]
KIND = "column event_type: 'klick'; valid are impression, click, conversion, dislike"
CUT = {"ended": "broken_off", "detail": "gzip data break off", "bytes_consumed": 40}
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "the files come first, and all of them count": (
        {"files": [EVENTS, raw_file("events/z.gz", "event", 9, **CUT), ITEMS], "rejects": UNKNOWN},
        "truncated_file", LOGS, "events/z.gz was not read to its end: gzip data break off (1 of 2 events files)",
    ),
    "a catalogue that broke off is its owner's": (
        {"files": [EVENTS, replace(ITEMS, **CUT)], "rejects": UNKNOWN},
        "truncated_file", CATALOGUE, "catalogue/c.jsonl was not read to its end",
    ),
    "a field has got another name": (
        {"rejects": RENAMED, "unknown_columns": lambda names: ["color", "itemid_v2"]},
        "renamed_field", LOGS,
        "field item_id is missing in 170 rows of events/a.jsonl and 1 more file; it is called itemid_v2 now",
    ),
    "a field is gone": ({"rejects": RENAMED}, "missing_field", LOGS, "field item_id is missing in 170 rows"),
    "a field with a name that nobody would guess": (
        {"rejects": RENAMED, "unknown_columns": lambda names: ["a", "zz"], "new_columns": lambda names: ["zz"]},
        "renamed_field", LOGS,
        "field item_id is missing in 170 rows of events/a.jsonl and 1 more file; it is called zz now",
    ),
    "a column that was always there is no new name": (
        {"rejects": RENAMED, "unknown_columns": lambda names: ["colour"]},
        "missing_field", LOGS, "field item_id is missing in 170 rows",
    ),
    "a header without a field": (
        {"files": [replace(EVENTS, ended="unreadable", detail="the header has a; missing is user_id")]},
        "missing_field", LOGS, "field user_id is missing in 1,000 rows of events/a.jsonl",
    ),
    "a field that holds nothing": (
        {"rejects": [rejects("anonymous", 600, "column user_id: '' stands for nothing", column="user_id")],
         "results": [failed("events without a user")]},
        "empty_field", LOGS, "field user_id holds nothing in 600 rows",
    ),
    "a type has got another name": (
        {"rejects": [*NOISE, rejects("unknown_event_type", 400, KIND, column="event_type")], "events": NO_CHOICE},
        "unknown_value", LOGS, "400 rows of events/a.jsonl have the event_type 'klick', which is none of",
    ),
    "times of another unit": (
        {"rejects": [*NOISE, rejects("invalid_value", 300, "column event_time: 1767 looks like seconds",
                                     column="event_time")]},
        "wrong_time", LOGS, "300 rows of events/a.jsonl hold values that are not valid, e.g. column event_time: 1767",
    ),
    "a shrunken catalogue": (
        {"rejects": [*NOISE, *UNKNOWN], "items": 10, "items_before": 100, "items_shared": 10},
        "shrunken_catalogue", CATALOGUE, "the catalogue has shrunk to 10 items, from 100 the day before: 300 events",
    ),
    "events of items that nobody knows": (
        {"rejects": UNKNOWN, "items": 101, "items_before": 100, "items_shared": 99},
        "unknown_items", LOGS, "300 events of events/a.jsonl are of items that are not in the catalogue, which holds",
    ),
    "a catalogue with other ids": (
        {"rejects": UNKNOWN, "items": 100, "items_before": 100, "items_shared": 3},
        "changed_catalogue", CATALOGUE, "the catalogue has 100 items, but 97 of the day before's are gone",
    ),
    "delivered twice": (
        {"rejects": [rejects("duplicate_event_id", 900, "again")]},
        "repeated_rows", LOGS, "900 rows repeat an id of the same day, 900 of the 1,000 of events/a.jsonl",
    ),
    "files without a row": (
        {"files": [raw_file("events/a.jsonl", "event", 0), ITEMS], "events": {},
         "results": [failed("not empty", table="events")]},
        "empty_file", LOGS, "events/a.jsonl is empty: there is no row of events",
    ),
    "rows that a table has lost since are no fault of the logs": (
        {"step": step("train_supervised", "IndexError: 0"), "events": {}},
        "unknown", load_contract("rewards").owner, "IndexError: 0",
    ),
    "nothing was accepted": (
        {"files": [replace(EVENTS, rows_accepted=0, rows_rejected=1000), ITEMS], "events": {}},
        "no_events", LOGS, "none of the day's 1,000 raw events was accepted",
    ),
    "rows that break the contract of a table": (
        {"results": [failed("unique", table="items")], "rejects": UNKNOWN},
        "broken_contract", "its owner", "table items, check 'unique'",
    ),
    "no click": (
        {"step": step("check_build_states"), "events": {"impression": 990}, "rejects": NOISE,
         "results": [failed("not empty", table="user_states")]},
        "no_clicks", LOGS, "there is no click and no conversion among the day's 1,000 raw events: accepted are 990",
    ),
    "no click behind, where a stage crashed on nothing": (
        {"step": step("fit_business_reward", "IndexError: index 0 is out of bounds"), "events": NO_CHOICE},
        "no_clicks", LOGS, "there is no click",
    ),
    "a crash that no row explains": (
        {"step": step("train_generator", "TypeError: unsupported"), "rejects": UNKNOWN[:1] * 3},
        "unknown", load_contract("rewards").owner, "TypeError: unsupported",
    ),
    "tables that were changed behind the stage's back": (
        {"results": [failed("nothing lost")], "rejects": UNKNOWN},
        "broken_contract", "its owner", "table raw_logs, check 'nothing lost': much; valid is little",
    ),
    "a small folder, beside what is usual among many events": (
        {"results": [failed("rejected share of users")], "rejects": UNKNOWN},
        "broken_contract", "its owner", "table raw_logs, check 'rejected share of users': much; valid is little",
    ),
    "weights": (
        {"step": step("generate_candidates", NOT_FINITE),
         "events": NO_CHOICE},
        "non_finite_weights", load_contract("rewards").owner, "sgrec-supervised version 3: 5 of 9 numbers",
    ),
    "a disk": (
        {"step": step("build_states", "OSError: [Errno 28] No space left on device: '/x'"), "events": NO_CHOICE},
        "disk_full", load_contract("stage_runs").owner, "the disk is full: OSError",
    ),
    "a judge": (
        {"step": step("score_aspects", "the judge no longer answers (no answer within 1 s); calls without")},
        "judge_away", JUDGE, "the judge no longer answers",
    ),
    "a setting": (
        {"step": step("tokenize_items", "items.levels=1 and items.codebook_size=2 make 2 semantic ids for 40 items"),
         "variables": {"SGREC_ITEMS__LEVELS": "1", "SGREC_INPUT": "simulator"}},
        "wrong_setting", load_contract("item_codes").owner, "items.levels=1 and",
    ),
    "a setting's name alone is no fault of it": (
        {"step": step("tokenize_items", "items.levels=1 and items.codebook_size=2 make 2 semantic ids for 40 items")},
        "unknown", load_contract("item_codes").owner, "items.levels=1 and",
    ),
    "no file": (
        {"step": step("ingest_events", "no catalogue files of 2026-01-05 in /raw; expected layout"), "files": [],
         "events": None, "results": []},
        "missing_input", CATALOGUE, "no catalogue files of",
    ),
    "a version": (
        {"step": step("train_generator", "ContractError: table rewards: files of version 3 are gone: /x.parquet")},
        "lost_table", load_contract("rewards").owner, "ContractError: table rewards: files of version 3",
    ),
    "a file that Spark names": (
        {"step": step("build_states", "Py4JJavaError: [FAILED_READ_FILE.FILE_NOT_EXIST] Error while reading file"
                      " file:///h/lake/events/day=2026-01-04/role=logged/part-0.parquet.")},
        "lost_table", LOGS, "Py4JJavaError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_first_thing_wrong_in_the_order_of_data_flow_is_the_cause(home: Path, name: str) -> None:
    changes, kind, owner, sentence = CASES[name]
    found = told(replace(AT_GATE, **changes), home)
    assert (found.kind, found.owner) == (kind, owner), found
    assert found.reason.startswith(sentence), found.reason
    assert found.runbook
    assert found.command.startswith(f"SGREC_HOME={home} SGREC_INPUT=simulator ")
    assert found.reason not in found.consequences


def test_what_follows_from_the_cause_is_told_behind_it(home: Path) -> None:
    found = told(replace(AT_GATE, rejects=[*RENAMED]), home)
    assert any("300 events" in text or "100 events" in text for text in found.consequences), found.consequences
    assert found.consequences[-1].startswith("table raw_logs, check 'rejected share'")
    assert (found.column, found.file) == ("item_id", "events/a.jsonl")


def test_secrets_in_urls_are_on_no_page(home: Path) -> None:
    said = "judge.server_url='https://me:hush@judge/v1?api_key=hush' does not answer: refused"
    found = told(replace(AT_GATE, step=step("score_aspects", said)), home)
    assert found.kind == "judge_away"
    assert "https://judge/v1" in found.reason
    assert "hush" not in json.dumps(found.told())


def test_a_lost_table_is_mended_where_it_was_made(home: Path) -> None:
    lost = step("train_generator", "table rewards: files of version 3 are gone: x")
    assert told(replace(AT_GATE, step=lost), home).command.endswith(
        f"nightly --day {DAY} --from materialize_rewards --force"
    )
    spark = CASES["a file that Spark names"][0]["step"]
    found = told(replace(AT_GATE, step=spark), home)
    assert (found.table, found.day) == ("events", "2026-01-04")
    assert "-m jobs.ingest_events --day 2026-01-04 --force && SGREC_HOME=" in found.command
    assert found.command.endswith(f"sgrec nightly --day {DAY}")


def test_what_several_tables_have_lost_is_made_again_in_order(home: Path) -> None:
    lost = [
        Damage(table="events", what="has lost b", file="b", day="2026-01-04"),
        Damage(table="user_states", what="has lost a", file="a", day="2026-01-03"),
        Damage(table="user_states", what="has lost c", file="c", day=DAY),
        Damage(table="item_codes", what="has lost d", file="d"),
    ]
    crashed = replace(AT_GATE, step=step("train_supervised", "IndexError: 0"), damage=lost)
    found = told(crashed, home)
    assert found.reason == "table events has lost b; 3 more losses like it"
    jobs = [part.partition(" -m jobs.")[2] for part in found.command.split(" && ")[:-1]]
    assert jobs == ["build_states --day 2026-01-03 --force", "ingest_events --day 2026-01-04 --force"]
    assert found.command.endswith(f"nightly --day {DAY} --from build_states --force")
    gone = Damage(table="user_states", what="is gone", day="2026-01-03", kind="table")
    found = told(replace(crashed, damage=[gone]), home)
    assert found.command.endswith(f"sgrec backfill --from 2026-01-03 --to {DAY}")
    torn = replace(gone, what="cannot be opened", kind="log")
    found = told(replace(crashed, damage=[torn], lake="/lake"), home)
    assert found.runbook.startswith("Move /lake/user_states away; build_states makes it again")
    assert found.command.endswith(f"sgrec backfill --from 2026-01-03 --to {DAY}")
    codes = told(replace(crashed, damage=lost[3:]), home)
    assert "restore" in codes.runbook, "no stage makes the same ones again"
    assert codes.command.endswith(f"sgrec nightly --day {DAY}")


def test_a_wrong_setting_is_left_out_of_the_command(home: Path) -> None:
    settings = Settings(home=home, items={"levels": 1}, spark_memory="1g")
    evidence = replace(AT_GATE, step=CASES["a setting"][0]["step"], variables=settings.assignments())
    found = cause(settings, evidence, None)
    assert found is not None
    assert (found.kind, found.column) == ("wrong_setting", "SGREC_ITEMS__LEVELS")
    assert "LEVELS" not in found.command
    assert "SGREC_SPARK_MEMORY=1g" in found.command


def alarm(metric: str, dimension: str = "", place: int = 0, **what: Any) -> Alarm:
    row = {"day": DAY, "stage": "ingest_events", "value": 9.0, "low": 20.0, "high": 40.0, "how": "30"}
    return Alarm(metric=metric, dimension=dimension, place=place, severity="critical", **{**row, **what})


def test_an_amber_night_names_its_first_metric_and_what_the_raw_files_explain_of_it(home: Path) -> None:
    amber = replace(AT_GATE, step=None, results=[], rejects=NOISE)
    found = told(replace(amber, alarms=[alarm("price", "median")]), home)
    assert (found.kind, found.owner, found.column) == ("out_of_band", LOGS, "median")
    assert found.reason == "price median 9, not 20 to 40 (30)"
    found = told(replace(amber, alarms=[alarm("items")]), home)
    assert (found.kind, found.owner) == ("shrunken_catalogue", CATALOGUE)
    empty = alarm("null", "price", value=1.0, low=0.0, high=0.05)
    columns = {"unknown_columns": lambda names: ["colour", "price_eur"]}
    found = told(replace(amber, alarms=[empty], **columns), home)
    assert (found.kind, found.column, found.value) == ("renamed_field", "price", "price_eur")
    renamed = rejects("unknown_event_type", 30, KIND, column="event_type")
    clicks = alarm("events", "click", value=0.0)
    found = told(replace(amber, alarms=[clicks], rejects=[*NOISE, renamed], events={"impression": 900}), home)
    assert (found.kind, found.value) == ("unknown_value", "klick")
    assert found.consequences[-1].startswith("events click 0, not 20 to 40")
    inherited = [alarm("items", day="2026-01-03")]
    found = told(replace(amber, alarms=[], inherited=inherited), home)
    assert (found.kind, found.day) == ("learns_from_amber", "2026-01-03")
    assert found.command.endswith(f"sgrec backfill --from 2026-01-03 --to {DAY}")


# Page, summary and status


def page_and_status(settings: Settings, day: str = DAY) -> tuple[dict[str, Any], str, dict[str, Any]]:
    summary, page = write_report(settings, day)
    return summary, page.read_text(), status_of_home(settings, day=day)


def tell_the_same(settings: Settings, day: str = DAY) -> dict[str, Any]:
    """That page, summary and status do; what they tell."""
    summary, page, found = page_and_status(settings, day)
    of_summary = summary["cause"]
    for mine, theirs in (("cause", "reason"), ("owner", "owner"), ("command", "command"), ("runbook", "runbook"),
                         ("since", "since"), ("consequences", "consequences")):  # fmt: skip
        assert found[mine] == of_summary[theirs], mine
    shown = page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    for name in ("cause", "owner", "command", "runbook"):
        assert f">{html.escape(found[name])}</" in shown, name
    return dict(found)


def broken_states(settings: Settings, stage: str) -> None:
    if stage == "build_states":
        rows = rows_of("user_states")
        rows[3]["split"] = "Train"
        damage(settings, "user_states", rows)


def test_a_red_and_an_amber_night_have_one_cause_on_page_summary_and_status(home: Path) -> None:
    settings = Settings()
    run_night(settings, before_gate=broken_states)
    found = tell_the_same(settings)
    assert found["cause"].startswith("table user_states, column split, check 'allowed values': 1 of 30 rows")
    shutil.rmtree(home / "lake")
    run_night(settings)
    row = rows_of("night_metrics")[0] | {"low": 60.0, "high": 140.0, "status": "out", "how": "100, median of 3 nights"}
    partition = {"day": DAY, "stage": "ingest_events"}
    Lake(settings.lake_root).publish(
        "night_metrics", table_of("night_metrics", [row]), partition=partition, fingerprint="e" * 32
    )
    record(Lake(settings.lake_root), [Run(day=DAY, stage="report_quality", input="simulator").ended("finished")])
    found = tell_the_same(settings)
    assert (found["verdict"], found["exit_code"]) == ("amber", 4)
    assert found["cause"] == "events click 30, not 60 to 140 (100, median of 3 nights)"
    assert found["owner"] == LOGS


LIGHT = """
import json, sys
from sgrec_core.quality.status import status_of_home
from sgrec_core.settings import Settings
found = status_of_home(Settings())
heavy = {"pandas", "torch", "mlflow", "sqlalchemy"} & set(sys.modules)
print(json.dumps([found["cause"], sorted(heavy)]))
"""


def lost_behind(settings: Settings, stage: str, message: str) -> dict[str, Any]:
    """A night that stopped at ``stage``."""
    run = Run(day=DAY, stage=stage, input="simulator")
    record(Lake(settings.lake_root), [run.ended("failed", message=message)])
    return tell_the_same(settings)


def test_what_a_table_has_lost_is_told_with_file_day_and_version(home: Path) -> None:
    settings = Settings()
    run_night(settings)
    table = home / "lake" / "user_states"
    (file,) = (table / f"day={DAY}").glob("*.parquet")
    whole = file.read_bytes()
    file.unlink()
    found = lost_behind(settings, "train_supervised", "IndexError: list index out of range")
    assert found["cause"] == f"table user_states has lost day={DAY}/{file.name}"
    assert found["command"].endswith(f"nightly --day {DAY} --from build_states --force")
    told = gather_night(settings, DAY).cause
    assert told is not None
    assert (told.kind, told.table, told.day, told.version) == (
        "lost_table",
        "user_states",
        DAY,
        Lake(settings.lake_root).version("user_states"),
    )
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [found["cause"], []], "status stays quick"

    file.write_bytes(whole[:100])
    found = lost_behind(settings, "train_supervised", "OSError: Parquet magic bytes not found")
    assert "bytes instead of" in found["cause"]
    file.write_bytes(whole)
    assert lost_behind(settings, "train_supervised", "ValueError: odd")["cause"] == "ValueError: odd"
    last = max((table / "_delta_log").glob("*.json"))
    last.unlink()
    found = lost_behind(settings, "train_supervised", "user_states has no training decision")
    assert f"table user_states has lost the partition day={DAY}: it is at version" in found["cause"]
    shutil.rmtree(table)
    found = lost_behind(settings, "train_supervised", "user_states has no training decision")
    assert found["cause"].startswith("table user_states is gone")
    assert found["owner"] == load_contract("user_states").owner


# From raw files


SMALL = SimulatorSettings(users=40, items=30, new_items_per_day=0, bad_share=0.0)


def land(settings: Settings, day: str, **changes: Any) -> None:
    """The simulator's rows of a day, each kind changed by what ``changes`` names."""
    simulated = simulate_day(SMALL, day, DAY)
    rows: dict[str, Sequence[dict[str, Any]]] = {
        "events": event_rows(simulated, day),
        "catalogue": catalogue_rows(simulated.items),
        "profiles": profile_rows(simulated.users),
    }
    folder = landing.day_folder(Path(settings.input.partition(":")[2]), day)
    shutil.rmtree(folder, ignore_errors=True)
    for name, of_name in rows.items():
        changed = changes.get(name, lambda rows: rows)(list(of_name))
        for number in range(2):
            landing.write_jsonl(folder / name / f"part-{number}.jsonl", changed[number::2])


def renamed(name: str, now: str) -> Any:
    return lambda rows: [{now if key == name else key: value for key, value in row.items()} for row in rows]


@pytest.mark.spark
def test_raw_files_tell_the_cause_through_ingest_and_its_gate(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", input=f"logs:{tmp_path / 'raw'}")

    def gate(day: str, **changes: Any) -> dict[str, Any]:
        land(settings, day, **changes)
        assert Job("ingest_events", day, settings).execute(ingest_events.run, Console(quiet=True)) == 0
        check_stage(settings, "ingest_events", day)
        return tell_the_same(settings, day)

    found = gate(DAY, events=renamed("item_id", "product_id"))
    assert found["cause"].endswith("it is called product_id now, most likely"), found["cause"]
    assert "field item_id is missing in" in found["cause"]
    assert "events/part-0.jsonl and 1 more file" in found["cause"]
    gate(DAY)
    found = gate(NEXT_DAY, catalogue=lambda rows: rows[:6])
    assert found["cause"].startswith("the catalogue has shrunk to 6 items, from 30 the day before")
    assert found["owner"] == CATALOGUE
    assert found["command"].startswith(f"SGREC_HOME={settings.home} SGREC_INPUT={settings.input} ")
