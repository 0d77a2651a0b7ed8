"""What all tests share: a home of their own, and where the public data lies."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from sgrec_core.settings import PROJECT_ROOT

# One thread a process: two processes with two torch threads each are many times slower than with one each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A worker of pytest-xdist has a main module without a file, which pyspark takes for a run of its doctests: it exits.
if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = __file__


SLOW = {
    # They train models,
    "aggregator/test_aggregator_job.py",
    "generator/test_generator_jobs.py",
    "generator/test_generator_training.py",
    "generator/test_language_model.py",
    "generator/test_rollout_policies.py",
    "items/test_items_job.py",
    "judge/test_judge_training.py",
    "judge/test_judge_training_job.py",
    "rewards/test_business_reward.py",
    "rewards/test_business_reward_job.py",
    # start many processes or copies of the project,
    "cli/test_cli.py",
    "cli/test_doctor.py",
    "cli/test_homes.py",
    "cli/test_status.py",
    "runtime/test_code.py",
    "runtime/test_warm.py",
    "night/test_changes.py",
    "registry/test_hold.py",
    "registry/test_moved_home.py",
    "registry/test_promotions.py",
    "registry/test_registry.py",
    "test_benchmarks.py",
    "test_setup.py",
    # or read and write many tables.
    "cli/test_torn_files.py",
    "evaluation/test_simulated_ab.py",
    "judge/test_accepted_judges.py",
    "judge/test_judge_job.py",
    "judge/test_judge_server.py",
    "night/test_migrate.py",
    "quality/test_night_metrics.py",
    "quality/test_quality.py",
    "quality/test_report.py",
    "runtime/test_job.py",
    "simulator/test_simulator.py",
}
"""Files that `make test-fast` leaves out, below this folder."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow files; files with whole nights first: begun last, the longest would keep one worker busy alone."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix() in SLOW:
            item.add_marker(pytest.mark.slow)
    nights = {item.path for item in items if item.get_closest_marker("night")}
    items.sort(key=lambda item: item.path not in nights)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh SGREC_HOME that jobs started in this process or as children use."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SGREC_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of the public data sets; skips where there is none."""
    folder = Path(os.environ.get("SGREC_PUBLIC_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    if not (folder / "scientific" / "inter.json").exists():
        pytest.skip(f"no public data under {folder}; set SGREC_PUBLIC_DATA")
    return folder


@pytest.fixture(scope="session")
def _migrated_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sgrec_core.registry import Registry
    from sgrec_core.settings import Settings

    folder = tmp_path_factory.mktemp("registry")
    Registry(Settings(home=folder)).versions("none")
    return folder / "mlflow"


@pytest.fixture
def registry_home(home: Path, _migrated_registry: Path) -> Path:
    """A home with an empty model registry: a copy of one, because MLflow takes seconds to make its database."""
    shutil.copytree(_migrated_registry, home / "mlflow")
    return home
