"""A home with its raw logs, nights in it as a user runs them, and what on-call sees of them."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil

from benchmarks.oncall_judge import MODEL, JudgeServer
from sgrec_core.hashing import digest
from sgrec_core.settings import PROJECT_ROOT, SimulatorSettings
from sgrec_core.simulator import write_day

FIRST_DAY = "2026-01-08"
"""A Thursday: the past has a weekend, and the sixth day is a Tuesday."""
PAST = 5
PATIENCE_SECONDS = 1500
SIMULATED: dict[str, dict[str, Any]] = {
    "tiny": {"users": 200, "items": 80, "new_items_per_day": 2},
    "default": {},
}
NIGHT: dict[str, dict[str, str]] = {
    "tiny": {
        # A third of the users are held out, and a supervised policy is let in that is better at all: clean nights
        # promote, so that a night that must not is seen to.
        "SGREC_STATES__VALIDATION_SHARE": "0.35",
        "SGREC_EVALUATION__TOLERANCE": "0.6",
        "SGREC_EVALUATION__VALUE_TOLERANCE": "0.3",
        "SGREC_EVALUATION__LEAST_COVERAGE": "0.3",
        "SGREC_EVALUATION__BOOTSTRAP_SAMPLES": "100",
        "SGREC_SUPERVISED__WIDTH": "32",
        "SGREC_SUPERVISED__EPOCHS": "4",
        "SGREC_SUPERVISED__WARM_EPOCHS": "2",
        "SGREC_BUSINESS__TREES": "30",
        "SGREC_ROLLOUT__MAX_GROUPS": "48",
        "SGREC_ROLLOUT__GROUP_SIZE": "8",
        "SGREC_JUDGE__MAX_PAIRS": "60",
        "SGREC_AGGREGATOR__EPOCHS": "5",
        "SGREC_SPARK_MEMORY": "1g",
    },
    "default": {"SGREC_ROLLOUT__MAX_GROUPS": "256", "SGREC_JUDGE__MAX_PAIRS": "200"},
}
"""Of both sizes the judge is a server, which is asked about fewer groups than by default."""


def day_after(number: int) -> str:
    """The day that comes ``number`` days after the first."""
    return (date.fromisoformat(FIRST_DAY) + timedelta(days=number)).isoformat()


DAY = day_after(PAST)
"""The day that is struck."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a person on call sees of a night."""

    exit_code: int | None
    """Of `sgrec nightly`; None where none was run."""
    verdict: str
    """``green``, ``amber`` or ``red``: that of `sgrec status`, unless the command's exit code says red."""
    step: str | None
    cause: str | None
    """Of `sgrec status`; where it knows nothing of the day, what the command said on stderr."""
    owner: str | None
    command: str | None
    promoted: bool
    warnings: list[str]
    """Notes, metrics out of their bands and failed checks of the summary, and problems that `sgrec status` names."""
    status_exit_code: int


@dataclass(kw_only=True)
class World:
    """One place on disk: ``logs``, ``home``, and ``user``, the folder of the person's own shell."""

    folder: Path
    judge: JudgeServer
    seed: int
    size: str = "tiny"
    settings: dict[str, str] = field(default_factory=dict)
    """What a fault sets in the environment of nights, beside those of the size."""
    day: str = DAY
    asked: Path | None = None
    """The folder of logs that the night is asked for, where that is not its own."""
    past: Path | None = None
    """The world before it was struck, a copy: what is put back comes from there."""
    damaged: list[str] = field(default_factory=list)
    """Files that a fault has damaged, below the folder."""
    process: subprocess.Popen[str] | None = None
    """The command of the user that runs now, or ran last."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def raw(self) -> Path:
        """The struck day's folder."""
        return self.logs / f"day={self.day}"

    @property
    def lake(self) -> Path:
        return self.home / "lake"

    @property
    def reports(self) -> Path:
        return self.home / "reports" / self.day

    def variables(self) -> dict[str, str]:
        """Settings that a person's profile exports; home and input are for the command to name."""
        judge = {
            "SGREC_JUDGE__ENGINE": "server",
            "SGREC_JUDGE__SERVED_NAME": MODEL,
            "SGREC_JUDGE__SERVER_URL": self.judge.url,
            "SGREC_JUDGE__CONCURRENCY": "8",
            "SGREC_JUDGE__RETRIES": "1",
            "SGREC_AIRFLOW__RETRIES": "0",
            "OMP_NUM_THREADS": "1",
        }
        return {**judge, **NIGHT[self.size], **self.settings}

    def land(self, day: str) -> None:
        """What the simulator has for ``day``."""
        settings = SimulatorSettings(seed=self.seed, **SIMULATED[self.size])
        write_day(settings, day=day, first_day=FIRST_DAY, landing_root=self.logs, truth_root=self.folder / "truth")

    def sgrec(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``sgrec`` as its user types it."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SGREC_", "AIRFLOW_"))}
        environment = {**inherited, "COLUMNS": "300", **self.variables(), "SGREC_HOME": str(self.home)}
        command = [sys.executable, "-c", "from sgrec_core.cli import main; main()", *arguments]
        return self._patient(command, environment, PROJECT_ROOT)

    def nightly(self, *, during: tuple[str, Callable[["World"], None]] | None = None) -> Seen:
        """The night of the struck day; ``during``: a stage, and what happens once it has begun."""
        with self._watching(during):
            done = self.sgrec("nightly", "--input", f"logs:{self.asked or self.logs}", "--day", self.day)
        return self.seen(done.returncode, done.stderr)

    def paste(self, command: str) -> tuple[int, str]:
        """The page's command in a fresh shell: exit code, and the last lines that it said."""
        (self.folder / "user").mkdir(exist_ok=True)
        path = os.pathsep.join([str(PROJECT_ROOT / ".venv" / "bin"), os.environ["PATH"]])
        given = {"HOME": str(self.folder / "user"), "PATH": path, **self.variables()}
        given |= {name: os.environ[name] for name in ("PYTHONPATH", "JAVA_HOME") if name in os.environ}
        done = self._patient(["bash", "-c", command], given, self.folder / "user")
        return done.returncode, (done.stdout + done.stderr)[-1500:]

    def seen(self, exit_code: int | None, said: str, *options: str) -> Seen:
        """Through public surfaces alone: `sgrec status --json` and the day's summary."""
        done = self.sgrec("status", "--json", *options)
        try:
            status = json.loads(done.stdout)
        except ValueError:
            status = {"problems": [f"sgrec status said no JSON: {(done.stdout + done.stderr)[-800:]}"]}
        try:
            summary = json.loads((self.reports / "summary.json").read_text())
        except (OSError, ValueError):
            summary = {}
        told = status.get("day") == self.day
        verdict = {0: "green", 4: "amber"}.get(exit_code if exit_code is not None else done.returncode, "red")
        if told and status.get("verdict") and verdict != "red":
            verdict = status["verdict"]
        lines = [line for line in said.splitlines() if line.strip()]
        warnings = [f"{note['stage']}: {note['text']}" for note in summary.get("notes") or []] if told else []
        alarms = summary.get("alarms") or [] if told else []
        warnings += [
            f"{one['metric']} {one['dimension']}: {one['value']:.4g} out of [{one['low']:.4g}, {one['high']:.4g}]:"
            f" {one['description']} ({one['severity']}, {one['owner']})"
            for one in alarms
        ]
        if told and (summary.get("checks") or {}).get("failed_warning"):
            warnings.append(f"{summary['checks']['failed_warning']} checks failed as warnings")
        judge = summary.get("judge") or {} if told else {}
        warnings += [f"judge: flagged items {judge['flagged_items_shown']}"] if judge.get("flagged_items") else []
        problems = [f"status: {problem}" for problem in status.get("problems") or []]
        if status.get("late"):
            problems.append(f"status: late; the newest night is {status.get('day')}")
        missing = list(status.get("missing") or [])
        if missing:
            problems.append(f"status: {len(missing)} days are missing, from {missing[0]} to {missing[-1]}")
        champion = status.get("champion") or {}
        return Seen(
            exit_code=exit_code,
            verdict=verdict,
            step=status.get("step") if told else None,
            cause=status.get("cause") if told or not lines else " ".join(lines[-6:]),
            owner=status.get("owner") if told or exit_code in (None, 0) else None,
            command=status.get("command") if told or exit_code in (None, 0) else None,
            promoted=bool((status.get("promotion") or {}).get("promoted") and told) or champion.get("day") == self.day,
            warnings=warnings + problems,
            status_exit_code=done.returncode,
        )

    @contextmanager
    def _watching(self, during: tuple[str, Callable[["World"], None]] | None) -> Iterator[None]:
        if during is None:
            yield
            return
        stage, act = during
        over = threading.Event()

        def watch() -> None:
            path = self.reports / "progress.jsonl"
            while not over.wait(0.1):
                lines = path.read_text().splitlines() if path.exists() else []
                if any(f'"{stage}"' in line and '"started"' in line for line in lines):
                    act(self)
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _patient(
        self, command: list[str], environment: Mapping[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """Output goes through files: a process that outlives its parent would keep a pipe open."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": error, "text": True}
            self.process = subprocess.Popen(command, env=dict(environment), cwd=cwd, **options)
            try:
                self.process.wait(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                end_family(self.process.pid)
                self.process.wait()
                error.write(f"\nended by the benchmark after {PATIENCE_SECONDS} s\n")
            out.seek(0)
            error.seek(0)
            return subprocess.CompletedProcess(command, self.process.returncode, out.read(), error.read())

    def note_damage(self, path: Path) -> Path:
        """``path`` is about to be damaged; a person can put it back."""
        self.damaged.append(path.relative_to(self.folder).as_posix())
        return path

    def put_back(self, name: str) -> None:
        """A file or folder below this one becomes what it was before the world was struck."""
        assert self.past is not None
        source, target = self.past / name, self.folder / name
        if source.is_dir():
            replace_folder(source, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)

    def restore(self) -> None:
        """The whole world as it was before it was struck."""
        assert self.past is not None
        remove_world(self.folder)
        replace_folder(self.past, self.folder)
        self.settings, self.day, self.asked, self.damaged = {}, DAY, None, []
        self.judge.back()


def end_family(pid: int) -> None:
    """A process and all that it started, at once and without a word, as a lost machine ends them."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def code_key() -> str:
    """Digest of the product and of what makes worlds."""
    kinds = ("sgrec_core/**/*.py", "sgrec_core/**/*.yaml", "jobs/*.py", "dags/*.py", "schemas/**/*.yaml")
    paths = sorted(path for kind in kinds for path in PROJECT_ROOT.glob(kind))
    own = [Path(__file__), Path(__file__).with_name("oncall_judge.py")]
    return digest(*(path.read_text() for path in [*paths, *own]))


@dataclass(frozen=True)
class Clock:
    """Wall and CPU seconds since it was made, of this process's ended children."""

    wall: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=lambda: _cpu())

    def spent(self) -> dict[str, float]:
        return {"wall": round(time.monotonic() - self.wall, 1), "cpu": round(_cpu() - self.cpu, 1)}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def clean_night(world: World, number: int) -> dict[str, Any]:
    """Land and run the day that comes ``number`` days after the first; what was seen, and what it cost."""
    world.day, clock = day_after(number), Clock()
    world.land(world.day)
    seen = world.nightly()
    return {"day": world.day, "seen": asdict(seen), **clock.spent()}


def replace_folder(source: Path, target: Path) -> None:
    """``target`` becomes a copy of ``source``, times of change and all."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def remove_world(folder: Path) -> None:
    """Its home may be a disk of its own."""
    if os.path.ismount(folder / "home"):
        subprocess.run(["umount", "-l", folder / "home"], check=True)
    shutil.rmtree(folder, ignore_errors=True)
