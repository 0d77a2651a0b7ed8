"""`sgrec doctor`: each check has a case in which it fails for the reason that it names, with a mend that helps."""

import json
import os
import shlex
import shutil
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake
from registered_models import register
from safetensors.torch import save_file
from typer.testing import CliRunner

from sgrec_core.cli import app
from sgrec_core.cli.app import console
from sgrec_core.files import write_json
from sgrec_core.lake import Lake
from sgrec_core.night.airflow import only_night
from sgrec_core.registry import GENERATOR, Registry
from sgrec_core.runtime.layout import LAYOUT
from sgrec_core.runtime.runs import Run, record
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings

DAY = "2026-01-05"
STEPS = [name for stage in STAGES for name in (stage.name, *([f"check_{stage.name}"] if stage.publishes else []))]
HUSH = "hush-9f3a"
"""A key; no output may have it."""


@pytest.fixture(autouse=True)
def nothing_inherited(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SGREC_INPUT", "SGREC_LAKE", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(console, "width", 300)


@pytest.fixture
def settings(home: Path) -> Settings:
    """Of a home in which a night has succeeded."""
    home.mkdir()
    write_json(home / "source.json", {"input": "simulator"})
    write_json(home / "home.json", {"layout": LAYOUT})
    settings = Settings(home=home)
    lake = Lake(settings.lake_root)
    runs = [Run(day=DAY, stage=step, input="simulator", git_revision=None) for step in STEPS]
    record(lake, [one for run in runs for one in (run, run.ended("finished"))])
    rows = pa.table(
        {"user_id": ["ann"], "profile": ["{}"]}, schema=pa.schema(dict.fromkeys(("user_id", "profile"), "string"))
    )
    lake.publish("users", rows, partition={"day": DAY}, fingerprint="ab" * 8)
    return settings


@pytest.fixture
def logs(settings: Settings, tmp_path: Path) -> Path:
    """The newest of two days that have landed for that home."""
    raw = tmp_path / "raw"
    for day in ("2026-01-04", DAY):
        for name in ("events/a.jsonl", "catalogue/a.jsonl"):
            path = raw / f"day={day}" / name
            path.parent.mkdir(parents=True)
            path.write_text("{}\n")
    write_json(settings.home / "source.json", {"input": f"logs:{raw}"})
    return raw / f"day={DAY}"


def doctor(*, failed: str | None = None) -> dict[str, dict[str, str]]:
    """Findings by name; of those that fail there are the checks that are named, in their order, and no others."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert HUSH not in result.output + str(result.exception)
    found = json.loads(result.output)
    states = {one["name"]: one["state"] for one in found["checks"]}
    assert [name for name, state in states.items() if state == "failed"] == (failed or "").split(", ") * bool(failed), (
        result.output
    )
    assert found["exit_code"] == result.exit_code == (1 if failed else 0)
    for one in found["checks"]:
        assert list(one) == ["name", "state", "what", "mend"]
        assert (one["mend"] is None) == (one["state"] == "ok"), one
    return {one["name"]: one for one in found["checks"]}


def said() -> str:
    return CliRunner().invoke(app, ["doctor"]).output


# Homes


def test_in_a_fresh_folder_the_first_command_is_the_mend(home: Path) -> None:
    found = doctor()
    assert (found["home"]["state"], found["home"]["what"]) == ("warning", f"no night was run in {home}")
    assert (
        found["home"]["mend"] == f"SGREC_HOME={home} SGREC_INPUT=simulator {Path(sys.prefix) / 'bin' / 'sgrec'} nightly"
    )
    assert "lake" not in found, "there is none to look at"
    assert not home.exists(), "who only looks makes nothing"
    assert "mend: SGREC_HOME=" in said()


def test_a_home_that_is_well_is_ok(settings: Settings) -> None:
    before = sorted(settings.home.rglob("*"))
    found = doctor()
    assert {one["state"] for one in found.values()} == {"ok"}
    assert found["lake"]["what"].endswith("2 tables are whole")
    assert sorted(settings.home.rglob("*")) == before, "the probe is gone"


@pytest.mark.parametrize(("layout", "word", "mend"), [(0, "older", "sgrec migrate"), (99, "newer", "that version")])
def test_a_home_of_another_version_says_so(settings: Settings, layout: int, word: str, mend: str) -> None:
    write_json(settings.home / "home.json", {"layout": layout})
    found = doctor(failed="home")
    assert f"{word} version of sgrec" in found["home"]["what"]
    assert mend in found["home"]["mend"]
    assert "lake" not in found


def test_a_place_that_may_not_be_written_to(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not even root writes there.
    monkeypatch.setenv("SGREC_LAKE", "/sys/sgrec")
    assert "/sys/sgrec" in doctor(failed="lake")["lake"]["what"]
    monkeypatch.setenv("SGREC_HOME", "/sys/sgrec")
    found = doctor(failed="home, disk")["home"]
    assert "/sys cannot be written to" in found["what"]
    assert "SGREC_HOME" in found["mend"]


def test_a_setting_that_is_not_valid(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGREC_THREADS", "none")
    assert "SGREC_THREADS='none'" in doctor(failed="settings")["settings"]["what"]


# The machine


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "holds no bin/java"),
        ("echo 'openjdk version \"11.0.2\"' >&2", "Spark needs Java 17 or 21"),
        ("echo 'openjdk version \"17.0.9\"' >&2; echo java.base@17.0.9", "lacks the module jdk.incubator.vector"),
    ],
)
def test_java(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str
) -> None:
    if script is not None:
        java = tmp_path / "bin" / "java"
        java.parent.mkdir()
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert words in doctor(failed="java")["java"]["what"]


def test_libraries_of_other_versions(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "deltalake-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deltalake\nVersion: 0.0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor(failed="libraries")["libraries"]
    assert "deltalake 0.0.1 instead of " in found["what"]
    assert found["mend"] == f"make -C {PROJECT_ROOT} env"


def test_an_interpreter_that_is_not_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGREC_INTERPRETERS__TORCH", "/nowhere/python")
    assert "SGREC_INTERPRETERS__TORCH=/nowhere/python" in doctor(failed="interpreters")["interpreters"]["what"]


def test_room(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    for free, state in ((2 << 30, "warning"), (1 << 20, "failed")):
        with monkeypatch.context() as little:
            little.setattr(shutil, "disk_usage", lambda path, free=free: usage(1 << 40, 1 << 40, free))
            found = doctor(failed="disk" if state == "failed" else None)["disk"]
            assert (found["state"], "GiB free" in found["what"]) == (state, True)
            assert "sgrec maintain" in found["mend"]
    monkeypatch.setenv("SGREC_SPARK_MEMORY", "900000m")
    assert "Spark takes 878.9" in doctor(failed="memory")["memory"]["what"]
    monkeypatch.setenv("SGREC_SPARK_MEMORY", "lots")
    assert "SGREC_SPARK_MEMORY=lots is no size" in doctor(failed="memory")["memory"]["what"]


def test_files_from_the_future(logs: Path) -> None:
    (logs / "_SUCCESS").touch()
    file = logs / "events" / "a.jsonl"
    os.utime(file, (time.time() + 3600, time.time() + 3600))
    found = doctor(failed="clock")["clock"]
    assert str(file) in found["what"]
    assert "set-ntp" in found["mend"]
    os.utime(file)
    logs.rename(logs.with_name("day=9999-01-01"))
    assert "day=9999-01-01" in doctor(failed="clock")["clock"]["what"]


# The judge


class Models(BaseHTTPRequestHandler):
    """A server that serves one model, to whoever has the key."""

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == f"Bearer {HUSH}" and self.path == f"/v1/models?api_key={HUSH}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "judge-8b"}]}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its URL with all kinds of secrets."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1?api_key={HUSH}"
        monkeypatch.setenv("SGREC_JUDGE__ENGINE", "server")
        monkeypatch.setenv("SGREC_JUDGE__SERVER_URL", url)
        monkeypatch.setenv("SGREC_JUDGE__SERVED_NAME", "judge-8b")
        monkeypatch.setenv("OPENAI_API_KEY", HUSH)
        yield url
        server.shutdown()


def test_a_server_that_judges(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = server.partition("/v1")[0]
    assert doctor()["judge"]["what"] == f"{place} serves judge-8b"
    monkeypatch.setenv("SGREC_JUDGE__SERVED_NAME", "judge-70b")
    assert doctor(failed="judge")["judge"]["what"] == f"{place} does not serve 'judge-70b'; it serves judge-8b"
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    found = doctor(failed="judge")["judge"]
    assert f"{place} answers 401" in found["what"]
    assert "OPENAI_API_KEY" in found["mend"]
    assert HUSH not in said()


@pytest.mark.parametrize(
    "url", [f"http://ann:{HUSH}@127.0.0.1:9/{HUSH}", f"judge/v1?key={HUSH}", f"http://a/v1?key={HUSH} c"]
)
def test_a_server_that_is_gone(server: str, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SGREC_JUDGE__SERVER_URL", url)
    found = doctor(failed="judge")["judge"]
    assert "SGREC_JUDGE__SERVER_URL" in found["mend"]
    assert HUSH not in said()


def test_a_server_that_hangs_does_not_hold_up_the_others(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("SGREC_JUDGE__SERVER_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/v1")
        began = time.monotonic()
        assert "does not answer" in doctor(failed="judge")["judge"]["what"]
        assert time.monotonic() - began < 10


def test_an_interpreter_without_vllm(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGREC_JUDGE__ENGINE", "vllm")
    monkeypatch.setenv("SGREC_INTERPRETERS__JUDGE", sys.executable)
    found = doctor(failed="judge")["judge"]
    assert found["what"] == f"{sys.executable} has no vLLM"
    assert found["mend"].endswith("judge-env")


# Raw logs


def test_a_day_that_is_whole_or_says_nothing_of_it(logs: Path) -> None:
    found = doctor()["landing"]
    assert (found["state"], found["mend"]) == ("warning", f"when it is: touch {shlex.quote(str(logs / '_SUCCESS'))}")
    write_json(logs / "_MANIFEST.json", {"files": ["events/a.jsonl", "catalogue/a.jsonl"]})
    assert doctor()["landing"]["what"] == f"{DAY} is whole, 2 files"
    write_json(logs / "_MANIFEST.json", {"files": ["events/a.jsonl", "events/b.jsonl"]})
    assert "events/b.jsonl: listed in the manifest" in doctor(failed="landing")["landing"]["what"]
    (logs / "_MANIFEST.json").write_text('{"files": [')
    assert "not a manifest like" in doctor(failed="landing")["landing"]["what"]
    (logs / "_MANIFEST.json").unlink()
    (logs / "events" / "b.jsonl").symlink_to("/nowhere")
    assert "a link to what is not there" in doctor(failed="landing")["landing"]["what"]


def test_a_day_or_a_folder_that_is_lost(logs: Path) -> None:
    shutil.rmtree(logs / "catalogue")
    assert f"no catalogue files of {DAY}" in doctor(failed="landing")["landing"]["what"]
    for folder in logs.parent.glob("day=*"):
        shutil.rmtree(folder)
    assert "no day has landed in" in doctor(failed="landing")["landing"]["what"]
    logs.parent.rmdir()
    assert f"no folder {logs.parent}" in doctor(failed="landing")["landing"]["what"]


# What the home holds


def test_files_of_tables(settings: Settings) -> None:
    (file,) = (settings.home / "lake" / "users").glob("day=*/*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    found = doctor(failed="lake")["lake"]
    damage = f"day={DAY}/{file.name} has {len(whole) - 5} bytes instead of {len(whole)}"
    assert f"table users is damaged: {damage}" in found["what"]
    assert f"-m jobs.ingest_events --day {DAY} --force" in found["mend"]
    file.unlink()
    assert f"table users has lost day={DAY}/{file.name}" in doctor(failed="lake")["lake"]["what"]
    file.write_bytes(whole)
    shutil.rmtree(settings.home / "lake" / "users" / "_delta_log")
    doctor()
    (settings.home / "lake" / "users" / "_delta_log").mkdir()
    (settings.home / "lake" / "users" / "_delta_log" / f"{0:020d}.json").write_text("{")
    doctor(failed="lake")


def test_a_home_whose_runs_and_source_are_lost_is_looked_at_all_the_same(settings: Settings) -> None:
    (settings.home / "source.json").write_text("{")
    for file in (settings.home / "lake" / "stage_runs").glob("day=*/*.parquet"):
        file.unlink()
    found = doctor(failed="lake, last night")
    assert "table stage_runs has lost" in found["lake"]["what"]
    assert "stage_runs from a backup" in found["lake"]["mend"]


def test_a_table_of_an_older_version(settings: Settings) -> None:
    lake = Path(settings.lake_root)
    write_deltalake(str(lake / "items"), pa.table({"day": [DAY], "item_id": ["a"]}), partition_by=["day"])
    found = doctor(failed="lake")["lake"]
    assert "table items lacks column" in found["what"]
    assert found["mend"].endswith("sgrec migrate")


def scheduler(settings: Settings, state: str, heartbeat: datetime) -> None:
    """What Airflow's database says of one, as far as it is asked."""
    path = settings.home / "airflow" / "airflow.db"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE job (id INTEGER, state TEXT, job_type TEXT, latest_heartbeat TIMESTAMP)")
        row = (state, heartbeat.replace(tzinfo=None).isoformat(" "))
        connection.execute("INSERT INTO job VALUES (1, ?, 'SchedulerJob', ?)", row)


def test_airflow(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    scheduler(settings, "running", now)
    assert doctor()["airflow"]["what"] == "database and scheduler answer"
    scheduler(settings, "running", now - timedelta(minutes=30))
    assert "the scheduler has been silent for 30 minutes" in doctor(failed="airflow")["airflow"]["what"]
    scheduler(settings, "success", now - timedelta(minutes=30))
    assert "no scheduler" in doctor()["airflow"]["what"]
    (settings.home / "airflow" / "airflow.db").write_bytes(b"no database, " * 500)
    found = doctor(failed="airflow")["airflow"]
    assert "airflow.db cannot be read: DatabaseError" in found["what"]
    assert "move it away" in found["mend"]
    # One that somebody else runs.
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"postgresql://ann:{HUSH}@127.0.0.1:9/airflow?p={HUSH}")
    doctor(failed="airflow")


def test_the_last_night(settings: Settings, logs: Path) -> None:
    (logs / "_SUCCESS").touch()
    found = doctor()["last night"]
    assert found["state"] == "warning"
    assert f"the newest night is {DAY}, " in found["what"]
    failed = Run(day="2026-01-06", stage="build_states", input="simulator").ended("failed", message="lost")
    record(Lake(settings.lake_root), [failed])
    found = doctor()["last night"]
    assert found["what"] == "2026-01-06 is stopped at build_states"
    assert found["mend"].endswith("sgrec status --day 2026-01-06")
    with only_night(settings, "2026-01-07"):
        assert doctor()["last night"]["what"] == "the night of 2026-01-07 runs"
    ahead = Run(day="2026-01-07", stage="ingest_events", input="simulator", started=datetime.now(UTC) + timedelta(1))
    record(Lake(settings.lake_root), [ahead])
    assert "the clock is behind" in doctor(failed="last night")["last night"]["what"]


def test_the_champion(settings: Settings, registry_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(settings)
    for number, day in enumerate((DAY, "2026-01-06"), start=1):
        registry.promote(register(registry, day))
        assert doctor()["champion"]["what"] == f"{GENERATOR} version {number}: 1 tensors, all finite"
    monkeypatch.setenv("SGREC_HOME", str(settings.home.rename(settings.home.with_name("moved"))))
    assert doctor()["champion"]["state"] == "ok", "MLflow's paths are put right"
    monkeypatch.setenv("SGREC_HOME", str(settings.home.with_name("moved").rename(settings.home)))
    path = sorted(registry_home.rglob("model.safetensors"), key=lambda file: file.stat().st_mtime)[-1]
    save_file({"weight": torch.tensor([float("inf"), 1.0])}, path)
    found = doctor(failed="champion")["champion"]
    assert f"{GENERATOR} version 2: 1 of 2 numbers of tensor 'weight' are NaN or infinite" in found["what"]
    assert found["mend"].endswith("sgrec rollback")
    path.unlink()
    assert f"{GENERATOR} version 2: it cannot be read from" in doctor(failed="champion")["champion"]["what"]
    registry.rollback()
    assert doctor()["champion"]["state"] == "ok", "the mend has helped"
    (registry_home / "mlflow" / "mlflow.db").unlink()
    assert "mlflow.db cannot be read" in doctor(failed="champion")["champion"]["what"]
