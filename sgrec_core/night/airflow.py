"""A night on one machine: Airflow runs the DAG in a process of its own, the terminal follows what the jobs report.

Airflow is never imported here. Its home is ``<home>/airflow`` (SQLite metadata, logs); what it prints goes to
``<home>/reports/<day>/airflow.log``. What people see comes from ``<home>/reports/<day>/progress.jsonl``, to which
every job appends a line when its state changes.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from rich.console import Console

from sgrec_core.errors import SettingsError, SgrecError
from sgrec_core.files import read_json, write_json
from sgrec_core.night.display import Display, Tail, why_stopped
from sgrec_core.runtime.stages import STAGES
from sgrec_core.runtime.warm import SOCKET
from sgrec_core.settings import PROJECT_ROOT, Settings

DAG_ID = "sgrec_nightly"
JUDGE_TRAINING_DAG_ID = "sgrec_judge_training"
JUDGE_COMPARISON_DAG_ID = "sgrec_judge_comparison"
POLL_SECONDS = 0.2
GRACE_SECONDS = 10
"""How long a job may take to end after SIGTERM before it is killed."""


@dataclass(frozen=True)
class Outcome:
    """How a night ended: ``exit_code`` 0 when every stage and gate passed, else ``reason`` says in one line why not."""

    day: str
    exit_code: int
    seconds: float
    log: Path
    reason: str | None = None


def run_night(
    settings: Settings,
    day: str,
    console: Console,
    *,
    dag_id: str = DAG_ID,
    folder: str = "",
    force_from: str | None = None,
) -> Outcome:
    """Run the DAG for ``day`` and show it: a line per stage, and a bar for the one that runs.

    ``folder``, below the day's reports, is where the DAG's stages report. ``force_from``: that stage and those behind
    it are computed again, though they are up to date.

    Interrupting (Ctrl-C, SIGTERM) ends Airflow and the job with all that it started; tables stay at their last commit.

    Raises:
        SettingsError: an interpreter does not exist, or another night runs in this home.
        SgrecError: Airflow could not be set up.
        KeyboardInterrupt: interrupted, after everything has ended.
    """
    check_interpreters(settings)
    if settings.judge.gpus > settings.airflow.gpu_slots:
        raise SettingsError(
            f"SGREC_JUDGE__TENSOR_PARALLEL={settings.judge.tensor_parallel} needs as many GPU slots, and there are"
            f" {settings.airflow.gpu_slots} (SGREC_AIRFLOW__GPU_SLOTS): the judge would wait for ever"
        )
    with only_night(settings, day):
        prepare_airflow(settings, console)
        reports = settings.reports(day, folder)
        reports.mkdir(parents=True, exist_ok=True)
        log = reports / "airflow.log"
        events = Tail(reports / "progress.jsonl")
        failures = Tail(reports / "failures.jsonl")
        started = time.monotonic()
        conf = {"day": day} | ({"force_from": force_from} if force_from else {})
        arguments = ["dags", "test", dag_id, "--conf", json.dumps(conf)]
        spark_jobs = [f"jobs.{stage.name}" for stage in STAGES if stage.engine == "spark" and dag_id == DAG_ID]
        with (
            log.open("wb") as output,
            Display(console) as display,
            warm_process(settings, output, "--spark-jobs", *spark_jobs) as warm,
        ):
            airflow = start_airflow(settings, arguments, output, warm)
            with ended_on_interrupt(airflow):
                while airflow.poll() is None:
                    time.sleep(POLL_SECONDS)
                    display.show(events.read())
                display.show(events.read())
        reason = None if airflow.returncode == 0 else why_stopped(display.failed, failures.read(), log)
        return Outcome(day, airflow.returncode, time.monotonic() - started, log, reason)


def airflow_environment(settings: Settings) -> dict[str, str]:
    """The environment of the embedded Airflow and, through it, of the jobs.

    An Airflow that the user runs otherwise does not leak in: its variables are left out.
    """
    home = settings.home.resolve()
    return {
        **{name: value for name, value in settings.environment().items() if not name.startswith("AIRFLOW_")},
        "AIRFLOW_HOME": str(home / "airflow"),
        # A night by hand begins when somebody says so; a scheduler waits for logs that still grow.
        "SGREC_INGEST__SETTLE_SECONDS": str(settings.ingest.settle_seconds),
        # Airflow writes these into its airflow.cfg, where they would go stale when the home is moved.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow' / 'airflow.db'}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "airflow" / "logs"),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home / "airflow" / "logs" / "dag_processor"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "airflow" / "plugins"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # the embedded one listens on this machine only
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


@dataclass(frozen=True)
class Warm:
    """A warm process: its socket, and the end of the pipe that keeps it alive."""

    process: subprocess.Popen[bytes]
    socket: Path
    alive: int


@contextmanager
def warm_process(settings: Settings, output: Any, *options: str) -> Iterator[Warm | None]:
    """A process that forks the jobs of one night, where there can be one; ``options`` are those of the zygote.

    It ends when nobody holds ``alive``: neither this process nor the Airflow that inherits it. When this context ends,
    it has ended with all that it had started.
    """
    if not settings.airflow.warm or sys.platform != "linux":
        yield None
        return
    # Not in the home: the path of a socket has at most a hundred characters.
    with tempfile.TemporaryDirectory(prefix="sgrec-") as folder:
        watched, alive = os.pipe()
        with socket.socket(socket.AF_UNIX) as listener, os.fdopen(watched):
            listener.bind(f"{folder}/jobs")
            listener.listen()
            inherited = (listener.fileno(), watched)
            command = ["--listener", str(inherited[0]), "--alive", str(watched), "--folder", folder]
            process = start(settings, ["sgrec_core.runtime.zygote", *command, *options], output, inherited=inherited)
        try:
            yield Warm(process, Path(folder) / "jobs", alive)
        finally:
            os.close(alive)
            process.wait()


def start_airflow(
    settings: Settings, arguments: list[str], output: Any, warm: Warm | None = None
) -> subprocess.Popen[bytes]:
    """``airflow <arguments>``; its jobs are forked from the process ``warm``, which ends when this one has."""
    if not warm:
        return start(settings, ["airflow", *arguments], output)
    variables = {SOCKET: str(warm.socket)}
    return start(settings, ["airflow", *arguments], output, inherited=(warm.alive,), variables=variables)


def start(
    settings: Settings,
    module: list[str],
    output: Any,
    *,
    inherited: tuple[int, ...] = (),
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """``python -m <module>`` in a session of its own, so that Ctrl-C reaches it through `ended_on_interrupt` alone."""
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        env={**airflow_environment(settings), **variables},
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=inherited,
    )


def prepare_airflow(settings: Settings, console: Console) -> None:
    """Create or upgrade the metadata database and the pool ``gpu``, once per home and Airflow version.

    A call of Airflow's command line takes seconds, so a stamp file remembers what has been done.

    Raises:
        SgrecError: a command failed; the message names its log.
    """
    home = settings.home.resolve() / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    stamp = home / "prepared.json"
    wanted = {"airflow": version("apache-airflow"), "gpu_slots": settings.airflow.gpu_slots}
    if read_json(stamp, otherwise="Airflow is set up again") == wanted and (home / "airflow.db").exists():
        return
    log = home / "setup.log"
    with log.open("wb") as output, console.status("setting up Airflow (once)"):
        for arguments in (
            ["db", "migrate"],
            ["pools", "set", "gpu", str(settings.airflow.gpu_slots), "one slot per GPU of this machine"],
        ):
            airflow = start_airflow(settings, arguments, output)
            with ended_on_interrupt(airflow):
                airflow.wait()
            if airflow.returncode:
                raise SgrecError(f"`airflow {' '.join(arguments)}` failed; its output is in {log}")
    write_json(stamp, wanted)


def check_interpreters(settings: Settings) -> None:
    """Every stage's interpreter exists.

    Raises:
        SettingsError: one does not; the message names the setting and how to get it.
    """
    for engine, interpreter in settings.interpreters.model_dump().items():
        # Jobs run in the project's folder, where a relative path points to.
        if not (PROJECT_ROOT / interpreter).exists():
            hint = "run `make judge-env`" if engine == "judge" else "run `make env`"
            raise SettingsError(
                f"SGREC_INTERPRETERS__{engine.upper()}={interpreter}: no such file; {hint}, or name a Python that has "
                f"what the {engine} jobs need"
            )


@contextmanager
def only_night(settings: Settings, day: str) -> Iterator[None]:
    """Keep other nights out of the home while this one runs; the lock goes with the process, whatever ends it.

    Raises:
        SettingsError: another night runs there.
    """
    path = settings.home.resolve() / "night.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"the night of {running_night(settings) or 'another day'} runs in {path.parent}; "
                "wait for it, or set SGREC_HOME to another folder"
            ) from None
        file.truncate(0)
        file.write(day)
        file.flush()
        yield


def running_night(settings: Settings) -> str | None:
    """The day whose night `run_night` is running in this home, in whatever process."""
    path = settings.home.resolve() / "night.lock"
    if not path.exists():
        return None
    with path.open(errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or None
    return None


@contextmanager
def ended_on_interrupt(airflow: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever raises inside, and SIGTERM like Ctrl-C, ends ``airflow`` with all its descendants before it goes on."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        end_with_descendants(airflow)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_descendants(airflow: subprocess.Popen[bytes]) -> None:
    """End Airflow first, lest it takes the job's end for a failure and goes on, then what it had started.

    Jobs are in sessions of their own, so a signal to Airflow's group would not reach them.
    """
    try:
        root = psutil.Process(airflow.pid)
        root.suspend()
        descendants = root.children(recursive=True)
        root.kill()
    except psutil.NoSuchProcess:
        return
    airflow.wait()
    for process in descendants:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(descendants, timeout=GRACE_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)
