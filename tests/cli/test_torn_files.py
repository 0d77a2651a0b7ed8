"""State files that a crash of the machine has torn: each command goes on, or says in words which file is meant."""

import json
from dataclasses import asdict
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sgrec_core.cli import homes
from sgrec_core.cli.app import app
from sgrec_core.cli.status import status
from sgrec_core.cli.views import evaluation_cells, show_summary
from sgrec_core.errors import SettingsError
from sgrec_core.judge.versions.adapters import Adapter, activate, active, of_night, rubric_digest
from sgrec_core.lake import Lake
from sgrec_core.night.airflow import only_night, prepare_airflow, running_night
from sgrec_core.night.changes import changes_of_night, remember_night
from sgrec_core.night.display import Display, Tail
from sgrec_core.quality.night import gather_night
from sgrec_core.runtime.code import stage_digest
from sgrec_core.runtime.runs import Run, record
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import JudgeSettings, Settings

DAY = "2026-01-05"
CUTS = ("empty", "one byte", "half", "all but its end", "binary")


def torn(content: bytes, cut: str) -> bytes:
    """What is left of a file."""
    text = content.rstrip()
    ends = {"empty": 0, "one byte": 1, "half": len(text) // 2, "all but its end": len(text) - 1}
    return b"\x00\xff\xfe\x80" * 3 if cut == "binary" else text[: ends[cut]]


def tear(path: Path, cut: str) -> None:
    path.write_bytes(torn(path.read_bytes(), cut))


@pytest.fixture
def night(registry_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home in which the first stage of a night runs."""
    monkeypatch.delenv("SGREC_INPUT", raising=False)
    (tmp_path / "raw" / "day=2026-01-05").mkdir(parents=True)
    settings = homes.settle_home(f"logs:{tmp_path / 'raw'}", starts_anew=True)
    record(Lake(settings.lake_root), [Run(day=DAY, stage="ingest_events", input=settings.input)])
    return settings


def shown(*arguments: str, code: int = 1) -> str:
    """What `sgrec status` says; its exit code says that the night did not come to its end."""
    assert status  # the commands register themselves on import
    result = CliRunner().invoke(app, ["status", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return str(result.output)


@pytest.mark.parametrize("cut", CUTS)
def test_without_its_source_file_a_home_belongs_to_the_source_of_its_runs(
    night: Settings, cut: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = night.home / "source.json"
    whole = path.read_text()
    tear(path, cut)
    assert night.input in shown()
    assert str(path) in caplog.text
    with pytest.raises(SettingsError, match=f"belongs to the source {night.input}, not to simulator"):
        homes.settle_home("simulator", starts_anew=True)
    # The next night writes it again.
    assert homes.settle_home(None, starts_anew=True).input == night.input
    assert json.loads(path.read_text()) == json.loads(whole)


@pytest.mark.parametrize("cut", CUTS)
def test_a_torn_source_file_of_a_home_in_which_nothing_ran_is_no_source(home: Path, cut: str) -> None:
    home.mkdir()
    (home / "source.json").write_bytes(torn(b'{"input": "simulator"}', cut))
    assert homes.source_of(home) is None
    with pytest.raises(SettingsError, match="no night was run in"):
        homes.existing_home()


@pytest.mark.parametrize("cut", CUTS)
def test_torn_progress_is_passed_over(night: Settings, cut: str) -> None:
    path = night.reports(DAY) / "progress.jsonl"
    line = {"time": "2026-01-06T02:00:00+00:00", "stage": "ingest_events", "event": "progress", "done": 3, "total": 7}
    path.parent.mkdir(parents=True)
    path.write_bytes(torn(json.dumps(line).encode(), cut) + b"\n" + json.dumps(line).encode() + b"\n")
    with only_night(night, DAY):
        record(Lake(night.lake_root), [Run(day=DAY, stage="ingest_events", input=night.input)])
        assert "3/7" in shown(code=0)
    tear(path, cut)
    assert "ingest_events" in shown()
    assert "ingest_events" in shown("--day", DAY)
    with Display(Console(file=StringIO())) as display:
        display.show(Tail(path, from_start=True).read())


@pytest.mark.parametrize("cut", CUTS)
def test_torn_failures_and_validations_do_not_stop_the_page(night: Settings, cut: str) -> None:
    reports = night.reports(DAY)
    (reports / "quality").mkdir(parents=True)
    line = json.dumps({"stage": "ingest_events", "time": "2027-01-01T00:00:00+00:00", "exception": "lost"}).encode()
    (reports / "failures.jsonl").write_bytes(line + b"\n" + torn(line, cut))
    (reports / "quality" / "events.json").write_bytes(torn(line, cut))
    cause = gather_night(night, DAY).cause
    assert cause is not None
    assert (cause.step, cause.reason) == ("ingest_events", "lost")


@pytest.mark.parametrize("cut", CUTS)
def test_a_torn_summary_is_none(night: Settings, cut: str, caplog: pytest.LogCaptureFixture) -> None:
    path = night.reports(DAY) / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(torn(b'{"status": "succeeded", "evaluation": {"promoted": true}}', cut))
    show_summary(night, DAY)
    assert evaluation_cells(night, DAY) == ["", "", "", ""]
    assert f"{path} is damaged" in caplog.text


@pytest.mark.parametrize("cut", CUTS)
def test_a_night_with_a_torn_stamp_has_changed(registry_home: Path, cut: str) -> None:
    settings = Settings()
    for stage in STAGES:
        run = Run(day=DAY, stage=stage.name, input="simulator")
        record(Lake(settings.lake_root), [run.ended("finished", code_digest=stage_digest(stage.name))])
    remember_night(settings, DAY)
    assert changes_of_night(settings, DAY).state == "unchanged"
    tear(settings.reports(DAY) / "inputs.json", cut)
    assert changes_of_night(settings, DAY).why == "what it read was not noted"


def adapter(day: str) -> Adapter:
    fields = {"day": day, "folder": f"sgrec-judge-{day}", "model": "tiny", "revision": None, "version": "1"}
    return Adapter(**{**fields, "rubric": rubric_digest(Settings())})


@pytest.mark.parametrize("cut", CUTS)
def test_a_night_with_a_torn_pin_uses_what_is_active_for_it(
    home: Path, cut: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(judge=JudgeSettings(engine="vllm", adapter="active"))
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    of_night(settings, DAY, pin=True)
    path = settings.reports(DAY) / "judge.json"
    tear(path, cut)
    assert of_night(settings, DAY) == adapter("2026-01-03")
    assert f"{path} is damaged" in caplog.text
    assert of_night(settings, DAY, pin=True) == adapter("2026-01-03")
    assert json.loads(path.read_text()) == asdict(adapter("2026-01-03")), "pinned again"


@pytest.mark.parametrize("cut", CUTS)
def test_torn_adapters_are_an_error_in_words_since_another_judge_would_be_paid_anew(home: Path, cut: str) -> None:
    settings = Settings(judge=JudgeSettings(engine="vllm", adapter="active"))
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    path = settings.home.resolve() / "judge" / "adapters.json"
    tear(path, cut)
    with pytest.raises(SettingsError, match=f"{path}: not what `sgrec` writes .*remove it"):
        active(settings, DAY)
    path.unlink()
    assert active(settings, DAY) is None


def test_a_lock_with_rubbish_in_it_locks_all_the_same(home: Path) -> None:
    settings = Settings()
    home.mkdir()
    (home / "night.lock").write_bytes(b"\xff\xfe\x80")
    assert running_night(settings) is None
    with only_night(settings, DAY):
        assert running_night(settings) == DAY


@pytest.mark.airflow
def test_with_a_torn_stamp_airflow_is_set_up_again(home: Path) -> None:
    settings, stamp = Settings(), home / "airflow" / "prepared.json"
    whole = {"airflow": version("apache-airflow"), "gpu_slots": settings.airflow.gpu_slots}
    stamp.parent.mkdir(parents=True)
    stamp.with_name("airflow.db").touch()
    stamp.write_text(json.dumps(whole))
    prepare_airflow(settings, Console(file=StringIO()))
    assert not stamp.with_name("setup.log").exists(), "a whole stamp is believed"
    tear(stamp, "half")
    prepare_airflow(settings, Console(file=StringIO()))
    assert json.loads(stamp.read_text()) == whole
    assert stamp.with_name("setup.log").exists()
