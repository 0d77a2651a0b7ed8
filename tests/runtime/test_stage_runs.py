"""Runs as rows of ``stage_runs``: killed ones, many at once, and what a clean-up of Delta's log leaves of them."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from rich.console import Console
from stage_runs import last_run

from sgrec_core.lake import Lake
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.runs import Run, compact_day, days_with_runs, last_done, last_runs, record, runs_of_day
from sgrec_core.settings import PROJECT_ROOT, Settings

DAY = "2026-01-05"


def publish_users(job: Job) -> None:
    fingerprint = job.inputs_fingerprint()
    if job.skip_if_published({"users": {"day": job.day}}, fingerprint):
        return
    users = pa.table({"user_id": ["a", "b"], "profile": ["{}", "{}"]})
    job.lake.publish("users", users, partition={"day": job.day}, fingerprint=fingerprint)
    job.fact("rows_in", 2)
    job.note("a declared rule")


def ingest(home: Path, run: object = publish_users) -> dict:
    settings = Settings(home=home)
    Job("ingest_events", DAY, settings).execute(run, Console(quiet=True))
    return last_run(settings, DAY, "ingest_events")


def expire_everything(lake: Lake, table: str) -> DeltaTable:
    """A checkpoint, and a clean-up after which no earlier commit is left."""
    delta = DeltaTable(lake.uri(table))
    delta.alter.set_table_properties(
        {"delta.logRetentionDuration": "interval 0 seconds", "delta.deletedFileRetentionDuration": "interval 0 seconds"}
    )
    log = Path(delta.table_uri.removeprefix("file://")) / "_delta_log"
    for path in log.glob("*.json"):
        long_ago = time.time() - 90 * 24 * 3600
        os.utime(path, (long_ago, long_ago))
    delta.create_checkpoint()
    delta.cleanup_metadata()
    delta.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    left = sorted(path.name for path in log.glob("*.json"))
    assert left == [f"{delta.version():020}.json"], "the clean-up of the log did nothing"
    return delta


def test_a_run_says_what_it_read_wrote_and_ran(home: Path) -> None:
    ingest(home)
    run = last_run(Settings(), DAY, "ingest_events")
    assert (run["state"], run["facts"], run["notes"]) == ("finished", {"rows_in": 2}, ["a declared rule"])
    assert run["tables_written"] == {"users": Lake(Settings().lake_root).version("users")}
    assert run["seconds"] >= 0
    assert len(run["fingerprint"]) == 32
    assert run["input"] == "simulator"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert run["git_revision"] == (head.stdout.strip() or None)


def test_runs_are_found_after_all_of_deltas_log_has_expired(home: Path) -> None:
    before = ingest(home)
    lake = Lake(Settings().lake_root)
    for _ in range(3):
        record(lake, [Run(day=DAY, stage="build_states", input="simulator")])
    runs = runs_of_day(lake, DAY)
    expire_everything(lake, "stage_runs")
    assert len(lake.open("stage_runs").history()) == 1, "what history tells is gone"  # type: ignore[union-attr]
    assert runs_of_day(lake, DAY) == runs
    assert last_run(Settings(), DAY, "ingest_events") == before
    # What has nothing to compute still finds the facts of what computed.
    after = ingest(home)
    assert (after["state"], after["facts"], after["notes"]) == ("skipped", before["facts"], before["notes"])


def test_fingerprints_are_found_after_all_of_deltas_log_has_expired(home: Path) -> None:
    lake = Lake(Settings().lake_root)
    users = pa.table({"user_id": ["a"], "profile": ["{}"]})
    days = [f"2026-01-{day:02}" for day in range(5, 10)]
    for number, day in enumerate(days):
        lake.publish("users", users, partition={"day": day}, fingerprint=f"{number + 1:032x}"[::-1])
    before = {day: lake.fingerprint("users", {"day": day}) for day in days}
    assert None not in before.values()
    delta = expire_everything(lake, "users")
    assert "delta.setTransactionRetentionDuration" not in delta.metadata().configuration, "would let them expire"
    assert {day: lake.fingerprint("users", {"day": day}) for day in days} == before
    # And after the next commits, and a checkpoint on top of the first.
    lake.publish("users", users, partition={"day": "2026-01-10"}, fingerprint="f" * 32)
    expire_everything(lake, "users")
    assert {day: lake.fingerprint("users", {"day": day}) for day in days} == before


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from rich.console import Console
from test_stage_runs import DAY, publish_users
from sgrec_core.runtime.job import Job
from sgrec_core.settings import Settings

def run(job):
    {before}
    os.kill(os.getpid(), signal.SIGKILL)

Job("ingest_events", DAY, Settings()).execute(run, Console(quiet=True))
"""


def killed(before: str = "pass") -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), before=before)
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'tests' / 'support'}"}
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_run_stays_running_and_shows_no_success_of_an_earlier_one(home: Path) -> None:
    before = ingest(home)
    killed()
    run = last_run(Settings(), DAY, "ingest_events")
    assert (run["state"], run["facts"], run["notes"]) == ("running", {}, [])
    done = last_done(Lake(Settings().lake_root), DAY, "ingest_events")
    assert done is not None
    assert done.facts == before["facts"], "what lies in the lake is that of the run before"
    after = ingest(home)
    assert (after["state"], after["facts"]) == ("skipped", before["facts"])


def test_what_was_killed_behind_its_publication_is_computed_again(home: Path) -> None:
    """Its rows are there, but nobody knows its facts, which the gate needs."""
    killed("publish_users(job)")
    lake = Lake(Settings().lake_root)
    assert lake.count("users", where={"day": DAY}) == 2
    after = ingest(home)
    assert (after["state"], after["facts"]) == ("finished", {"rows_in": 2})
    assert ingest(home)["state"] == "skipped"


def test_jobs_that_begin_and_end_at_once_all_leave_their_runs(home: Path) -> None:
    """In a new home, where all of them find no table."""

    def work(number: int) -> str:
        lake, run = Lake(Settings().lake_root), Run(day=DAY, stage=f"stage {number}", input="simulator")
        record(lake, [run])
        record(lake, [run.ended("finished", facts={"number": number})])
        return run.run_id

    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(work, range(6)))
    runs = runs_of_day(Lake(Settings().lake_root), DAY)
    assert {run.run_id for run in runs} == set(ids)
    assert {(run.state, run.facts["number"]) for run in runs} == {("finished", number) for number in range(6)}


def test_the_two_reports_of_a_day_do_not_mix(home: Path) -> None:
    lake = Lake(Settings().lake_root)
    of_night, of_judge = (
        Run(day=DAY, stage="score_aspects", input="simulator"),
        Run(day=DAY, stage="score_labels", input="simulator", folder="judge_training"),
    )
    record(lake, [of_night, of_judge])
    assert set(last_runs(lake, DAY)) == {"score_aspects"}
    assert set(last_runs(lake, DAY, folder="judge_training")) == {"score_labels"}


def test_a_compacted_day_is_one_file_with_the_same_runs(home: Path) -> None:
    ingest(home)
    ingest(home)
    lake = Lake(Settings().lake_root)
    record(lake, [Run(day="2026-01-06", stage="ingest_events", input="simulator")])
    before = runs_of_day(lake, DAY)
    compact_day(lake, DAY)
    files = DeltaTable(lake.uri("stage_runs")).file_uris()
    assert len([file for file in files if f"day={DAY}" in file]) == 1
    assert runs_of_day(lake, DAY) == before
    assert days_with_runs(lake) == ["2026-01-06", DAY]
    assert ingest(home)["state"] == "skipped"


def test_a_stage_whose_run_cannot_be_recorded_fails_in_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "lake" / "stage_runs"
    lake = Lake(Settings().lake_root)
    # A table of before: it lacks columns.
    from deltalake import write_deltalake

    write_deltalake(str(folder), pa.table({"day": pa.array(["2026-01-05"])}))
    assert Job("ingest_events", DAY, Settings()).execute(publish_users, Console(quiet=True)) == 2
    assert "table stage_runs lacks column" in capsys.readouterr().err
    assert lake.version("users") is None, "nothing was computed"


def test_texts_that_no_table_can_hold_do_not_stop_a_run(home: Path) -> None:
    def run(job: Job) -> None:
        job.note("file \udcff.jsonl")
        job.fact("name", "\udcff")

    assert ingest(home, run)["notes"] == ["file \\udcff.jsonl"]
