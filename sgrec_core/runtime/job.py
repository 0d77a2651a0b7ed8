"""What a stage runs in: its day, its settings, the lake, and the facts it leaves for people.

A stage module defines ``run(job)`` and ends with ``main = stage_command("<stage>", run)``. What it leaves goes to the
table ``stage_runs`` (`sgrec_core.runtime.runs`), from which morning page, summary and later nights are made; what the
terminal shows while it runs goes to ``<home>/reports/<day>/progress.jsonl``.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sgrec_core.errors import SgrecError
from sgrec_core.files import append_json_line, write_json
from sgrec_core.hashing import digest
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.queries import table_versions
from sgrec_core.lake.tables import transaction_version
from sgrec_core.runtime.code import stage_digest
from sgrec_core.runtime.layout import check_layout
from sgrec_core.runtime.runs import DONE, Run, record, runs_of_day
from sgrec_core.runtime.stages import BY_NAME, Stage
from sgrec_core.settings import RAN_WITH, Settings
from sgrec_core.wording import fact, words

T = TypeVar("T")

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
        self._run: Run | None = None
        """As recorded last; None before the stage has begun."""
        self._skipped = False
        self._fingerprint: str | None = None

    def fact(self, name: str, value: Any) -> None:
        """A fact for the closing table, the report and the summary; ``value`` must be JSON."""
        self.facts[name] = value

    def note(self, text: str) -> None:
        """A sentence that people must read with the numbers: a declared rule, a fallback, a warning."""
        if text not in self.notes:
            self.notes.append(text)

    @cached_property
    def code_digest(self) -> str:
        """Of the code that the stage computes with; part of its fingerprint, and of the versions that it makes."""
        return stage_digest(self.stage.name)

    def inputs_fingerprint(self, extra: Mapping[str, Any] | None = None) -> str:
        """Digest of what determines the stage's output: its code, the day's partitions it reads, and ``extra``.

        Tables without a day partition are not part of it; what a stage takes from them goes into ``extra``.
        """
        inputs: dict[str, object] = {}
        for table in self.stage.reads:
            if "day" in load_contract(table).partition_by:
                inputs[table] = self.lake.fingerprint(table, {"day": self.day})
        self._fingerprint = digest(
            self.code_digest,
            self.stage.name,
            self.day,
            json.dumps([inputs, extra or {}], sort_keys=True, default=str),
            length=32,
        )
        return self._fingerprint

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
        runs = self._earlier_runs()
        if any(run.state == "running" for run in runs) and not any(run.fingerprint == fingerprint for run in runs):
            # Killed behind its publication: nobody else knows the facts.
            return False
        self.keep_facts()
        return True

    def keep_facts(self) -> None:
        """Nothing to compute: keep the facts and notes of the run that did, and mark this one as skipped."""
        runs = self._earlier_runs()
        done = [run for run in runs if run.state in DONE]
        # One that failed behind its publication did compute. Stages that name no fingerprint keep what was last.
        same = [run for run in runs if run.fingerprint is not None and run.fingerprint == self._fingerprint]
        chosen = [run for run in same if run in done] or same or done
        facts, notes = (chosen[-1].facts, chosen[-1].notes) if chosen else ({}, [])
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

    def _earlier_runs(self) -> list[Run]:
        """Of the stage and its day, the oldest first."""
        runs = runs_of_day(self.lake, self.day, folder=self.stage.folder, stage=self.stage.name)
        return [run for run in runs if self._run is None or run.run_id != self._run.run_id]

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
        report_progress(self.reports, self.stage.name, event, **fields)

    def _begin(self) -> None:
        run = Run(
            day=self.day,
            stage=self.stage.name,
            folder=self.stage.folder,
            input=self.settings.input,
            tables_read=_present(table_versions(self.lake, self.stage.reads)),
        )
        record(self.lake, [run])
        self._run = run
        if not self.stage.folder:
            write_json(self.reports / RAN_WITH, self.settings.assignments())

    def _end(self, state: str, message: str | None = None) -> None:
        if self._run is None:
            return  # Not even its begin could be recorded, which is why it failed.
        self._run = self._run.ended(
            state,
            message=message,
            facts=self.facts,
            notes=self.notes,
            fingerprint=self._fingerprint,
            code_digest=self.code_digest,
            tables_written=_present(table_versions(self.lake, self.stage.publishes)),
        )
        record(self.lake, [self._run])

    def execute(self, run: Callable[["Job"], None], console: Console) -> int:
        """Run the stage and return its exit code; errors for users become one red line."""
        self.event("started")
        try:
            self._begin()
            began = time.monotonic()
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
        self._end(state)
        self.event(state, seconds=self._seconds, work_seconds=round(worked, 2), message=_headline(self.facts))
        console.print(self._closing_table(state))
        return 0

    def _fail(self, message: str) -> None:
        self.event("failed", message=message, seconds=self._seconds)
        self._end("failed", message)

    @property
    def _seconds(self) -> float:
        return round(time.time() - self._started, 2)

    def _closing_table(self, state: str) -> Table:
        table = Table(title=f"{self.stage.name} {self.day}: {state}", title_justify="left", show_header=False)
        table.add_column(style="dim")
        table.add_column(justify="right", overflow="fold")
        for name, value in self.facts.items():
            # Texts of the data are no markup: an item may be called [/b].
            table.add_row(words(name), Text(fact(value)))
        assert self._run is not None, "it has ended"
        for name in self.stage.publishes:
            version = self._run.tables_written.get(name)
            table.add_row(f"table {name}", "not published" if version is None else f"version {version}")
        for text in self.notes:
            table.add_row("note", Text(text))
        table.add_row("seconds", f"{self._seconds:.1f}")
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
        text.append(f"Registers: {', '.join(definition.registers)}.")
    text.append(
        "Tables and models lie under SGREC_HOME (default .sgrec). Settings come from SGREC_* variables. "
        "Nothing is computed again when nothing changed. Exit codes: 0 done, 1 crashed, 2 an input or a setting is "
        "wrong, 3 stopped by a quality gate."
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


def report_progress(reports: Path, name: str, event: str, **fields: Any) -> None:
    """One line for the terminal, in the progress file of a day: what the stage or gate ``name`` has come to."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "stage": name, "event": event}
    append_json_line(reports / "progress.jsonl", {**line, **fields})


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
    """Settings from the environment, of a home that this version of sgrec can work on.

    Raises:
        SgrecError: a variable holds a value that is not valid; the message names variable, value and what is valid.
        SettingsError: the home is to be migrated first.
    """
    settings = read_settings(**overrides)
    check_layout(settings.home.resolve())
    return settings


def read_settings(**overrides: Any) -> Settings:
    """Settings from the environment, whatever the home is like.

    Raises:
        SgrecError: a variable holds a value that is not valid; the message names variable, value and what is valid.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            variable = "SGREC_" + "__".join(str(part) for part in problem["loc"]).upper()
            is_secret = problem["loc"][0] == "alerts"
            lines.append(f"{variable}{'' if is_secret else '=' + repr(problem['input'])}: {problem['msg']}")
        raise SgrecError("; ".join(lines)) from None


def _headline(facts: Mapping[str, Any]) -> str:
    """The first few scalar facts, for one line on the terminal."""
    shown = [(name, value) for name, value in facts.items() if isinstance(value, (int, float, str, bool))]
    return ", ".join(f"{words(name)} {fact(value)}" for name, value in shown[:4])


def _present(versions: Mapping[str, int | None]) -> dict[str, int]:
    return {table: version for table, version in versions.items() if version is not None}
