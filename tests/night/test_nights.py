"""Whole nights: through ``sgrec``, and through Airflow's own ``backfill create`` with a real scheduler.

The tests share one tiny marketplace and build on each other, in the order of the file: `sgrec backfill` computes a
day, a person makes its generator the champion, and `sgrec backfill` goes on with the next; a third call runs nothing;
Airflow's backfill runs every task for the right day and finds all up to date; the other commands of ``sgrec`` work on
what the nights left; a forced re-run makes the same rows; a night with the other judge leaves the rewards of the first
as they are.
"""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from stage_runs import last_run

from sgrec_core.judge.versions.accepted import accepted_judges
from sgrec_core.lake import Lake
from sgrec_core.night.airflow import DAG_ID, Warm, airflow_environment, end_with_descendants, warm_process
from sgrec_core.registry import Registry
from sgrec_core.runtime.stages import BY_NAME, GENERATOR, STAGES
from sgrec_core.runtime.warm import SOCKET
from sgrec_core.settings import PROJECT_ROOT, Settings

pytestmark = [pytest.mark.night, pytest.mark.airflow, pytest.mark.spark]

DAYS = ("2026-01-05", "2026-01-06")
TABLES = [table for stage in STAGES for table in stage.publishes]
TASKS = {stage.name for stage in STAGES} | {f"check_{stage.name}" for stage in STAGES if stage.publishes}
TINY = {
    "SGREC_SIMULATOR__USERS": "120",
    "SGREC_SIMULATOR__ITEMS": "80",
    "SGREC_SUPERVISED__WIDTH": "32",
    "SGREC_SUPERVISED__EPOCHS": "2",
    "SGREC_SUPERVISED__WARM_EPOCHS": "1",
    "SGREC_BUSINESS__TREES": "20",
    "SGREC_ROLLOUT__MAX_GROUPS": "64",
    "SGREC_JUDGE__MAX_PAIRS": "100",
    "SGREC_AGGREGATOR__EPOCHS": "5",
    "SGREC_EVALUATION__BOOTSTRAP_SAMPLES": "100",
    "SGREC_SPARK_MEMORY": "1g",
    "SGREC_AIRFLOW__RETRIES": "0",
}
PATIENCE_SECONDS = 1500
"""For two nights under a real scheduler on a busy machine; typical is a tenth."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the module, with settings of a marketplace so small that a night takes a minute or two."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("backfill") / "home"
        patch.setenv("SGREC_HOME", str(folder))
        patch.setenv("COLUMNS", "200")
        patch.setenv("PYTHONPATH", str(PROJECT_ROOT))
        yield folder


def sgrec(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from sgrec_core.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)


def state_of(home: Path) -> dict[str, Any]:
    """Version of every table and number of versions of every model: what must not move when nothing changed."""
    lake, registry = Lake(home / "lake"), Registry(Settings())
    versions = {table: lake.version(table) for table in TABLES}
    models = {name: len(registry.versions(name)) for stage in STAGES for name in stage.registers}
    return {**versions, **models, "aliases": registry.aliases(GENERATOR)}


def events_of(home: Path, day: str, since: int = 0) -> list[dict[str, Any]]:
    lines = (home / "reports" / day / "progress.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[since:]]


@pytest.fixture(scope="module")
def computed(home: Path) -> subprocess.CompletedProcess[str]:
    """The first day alone, and then both."""
    first = sgrec("backfill", "--from", DAYS[0], "--to", DAYS[0])
    assert first.returncode == 0, first.stdout + first.stderr
    promoted = sgrec("promote", "--version", Registry(Settings()).aliases(GENERATOR)["challenger"])
    assert promoted.returncode == 0, promoted.stderr
    return sgrec("backfill", "--from", DAYS[0], "--to", DAYS[1])


def test_sgrec_backfill_computes_what_is_missing_in_order(
    home: Path, computed: subprocess.CompletedProcess[str]
) -> None:
    assert computed.returncode == 0, computed.stdout + computed.stderr
    assert computed.stdout.startswith(f"· night {DAYS[0]} unchanged")
    for day in DAYS:
        summary = json.loads((home / "reports" / day / "summary.json").read_text())
        assert (summary["status"], summary["verdict"]) == ("succeeded", "green")
        ended = [event["stage"] for event in events_of(home, day) if event["event"] == "finished"]
        assert set(ended) == TASKS
    runs = [last_run(Settings(home=home), day, "ingest_events") for day in DAYS]
    assert runs[0]["started"] < runs[1]["started"]
    rows = [line.split() for line in computed.stdout.splitlines() if line.strip().startswith(DAYS)]
    assert [row[:2] for row in rows] == [[DAYS[0], "unchanged"], [DAYS[1], "succeeded"]]


def test_sgrec_backfill_of_unchanged_days_runs_nothing(home: Path, computed: subprocess.CompletedProcess[str]) -> None:
    before, lines = state_of(home), [len(events_of(home, day)) for day in DAYS]
    again = sgrec("backfill", "--from", DAYS[0], "--to", DAYS[1])
    assert again.returncode == 0, again.stderr
    assert [f"· night {day} unchanged" for day in DAYS] == again.stdout.splitlines()[:2]
    assert state_of(home) == before
    assert [len(events_of(home, day)) for day in DAYS] == lines


def test_airflow_backfill_runs_the_right_day_and_changes_nothing(
    home: Path, computed: subprocess.CompletedProcess[str]
) -> None:
    # One of the two days: cold tasks under a scheduler take minutes a night.
    day = DAYS[1]
    before, lines = state_of(home), {day: len(events_of(home, day)) for day in DAYS}
    with airflow_services() as (airflow, services):
        airflow("dags", "reserialize")
        airflow("dags", "unpause", "--yes", DAG_ID)
        # Bounds are instants and a day's instant is 02:00: midnight of the last day would leave it out.
        bounds = ("--from-date", day, "--to-date", f"{day}T23:59:59")
        airflow("backfill", "create", "--dag-id", DAG_ID, *bounds, "--max-active-runs", "1")
        runs = wait_for_backfill(home, services)
    (run,) = runs
    assert (run["partition_key"], run["state"]) == (day, "success")
    tasks = query(home, "select task_id, state from task_instance where run_id = ?", run["run_id"])
    assert {task["task_id"]: task["state"] for task in tasks} == dict.fromkeys(TASKS | {"night_complete"}, "success")
    new = events_of(home, day, since=lines[day])
    assert {event["stage"] for event in new if event["event"] == "started"} == TASKS, "each task got this day"
    computed_again = {event["stage"] for event in new if event["event"] == "finished"} & set(BY_NAME)
    # The judge's stage counts its calls anew, all of them cached; the report is always written.
    assert computed_again <= {"score_aspects", "report_quality"}
    assert not events_of(home, DAYS[0], since=lines[DAYS[0]]), "no other day was touched"
    assert state_of(home) == before
    partitions = query(
        home,
        "select a.name, e.partition_key from asset_event e join asset a on a.id = e.asset_id where e.source_run_id = ?",
        run["run_id"],
    )
    assert {(row["name"], row["partition_key"]) for row in partitions} == {(table, day) for table in TABLES}


NAME_THE_HOME = {
    r"airflow/airflow\.cfg": "generated; what counts comes with every call (`airflow_environment`)",
    r"airflow/airflow\.db.*": "where tables were when the DAGs were parsed last",
    r"airflow/.*\.log|reports/[^/]+/airflow\.log": "what was said then",
    r"lake/.*/_delta_log/0+\.json": "a remark of delta-rs on how the table was made",
    r"mlflow/mlflow\.db": "put right when a home has moved (`sgrec_core.registry.moved`)",
    r"mlflow/artifacts/.*/MLmodel": "where MLflow logged the model; it loads one from where it finds it",
}
"""Files that may say where the home lies, and why that is no harm once it lies elsewhere."""


def test_what_a_home_keeps_does_not_say_where_it_lies(home: Path, computed: subprocess.CompletedProcess[str]) -> None:
    named = [
        path.relative_to(home).as_posix()
        for path in home.rglob("*")
        if path.is_file()
        and path.suffix not in (".parquet", ".safetensors")
        and str(home).encode() in path.read_bytes()
    ]
    assert "mlflow/mlflow.db" in named
    unknown = [path for path in named if not any(re.fullmatch(allowed, path) for allowed in NAME_THE_HOME)]
    assert not unknown


def test_status_shows_nights_and_models(home: Path, computed: subprocess.CompletedProcess[str]) -> None:
    done = sgrec("status")
    assert done.returncode == 0, done.stderr
    for day in DAYS:
        assert re.search(rf"{day}\s+succeeded\s+report_quality\s+\S+ \S+\s+green", done.stdout)
    assert re.search(r"^challenger: version \d+, made by night 2026-01-06$", done.stdout, re.MULTILINE)
    stages = sgrec("status", "--day", DAYS[0]).stdout
    assert all(task in stages for task in TASKS - {"report_quality"})


def test_promote_and_rollback(home: Path, computed: subprocess.CompletedProcess[str]) -> None:
    registry = Registry(Settings())
    newest = registry.versions(GENERATOR)[-1]
    before = registry.aliases(GENERATOR).get("champion")
    done = sgrec("promote", "--version", newest.version)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"champion: {GENERATOR} version {newest.version}, made by night {newest.day}")
    assert registry.aliases(GENERATOR)["champion"] == newest.version
    done = sgrec("rollback")
    assert done.returncode == 0, done.stderr
    assert f"rolled back: {GENERATOR} version {newest.version}" in done.stdout
    if before != newest.version:
        assert registry.aliases(GENERATOR).get("champion") == before
    missing = sgrec("promote", "--version", "99")
    assert missing.returncode == 2
    assert f"{GENERATOR} has no version '99'; valid are 1, 2" in missing.stderr


def test_recommend_and_evaluate(home: Path, computed: subprocess.CompletedProcess[str]) -> None:
    items = Lake(home / "lake").read("items", where={"day": DAYS[1]}, columns=["item_id"])["item_id"].to_pylist()
    done = sgrec("recommend", "--history", f"{items[0]}, {items[1]}", "--count", "3", "--version", "challenger")
    assert done.returncode == 0, done.stderr
    ranks = [line.split()[:2] for line in done.stdout.splitlines() if re.match(r"\s*\d+\s", line)]
    assert [rank for rank, _ in ranks] == ["1", "2", "3"]
    assert len({item for _, item in ranks} & set(items)) == 3
    unknown = sgrec("recommend", "--history", "no-such-item", "--version", "challenger")
    assert unknown.returncode == 2
    assert "'no-such-item' is not among the" in unknown.stderr
    done = sgrec("evaluate", "--split", "validation", "--version", "challenger")
    assert done.returncode == 0, done.stderr
    assert re.search(r"NDCG@10\s+all\s+0\.\d{4}", done.stdout)
    test = sgrec("evaluate", "--split", "test", "--version", "challenger")
    assert test.returncode == 2
    assert "has no test labels: only leave-one-out sets have" in test.stderr


def rows_of(home: Path) -> dict[str, Any]:
    """All rows of all tables."""
    lake = Lake(home / "lake")
    return {table: lake.read(table) for table in TABLES}


def facts_of(home: Path, day: str, stage: str) -> dict[str, Any]:
    return last_run(Settings(home=home), day, stage)["facts"]


def module(stage: str, day: str, *arguments: str, warm: Warm | None = None, fails: bool = False) -> str:
    """A job's standard error."""
    command = [sys.executable, "-m", "sgrec_core.runtime.warm", f"jobs.{stage}", "--day", day, *arguments]
    environment = {**os.environ, **({SOCKET: str(warm.socket)} if warm else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr


def test_the_second_night_starts_from_the_champion_of_the_first(
    home: Path, computed: subprocess.CompletedProcess[str]
) -> None:
    registry = Registry(Settings())
    champion = registry.pinned_champion(DAYS[1])
    assert champion is not None
    assert champion.day == DAYS[0]
    assert facts_of(home, DAYS[1], "train_supervised")["warm_started_from"] == str(champion)
    roles = Lake(home / "lake").read("evaluations", where={"day": DAYS[1]}, columns=["role", "model_version"])
    assert {"role": "champion", "model_version": champion.version} in roles.to_pylist()
    # Of the supervised policy's judge calls those that the old one's rollouts had asked for were not paid again.
    judged = facts_of(home, DAYS[1], "score_aspects")
    assert judged["judge_cached"] > 0
    assert judged["judge_asked"] == judged["judge_cached"] + judged["judge_skipped"] + judged["judge_paid"]


def test_a_forced_re_run_makes_the_same_rows_and_models(home: Path, computed: subprocess.CompletedProcess[str]) -> None:
    """Stronger than a re-run, which skips: every stage computes again what stands in the tables."""
    before, state = rows_of(home), state_of(home)
    with warm_process(Settings(), subprocess.DEVNULL) as warm:
        for stage in STAGES:
            module(stage.name, DAYS[1], "--force", warm=warm)
    after = rows_of(home)
    for table in TABLES:
        assert after[table].equals(before[table]), table
    models = {name for stage in STAGES for name in stage.registers}
    assert {name: state_of(home)[name] for name in models} == {name: state[name] for name in models}
    assert facts_of(home, DAYS[1], "score_aspects")["judge_paid"] == 0


@pytest.mark.vllm
def test_another_judge_is_compared_and_refused_until_somebody_accepts_it(
    home: Path, computed: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding judge judged so far; the tiny model is surely no better."""
    with monkeypatch.context() as patch:
        # The job alone: nights that stop at it are tests/cli/test_cli.py's.
        patch.setenv("SGREC_JUDGE__ENGINE", "vllm")
        refused = module("ingest_events", DAYS[1], fails=True)
    said = " ".join(refused.split())
    assert "SGREC_JUDGE__ENGINE (embedding before, now vllm)" in said
    assert "sgrec accept-judge" in said

    monkeypatch.setenv("SGREC_JUDGE_TRAINING__SIMULATED_LABELS", "60")
    monkeypatch.setenv("SGREC_JUDGE_TRAINING__MAX_TEST_PAIRS", "20")
    monkeypatch.setenv("SGREC_JUDGE_TRAINING__MIN_USERS", "2")
    compared = sgrec("compare-judge", "--day", DAYS[1], "--judge", "vllm")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "not activated: " in compared.stdout
    rows = Lake(home / "lake").read("judge_evaluations", where={"day": DAYS[1], "metric": "point_acc", "aspect": "all"})
    assert sorted(rows["role"].to_pylist()) == ["active", "candidate"]
    versions = Lake(home / "lake").read("judge_versions").to_pylist()
    engines = {row["judge_version"]: json.loads(row["facts"])["engine"] for row in versions}
    assert [engines[row["judge_version"]] for row in sorted(rows.to_pylist(), key=lambda row: row["role"])] == [
        "embedding",
        "vllm",
    ], "each was asked with its own engine"
    assert [judge.how for judge in accepted_judges(Settings())] == ["first"]

    accepted = sgrec("accept-judge", "--judge", "vllm", "--reason", "only a test")
    assert accepted.returncode == 0, accepted.stderr
    assert "judge accepted last (hand, " in sgrec("status").stdout


@pytest.mark.vllm
def test_a_night_with_two_vllm_judges_is_labelled_and_stands_beside_the_other(
    home: Path, computed: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judges are Airflow's mapped tasks, each with the states that are its own."""
    rewards = Lake(home / "lake").read("rewards", where={"day": DAYS[1]})
    # A share of the groups: an LLM on two cores takes its time.
    monkeypatch.setenv("SGREC_JUDGE__SAMPLING_RATIO", "0.2")
    monkeypatch.setenv("SGREC_JUDGE__MAX_PAIRS", "20")
    monkeypatch.setenv("SGREC_JUDGE__WORKERS", "2")
    lake = Lake(home / "lake")
    done = sgrec("nightly", "--day", DAYS[1], "--judge", "vllm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scores meaningless" in done.stdout
    summary = json.loads((home / "reports" / DAYS[1] / "summary.json").read_text())
    assert summary["judge"]["engine"] == "vllm"
    assert summary["judge"]["meaningless"] is True
    assert summary["judge"]["paid"] > 0
    assert summary["judge"]["failed"] == 0
    ledger = lake.read("judge_ledger", where={"day": DAYS[1], "purpose": "night"}).to_pylist()
    mine = [row for row in ledger if row["kind"].startswith("vllm")]
    assert {row["worker"] for row in mine} == {"0", "1"}, "nothing was left for the stage itself"
    assert sum(row["asked"] for row in mine) == summary["judge"]["paid"], "and it counts what they paid"
    with closing(sqlite3.connect(home / "airflow" / "airflow.db")) as database:
        tasks = database.execute(
            "select map_index, state from task_instance where task_id = 'judge_workers' order by map_index"
        ).fetchall()
    assert tasks == [(0, "success"), (1, "success")]
    versions = rewards["reward_version"].unique().to_pylist()
    assert lake.read("rewards", where={"day": DAYS[1], "reward_version": versions}).equals(rewards)
    assert set(lake.read("rewards", where={"day": DAYS[1]})["reward_version"].to_pylist()) > set(versions)


@contextmanager
def airflow_services() -> Iterator[Any]:
    """A real scheduler and API server on the home's SQLite: a function that calls Airflow's command line, and both.

    Jobs are forked from a warm process, as a night by hand has one: cold ones would import for minutes.
    """
    settings = Settings()
    with warm_process(settings, subprocess.DEVNULL) as warm:
        yield from _airflow_services(settings, warm)


def _airflow_services(settings: Settings, warm: Warm | None) -> Iterator[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **airflow_environment(settings),
        "AIRFLOW__API__PORT": port,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "1",
        # Otherwise the unpaused DAG would also run last night.
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
        **({SOCKET: str(warm.socket)} if warm else {}),
    }

    def airflow(*arguments: str) -> None:
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    services: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for service in ("api-server", "scheduler"):
            with (settings.home / f"{service}.log").open("wb") as output:
                command = [sys.executable, "-m", "airflow", service]
                services[service] = subprocess.Popen(
                    command, env=environment, cwd=PROJECT_ROOT, stdout=output, stderr=output, start_new_session=True
                )
        yield airflow, services
    finally:
        for process in services.values():
            end_with_descendants(process)


def wait_for_backfill(home: Path, services: dict[str, "subprocess.Popen[bytes]"]) -> list[dict[str, Any]]:
    """The runs of the backfill, once none is queued or running, in the order in which they began."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        runs = query(home, "select * from dag_run where run_type = 'backfill' order by start_date")
        if runs and all(run["state"] in ("success", "failed") for run in runs):
            return runs
        for name, process in services.items():
            if process.poll() is not None:
                pytest.fail(f"{name} ended: {(home / f'{name}.log').read_text()[-3000:]}")
        if time.monotonic() > deadline:
            pytest.fail(f"backfill not done: {runs}\n{(home / 'scheduler.log').read_text()[-3000:]}")
        time.sleep(1)


def query(home: Path, sql: str, *parameters: object) -> list[dict[str, Any]]:
    with closing(
        sqlite3.connect(f"file:{home / 'airflow' / 'airflow.db'}?mode=ro", uri=True, timeout=60)
    ) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql, parameters)]
