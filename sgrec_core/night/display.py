"""What the terminal shows of a night: lines of its progress file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sgrec_core.files import json_lines


class Tail:
    """New lines of a JSON-lines file, from its end at construction unless ``from_start``; it may not exist yet."""

    def __init__(self, path: Path, *, from_start: bool = False):
        self.path = path
        self._offset = path.stat().st_size if path.exists() and not from_start else 0

    def read(self) -> list[dict[str, Any]]:
        """The complete lines since the last call; a damaged one costs a warning, not the rest."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return list(json_lines(self.path, complete))


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
            stage, kind = str(event.get("stage")), str(event.get("event"))
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
        stage = str(event.get("stage"))
        text = f"{stage}: {description}" if description else stage
        self._progress.update(self._bar, description=text, completed=done, total=total, counts=counts)


KILLED_CODES = (137, -9)
"""Exit codes of a process that was killed; 128 + the signal's number is how a shell reports it."""


def how_it_ended(failure: Mapping[str, Any]) -> str:
    """What the scheduler recorded of a process that said nothing itself, in words."""
    code = failure.get("exit_code")
    if code in KILLED_CODES:
        return "was killed, most likely for want of memory"
    if code is not None:
        return f"ended with exit code {code}"
    return str(failure.get("exception") or "the task was killed")


def why_stopped(failed: Mapping[str, str], failures: list[dict[str, Any]], log: Path) -> str:
    """One line: what the failed stage said, else how Airflow saw its process end, else where to look.

    ``report_quality`` runs after a failure too; its own failure is the reason only when nothing failed before it.
    """
    for stage, message in failed.items():
        return f"{stage}: {message.strip()}"
    for failure in failures:
        return f"{failure.get('stage')}: {how_it_ended(failure)}; its output is in {log}"
    return f"Airflow ended before the night did; its output is in {log}"
