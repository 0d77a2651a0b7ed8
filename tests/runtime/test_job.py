"""The command line of a job and the facts it leaves, through a real stage module run as a child process."""

import io
import json
import os
import runpy
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from stage_runs import last_run

from sgrec_core.errors import GateError, InputError
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import ALL_STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings

DAY = "2026-01-05"


def users(*names: str) -> pa.Table:
    return pa.table({"user_id": list(names), "profile": ["{}"] * len(names)})


def ingest(job: Job) -> None:
    """What a stage does: fingerprint, skip, compute, publish, count."""
    fingerprint = job.inputs_fingerprint({"source": "test"})
    if job.skip_if_published({"users": {"day": job.day}}, fingerprint):
        return
    job.lake.publish("users", users("a", "b"), partition={"day": job.day}, fingerprint=fingerprint)
    job.fact("rows_in", 2)
    job.note("a declared rule")


def execute(home: Path, run: object = ingest, *, force: bool = False) -> tuple[int, dict, list[dict]]:
    settings = Settings(home=home)
    code = Job("ingest_events", DAY, settings, force=force).execute(run, Console(quiet=True))
    facts = last_run(settings, DAY, "ingest_events")
    lines = (settings.reports(DAY) / "progress.jsonl").read_text().splitlines()
    return code, facts, [json.loads(line) for line in lines]


def test_facts_and_progress_tell_what_happened(home: Path) -> None:
    code, facts, events = execute(home)
    assert code == 0
    assert facts["state"] == "finished"
    assert facts["facts"] == {"rows_in": 2}
    assert facts["notes"] == ["a declared rule"]
    assert facts["tables_written"]["users"] is not None
    assert [event["event"] for event in events] == ["started", "finished"]


def test_the_start_of_an_engine_is_no_work_of_the_stage(home: Path) -> None:
    def run(job: Job) -> None:
        with job.starting_engine():
            time.sleep(0.5)
        time.sleep(0.1)

    _, _, lines = execute(home, run)
    assert lines[-1]["seconds"] >= 0.6
    assert 0.1 <= lines[-1]["work_seconds"] <= lines[-1]["seconds"] - 0.5


def test_texts_of_the_data_are_no_markup(home: Path) -> None:
    def hostile(job: Job) -> None:
        job.fact("items", {"sku[/b]": ["[red]"]})
        job.note("look at [/bold]")

    shown = io.StringIO()
    job = Job("ingest_events", DAY, Settings(home=home))
    assert job.execute(hostile, Console(file=shown, width=200)) == 0
    assert "sku[/b] [red]" in shown.getvalue()
    assert "look at [/bold]" in shown.getvalue()


def test_a_second_run_commits_nothing_and_keeps_the_facts(home: Path) -> None:
    _, before, _ = execute(home)
    _, after, events = execute(home)
    assert after["state"] == "skipped"
    assert after["facts"] == before["facts"]
    assert after["notes"] == before["notes"]
    assert after["tables_written"] == before["tables_written"]
    assert events[-1]["event"] == "skipped"


def test_a_failure_between_does_not_lose_the_facts(home: Path) -> None:
    """The gate reads them, and a run that has nothing to compute has no others."""

    def refused(job: Job) -> None:
        job.fact("rows_in", 1)
        raise InputError("a setting is wrong")

    def killed(job: Job) -> None:
        raise KeyboardInterrupt

    _, before, _ = execute(home)
    for _ in range(2):
        assert execute(home, refused)[1]["facts"] == {"rows_in": 1}
        with pytest.raises(KeyboardInterrupt):
            execute(home, killed)
    _, after, _ = execute(home)
    assert after["state"] == "skipped"
    assert (after["facts"], after["notes"]) == (before["facts"], before["notes"])


def test_what_a_failed_run_published_keeps_its_own_facts(home: Path) -> None:
    """And the facts of what was there before are not taken for them."""

    def run(job: Job, names: tuple[str, ...], then: Exception | None = None) -> None:
        fingerprint = job.inputs_fingerprint({"names": names})
        if job.skip_if_published({"users": {"day": job.day}}, fingerprint):
            return
        job.fact("rows_in", len(names))
        job.lake.publish("users", users(*names), partition={"day": job.day}, fingerprint=fingerprint)
        if then:
            raise then

    execute(home, partial(run, names=("a", "b")))
    execute(home, partial(run, names=("a", "b", "c"), then=InputError("behind the publication")))
    execute(home, _refused)
    _, after, _ = execute(home, partial(run, names=("a", "b", "c")))
    assert (after["state"], after["facts"]) == ("skipped", {"rows_in": 3})


def _refused(job: Job) -> None:
    raise InputError("a setting is wrong")


def test_a_fact_that_is_no_number_does_not_stop_the_stage(home: Path) -> None:
    def diverged(job: Job) -> None:
        job.fact("loss", float("nan"))
        job.fact("of_step", {"1": [float("inf"), 0.5]})

    code, facts, events = execute(home, diverged)
    assert (code, events[-1]["event"]) == (0, "finished")
    assert facts["facts"] == {"loss": None, "of_step": {"1": [None, 0.5]}}


def test_force_computes_again(home: Path) -> None:
    _, before, _ = execute(home)
    _, after, _ = execute(home, force=True)
    assert after["state"] == "finished"
    assert after["tables_written"]["users"] == before["tables_written"]["users"] + 1


@pytest.mark.parametrize(("error", "code"), [(InputError("file x, row 3"), 2), (GateError("stopped"), 3)])
def test_an_error_for_users_is_one_line_and_an_exit_code(
    home: Path, capsys: pytest.CaptureFixture, error: Exception, code: int
) -> None:
    def run(job: Job) -> None:
        raise error

    exit_code, facts, events = execute(home, run)
    assert exit_code == code
    assert facts["state"] == "failed"
    assert facts["message"] == str(error)
    assert events[-1]["message"] == str(error)
    assert capsys.readouterr().err.strip().endswith(str(error))


def test_a_bug_keeps_its_traceback_and_is_on_record(home: Path) -> None:
    def run(job: Job) -> None:
        raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        execute(home, run)
    facts = last_run(Settings(home=home), DAY, "ingest_events")
    assert facts["state"] == "failed"
    assert "ZeroDivisionError" in facts["message"]


def test_progress_lines_end_with_the_total(home: Path) -> None:
    def run(job: Job) -> None:
        assert list(job.progress(range(5), description="counting")) == [0, 1, 2, 3, 4]

    _, _, events = execute(home, run)
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["done"], last["total"], last["description"]) == (5, 5, "counting")


def module(stage: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{stage}", *arguments],
        cwd=PROJECT_ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("stage", [stage.name for stage in ALL_STAGES])
@pytest.mark.filterwarnings("ignore:'jobs:RuntimeWarning")  # another test has imported the module
def test_every_stage_is_a_module_with_help_for_newcomers(
    stage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``python -m jobs.<stage> --help``, in this process: twenty interpreters would import for a minute."""
    monkeypatch.setattr(sys, "argv", [stage, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{stage}", run_name="__main__")
    assert not ended.value.code
    shown = capsys.readouterr().out
    for word in ("--day", "YYYY-MM-DD", "Reads:", "Publishes:", "SGREC_HOME"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("--day", "05.01.2026"), {}, ["'05.01.2026'", "YYYY-MM-DD"]),
        (
            ("--day", DAY),
            {"SGREC_JUDGE__SAMPLING_RATIO": "5"},
            ["SGREC_JUDGE__SAMPLING_RATIO", "'5'", "less than or equal to 1"],
        ),
        (("--day", DAY), {"SGREC_JUDGE__ENGINE": "gpt"}, ["SGREC_JUDGE__ENGINE", "'gpt'", "'embedding'", "'vllm'"]),
    ],
)
def test_bad_arguments_and_settings_are_named(
    home: Path, arguments: tuple, environment: dict, words: list[str]
) -> None:
    result = module("build_states", *arguments, **environment)
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr
