"""Which nights are stale, by whose code, and what a backfill would compute: on a night of a few rows."""

import fcntl
import io
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from small_night import DAY, run_night
from source import change_gate, copied, rewrite, run_in

from jobs import report_quality
from sgrec_core.cli.views import changes_table
from sgrec_core.lake import Lake
from sgrec_core.lake.maintenance import maintain_all
from sgrec_core.night.changes import changes_of_night, stages_behind, stale_stages
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings

NEXT_DAY = "2026-01-06"
SGREC = "from sgrec_core.cli import main; main()"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose first night has succeeded; its last stage is the real one, which says so."""
    home = tmp_path_factory.mktemp("changes") / "home"
    home.mkdir()
    (home / "source.json").write_text('{"input": "simulator"}\n')
    settings = Settings(home=home)
    run_night(settings)
    assert Job(STAGES[-1].name, DAY, settings).execute(report_quality.run, Console(quiet=True)) == 0
    return settings


def test_a_night_that_succeeded_is_unchanged_whoever_ran_it(settings: Settings) -> None:
    assert changes_of_night(settings, DAY).state == "unchanged"
    assert stale_stages(settings, DAY) == ()


def test_a_night_that_never_ran_or_did_not_end_is_new(settings: Settings, tmp_path: Path) -> None:
    assert changes_of_night(settings, NEXT_DAY).state == "new"
    stopped = Settings(home=tmp_path)
    run_night(stopped, until="train_supervised")
    assert changes_of_night(stopped, DAY).why == "it has not come to its end"


def test_a_running_night_is_not_called_new(settings: Settings) -> None:
    lock = settings.home / "night.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(NEXT_DAY)
        file.flush()
        told = Console(width=120, record=True, file=io.StringIO())
        told.print(changes_table(settings, [DAY, NEXT_DAY]))
    lock.unlink()
    lines = told.export_text().splitlines()
    assert any(line.split()[:2] == [DAY, "unchanged"] for line in lines), lines
    assert any(line.split()[:2] == [NEXT_DAY, "running"] for line in lines), lines


def test_other_inputs_are_named(settings: Settings) -> None:
    longer = Settings(home=settings.home, policy={"epochs": 7})
    assert changes_of_night(longer, DAY).why == "settings"
    smaller = Settings(home=settings.home, simulator={"users": 20})
    assert changes_of_night(smaller, DAY).why == "settings; raw logs"


def test_compacted_tables_are_no_change_and_published_rows_are(settings: Settings, tmp_path: Path) -> None:
    shutil.copytree(settings.home, tmp_path / "home")
    copy = Settings(home=tmp_path / "home")
    lake = Lake(copy.lake_root)
    rows = lake.read("user_states", where={"day": DAY})
    maintain_all(lake, timedelta(0))
    assert changes_of_night(copy, DAY).state == "unchanged"
    lake.publish("user_states", rows, partition={"day": DAY}, fingerprint="b" * 32)
    assert changes_of_night(copy, DAY).why == "tables of this or earlier days"


def test_what_reads_a_table_or_a_model_is_behind_its_stage() -> None:
    assert stages_behind(("materialize_rewards",)) == ["train_generator", "evaluate_generator"]
    assert stages_behind(("train_supervised",))[0] == "generate_candidates"
    behind = stages_behind(("ingest_events",))
    assert behind == [stage.name for stage in STAGES[1:-1]]


def test_another_gate_makes_the_rewards_stale_and_status_and_dry_run_say_so(settings: Settings, tmp_path: Path) -> None:
    root = copied(tmp_path / "gate", change_gate)
    home = {"SGREC_HOME": str(settings.home)}
    dry_run = ("-c", SGREC, "backfill", "--from", DAY, "--to", NEXT_DAY, "--dry-run")
    first, second = run_in(root, *dry_run, **home).splitlines()[-2:]
    assert first.split()[:4] == [DAY, "stale", "materialize_rewards,", "train_generator;"]
    assert "behind them evaluate_generator" in first
    assert "code of materialize_rewards, train_generator" in first
    assert second.split()[:2] == [NEXT_DAY, "new"]
    assert "materialize_rewards, train_generator" in run_in(root, "-c", SGREC, "status", **home)
    stages = run_in(root, "-c", SGREC, "status", "--day", DAY, **home).splitlines()
    stale = [line.split()[0] for line in stages if "stale" in line]
    assert stale == ["materialize_rewards", "train_generator"]
    ours = run_in(PROJECT_ROOT, *dry_run, **home).splitlines()[-2]
    assert ours.split()[:2] == [DAY, "unchanged"]


def test_other_words_and_another_format_make_nothing_stale(settings: Settings, tmp_path: Path) -> None:
    root = copied(tmp_path / "rewritten", rewrite)
    home = {"SGREC_HOME": str(settings.home)}
    told = run_in(root, "-c", SGREC, "backfill", "--from", DAY, "--to", DAY, "--dry-run", **home)
    assert told.splitlines()[-1].split()[:2] == [DAY, "unchanged"]
