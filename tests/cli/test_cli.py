"""The command ``sgrec``: which home and source it uses, what it says, and real nights on a tiny marketplace."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from sgrec_core.cli import app, homes, nights
from sgrec_core.errors import InputError, SettingsError, SgrecError
from sgrec_core.files import write_json
from sgrec_core.lake import Lake
from sgrec_core.night import airflow, changes
from sgrec_core.night.airflow import (
    Outcome,
    airflow_environment,
    check_interpreters,
    end_with_descendants,
    ended_on_interrupt,
    only_night,
    running_night,
)
from sgrec_core.night.display import Display, Tail, why_stopped
from sgrec_core.quality.night import state_of_night
from sgrec_core.registry import GENERATOR, Registry
from sgrec_core.runtime.runs import Run, record
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings

SGREC = [sys.executable, "-c", "from sgrec_core.cli import main; main()"]


def sgrec(*arguments: str, cwd: Path = PROJECT_ROOT) -> subprocess.CompletedProcess[str]:
    """The command as users run it, in a process of its own; wide, so that no line is wrapped."""
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(PROJECT_ROOT)}
    return subprocess.run([*SGREC, *arguments], capture_output=True, text=True, env=environment, cwd=cwd)


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without homes; nothing in the environment names one."""
    for name in ("SGREC_HOME", "SGREC_INPUT", "SGREC_JUDGE__ENGINE", "SGREC_INTERPRETERS__JUDGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A landing folder with two days."""
    for day in ("2026-02-01", "2026-02-03"):
        (tmp_path / "raw" / f"day={day}" / "events").mkdir(parents=True)
    return tmp_path / "raw"


# Which home, which source, which day


def test_help_imports_nothing_heavy_and_names_every_command() -> None:
    script = "import sys, sgrec_core.cli; print(*({'torch', 'mlflow', 'pyarrow', 'airflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT_ROOT, check=True)
    assert done.stdout.strip() == ""
    help_text = sgrec("--help").stdout
    for command in (
        "nightly",
        "backfill",
        "status",
        "evaluate",
        "promote",
        "rollback",
        "hold",
        "release",
        "accept-night",
        "recommend",
    ):
        assert command in help_text
        assert command in sgrec(command, "--help").stdout


def test_the_default_home_belongs_to_its_first_source(no_home: Path, logs: Path) -> None:
    settings = homes.settle_home(f"logs:{logs}", starts_anew=True)
    assert settings.home == no_home / ".sgrec"
    assert settings.input == f"logs:{logs}"
    assert json.loads((settings.home / "source.json").read_text()) == {"input": f"logs:{logs}"}


def test_another_source_gets_a_home_of_its_own_and_is_told(
    no_home: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    homes.settle_home("simulator", starts_anew=True)
    settings = homes.settle_home("logs:raw", starts_anew=True)
    assert settings.home == no_home / ".sgrec-logs"
    assert settings.input == f"logs:{logs}", "relative to where the user stands, absolute for the jobs"
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f".sgrec belongs to simulator; this night uses .sgrec-logs (SGREC_HOME={no_home / '.sgrec-logs'})"


def test_an_explicit_home_of_another_source_is_an_error(
    no_home: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGREC_HOME", "mine")
    homes.settle_home("simulator", starts_anew=True)
    message = f"{no_home / 'mine'} belongs to the source simulator, not to logs:{logs}; set SGREC_HOME"
    with pytest.raises(SettingsError, match=re.escape(message)):
        homes.settle_home(f"logs:{logs}", starts_anew=True)


def test_without_a_source_an_existing_home_goes_on_with_its_own(
    no_home: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes.settle_home(f"logs:{logs}", starts_anew=True)
    assert homes.settle_home(None, starts_anew=False).input == f"logs:{logs}", "backfill"
    night = homes.settle_home(None, starts_anew=True)
    assert (night.input, night.home.name) == ("simulator", ".sgrec-simulator"), "nightly alone is the simulator"
    monkeypatch.setenv("SGREC_HOME", ".sgrec")
    assert homes.settle_home(None, starts_anew=True).input == f"logs:{logs}", "nightly in a home that was named"


@pytest.mark.parametrize("command", [("status",), ("rollback",), ("promote", "--version", "1")])
def test_commands_on_a_missing_home_name_the_homes_that_are_there(no_home: Path, command: tuple[str, ...]) -> None:
    done = sgrec(*command, cwd=no_home)
    assert done.returncode == SgrecError.exit_code
    assert done.stderr.strip() == f"no night was run in {no_home / '.sgrec'}; run `sgrec nightly` first"
    (no_home / ".sgrec-beauty").mkdir()
    (no_home / ".sgrec-beauty" / "source.json").write_text('{"input": "beauty:/data"}')
    assert "set SGREC_HOME to one of .sgrec-beauty" in sgrec(*command, cwd=no_home).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nightly", "--day", "2026-1-5"), "'2026-1-5' is not a date; valid is YYYY-MM-DD"),
        (("nightly", "--input", "movies:."), "unknown input 'movies:.'; valid are simulator, scientific:PATH"),
        (("nightly", "--input", "logs:/nowhere"), "no folder /nowhere"),
        (("backfill", "--from", "2026-01-06", "--to", "2026-01-05"), "--to 2026-01-05 lies before --from 2026-01-06"),
    ],
)
def test_wrong_arguments_are_one_clear_line(no_home: Path, arguments: tuple[str, ...], message: str) -> None:
    done = sgrec(*arguments, cwd=no_home)
    assert done.returncode == SgrecError.exit_code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_settings_are_one_clear_line(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGREC_AIRFLOW__RETRIES", "many")
    done = sgrec("nightly", cwd=no_home)
    assert done.returncode == SgrecError.exit_code
    assert done.stderr.startswith("SGREC_AIRFLOW__RETRIES='many': ")


def test_default_day(no_home: Path, logs: Path) -> None:
    assert homes.default_day(Settings()) == "2026-01-05"
    assert homes.default_day(Settings(input=f"logs:{logs}")) == "2026-02-03"
    (no_home / "empty").mkdir()
    with pytest.raises(InputError, match="no day has landed in .*empty; expected layout"):
        homes.default_day(Settings(input=f"logs:{no_home / 'empty'}"))


@pytest.mark.parametrize(("verdicts", "code"), [("GG", 0), ("AG", 4), ("GV", 0), ("GU", 4), ("AU", 4), ("AR", 1)])
def test_a_backfill_with_an_amber_night_goes_on_and_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, verdicts: str, code: int
) -> None:
    """A night is green, amber or red; U: unchanged, and amber before; V: and green."""
    days = dict(zip(("2026-01-05", "2026-01-06"), verdicts, strict=True))
    ran = []

    def run(settings: Settings, day: str) -> Outcome:
        ran.append(day)
        is_red = days[day] == "R"
        write_json(settings.reports(day) / "summary.json", {"verdict": {"A": "amber", "G": "green"}.get(days[day])})
        return Outcome(day, int(is_red), 1.0, home / "log", "ingest_events: lost" if is_red else None)

    before = "amber" if "U" in verdicts else "green"
    write_json(Settings(home=home).reports("2026-01-06") / "summary.json", {"verdict": before})
    monkeypatch.setattr(nights, "show_night", run)
    monkeypatch.setattr(changes, "changes_of_night", lambda settings, day: changes.Changes(new=days[day] not in "UV"))
    done = CliRunner().invoke(app, ["backfill", "--from", "2026-01-05", "--to", "2026-01-06"])
    assert done.exit_code == code, done.output
    assert ran == [day for day in days if days[day] not in "UV"], "amber stops nothing"
    assert ("amber: 2026-01-05" in done.output) == ("A" in verdicts)


@pytest.mark.parametrize(
    ("options", "first"),
    [((), None), (("--force",), "ingest_events"), (("--from", "build_states"), "build_states"),
     (("--from", "build_states", "--force"), "build_states")],
)  # fmt: skip
def test_a_night_computes_again_from_the_stage_that_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], first: str | None
) -> None:
    given = []

    def start(settings: Settings, arguments: list[str], *_: object) -> "subprocess.Popen[bytes]":
        given.append(json.loads(arguments[arguments.index("--conf") + 1]))
        return subprocess.Popen(["true"])

    monkeypatch.setenv("SGREC_AIRFLOW__WARM", "false")
    monkeypatch.setattr(airflow, "prepare_airflow", lambda *_: None)
    monkeypatch.setattr(airflow, "start_airflow", start)
    done = CliRunner().invoke(app, ["nightly", "--day", "2026-01-05", *options])
    assert done.exit_code == 0, (done.output, done.exception)
    assert given == [{"day": "2026-01-05"} | ({"force_from": first} if first else {})]
    wrong = CliRunner().invoke(app, ["nightly", "--day", "2026-01-05", "--from", "nothing"]).exception
    assert "--from 'nothing' is no stage; valid are ingest_events, build_states" in str(wrong)


def test_days_of_a_backfill_include_both_ends() -> None:
    assert list(homes.days_between("2026-02-27", "2026-03-01")) == ["2026-02-27", "2026-02-28", "2026-03-01"]
    assert list(homes.days_between("2026-02-27", "2026-02-27")) == ["2026-02-27"]


def test_judge_vllm_brings_its_environment_unless_another_is_named(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert homes.settle_home(None, starts_anew=True).interpreters.judge == ".venv/bin/python"
    monkeypatch.setenv("SGREC_JUDGE__MODE", "reasoning")
    settings = homes.existing_home("vllm")
    assert (settings.judge.engine, settings.judge.mode) == ("vllm", "reasoning")
    assert settings.interpreters.judge == ".venv-judge/bin/python"
    monkeypatch.setenv("SGREC_INTERPRETERS__JUDGE", "/other/python")
    assert homes.existing_home("vllm").interpreters.judge == "/other/python"


def test_commands_leave_the_environment_as_it_is(no_home: Path, registry_home: Path) -> None:
    before = dict(os.environ)
    homes.settle_home("simulator", "vllm", starts_anew=True)
    homes.existing_home("server")
    registry = Registry(Settings())
    for day in ("2026-01-05", "2026-01-06"):
        registry.register(GENERATOR, day=day, fingerprint=day, tensors={"n": torch.zeros(1)}, config={"kind": "test"})
    for command in (["promote", "--version", "1"], ["promotions"], ["rollback"], ["status"]):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert dict(os.environ) == before


def test_children_get_the_settings_that_they_are_handed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment of this process says."""
    monkeypatch.setenv("SGREC_JUDGE__MODEL", "a model")
    monkeypatch.setenv("SGREC_THREADS", "3")
    settings = Settings(home=Path("here"), input="logs:/raw", judge={"engine": "vllm", "max_calls": 5})
    adapter = settings.judge.model_copy(update={"adapter": Path("judge/one")})
    settings = settings.model_copy(update={"judge": adapter})
    child = settings.environment()
    monkeypatch.setenv("SGREC_JUDGE__RUBRIC", "not in the settings that are handed over")
    assert "SGREC_JUDGE__RUBRIC" not in settings.environment()
    with pytest.MonkeyPatch.context() as as_child:
        for name in [name for name in os.environ if name not in child]:
            as_child.delenv(name)
        for name, value in child.items():
            as_child.setenv(name, value)
        read = Settings()
    assert read == settings.model_copy(update={"home": Path("here").resolve()})


# Running the night


def test_a_missing_interpreter_is_named_before_anything_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGREC_INTERPRETERS__JUDGE", "no/such/python")
    message = "SGREC_INTERPRETERS__JUDGE=no/such/python: no such file; run `make judge-env`"
    with pytest.raises(SettingsError, match=re.escape(message)):
        check_interpreters(Settings())


def test_only_one_night_runs_in_a_home(home: Path) -> None:
    settings = Settings()
    assert running_night(settings) is None
    with only_night(settings, "2026-01-05"):
        assert running_night(settings) == "2026-01-05"
        with pytest.raises(SettingsError, match="the night of 2026-01-05 runs in"), only_night(settings, "2026-01-06"):
            pass
    assert running_night(settings) is None


def test_a_foreign_airflow_does_not_leak_into_the_night(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", "/theirs")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://theirs")
    monkeypatch.setenv("SGREC_JUDGE__ENGINE", "vllm")
    environment = airflow_environment(Settings())
    assert environment["AIRFLOW_HOME"] == str(home / "airflow")
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{home}/airflow/airflow.db"
    assert environment["SGREC_JUDGE__ENGINE"] == "vllm", "settings reach the jobs"


def test_ending_airflow_ends_jobs_in_sessions_of_their_own(tmp_path: Path) -> None:
    """`BashOperator` puts each job into a new session, where no signal to Airflow's process group arrives."""
    script = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
    job = f"import subprocess, time; subprocess.Popen([{sys.executable!r}, '-c', {script!r}], start_new_session=True)"
    airflow = subprocess.Popen([sys.executable, "-c", f"{job}; time.sleep(600)"], start_new_session=True)
    deadline = time.monotonic() + 30
    while len(descendants := psutil.Process(airflow.pid).children(recursive=True)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    end_with_descendants(airflow)
    assert airflow.returncode == -signal.SIGKILL
    assert not [process for process in descendants if process.is_running() and process.status() != "zombie"]


def test_a_night_that_is_told_to_end_is_interrupted_as_by_ctrl_c() -> None:
    airflow = subprocess.Popen(["sleep", "600"], start_new_session=True)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ended_on_interrupt(airflow):
        signal.raise_signal(signal.SIGTERM)
    assert airflow.returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) == before


def test_tail_gives_complete_new_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"n": 1}\n')
    tail = Tail(path)
    with path.open("a") as file:
        file.write('{"n": 2}\n{"n"')
        file.flush()
        assert tail.read() == [{"n": 2}]
        file.write(": 3}\n")
    assert tail.read() == [{"n": 3}]
    assert tail.read() == []
    assert Tail(path, from_start=True).read() == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert Tail(tmp_path / "not yet").read() == []


def line(stage: str, event: str, **fields: object) -> dict[str, object]:
    return {"time": "2026-01-06T02:00:00+00:00", "stage": stage, "event": event, **fields}


def test_the_terminal_gets_a_line_per_stage(tmp_path: Path) -> None:
    output = StringIO()
    with Display(Console(file=output, width=200)) as display:
        display.show([line("ingest_events", "started"), line("ingest_events", "progress", done=3, total=7)])
        display.show([line("ingest_events", "finished", seconds=12.34, message="rows in 7")])
        display.show([line("build_states", "started"), line("build_states", "skipped", seconds=1.0)])
        display.show([line("tokenize_items", "failed", seconds=1.0, message="items [no title]")])
    lines = [re.sub(r" +", " ", text) for text in output.getvalue().splitlines() if text.strip()]
    assert lines == [
        "✓ ingest_events 12.3 s rows in 7",
        "· build_states 1.0 s up to date",
        "✗ tokenize_items 1.0 s items [no title]",
    ]
    assert display.failed == {"tokenize_items": "items [no title]"}


def test_a_stage_that_succeeds_at_its_second_try_has_not_failed() -> None:
    with Display(Console(file=StringIO())) as display:
        display.show([line("ingest_events", "failed", message="lost disk"), line("ingest_events", "started")])
    assert display.failed == {}


@pytest.mark.parametrize(
    ("failed", "failures", "reason"),
    [
        ({"check_items": "3 rows\n"}, [{"stage": "check_items", "exit_code": 3}], "check_items: 3 rows"),
        ({}, [{"stage": "build_states", "exit_code": 137}], "build_states: was killed, most likely for want of memory"),
        ({}, [{"stage": "build_states", "exit_code": 1}], "build_states: ended with exit code 1"),
        ({}, [{"stage": "s", "exit_code": None, "exception": "AirflowTaskTimeout"}], "s: AirflowTaskTimeout"),
        ({}, [], "Airflow ended before the night did"),
    ],
)
def test_one_line_says_why_a_night_stopped(
    failed: dict[str, str], failures: list[dict[str, object]], reason: str
) -> None:
    assert why_stopped(failed, failures, Path("airflow.log")).startswith(reason)


def ran(settings: Settings, *steps: tuple[str, str]) -> None:
    """Runs of stages and gates, one after another, that ended in a state or did not end."""
    for step, state in steps:
        run = Run(day="2026-01-05", stage=step, input="simulator")
        record(Lake(settings.lake_root), [run] if state == "running" else [run, run.ended(state, message=state)])


def test_state_of_a_night_is_that_of_its_last_run(home: Path) -> None:
    settings = Settings()
    lake = Lake(settings.lake_root)

    def at() -> tuple[str, str]:
        found = state_of_night(settings, lake, "2026-01-05")
        assert found is not None
        return found.state, found.step.name

    assert state_of_night(settings, lake, "2026-01-05") is None
    ran(settings, ("ingest_events", "failed"), ("report_quality", "finished"))
    assert at() == ("stopped", "ingest_events")
    ran(settings, ("ingest_events", "running"))
    assert at() == ("unfinished", "ingest_events")
    whole = [
        (name, "finished")
        for stage in STAGES
        for name in (stage.name, *([f"check_{stage.name}"] if stage.publishes else []))
    ]
    ran(settings, *whole)
    assert at() == ("succeeded", "report_quality")
    ran(settings, *whole[:5], ("check_tokenize_items", "failed"))
    assert at() == ("stopped", "check_tokenize_items")


@pytest.mark.parametrize(
    ("verdict", "arguments", "code"), [("green", (), 0), ("amber", (), 4), ("amber", ("--strict",), 1)]
)
def test_the_exit_code_tells_a_green_night_from_an_amber_one(
    no_home: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, arguments: tuple[str, ...], code: int
) -> None:
    def night(settings: Settings, day: str, *, force_from: str | None) -> Outcome:
        out = {"metric": "click_rate", "dimension": "", "value": 0.9, "low": 0.1, "high": 0.2, "how": "x"}
        summary = {name: {} for name in ("rows", "judge", "reward", "evaluation")} | {
            "status": "succeeded",
            "verdict": verdict,
            "alarms": [out | {"severity": "critical", "owner": "data-platform"}] if verdict == "amber" else [],
            "hold": None,
            "notes": [],
            "paths": {"report": "index.html", "models": "mlflow"},
        }
        write_json(settings.reports(day) / "summary.json", summary)
        return Outcome(day, 0, 60.0, no_home / "airflow.log")

    monkeypatch.setattr(nights, "show_night", night)
    done = CliRunner().invoke(app, ["nightly", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    assert f"night 2026-01-05: succeeded, {verdict}" in done.output
    assert ("click_rate 0.9, not 0.1 to 0.2 (critical; owner data-platform)" in done.output) == (verdict == "amber")


# Nights that stop


@pytest.fixture(scope="module")
def stopping_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the nights that stop: setting Airflow up takes longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("stopping")
        (folder / "raw" / "day=2026-02-01").mkdir(parents=True)
        patch.setenv("SGREC_HOME", str(folder / "home"))
        patch.setenv("SGREC_INPUT", f"logs:{folder / 'raw'}")
        patch.setenv("SGREC_AIRFLOW__RETRIES", "1")
        patch.setenv("SGREC_AIRFLOW__RETRY_DELAY_SECONDS", "0")
        yield folder / "home"


def last_run(home: Path) -> tuple[str, dict[str, tuple[str, int]]]:
    """State of Airflow's latest run, and state and number of tries of each of its tasks."""
    with closing(sqlite3.connect(home / "airflow" / "airflow.db")) as connection:
        (run_id, state) = connection.execute("select run_id, state from dag_run order by id desc limit 1").fetchone()
        tasks = connection.execute(
            "select task_id, state, try_number from task_instance where run_id = ?", (run_id,)
        ).fetchall()
    return state, {task: (state, tries) for task, state, tries in tasks}


@pytest.mark.night
@pytest.mark.airflow
def test_a_stopped_night_fails_reports_and_says_why(stopping_home: Path) -> None:
    done = sgrec("nightly", "--day", "2026-02-02")
    assert done.returncode == 1
    (reason,) = done.stderr.splitlines()
    assert reason.startswith("night 2026-02-02 stopped at ingest_events: no events files of 2026-02-02 in ")
    assert [text.split()[:2] for text in done.stdout.splitlines() if text[:1] in "✓✗"] == [
        ["✗", "ingest_events"],
        ["✓", "report_quality"],
    ]
    state, tasks = last_run(stopping_home)
    assert state == "failed"
    assert tasks["ingest_events"] == ("failed", 1), "bad input is not tried again"
    assert tasks["report_quality"][0] == "success"
    assert {tasks[name][0] for name in ("check_ingest_events", "build_states", "night_complete")} == {"upstream_failed"}
    reports = stopping_home / "reports" / "2026-02-02"
    (failure,) = [json.loads(text) for text in (reports / "failures.jsonl").read_text().splitlines()]
    assert (failure["stage"], failure["exit_code"], failure["try"]) == ("ingest_events", SgrecError.exit_code, 1)
    summary = json.loads((reports / "summary.json").read_text())
    assert (summary["status"], summary["stopped_at"]) == ("stopped", "ingest_events")
    assert (reports / "index.html").exists()
    assert "Traceback" not in done.stderr
    status = sgrec("status")
    assert re.search(r"2026-02-02\s+stopped\s+ingest_events", status.stdout), status.stdout + status.stderr


@pytest.mark.night
@pytest.mark.airflow
def test_a_crash_is_tried_again(stopping_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that ends with exit code 1, as Python does after an exception that nobody caught."""
    monkeypatch.setenv("SGREC_INTERPRETERS__SPARK", "/bin/false")
    done = sgrec("nightly", "--day", "2026-02-03")
    assert done.returncode == 1
    log = stopping_home / "reports" / "2026-02-03" / "airflow.log"
    assert done.stderr.strip().endswith(f"stopped at ingest_events: ended with exit code 1; its output is in {log}")
    assert log.exists()
    assert last_run(stopping_home)[1]["ingest_events"] == ("failed", 2)


@pytest.mark.night
@pytest.mark.airflow
@pytest.mark.spark
def test_an_interrupted_night_leaves_no_process_behind(stopping_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A copy also shows that a home may be moved: nothing in Airflow's database depends on where it lies.
    home = stopping_home.with_name("interrupted")
    shutil.copytree(stopping_home / "airflow", home / "airflow")
    monkeypatch.setenv("SGREC_HOME", str(home))
    monkeypatch.setenv("SGREC_INPUT", "simulator")
    night = subprocess.Popen(
        [*SGREC, "nightly"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT_ROOT,
        # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        progress = home / "reports" / "2026-01-05" / "progress.jsonl"
        deadline = time.monotonic() + 300
        while not progress.exists():
            assert night.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started = psutil.Process(night.pid).children(recursive=True)
        assert any("jobs.ingest_events" in process.cmdline() for process in started), progress.read_text()
        night.send_signal(signal.SIGINT)
        _, errors = night.communicate(timeout=60)
    finally:
        night.terminate()
        night.wait(60)
    assert night.returncode == 130
    assert errors.strip().startswith("night 2026-01-05 interrupted; tables are at their last commit")
    assert not [process for process in started if process.is_running() and process.status() != "zombie"]
    assert running_night(Settings()) is None
