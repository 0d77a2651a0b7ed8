"""A night whose logs are mostly rubbish: it stops at its first gate, in words, and nothing behind it is touched."""

import html
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgrec_core.lake import Lake
from sgrec_core.logs import landing
from sgrec_core.runtime.runs import last_runs
from sgrec_core.settings import PROJECT_ROOT, SimulatorSettings
from sgrec_core.simulator import write_day

pytestmark = [pytest.mark.night, pytest.mark.airflow, pytest.mark.spark]

DAY = "2026-01-05"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The home of a stopped night over raw logs of which a third are bad, and what the command said."""
    folder = tmp_path_factory.mktemp("stopped")
    raw, home = folder / "raw", folder / "home"
    write_day(
        SimulatorSettings(users=60, items=40, bad_share=0.0),
        day=DAY, first_day=DAY, landing_root=raw, truth_root=folder / "truth",
    )  # fmt: skip
    events = landing.day_folder(raw, DAY) / "events"
    good = next(events.glob("*.gz"))
    (events / "truncated.jsonl.gz").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (events / "broken.jsonl").write_text("{broken <script>alert(1)</script>\n" * 1000)
    (events / "empty.jsonl").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGREC_HOME", str(home))
        patch.setenv("COLUMNS", "200")
        patch.setenv("SGREC_SPARK_MEMORY", "1g")
        # Too few for the items: once its logs are mended the night stops here.
        patch.setenv("SGREC_ITEMS__LEVELS", "1")
        patch.setenv("SGREC_ITEMS__CODEBOOK_SIZE", "2")
        yield home, sgrec("nightly", "--input", f"logs:{raw}", "--day", DAY)
    shutil.rmtree(folder)


def sgrec(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from sgrec_core.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)


Stopped = tuple[Path, subprocess.CompletedProcess[str]]


def summary_of(home: Path) -> dict[str, Any]:
    return json.loads((home / "reports" / DAY / "summary.json").read_text())


def test_the_command_fails_with_one_line_that_says_why(stopped: Stopped) -> None:
    _, done = stopped
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    cause = "events/broken.jsonl was not read: no line of it is a row (2 of 7 events files)"
    assert f"night 2026-01-05 stopped at check_ingest_events: {cause}" in lines[0]
    assert "Traceback" not in done.stdout + done.stderr


def test_summary_and_page_tell_the_same(stopped: Stopped) -> None:
    home, _ = stopped
    summary = summary_of(home)
    assert summary["status"] == "stopped"
    assert summary["stopped_at"] == "check_ingest_events"
    rows = summary["rows"]
    assert rows["in"] == rows["accepted"] + rows["rejected"]
    assert rows["rejected_by_reason"]["invalid_json"] == 1000
    assert rows["rejected_by_reason"]["truncated_file"] == 1
    assert rows["rejected_by_reason"]["empty_file"] == 1
    assert rows["rejected_by_reason"]["duplicate_event_id"] > 10
    page = (home / "reports" / DAY / "index.html").read_text()
    assert "check_ingest_events" in page
    assert "broken.jsonl" in page
    assert "<script>alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_every_bad_row_is_kept_with_file_line_and_text(stopped: Stopped) -> None:
    home, _ = stopped
    rejected = Lake(home / "lake").read("events_rejected", where={"day": DAY}).to_pylist()
    assert sum(row["line"] > 0 for row in rejected) == summary_of(home)["rows"]["rejected"]
    broken = [row for row in rejected if row["reason"] == "invalid_json"]
    assert sorted(row["line"] for row in broken) == list(range(1, 1001))
    assert {row["file"] for row in broken} == {"events/broken.jsonl"}
    assert broken[0]["raw_text"].startswith("{broken")


def test_nothing_behind_the_gate_was_made(stopped: Stopped) -> None:
    home, _ = stopped
    lake = Lake(home / "lake")
    for table in ("user_states", "candidates", "rewards", "evaluations"):
        assert lake.version(table) is None
    states = {stage["name"]: stage["state"] for stage in summary_of(home)["stages"]}
    assert states["train_generator"] not in ("finished", "skipped")


def test_a_wider_share_lets_the_gate_pass(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGREC_INGEST__MAX_REJECTED_SHARE", "0.9")
    monkeypatch.setenv("SGREC_INGEST__MAX_UNREAD_SHARE", "0.9")
    command = [sys.executable, "-m", "jobs.check_quality", "--day", DAY, "--stage", "ingest_events"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_of_the_page_runs_in_a_fresh_shell_and_the_night_goes_on(stopped: Stopped) -> None:
    home, _ = stopped
    command = summary_of(home)["cause"]["command"]
    assert html.escape(command, quote=False) in (home / "reports" / DAY / "index.html").read_text()
    assert "SGREC_SPARK_MEMORY=1g" in command
    for name in ("truncated.jsonl.gz", "broken.jsonl"):
        (landing.day_folder(home.parent / "raw", DAY) / "events" / name).unlink()
    # PYTHONPATH, where it says which of several checkouts is meant.
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(["bash", "-c", command], env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    runs = last_runs(Lake(home / "lake"), DAY)
    assert runs["check_ingest_events"].state == "finished"
    assert (runs["build_states"].state, runs["tokenize_items"].state) == ("finished", "failed")
    cause = summary_of(home)["cause"]
    assert (cause["kind"], cause["column"]) == ("wrong_setting", "SGREC_ITEMS__CODEBOOK_SIZE, SGREC_ITEMS__LEVELS")
    assert "SGREC_SPARK_MEMORY=1g" in cause["command"]
    assert "SGREC_ITEMS" not in cause["command"], "the next one goes further"
