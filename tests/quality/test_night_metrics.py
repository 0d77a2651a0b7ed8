"""A day beside the day before it, through the gate: incidents that break no contract are out of their bands."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from small_night import ASPECTS, run_night
from typer.testing import CliRunner

from jobs import ingest_events
from sgrec_core.cli import app
from sgrec_core.lake import Lake, load_contract
from sgrec_core.logs import landing
from sgrec_core.quality import measures
from sgrec_core.quality.alarms import TABLE, alarms, critical_in_words, held_in_words, inherited_alarms, verdict
from sgrec_core.quality.gates import Gate, check_stage
from sgrec_core.quality.night_metrics import MEASURES, Past, banded, declared, measured_behind
from sgrec_core.registry.promotions import login
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import BusinessSettings, Settings, SimulatorSettings, StateSettings
from sgrec_core.simulator.raw_logs import DAY_MILLISECONDS, catalogue_rows, event_rows, profile_rows
from sgrec_core.simulator.requests import simulate_day

DAYS = ("2026-01-05", "2026-01-06", "2026-01-07")
SMALL = SimulatorSettings(users=150, items=80, new_items_per_day=2)
Rows = list[dict[str, Any]]
Logs = dict[str, Rows]
"""Rows by folder of the landing."""


def logs_of(day: str) -> Logs:
    simulated = simulate_day(SMALL, day, DAYS[0])
    return {
        "events": event_rows(simulated, day),
        "catalogue": catalogue_rows(simulated.items),
        "profiles": profile_rows(simulated.users),
    }


@pytest.fixture(scope="module")
def logs() -> dict[str, Logs]:
    return {day: logs_of(day) for day in DAYS}


def home_of(folder: Path) -> Settings:
    return Settings(home=folder / "home", input=f"logs:{folder / 'logs'}")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, logs: dict[str, Logs]) -> Settings:
    """Of a home with one clean day."""
    settings = home_of(tmp_path_factory.mktemp("metrics"))
    assert not published(settings, DAYS[0], logs[DAYS[0]]).alarms
    return settings


@pytest.fixture
def apart(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a copy of that home, which commands find as well."""
    home = shutil.copytree(settings.home, tmp_path / "home")
    (home / "source.json").write_text(json.dumps({"input": settings.input}))
    monkeypatch.setenv("SGREC_HOME", str(home))
    return settings.model_copy(update={"home": home})


def published(settings: Settings, day: str, logs: Logs) -> Gate:
    """What the gate says of the tables that ingest makes of the logs; rows of items that are not there are lost."""
    known = {row["item_id"] for row in logs["catalogue"]}
    rows: dict[str, Rows] = {
        "events": [
            row | {"role": "logged", "event_time": datetime.fromtimestamp(row["event_time"] / 1000, UTC)}
            for row in logs["events"]
            if row["item_id"] in known
        ],
        "items": [row | {"item_hash": row["item_id"]} for row in logs["catalogue"]],
        "users": [{"user_id": row["user_id"], "profile": "{}"} for row in logs["profiles"]],
        "events_rejected": [],
        "ingest_files": [
            {"path": record, "record": record, "bytes": 1, "bytes_consumed": 1, "rows_seen": len(logs[name])}
            | {"rows_used": len(logs[name]), "rows_accepted": len(logs[name]), "ended": "complete"}
            | dict.fromkeys(("rows_empty", "rows_rejected", "rows_unread"), 0)
            for record, name in (("event", "events"), ("item", "catalogue"), ("user", "profiles"))
        ],
    }
    for table, of_table in rows.items():
        schema = load_contract(table).arrow_schema
        nullable = pa.schema([field.with_nullable(True) for field in schema])
        data = pa.Table.from_pylist([row | {"day": date.fromisoformat(day)} for row in of_table], schema=nullable)
        Lake(settings.lake_root).publish(table, data, partition={"day": day}, fingerprint="0" * 32)
    return check_stage(settings, "ingest_events", day)


def ingested(settings: Settings, day: str, logs: Logs) -> Gate:
    """Land the logs, ingest them, and what the gate says."""
    folder = landing.day_folder(Path(settings.input.partition(":")[2]), day)
    for name, rows in logs.items():
        landing.write_jsonl(folder / name / "part-0.jsonl", rows)
    manifest = {"files": [f"{name}/part-0.jsonl" for name in logs]}
    (folder / landing.MANIFEST).write_text(json.dumps(manifest))
    assert Job("ingest_events", day, settings).execute(ingest_events.run, Console(quiet=True)) == 0
    return check_stage(settings, "ingest_events", day)


def half(logs: Logs, _: Logs) -> Logs:
    """One of two producers is gone: whole requests are missing."""
    return {**logs, "events": [row for row in logs["events"] if int(row["request_id"][-1]) % 2]}


def all_clicked(logs: Logs, _: Logs) -> Logs:
    kinds = {"impression": "click"}
    return {
        **logs,
        "events": [{**row, "event_type": kinds.get(row["event_type"], row["event_type"])} for row in logs["events"]],
    }


def in_cents(logs: Logs, _: Logs) -> Logs:
    return {**logs, "events": [{**row, "price": 100 * row["price"]} for row in logs["events"]]}


def tenth_of_the_catalogue(logs: Logs, _: Logs) -> Logs:
    return {**logs, "catalogue": logs["catalogue"][:8]}


def replay(logs: Logs, before: Logs) -> Logs:
    return {**logs, "events": [{**row, "event_time": row["event_time"] + DAY_MILLISECONDS} for row in before["events"]]}


def one_bid_beyond_all(logs: Logs, _: Logs) -> Logs:
    """It moves no quantile, and is most of the expected revenue."""
    first = logs["events"][0]["item_id"]
    changed = ({**row, "bid": 1e5 * row["bid"]} if row["item_id"] == first else row for row in logs["events"])
    return {**logs, "events": list(changed)}


INCIDENTS: list[tuple[Callable[[Logs, Logs], Logs], str]] = [
    (half, "raw_rows event"),
    (all_clicked, "events impression"),
    (in_cents, "price median"),
    (tenth_of_the_catalogue, "items"),
    (replay, "seen_before"),
    (one_bid_beyond_all, "largest bid"),
]


@pytest.fixture(scope="module")
def clean(settings: Settings, logs: dict[str, Logs]) -> Rows:
    """The second day as it should be, and its rows of the table."""
    assert published(settings, DAYS[1], logs[DAYS[1]]).alarms == []
    return metrics_of(settings, DAYS[1])


def metrics_of(settings: Settings, day: str) -> Rows:
    return Lake(settings.lake_root).read(TABLE, where={"day": day}).to_pylist()


def test_a_second_clean_day_has_bands_and_no_alarm(settings: Settings, clean: Rows) -> None:
    assert {row["status"] for row in metrics_of(settings, DAYS[0])} == {"no band"}
    without = {row["metric"] for row in clean if row["status"] == "no band"}
    assert without == {"item_overlap"}, "the first day has none before it"
    assert {row["status"] for row in clean} == {"in", "no band"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in clean if row["status"] == "in")


@pytest.mark.parametrize(("incident", "metric"), INCIDENTS)
def test_an_incident_that_breaks_no_contract_is_out_at_critical(
    settings: Settings, clean: Rows, logs: dict[str, Logs], incident: Callable[[Logs, Logs], Logs], metric: str
) -> None:
    gate = published(settings, DAYS[1], incident(logs[DAYS[1]], logs[DAYS[0]]))
    critical = [alarm.name for alarm in gate.alarms if alarm.severity == "critical"]
    assert metric in critical, gate.alarms
    assert verdict(True, gate.alarms) == "amber"
    # Of a night that its gate stops the figures are kept too.
    assert (gate.state == "failed") == (incident is tenth_of_the_catalogue)
    assert alarms(Lake(settings.lake_root), DAYS[1], stages=["ingest_events"]) == gate.alarms
    said = critical_in_words(gate.alarms)
    assert said is not None
    assert "1 earlier night" in said or "known beforehand" in said


def test_a_mended_day_is_as_if_nothing_had_been_and_what_was_out_is_no_past(
    settings: Settings, clean: Rows, logs: dict[str, Logs]
) -> None:
    assert published(settings, DAYS[1], half(logs[DAYS[1]], logs[DAYS[0]])).alarms
    assert published(settings, DAYS[2], logs[DAYS[2]]).alarms == [], "the bands of the first day alone"
    assert published(settings, DAYS[1], logs[DAYS[1]]).alarms == []
    assert metrics_of(settings, DAYS[1]) == clean
    version = Lake(settings.lake_root).version(TABLE)
    check_stage(settings, "ingest_events", DAYS[1], force=True)
    assert Lake(settings.lake_root).version(TABLE) == version, "the same figures are not written again"


def judged(seed: int, change: Callable[[float], float] = lambda score: score) -> pa.Table:
    """Calls about 60 states with 8 candidates each; what a state's user likes lies in all of its scores."""
    draws = np.random.default_rng(seed)
    rows = [
        {"state_id": f"s{state}", "aspects": ["fit", "price"], "scores": [change(score), 0.5]}
        for state, taste in enumerate(draws.normal(0.4, 0.2, 60))
        for score in taste + draws.normal(0, 0.2, 8)
    ]
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(
    ("change", "out"),
    [
        (lambda score: score, {}),
        (lambda score: 0.4, {"judge_spread fit (v1)": "critical"}),
        (lambda score: -score, {"judge_mean fit (v1)": "critical"}),
    ],
    ids=["as before", "of one mind", "inverted"],
)
def test_a_judge_that_tells_nothing_apart_or_says_the_opposite_is_out(
    change: Callable[[float], float], out: dict[str, str]
) -> None:
    past: Past = {}
    for one in measures.of_judge(judged(1), "v1"):
        past[one.metric, one.dimension] = [(DAYS[0], one.figure)]
    found = {
        f"{one.metric} {one.dimension}": metric.severity
        for metric, one, band in banded(measures.of_judge(judged(2, change), "v1"), past, DAYS[1])
        if band is None or not band.holds(one.figure.value)
    }
    assert found == out
    others = banded(measures.of_judge(judged(2, change), "v2"), past, DAYS[1])
    assert all(band is None for _, _, band in others), "another judge has no past"


def test_the_judge_is_measured_behind_its_stage(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for day in DAYS[:2]:
        run_night(settings, day, until="score_aspects")
    rows = Lake(settings.lake_root).read(TABLE, where={"day": DAYS[1], "stage": "score_aspects"}).to_pylist()
    named = {(row["metric"], row["dimension"].partition(" ")[0]): row for row in rows}
    assert set(named) == {(metric, aspect) for metric in ("judge_mean", "judge_spread") for aspect in ASPECTS}
    assert [named["judge_mean", aspect]["value"] for aspect in ASPECTS] == [0.5, 0.0, -0.5]
    assert {row["status"] for row in rows} == {"in"}
    assert len({row["place"] for row in rows}) == 2


def test_a_table_that_lost_earlier_nights_stops_the_night_that_makes_it_anew(
    settings: Settings, clean: Rows, logs: dict[str, Logs], tmp_path: Path
) -> None:
    home = shutil.copytree(settings.home, tmp_path / "home")
    settings = settings.model_copy(update={"home": home})
    published(settings, DAYS[1], logs[DAYS[1]])
    assert published(settings, DAYS[2], logs[DAYS[2]]).state == "finished"
    shutil.rmtree(home / "lake" / "events")
    gate = published(settings, DAYS[2], logs[DAYS[2]])
    assert gate.state == "failed"
    assert gate.message is not None
    assert f"table events has lost the partition day={DAYS[0]}" in gate.message
    for day in DAYS:
        gate = published(settings, day, logs[day])
    assert gate.state == "finished", "each day was run again"


def test_a_level_that_a_person_accepts_is_the_past_of_later_nights(apart: Settings, logs: dict[str, Logs]) -> None:
    whole, fewer = (change(logs[DAYS[2]], logs[DAYS[1]]) for change in (lambda logs, _: logs, half))
    command = ["accept-night", "--day", DAYS[1], "--reason", "a market was closed"]
    published(apart, DAYS[1], logs[DAYS[1]])
    refused = CliRunner().invoke(app, command)
    assert f"night {DAYS[1]} has no metric out of its band" in str(refused.exception)
    assert published(apart, DAYS[1], half(logs[DAYS[1]], logs[DAYS[0]])).alarms
    assert published(apart, DAYS[2], fewer).alarms, "the first day is all that it goes by"
    done = CliRunner().invoke(app, command)
    assert f"night {DAYS[1]} was accepted by {login()}: a market was closed" in done.output, done.exception
    assert alarms(Lake(apart.lake_root), DAYS[1], stages=["ingest_events"]) == []
    assert published(apart, DAYS[1], half(logs[DAYS[1]], logs[DAYS[0]])).alarms == [], "run again"
    assert published(apart, DAYS[2], fewer).alarms == []
    assert "events impression" in {alarm.name for alarm in published(apart, DAYS[2], whole).alarms}
    # These figures were accepted, not whatever the day may hold.
    others = {alarm.name for alarm in published(apart, DAYS[1], all_clicked(logs[DAYS[1]], logs[DAYS[0]])).alarms}
    assert {"events impression", "events click"} <= others
    assert published(apart, DAYS[1], half(logs[DAYS[1]], logs[DAYS[0]])).alarms == []


def test_later_nights_learn_from_an_amber_day_until_it_is_mended_or_accepted(
    apart: Settings, logs: dict[str, Logs]
) -> None:
    lake = Lake(apart.lake_root)
    fewer = half(logs[DAYS[1]], logs[DAYS[0]])
    published(apart, DAYS[1], fewer)
    assert published(apart, DAYS[2], logs[DAYS[2]]).alarms == []
    inherited = inherited_alarms(lake, apart, DAYS[2])
    assert {alarm.day for alarm in inherited} == {DAYS[1]}
    assert {alarm.severity for alarm in inherited} == {"critical"}
    assert verdict(True, inherited) == "amber"
    said = held_in_words([], inherited)
    assert said is not None
    assert said.startswith(f"learns from {DAYS[1]}, which is amber: raw_rows event ")
    assert said.endswith("; mend or accept that day")
    assert inherited_alarms(lake, apart, DAYS[1]) == [], "its own"
    short = StateSettings(history_days=1), BusinessSettings(window_days=1)
    later = apart.model_copy(update={"states": short[0], "business": short[1]})
    assert inherited_alarms(lake, later, DAYS[2]) == [], "it does not reach so far"
    refused = CliRunner().invoke(app, ["accept-night", "--day", DAYS[2], "--reason", "why"])
    assert f"it learns from {DAYS[1]}, which is amber" in str(refused.exception)

    published(apart, DAYS[1], logs[DAYS[1]])
    assert inherited_alarms(lake, apart, DAYS[2]) == [], "mended"
    published(apart, DAYS[1], fewer)
    assert inherited_alarms(lake, apart, DAYS[2])
    CliRunner().invoke(app, ["accept-night", "--day", DAYS[1], "--reason", "a market was closed"])
    assert inherited_alarms(lake, apart, DAYS[2]) == [], "accepted"
    published(apart, DAYS[1], all_clicked(logs[DAYS[1]], logs[DAYS[0]]))
    assert inherited_alarms(lake, apart, DAYS[2]), "that was not what was accepted"


@pytest.mark.spark
def test_raw_logs_of_which_half_is_gone_hold_promotion_until_they_are_whole(
    tmp_path: Path, logs: dict[str, Logs], clean: Rows
) -> None:
    """The manifest lists what there is."""
    settings = home_of(tmp_path)
    assert ingested(settings, DAYS[0], logs[DAYS[0]]).alarms == []
    gate = ingested(settings, DAYS[1], half(logs[DAYS[1]], logs[DAYS[0]]))
    assert gate.state == "finished"
    assert {"raw_rows event", "events impression", "events click"} <= {alarm.name for alarm in gate.alarms}
    assert ingested(settings, DAYS[1], logs[DAYS[1]]).alarms == []
    assert [row | {"input": ""} for row in metrics_of(settings, DAYS[1])] == [row | {"input": ""} for row in clean]


def test_each_metric_is_measured_behind_a_gate_that_is_there() -> None:
    behind = [one for stage in STAGES if stage.publishes for one in measured_behind(stage.name)]
    assert len(behind) == len(set(behind))
    assert {metric.stage for metric in declared().metrics.values()} == set(MEASURES) <= set(behind)
    assert measured_behind("train_judge") == []
