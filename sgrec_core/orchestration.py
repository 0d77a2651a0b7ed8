"""A night on one machine: Airflow runs the DAG in a process of its own, the terminal follows what the jobs report.

Airflow is never imported here. Its home is ``<home>/airflow`` (SQLite metadata, logs); what it prints goes to
``<home>/reports/<day>/airflow.log``. What people see comes from ``<home>/reports/<day>/progress.jsonl``, to which
every job appends a line when its state changes.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sgrec_core.active_judge import of_night
from sgrec_core.errors import SettingsError, SgrecError
from sgrec_core.sampling import digest
from sgrec_core.settings import PROJECT_ROOT, Settings
from sgrec_core.stages import BY_NAME, STAGES

DAG_ID = "sgrec_nightly"
JUDGE_TRAINING_DAG_ID = "sgrec_judge_training"
JUDGE_COMPARISON_DAG_ID = "sgrec_judge_comparison"
POLL_SECONDS = 0.2
GRACE_SECONDS = 10
"""How long a job may take to end after SIGTERM before it is killed."""


@dataclass(frozen=True)
class Night:
    """How a night ended: ``exit_code`` 0 when every stage and gate passed, else ``reason`` says in one line why not."""

    day: str
    exit_code: int
    seconds: float
    log: Path
    reason: str | None = None


def run_night(settings: Settings, day: str, console: Console, *, dag_id: str = DAG_ID, folder: str = "") -> Night:
    """Run the DAG for ``day`` and show it: a line per stage, and a bar for the one that runs.

    ``folder``, below the day's reports, is where the DAG's stages report.

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
        with log.open("wb") as output, Display(console) as display:
            airflow = start_airflow(settings, ["dags", "test", dag_id, "--conf", json.dumps({"day": day})], output)
            with ended_on_interrupt(airflow):
                while airflow.poll() is None:
                    time.sleep(POLL_SECONDS)
                    display.show(events.read())
                display.show(events.read())
        reason = None if airflow.returncode == 0 else why_stopped(display.failed, failures.read(), log)
        return Night(day, airflow.returncode, time.monotonic() - started, log, reason)


def airflow_environment(settings: Settings) -> dict[str, str]:
    """The environment of the embedded Airflow and, through it, of the jobs.

    An Airflow that the user runs otherwise does not leak in: its variables are left out.
    """
    home = settings.home.resolve()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    return {
        **inherited,
        "SGREC_HOME": str(home),
        "AIRFLOW_HOME": str(home / "airflow"),
        # Airflow writes these two into its airflow.cfg, where they would go stale when the home is moved.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow' / 'airflow.db'}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "airflow" / "logs"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT_ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # the embedded one listens on this machine only
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def start_airflow(settings: Settings, arguments: list[str], output: Any) -> subprocess.Popen[bytes]:
    """``airflow <arguments>`` in a session of its own, so that Ctrl-C reaches it through `ended_on_interrupt` alone."""
    return subprocess.Popen(
        [sys.executable, "-m", "airflow", *arguments],
        env=airflow_environment(settings),
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def prepare_airflow(settings: Settings, console: Console) -> None:
    """Create or upgrade the metadata database and the pool ``gpu``, once per home and Airflow version.

    A call of Airflow's command line takes seconds, so a stamp file remembers what has been done.

    Raises:
        SgrecError: a command failed; the message names its log.
    """
    home = settings.home.resolve() / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    stamp, wanted = (
        home / "prepared.json",
        {"airflow": version("apache-airflow"), "gpu_slots": settings.airflow.gpu_slots},
    )
    if stamp.exists() and json.loads(stamp.read_text()) == wanted and (home / "airflow.db").exists():
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
    stamp.write_text(json.dumps(wanted) + "\n")


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
    with path.open() as file:
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


class Tail:
    """New lines of a JSON-lines file, from its end at construction unless ``from_start``; it may not exist yet."""

    def __init__(self, path: Path, *, from_start: bool = False):
        self.path = path
        self._offset = path.stat().st_size if path.exists() and not from_start else 0

    def read(self) -> list[dict[str, Any]]:
        """The complete lines since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines() if line.strip()]


class Display:
    """A line for every stage that has ended and, on a terminal, a bar for the one that runs."""

    MARKS: Mapping[str, str] = {"finished": "[green]✓[/]", "skipped": "[dim]·[/]", "failed": "[red]✗[/]"}

    def __init__(self, console: Console):
        self.console = console
        self.failed: dict[str, str] = {}
        """Message by stage, of the stages whose last try failed."""
        self._bar: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self._progress.start()
        self._new_bar("starting Airflow")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, events: list[dict[str, Any]]) -> None:
        """Take in new lines of the progress file."""
        for event in events:
            stage, kind = event["stage"], event["event"]
            if kind == "started":
                self.failed.pop(stage, None)
                self._new_bar(stage)
            elif kind == "progress":
                self._advance(event)
            elif kind in self.MARKS:
                message = event.get("message") or ""
                if kind == "failed":
                    self.failed[stage] = message
                if kind == "skipped":
                    message = f"up to date: {message}" if message else "up to date"
                seconds = f"{event.get('seconds') or 0:,.1f} s"
                line = f"{self.MARKS[kind]} {stage:<26}{seconds:>9}  {escape(message)}"
                self.console.print(
                    line, highlight=False, no_wrap=True, overflow="ellipsis", crop=self.console.is_terminal
                )
                self._new_bar("next stage")

    def _new_bar(self, description: str) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._bar = self._progress.add_task(description, total=None, counts="")

    def _advance(self, event: Mapping[str, Any]) -> None:
        if self._bar is None:
            return
        done, total, description = event.get("done") or 0, event.get("total"), event.get("description") or ""
        counts = f"{done:,}/{total:,}" if total else f"{done:,}"
        text = f"{event['stage']}: {description}" if description else event["stage"]
        self._progress.update(self._bar, description=text, completed=done, total=total, counts=counts)


def why_stopped(failed: Mapping[str, str], failures: list[dict[str, Any]], log: Path) -> str:
    """One line: what the failed stage said, else how Airflow saw its process end, else where to look.

    ``report_quality`` runs after a failure too; its own failure is the reason only when nothing failed before it.
    """
    for stage, message in failed.items():
        return f"{stage}: {message.strip()}"
    for failure in failures:
        code = failure.get("exit_code")
        # 128 + the signal's number is how a shell reports a killed process.
        ended = f"ended with exit code {code}" if code is not None else str(failure.get("exception"))
        if code in (137, -9):
            ended = "was killed, most likely for want of memory"
        return f"{failure['stage']}: {ended}; its output is in {log}"
    return f"Airflow ended before the night did; its output is in {log}"


def state_of_night(events: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """How far the last run of a night got, by the lines of its progress file.

    Returns:
        ``succeeded``, ``stopped`` or ``unfinished`` (running, or interrupted), and the line that tells most: the
        failure of a stopped night, else the last line.
    """
    failed: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "started" and event["stage"] == STAGES[0].name:
            failed.clear()
        if event["event"] == "failed":
            failed[event["stage"]] = event
        else:
            failed.pop(event["stage"], None)
    last = events[-1]
    if failed:
        return "stopped", next(iter(failed.values()))
    if last["stage"] == STAGES[-1].name and last["event"] in ("finished", "skipped"):
        return "succeeded", last
    return "unfinished", last


def remember_night(settings: Settings, day: str) -> None:
    """Note what the night of ``day``, which has just succeeded, depended on; see `night_is_unchanged`."""
    (settings.reports(day) / "inputs.txt").write_text(inputs_of_night(settings, day) + "\n")


def night_is_unchanged(settings: Settings, day: str) -> bool:
    """Whether running the night of ``day`` again would find every stage up to date.

    It would when code, settings, raw logs, the tables up to the day and the models that it used are those after its
    last success. A doubt costs a run whose stages find out for themselves.
    """
    stamp = settings.reports(day) / "inputs.txt"
    return stamp.exists() and stamp.read_text().strip() == inputs_of_night(settings, day)


def inputs_of_night(settings: Settings, day: str) -> str:
    """Digest of everything that the night of ``day`` reads, and of what it made.

    Tables without a day are left out: they are keyed by content and later nights add rows that this one does not use.
    """
    from sgrec_core.lake import Lake, load_contract
    from sgrec_core.registry import Registry

    code = [
        (path.relative_to(PROJECT_ROOT).as_posix(), digest(path.read_bytes().hex()))
        for folder in ("sgrec_core", "jobs", "schemas")
        for path in sorted((PROJECT_ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".yaml", ".jinja")
    ]
    lake = Lake(settings.lake_root)
    files = []
    for table in (table for stage in STAGES for table in stage.publishes):
        delta = lake.open(table)
        if delta is None or "day" not in load_contract(table).partition_by:
            files.append(f"{table}: {'nothing' if delta is None else 'not by day'}")
            continue
        # Every publication writes files with new names, so the names of the active ones tell its state.
        for uri in delta.file_uris():
            partition = re.search(r"/day=(\d{4}-\d{2}-\d{2})/", uri)
            if partition is None or partition[1] <= day:
                files.append(uri)
    registry = Registry(settings)
    names = [stage.registers for stage in STAGES if stage.registers]
    if settings.aggregator.engine == "language_model":
        names.append(BY_NAME["train_judge_weights"].registers or "")
    models = [
        (version.name, version.version, version.fingerprint)
        for name in names
        for version in registry.versions(name)
        if version.day <= day
    ]
    state = {
        "code": code,
        "settings": settings.model_dump(mode="json", exclude={"home", "airflow"}),
        "raw": raw_state(settings, day),
        "files": sorted(files),
        "models": sorted(models),
        "champion": str(registry.pinned_champion(day)),
        "judge": str(of_night(settings, day)) if settings.judge.adapter == "active" else None,
    }
    return digest(json.dumps(state, sort_keys=True), length=32)


def raw_state(settings: Settings, day: str) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that the day's raw logs come from; none for the simulator."""
    from sgrec_core.logs.adaptors import parse_source
    from sgrec_core.logs.landing import day_folder

    source = parse_source(settings.input)
    if source.path is None:
        return []
    root = day_folder(source.path, day) if source.kind == "logs" else source.path
    return [
        (path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
