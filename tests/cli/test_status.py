"""`sgrec status`: what it says of a home, in words and as JSON, and the exit code that a cron goes by."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registered_models import register
from typer.testing import CliRunner

from sgrec_core.cli import app
from sgrec_core.cli.app import console
from sgrec_core.files import write_json
from sgrec_core.lake import Lake
from sgrec_core.night.airflow import only_night
from sgrec_core.registry import CHAMPION, GENERATOR, Registry
from sgrec_core.runtime.layout import LAYOUT
from sgrec_core.runtime.runs import Run, record
from sgrec_core.runtime.stages import JUDGE_TRAINING_FOLDER, STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings

DAYS = ("2026-01-05", "2026-01-06", "2026-01-09")
STEPS = [name for stage in STAGES for name in (stage.name, *([f"check_{stage.name}"] if stage.publishes else []))]
KEYS = """
    home input day state verdict step cause since owner runbook command consequences last_good promotion champion
    challenger judge running missing late nights incidents problems exit_code
"""
HEAVY = ("torch", "mlflow", "pandas", "sqlalchemy", "great_expectations", "pyspark")


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home that has its source and nothing else."""
    monkeypatch.setattr(console, "width", 250)
    home.mkdir()
    write_json(home / "source.json", {"input": "simulator"})
    write_json(home / "home.json", {"layout": LAYOUT})
    return Settings(home=home)


def ran(settings: Settings, day: str, *, until: str = STEPS[-1], state: str = "finished", **what: Any) -> None:
    """The steps of a night up to ``until``, which ends in ``state`` or does not end."""
    runs = []
    for step in STEPS[: STEPS.index(until) + 1]:
        run = Run(day=day, stage=step, input="simulator", git_revision=None)
        runs.append(run)
        if step != until:
            runs.append(run.ended("finished"))
        elif state != "running":
            runs.append(run.ended(state, **what))
    record(Lake(settings.lake_root), runs)


def status(*arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["status", "--json", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    found = json.loads(result.output)
    assert list(found) == KEYS.split()
    assert found["exit_code"] == code
    return dict(found)


def said(*arguments: str) -> str:
    return CliRunner().invoke(app, ["status", *arguments]).output


def test_a_home_without_nights_is_no_incident_but_for_a_cron(settings: Settings) -> None:
    found = status()
    assert (found["state"], found["day"], found["nights"], found["champion"]) == ("none", None, [], None)
    assert not (settings.home / "mlflow").exists(), "who only looks makes nothing"
    assert status("--max-age-hours", "36", code=1)["late"]


def test_a_night_that_has_only_begun_is_there(settings: Settings) -> None:
    with only_night(settings, DAYS[0]):
        found = status()
        assert (found["day"], found["state"], found["step"]) == (DAYS[0], "running", "starting")
        assert (found["running"], found["verdict"], found["cause"]) == (DAYS[0], None, None)
        assert re.search(rf"{DAYS[0]}\s+running\s+starting", said())
        # Its first stage, then a gate.
        ran(settings, DAYS[0], until="ingest_events", state="running")
        assert status()["step"] == "ingest_events"
    assert status(code=1)["state"] == "unfinished"


def test_a_night_that_begins_again_does_not_show_the_step_of_before(settings: Settings) -> None:
    ran(settings, DAYS[0])
    time.sleep(1.1)
    with only_night(settings, DAYS[0]):
        assert status()["step"] == "starting"
        training = Run(day=DAYS[0], stage="train_judge", folder=JUDGE_TRAINING_FOLDER, input="simulator")
        record(Lake(settings.lake_root), [training])
        assert status()["step"] == "train_judge"
    assert status()["state"] == "succeeded"


def test_a_stopped_night_says_cause_owner_and_command_as_the_page_does(settings: Settings) -> None:
    ran(settings, DAYS[0])
    ran(settings, DAYS[1], until="build_states", state="failed", message="ValueError: lost [a disk]")
    found = status(code=1)
    assert (found["day"], found["state"], found["verdict"], found["step"]) == (
        DAYS[1],
        "stopped",
        "red",
        "build_states",
    )
    assert (found["cause"], found["owner"]) == ("ValueError: lost [a disk]", "recommendation")
    assert f"SGREC_HOME={settings.home.resolve()}" in found["command"]
    assert found["command"].endswith(f"sgrec nightly --day {DAYS[1]}")
    assert found["runbook"]
    assert datetime.fromisoformat(found["since"])
    assert found["last_good"] == DAYS[0]
    shown = said()
    assert f"night {DAYS[1]} is stopped at build_states since " in shown
    assert "lost [a disk]" in shown
    assert "owner: recommendation\n" in shown
    assert f"last good night: {DAYS[0]}\n" in shown
    assert f"command: {found['command']}" in shown
    # Of another night than the newest.
    older = status("--day", DAYS[0])
    assert (older["state"], older["cause"]) == ("succeeded", None)
    assert [night["day"] for night in older["nights"]] == [DAYS[1], DAYS[0]]
    assert all(step in said("--day", DAYS[0]) for step in STEPS[:-1])


def test_a_gate_names_the_owner_of_its_table(settings: Settings) -> None:
    ran(settings, DAYS[0], until="check_ingest_events", state="failed", message="too many rejected")
    check = {"name": "rejected share", "column": None, "severity": "critical", "success": False}
    check |= {"observed": "9%", "expected": "at most 5%"}
    result = {"table": "raw_logs", "day": DAYS[0], "rows": 9, "owner": "the logs' owner", "runbook": "Ask them."}
    path = settings.reports(DAYS[0]) / "quality" / "raw_logs.json"
    write_json(path, {**result, "checks": [check], "success": False})
    found = status(code=1)
    assert (found["owner"], found["runbook"]) == ("the logs' owner", "Ask them.")
    assert "rejected share" in found["cause"]


@pytest.mark.parametrize(("verdict", "code"), [(None, 0), ("green", 0), ("amber", 4), ("red", 1)])
def test_the_verdict_of_the_summary_is_the_exit_code(settings: Settings, verdict: str | None, code: int) -> None:
    ran(settings, DAYS[0])
    summary: dict[str, Any] = {"status": "succeeded", **({"verdict": verdict} if verdict else {})}
    evaluation = {"promoted": True, "serves": "supervised", "reason": "better"}
    summary |= {"evaluation": evaluation, "cause": {"reason": "half of the clicks", "owner": "logs"}}
    write_json(settings.reports(DAYS[0]) / "summary.json", summary)
    found = status(code=code)
    assert found["verdict"] == (verdict or "green")
    assert (found["cause"], found["owner"]) == (("half of the clicks", "logs") if code else (None, None))
    assert found["promotion"] == {**evaluation, "hold": None}
    assert f"night {DAYS[0]} promoted supervised" in said()
    if verdict == "amber":
        assert "amber" in said()
    # A summary of before says nothing of a night that was stopped since.
    ran(settings, DAYS[0], until="build_states", state="failed", message="lost")
    assert status(code=1)["verdict"] == "red"


def test_missing_and_late_nights(settings: Settings) -> None:
    for day in DAYS:
        ran(settings, day, until="ingest_events")
    ran(settings, DAYS[2])
    assert status()["missing"] == ["2026-01-07", "2026-01-08"]
    assert "nights missing: 2026-01-07, 2026-01-08" in said()
    assert status("--max-age-hours", "36", code=1)["late"]
    assert f"the night after {DAYS[2]} is missing" in said("--max-age-hours", "36")
    today = datetime.now(UTC).date()
    ran(settings, (today - timedelta(days=1)).isoformat())
    assert not status("--max-age-hours", "36")["late"]


def test_champion_and_challenger_are_told_without_mlflow(registry_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(registry_home / "source.json", {"input": "simulator"})
    settings = Settings(home=registry_home)
    registry = Registry(settings)
    first, second = register(registry, DAYS[0]), register(registry, DAYS[1])
    assert registry.promote_by_night(first, DAYS[0], "better") is None
    registry.set_alias(second, "challenger")
    ran(settings, DAYS[2])
    program = f"""
import sys
from sgrec_core.cli import app
try:
    app(["status", "--json"])
except SystemExit as end:
    assert end.code == 0, end.code
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_ROOT, env=os.environ.copy(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    output, _, heavy = done.stdout.strip().rpartition("\n")
    assert heavy == "[]"
    found = json.loads(output)
    assert found["champion"] == {"version": "1", "day": DAYS[0], "age_days": 4}
    assert found["challenger"] == {"version": "2", "day": DAYS[1]}
    assert "champion: version 1, made by night 2026-01-05, 4 days before the newest night" in said()

    # MLflow's alias is put right; a database that is damaged is told, and what is known without it.
    registry.set_alias_or_none(GENERATOR, CHAMPION, None)
    assert status()["champion"]["version"] == "1"
    assert registry.aliases(GENERATOR)[CHAMPION] == "1"
    (registry_home / "mlflow" / "mlflow.db").write_bytes(b"no database, " * 500)
    broken = status()
    assert broken["champion"] is None
    assert "mlflow.db cannot be read: file is not a database" in broken["problems"][0]
    assert "champion: not known" in said()


def test_a_lost_table_is_told_and_no_traceback(settings: Settings) -> None:
    ran(settings, DAYS[0])
    for file in (settings.home / "lake" / "stage_runs").glob("day=*/*.parquet"):
        file.unlink()
    found = status(code=1)
    assert (found["state"], found["verdict"]) == ("unreadable", "red")
    assert "table stage_runs could not be read" in found["cause"]
    (settings.home / "lake" / "stage_runs" / "_delta_log" / f"{0:020d}.json").write_text("{")
    found = status(code=1)
    assert (found["state"], found["day"]) == ("unreadable", None)
    assert "table stage_runs could not be read" in found["problems"][0]


def test_bad_usage(settings: Settings) -> None:
    assert CliRunner().invoke(app, ["status", "--nights", "0"]).exit_code == 2
    error = CliRunner().invoke(app, ["status", "--day", "2020-01-01"]).exception
    assert "no stage of night 2020-01-01 has run" in str(error)


def test_stale_stages_are_known_again_after_the_code_has_changed(settings: Settings) -> None:
    ran(settings, DAYS[0])
    stale = status()["nights"][0]["stale"]
    assert "ingest_events" in stale, "these runs were of no code"
    kept = settings.home / "cache" / "code.json"
    assert status()["nights"][0]["stale"] == stale
    digests = json.loads(kept.read_text())
    digests["stages"]["ingest_events"] = None
    write_json(kept, digests)
    assert status()["nights"][0]["stale"] == stale[1:], "from the file, while the source is what it was"
    write_json(kept, {**digests, "source": "another"})
    assert status()["nights"][0]["stale"] == stale
    kept.write_bytes(b"\x00")
    assert status()["nights"][0]["stale"] == stale
