"""Jobs forked from a warm process are what they would be alone, and end with whoever asked for them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from small_night import DAY, run_night

from sgrec_core.night.airflow import Warm, airflow_environment, warm_process
from sgrec_core.runtime.warm import SOCKET
from sgrec_core.settings import PROJECT_ROOT, Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no warm process elsewhere")

PROBES = {
    "ends": "import sys; print('said', *sys.argv[1:]); print('complained', file=sys.stderr);"
    " sys.exit(int(sys.argv[1]))",
    "raises": "raise ValueError('out of tea')",
    "has_imported": "import sys; sys.exit(sys.argv[1] not in sys.modules)",
    "dies": "import os; os.kill(os.getpid(), 9)",
    "tells": "import os; tasks = os.listdir('/proc/self/task');"
    " print(os.getppid(), len(tasks), os.environ['SGREC_HOME'], os.getcwd(), __name__)",
    "sleeps": "import os, subprocess, time; subprocess.Popen(['sleep', '600']);"
    " print(os.getpid(), flush=True); time.sleep(600)",
    "starts_a_thread": "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "computes": """
import hashlib, sys
loaded = "torch._dynamo" in sys.modules
import torch
torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.Dropout(0.1), torch.nn.GELU(), torch.nn.Linear(500, 1))
optimiser = torch.optim.AdamW(model.parameters())
for _ in range(20):
    optimiser.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(512, 300)).square().mean()
    loss.backward()
    optimiser.step()
torch.set_num_threads(1)
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print(loaded, torch.get_num_threads(), hashlib.sha256(weights).hexdigest())
""",
    "sums": """
import os, sys
from sgrec_core.lake.spark import spark_session
from sgrec_core.settings import Settings
spark = spark_session(Settings())
rows = spark.range(1000).mapInPandas(lambda frames: frames, "id long").groupBy().sum("id").collect()
print(spark._jvm.java.lang.ProcessHandle.current().pid(), rows[0][0])
if sys.argv[1:]:
    sys.exit(int(sys.argv[1]))
spark.stop()
""",
}


@pytest.fixture
def probes(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "probes"
    folder.mkdir()
    for name, text in PROBES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT_ROOT), str(folder)]))
    return folder


@contextmanager
def serving(probes: Path, *options: str) -> Iterator[Warm]:
    """A warm process, whose end is checked."""
    with pytest.MonkeyPatch.context() as patch, (probes / "log").open("wb") as log:
        # Pytest changes it with each phase of a test, and a job in another environment runs alone.
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        with warm_process(Settings(), log, *options) as process:
            assert process
            yield process
    assert process.process.returncode is not None
    assert not process.socket.exists()


@pytest.fixture
def warm(probes: Path) -> Iterator[Warm]:
    with serving(probes) as process:
        yield process


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sgrec_core.runtime.warm", *arguments]


def ask(warm: Warm | None, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**environment_of(warm), **variables}
    return subprocess.run(command(*arguments), env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True)


def environment_of(warm: Warm | None) -> dict[str, str]:
    """What the jobs of its night have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        environment = airflow_environment(Settings())
    return {**environment, SOCKET: str(warm.socket)} if warm else environment


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_output_and_exit_code_are_those_of_the_job(warm: Warm, code: int) -> None:
    done = ask(warm, "ends", str(code), "a b")
    assert (done.returncode, done.stdout, done.stderr) == (code, f"said {code} a b\n", "complained\n")


def test_a_crash_ends_as_it_would_alone(warm: Warm) -> None:
    for probe in ("raises", "dies"):
        beside, alone = ask(warm, probe), ask(None, probe)
        assert beside.returncode == alone.returncode != 0
    assert "ValueError: out of tea" in ask(warm, "raises").stderr
    assert beside.returncode == -signal.SIGKILL


def test_a_job_has_its_own_environment_folder_and_no_thread(warm: Warm, tmp_path: Path) -> None:
    for name in ("one", "two"):
        told = ask(warm, "tells", SGREC_HOME=str(tmp_path / name)).stdout.split()
        assert told == [str(warm.process.pid), "1", str(tmp_path / name), str(PROJECT_ROOT), "__main__"]


def test_a_job_whose_libraries_would_be_loaded_otherwise_runs_alone(warm: Warm, probes: Path) -> None:
    told = ask(warm, "tells", OMP_NUM_THREADS="3").stdout.split()
    assert told[0] != str(warm.process.pid)
    assert "OMP_NUM_THREADS" in (probes / "log").read_text()


def test_nothing_is_forked_from_a_process_with_threads(probes: Path) -> None:
    with serving(probes, "--libraries", "starts_a_thread") as warm:
        until(lambda: psutil.Process(warm.process.pid).num_threads() > 1)
        told = ask(warm, "tells").stdout.split()
        assert told[0] != str(warm.process.pid)


def test_the_same_digits(probes: Path) -> None:
    libraries = ("torch", "sklearn.cluster", "torch._dynamo")
    with serving(probes, "--libraries", *libraries) as warm:
        until(lambda: ask(warm, "has_imported", libraries[-1]).returncode == 0, 300)
        beside, alone = (ask(process, "computes").stdout.split() for process in (warm, None))
    assert (beside[0], alone[0]) == ("True", "False"), "only the first has the libraries"
    assert beside[1:] == alone[1:]


def test_a_real_gate_runs_twice(warm: Warm) -> None:
    run_night(Settings(), until="build_states")
    for state in ("finished", "skipped"):
        arguments = ("jobs.check_quality", "--day", DAY, "--stage", "build_states")
        done = ask(warm, *arguments, *(["--force"] if state == "finished" else []))
        assert done.returncode == 0, done.stderr
        assert f"check_build_states {DAY}: {state}" in done.stdout
    assert ask(warm, "jobs.check_quality", "--day", "5.1.", "--stage", "build_states").returncode == 2


def start_sleeper(warm: Warm) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A command whose job sleeps, and the job with what it has started."""
    client = subprocess.Popen(
        command("sleeps"), env=environment_of(warm), cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout
    job = psutil.Process(int(client.stdout.readline()))
    assert job.ppid() == warm.process.pid
    return client, [job, *job.children()]


def ended(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != "zombie" for process in processes)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_ends_with_its_command(warm: Warm, sent: signal.Signals) -> None:
    client, job = start_sleeper(warm)
    assert len(job) == 2
    client.send_signal(sent)
    client.wait()
    until(lambda: ended(job))
    assert ask(warm, "ends", "0").returncode == 0, "others go on"


def test_a_job_ends_with_the_warm_process_and_the_next_runs_alone(warm: Warm) -> None:
    client, (job, orphan) = start_sleeper(warm)
    warm.process.kill()
    assert client.wait() == 1, "a crash, which Airflow tries again"
    until(lambda: ended([job]))
    orphan.kill()
    assert ask(warm, "ends", "3").returncode == 3


def test_it_ends_with_the_pipe_that_airflow_holds(warm: Warm) -> None:
    client, job = start_sleeper(warm)
    os.dup2(os.open(os.devnull, os.O_RDONLY), warm.alive)
    assert warm.process.wait(60) == 0
    assert ended(job)
    client.wait()


@pytest.mark.spark
def test_spark_jobs_share_a_jvm_until_one_fails_or_the_last_has_ended(
    probes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGREC_SPARK_MEMORY", "1g")
    (probes / "sums_again.py").write_text(PROBES["sums"])
    options = ("--libraries", "pandas", "--spark-jobs", "sums", "sums_again")
    with serving(probes, *options) as warm:
        first, last = ask(warm, "sums"), ask(warm, "sums_again")
        assert first.stdout == last.stdout, first.stderr + last.stderr
        jvm, total = first.stdout.split()
        assert total == "499500"
        until(lambda: not psutil.pid_exists(int(jvm)))
        own = ask(warm, "sums").stdout.split()
        assert own[0] != jvm
        assert own[1] == total
    with serving(probes, *options) as warm:
        failed = ask(warm, "sums", "1")
        assert failed.returncode == 1
        until(lambda: not psutil.pid_exists(int(failed.stdout.split()[0])))
        assert ask(warm, "sums_again").stdout.split()[1] == "499500"
