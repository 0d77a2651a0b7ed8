"""A home that is moved or copied goes on with its own models."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from sgrec_core.cli import app
from sgrec_core.generator import Generator, GeneratorConfig
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.generators import register_generator
from sgrec_core.registry import CHAMPION, GENERATOR, ModelVersion, Registry
from sgrec_core.settings import PROJECT_ROOT, Settings

IDS = [f"i{number:02d}" for number in range(20)]
DAYS = ("2026-01-05", "2026-01-06")


def register(registry: Registry, day: str) -> ModelVersion:
    codes = np.array([[number // 5, number % 5] for number in range(20)], dtype=np.int64)
    torch.manual_seed(int(day[-1]))
    model = Generator(GeneratorConfig(levels=2, codebook_size=5, width=16, layers=1, heads=2, max_items=4, dropout=0.0))
    fingerprint = hashlib.sha256(day.encode()).hexdigest()[:32]
    return register_generator(
        registry, GENERATOR, model.eval(), Catalogue(pa.array(IDS), codes, 5, "t"),
        day=day, fingerprint=fingerprint, metrics={}, parameters={}, tables={}, tags={},
    )  # fmt: skip


@pytest.fixture
def small_home(registry_home: Path) -> Path:
    """Two generators, of which the second serves, and what `sgrec recommend` reads; with a space in its path."""
    home = registry_home.rename(registry_home.with_name("a home"))
    registry, lake = Registry(Settings(home=home)), Lake(home / "lake")
    schema = pa.schema([field.with_nullable(True) for field in load_contract("items").arrow_schema])
    for day in DAYS:
        registry.promote(register(registry, day))
        rows = [{"item_id": name, "title": f"title of {name}", "item_hash": name} for name in IDS]
        items = pa.Table.from_pylist(rows, schema=schema).drop_columns("day")
        lake.publish("items", items, partition={"day": day}, fingerprint="ab" * 16)
    (home / "source.json").write_text('{"input": "simulator"}\n')
    return home


def sgrec(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def works_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that reads or writes models, in a home that has those of `small_home`."""
    monkeypatch.setenv("SGREC_HOME", str(home))
    assert "champion: version 2" in sgrec("status")
    assert "title of i" in sgrec("recommend", "--history", "i03,i04", "--count", "3")
    sgrec("rollback")
    assert "title of i" in sgrec("recommend", "--history", "i03,i04", "--count", "3")
    sgrec("promote", "--version", "2")
    registry = Registry(Settings(home=home))
    third = register(registry, "2026-01-07")
    assert registry.load(third)[1]["kind"] == "generator"
    for version in registry.versions(GENERATOR):
        logged = registry.client.get_logged_model(version.source.removeprefix("models:/"))
        assert logged.artifact_location.startswith(f"{home.as_uri()}/mlflow/artifacts/")
        run = registry.client.get_run(version.run_id)
        assert run.info.artifact_uri.startswith(f"{home.as_uri()}/mlflow/artifacts/")


def test_a_moved_home_works_as_before(small_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    small_home.rename(moved)
    works_in(moved, monkeypatch)
    assert not small_home.exists(), "nothing was written where it was"
    back = moved.rename(small_home)
    monkeypatch.setenv("SGREC_HOME", str(back))
    assert "version 2" in sgrec("recommend", "--history", "i03,i04")


def test_a_copied_home_never_touches_the_original(
    small_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(small_home, tmp_path / "copy")
    before = contents(small_home)
    works_in(copy, monkeypatch)
    assert contents(small_home) == before
    shutil.rmtree(small_home)
    monkeypatch.setenv("SGREC_HOME", str(copy))
    assert "version 2" in sgrec("recommend", "--history", "i03,i04")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_mlflow_itself_serves_the_champion_of_a_moved_home(
    small_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that knows nothing of homes, once any command has put the moved one right."""
    moved = small_home.rename(tmp_path / "moved")
    monkeypatch.setenv("SGREC_HOME", str(moved))
    sgrec("status")
    script = f"""
import mlflow, pandas
mlflow.set_tracking_uri("sqlite:///{moved}/mlflow/mlflow.db")
model = mlflow.pyfunc.load_model("models:/{GENERATOR}@{CHAMPION}")
print(model.predict(pandas.DataFrame({{"history": ["i03,i04"]}}))["items"][0])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip().split(",")) <= set(IDS)


def test_a_kill_while_a_home_is_put_right_leaves_it_as_it_was(
    small_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = small_home.rename(tmp_path / "moved")
    script = """
import os, signal, sqlite3, sys
from sgrec_core.registry import moved

class Killed(sqlite3.Connection):
    def execute(self, statement, *values):
        if statement.startswith("UPDATE model_versions"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, *values)

connect = sqlite3.connect
moved.sqlite3.connect = lambda *given, **named: connect(*given, factory=Killed, **named)
from pathlib import Path
home = Path(sys.argv[1])
moved.put_right(home / "mlflow" / "mlflow.db", (home / "mlflow" / "artifacts").as_uri())
"""
    done = subprocess.run([sys.executable, "-c", script, str(moved)], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    works_in(moved, monkeypatch)
