"""What a stage runs in: its day, its settings, the lake, and the facts it leaves for people.

A stage module defines ``run(job)`` and ends with ``main = stage_command("<stage>", run)``. Facts go to
``<home>/reports/<day>/stages/<stage>.json`` and each change of state to ``<home>/reports/<day>/progress.jsonl``, from
which the terminal, the morning page and the night's summary are made.
"""

import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sgrec_core import __version__
from sgrec_core.errors import SgrecError
from sgrec_core.files import read_json, write_json
from sgrec_core.hashing import digest
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.tables import transaction_version
from sgrec_core.runtime.stages import BY_NAME, Stage
from sgrec_core.settings import Settings

T = TypeVar("T")

DONE = ("finished", "skipped")
"""States of a stage that came to its end."""
RUNS_KEPT = 3
"""Earlier runs whose facts a stage that failed keeps."""
PROGRESS_SECONDS = 1.0
"""At most one progress line in this time, so that the file stays short."""


class Job:
    """One run of one stage for one day.

    ``looks_only``: nothing is written, not even which judge the night has begun with.
    """

    def __init__(self, stage: str, day: str, settings: Settings, *, force: bool = False, looks_only: bool = False):
        self.stage: Stage = BY_NAME[stage]
        self.day = day
        self.settings = settings
        self.force, self.looks_only = force, looks_only
        self.lake = Lake(settings.lake_root)
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []
        self.reports = settings.reports(day, self.stage.folder)
        self._started = time.time()
        self._starting = 0.0
        self._skipped = False
        self._fingerprint: str | None = None
        self._earlier: list[dict[str, Any]] = []
        """Fingerprint, facts and notes of earlier runs, the newest first."""

    def fact(self, name: str, value: Any) -> None:
        """A fact for the closing table, the report and the summary; ``value`` must be JSON."""
        self.facts[name] = value

    def note(self, text: str) -> None:
        """A sentence that people must read with the numbers: a declared rule, a fallback, a warning."""
        if text not in self.notes:
            self.notes.append(text)

    def inputs_fingerprint(self, extra: Mapping[str, Any] | None = None) -> str:
        """Digest of what determines the stage's output: code version, the day's partitions it reads, and ``extra``.

        Tables without a day partition are not part of it; what a stage takes from them goes into ``extra``.
        """
        inputs: dict[str, object] = {}
        for table in self.stage.reads:
            if "day" in load_contract(table).partition_by:
                inputs[table] = self.lake.fingerprint(table, {"day": self.day})
        return digest(
            __version__,
            self.stage.name,
            self.day,
            json.dumps([inputs, extra or {}], sort_keys=True, default=str),
            length=32,
        )

    def skip_if_published(self, partitions: Mapping[str, Mapping[str, object]], fingerprint: str) -> bool:
        """Whether every table holds ``fingerprint`` already, and ``--force`` is not given.

        When it is so, the facts of the run that published them stand as they are.
        """
        self._fingerprint = fingerprint
        if self.force:
            return False
        wanted = transaction_version(fingerprint)
        if any(self.lake.fingerprint(table, partition) != wanted for table, partition in partitions.items()):
            return False
        self.keep_facts()
        return True

    def keep_facts(self) -> None:
        """Nothing to compute: keep the facts and notes of the run that did, and mark this one as skipped."""
        same = [run for run in self._earlier if run["fingerprint"] == self._fingerprint]
        run = next(iter(same or self._earlier), {})
        facts, notes = run.get("facts", {}), run.get("notes", [])
        self.facts = {**facts, **self.facts}
        self.notes = [*notes, *(note for note in self.notes if note not in notes)]
        self._skipped = True

    @contextmanager
    def starting_engine(self) -> Iterator[None]:
        """Around the start of Spark and its like: no work of the stage, but what the night itself costs."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._starting += time.monotonic() - began

    def progress(self, iterable: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
        """Iterate with a progress bar on the terminal and progress lines in the day's file."""
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        with self.progress_bar(total, description) as advance:
            for element in iterable:
                yield element
                advance(1)

    def progress_bar(self, total: int | None, description: str = "") -> "_Bar":
        """A context manager that gives ``advance(steps)``, for work that is no plain loop."""
        return _Bar(self, total, description)

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to the day's progress file."""
        self.reports.mkdir(parents=True, exist_ok=True)
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "stage": self.stage.name, "event": event}
        # One write of one line in append mode is atomic, also when two jobs of a day report at once.
        with open(self.reports / "progress.jsonl", "ab", buffering=0) as file:
            file.write((json.dumps({**line, **fields}) + "\n").encode())

    @property
    def _facts_path(self) -> Path:
        return self.reports / "stages" / f"{self.stage.name}.json"

    def _write_facts(self, state: str, message: str | None = None) -> None:
        content = {
            "stage": self.stage.name,
            "day": self.day,
            "state": state,
            "message": message,
            "started": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self._started, 2),
            "facts": _finite(self.facts),
            "notes": self.notes,
            "fingerprint": self._fingerprint,
            "tables": {table: self.lake.version(table) for table in self.stage.publishes},
            "sgrec_version": __version__,
        }
        if state not in DONE:
            # Where a later run has nothing to compute, it goes on from these.
            content["earlier"] = self._earlier
        write_json(self._facts_path, content)

    def execute(self, run: Callable[["Job"], None], console: Console) -> int:
        """Run the stage and return its exit code; errors for users become one red line."""
        self.event("started")
        self._write_facts_running()
        began = time.monotonic()
        try:
            run(self)
        except SgrecError as error:
            self._fail(str(error))
            Console(stderr=True).print(f"[bold red]{self.stage.name}[/] {self.day}: ", end="")
            Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
            return error.exit_code
        except BaseException as error:
            self._fail("".join(traceback.format_exception_only(error)).strip())
            raise
        worked = time.monotonic() - began - self._starting
        state = "skipped" if self._skipped else "finished"
        self._write_facts(state)
        seconds = {"seconds": round(time.time() - self._started, 2), "work_seconds": round(worked, 2)}
        self.event(state, **seconds, message=_headline(self.facts))
        console.print(self._closing_table(state))
        return 0

    def _write_facts_running(self) -> None:
        """A stage that is running, or was killed, must not show the success of an earlier run; its facts are kept."""
        before = read_json(self._facts_path)
        self.facts, self.notes = before.get("facts", {}), before.get("notes", [])
        last = {"fingerprint": before.get("fingerprint"), "facts": self.facts, "notes": self.notes}
        self._earlier = before.get("earlier", [])
        # One that failed may have published before: its facts are then those of the table.
        published = before.get("state") == "failed" and last["fingerprint"] not in {
            None,
            *(run["fingerprint"] for run in self._earlier),
        }
        if before.get("state") in DONE or published:
            self._earlier = [last, *self._earlier][:RUNS_KEPT]
        self._write_facts("running")
        self.facts, self.notes = {}, []

    def _fail(self, message: str) -> None:
        self._write_facts("failed", message)
        self.event("failed", message=message, seconds=round(time.time() - self._started, 2))

    def _closing_table(self, state: str) -> Table:
        table = Table(title=f"{self.stage.name} {self.day}: {state}", title_justify="left", show_header=False)
        table.add_column(style="dim")
        table.add_column(justify="right", overflow="fold")
        for name, value in self.facts.items():
            # Texts of the data are no markup: an item may be called [/b].
            table.add_row(name.replace("_", " "), Text(_format(value)))
        for name in self.stage.publishes:
            version = self.lake.version(name)
            table.add_row(f"table {name}", "not published" if version is None else f"version {version}")
        for text in self.notes:
            table.add_row("note", Text(text))
        table.add_row("seconds", f"{time.time() - self._started:.1f}")
        return table


class _Bar:
    """Progress of one piece of work; see `Job.progress_bar`."""

    def __init__(self, job: Job, total: int | None, description: str):
        self.job, self.total, self.description = job, total, description
        self.done, self._last = 0, 0.0
        self._display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            # A bar in a log file is noise; there the progress lines serve.
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Callable[[int], None]:
        self._display.start()
        self._task = self._display.add_task(self.description or self.job.stage.name, total=self.total)
        self._report(force=True)
        return self.advance

    def __exit__(self, *_: object) -> None:
        self._report(force=True)
        self._display.stop()

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        self._display.update(self._task, completed=self.done)
        self._report()

    def _report(self, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self.job.event("progress", done=self.done, total=self.total, description=self.description)


def stage_command(stage: str, run: Callable[[Job], None]) -> Callable[[], None]:
    """The command line of a job: ``python -m jobs.<stage> --day D``."""
    definition = BY_NAME[stage]
    text = [definition.summary.capitalize() + "."]
    text.append("Reads: " + (", ".join(definition.reads) or "no table") + ".")
    text.append("Publishes: " + (", ".join(definition.publishes) or "no table") + ".")
    if definition.registers:
        text.append(f"Registers: {definition.registers}.")
    text.append(
        "Tables and models lie under SGREC_HOME (default .sgrec). Settings come from SGREC_* variables. "
        "Nothing is computed again when nothing changed. Exit codes: 0 done, 1 crashed, 2 an input or a setting is wrong, 3 stopped by a quality gate."
    )

    def command(
        day: Annotated[str, typer.Option(help="Day of the logs, YYYY-MM-DD (UTC).", show_default=False)],
        force: Annotated[bool, typer.Option("--force", help="Compute again even if nothing changed.")] = False,
    ) -> None:
        console = Console(highlight=False)
        with errors_in_words():
            job = Job(stage, valid_day(day), load_settings(), force=force)
        raise typer.Exit(job.execute(run, console))

    command.__doc__ = "\n\n".join(text)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return lambda: app(prog_name=f"python -m jobs.{stage}")


@contextmanager
def errors_in_words() -> Iterator[None]:
    """An error that is written for users becomes one line on the terminal and the exit code of the command."""
    try:
        yield
    except SgrecError as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
        raise typer.Exit(error.exit_code) from None


def valid_day(day: str) -> str:
    """``day`` if it is a date in the form YYYY-MM-DD.

    Raises:
        SgrecError: it is not.
    """
    try:
        if date.fromisoformat(day).isoformat() == day:
            return day
    except ValueError:
        pass
    raise SgrecError(f"day {day!r} is not a date; valid is YYYY-MM-DD, for example 2026-01-05")


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment.

    Raises:
        SgrecError: a variable holds a value that is not valid; the message names variable, value and what is valid.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            variable = "SGREC_" + "__".join(str(part) for part in problem["loc"]).upper()
            lines.append(f"{variable}={problem['input']!r}: {problem['msg']}")
        raise SgrecError("; ".join(lines)) from None


def _headline(facts: Mapping[str, Any]) -> str:
    """The first few scalar facts, for one line on the terminal."""
    shown = [(name, value) for name, value in facts.items() if isinstance(value, (int, float, str, bool))]
    return ", ".join(f"{name.replace('_', ' ')} {_format(value)}" for name, value in shown[:4])


def _finite(value: Any) -> Any:
    """``value`` with null in place of what is no number: JSON has no other word for it."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _format(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_format(inner) for inner in value)
    return str(value)
