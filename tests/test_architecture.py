"""The walls of the house, as CONTRIBUTING.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sgrec_core.settings import PROJECT_ROOT

CORE = PROJECT_ROOT / "sgrec_core"


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_the_core_imports_neither_airflow_nor_spark_outside_lake_and_logs() -> None:
    for path in CORE.rglob("*.py"):
        assert "airflow" not in imports(path), path
        if path.relative_to(CORE).parts[0] not in ("lake", "logs"):
            assert "pyspark" not in imports(path), path


def test_the_core_does_not_reach_up_into_jobs_or_dags() -> None:
    for path in CORE.rglob("*.py"):
        assert not imports(path) & {"jobs", "dags"}, path


def test_no_pickle_anywhere() -> None:
    for folder in ("sgrec_core", "jobs", "dags"):
        for path in (PROJECT_ROOT / folder).rglob("*.py"):
            assert not imports(path) & {"pickle", "cloudpickle", "joblib", "dill"}, path
            assert "torch.load" not in path.read_text(), path


BARE = """
import importlib, importlib.abc, pathlib, pkgutil, sys

class OnlyBare(importlib.abc.MetaPathFinder):
    forbidden = {"airflow", "pyspark", "mlflow", "deltalake", "great_expectations", "pandas", "sklearn", "lightgbm",
                 "sentence_transformers", "transformers", "safetensors", "pydantic", "pydantic_settings", "typer", "rich", "yaml"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.forbidden:
            raise ImportError(name + " is not on a bare GPU machine")

sys.meta_path.insert(0, OnlyBare())
import sgrec_core
for room in ("generator", "rewards", "policy", "evaluation"):
    package = importlib.import_module("sgrec_core." + room)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"sgrec_core.{room}.{module.name}")
"""


def test_the_learning_core_imports_on_a_bare_gpu_machine() -> None:
    result = subprocess.run([sys.executable, "-c", BARE], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


JUDGE = """
import sys
for name in ("airflow", "pyspark", "mlflow", "great_expectations", "sentence_transformers"):
    sys.modules[name] = None
import jobs.score_aspects
"""


def test_the_judge_job_needs_nothing_that_its_environment_lacks() -> None:
    result = subprocess.run([sys.executable, "-c", JUDGE], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    "name",
    ["dags", "jobs", "sgrec_core", "schemas", "docker", "tests", "docker-compose.yml", "pyproject.toml", "README.md"],
)
def test_the_top_level_is_as_required(name: str) -> None:
    assert (PROJECT_ROOT / name).exists()
