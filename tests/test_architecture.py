"""The walls of the house, as CONTRIBUTING.md draws them."""

import ast
import os
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
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


FLOORS = (
    ("errors", "settings", "hashing", "files", "wording"),
    ("lake",),
    ("runtime",),
    ("logs",),
    ("simulator",),
    ("states",),
    ("items",),
    ("generator",),
    ("rewards",),
    ("policy",),
    ("aggregator",),
    ("evaluation",),
    ("registry",),
    ("judge",),
    ("night",),
    ("quality",),
    ("cli",),
)
"""Rooms of the core from the ground up: a room reads those below it, and nothing above."""
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def core_imports(path: Path) -> set[str]:
    """Modules of the core that a file imports anywhere, inside functions and for type checking too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if module_path(inner) else node.module)
    return {name for name in names if name.startswith("sgrec_core.")}


def module_path(name: str) -> Path | None:
    base = PROJECT_ROOT / name.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_room_has_its_floor() -> None:
    rooms = {path.stem for path in CORE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__"} == set(HEIGHT)


def test_no_arrow_goes_up() -> None:
    upward = [
        f"{module_name(path)} -> {name}"
        for path in sorted(CORE.rglob("*.py"))
        for name in sorted(core_imports(path))
        if (room := module_name(path).split(".")[1:2]) and HEIGHT[name.split(".")[1]] > HEIGHT[room[0]]
    ]
    assert not upward, "\n".join(upward)


def test_no_circle() -> None:
    arrows = {module_name(path): core_imports(path) for path in CORE.rglob("*.py")}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_the_core_imports_no_airflow_and_spark_only_where_tables_are_made() -> None:
    for path in CORE.rglob("*.py"):
        assert "airflow" not in imports(path), path
        if path.relative_to(CORE).parts[0] not in ("lake", "logs", "states"):
            assert "pyspark" not in imports(path), path


def test_the_core_does_not_reach_up_into_jobs_or_dags() -> None:
    for path in CORE.rglob("*.py"):
        assert not imports(path) & {"jobs", "dags"}, path


MOST_LINES, MOST_PARAMETERS = 400, 7
SAYS_WHY = {"lines": " lines, because ", "parameters": " parameters, because "}
"""What the docstring of a longer module, or of a function with more parameters, has to hold."""


def own_modules() -> list[Path]:
    return [path for folder in ("sgrec_core", "jobs", "dags") for path in sorted((PROJECT_ROOT / folder).rglob("*.py"))]


def says_why(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef, excess: str) -> bool:
    return SAYS_WHY[excess] in " ".join((ast.get_docstring(node) or "").split())


def test_modules_are_short_or_say_why_not() -> None:
    long = [
        f"{path.relative_to(PROJECT_ROOT)}: {lines} lines"
        for path in own_modules()
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
        and not says_why(ast.parse(path.read_text()), "lines")
    ]
    assert not long, "\n".join(long)


def test_functions_have_few_parameters_or_say_why_not() -> None:
    many = []
    for path in own_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > MOST_PARAMETERS and not says_why(node, "parameters"):
                many.append(f"{path.relative_to(PROJECT_ROOT)}, {node.name}: {count} parameters")
    assert not many, "\n".join(many)


def test_settings_are_read_from_the_environment_where_a_process_starts_alone() -> None:
    """Elsewhere they are passed on: what runs in one process is of one mind."""
    # The DAGs' file, the process of Spark's gateway, where a job or a command begins, and another home's name.
    begin = {"dags.sgrec_tasks", "sgrec_core.lake.gateway", "sgrec_core.runtime.job", "sgrec_core.cli.homes"}
    readers = set()
    for path in own_modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Settings":
                readers.add(module_name(path))
    assert readers <= begin, readers - begin


MOST_COLUMNS = 120


def test_prose_has_short_lines() -> None:
    """Markdown and contracts; not tables, a contract's columns, and what benchmarks write. Python is ruff's."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    written = re.compile(r"schemas/.*\.yaml|(?!benchmarks/results/).*\.md")
    names = [name for name in listed.stdout.splitlines() if written.fullmatch(name)]
    assert names
    long = [
        f"{name}:{number}: {len(line)} columns"
        for name in names
        for number, line in enumerate((PROJECT_ROOT / name).read_text().splitlines(), start=1)
        if len(line) > MOST_COLUMNS and not line.lstrip().startswith(("|", "- {"))
    ]
    assert not long, "\n".join(long)


def test_no_pickle_anywhere() -> None:
    for folder in ("sgrec_core", "jobs", "dags"):
        for path in (PROJECT_ROOT / folder).rglob("*.py"):
            assert not imports(path) & {"pickle", "cloudpickle", "joblib", "dill"}, path
            assert "torch.load" not in path.read_text(), path


def test_the_learning_core_runs_on_a_bare_gpu_machine() -> None:
    """Trained, decoded, rewarded, improved and measured with torch, numpy and pyarrow alone."""
    command = [sys.executable, str(PROJECT_ROOT / "tests" / "support" / "bare_machine.py")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
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
