"""The stages and gates of a night in order, and how far each of them came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sgrec_core.files import json_lines
from sgrec_core.night.display import how_it_ended
from sgrec_core.runtime.runs import Run
from sgrec_core.runtime.stages import STAGES, Stage

REPORT = STAGES[-1].name
MAX_NOTE = 1000


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage, or the gate behind it, in the order of the night."""

    name: str
    state: str
    """``finished``, ``skipped`` (nothing had changed), ``failed``, ``running`` (or killed), ``not reached`` this time
    though facts of an earlier run exist (then ``stale``), or ``not run``."""
    started: datetime | None = None
    seconds: float | None = None
    message: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stale: bool = False
    """Facts are those of an earlier run: this run did not get here."""

    @property
    def is_gate(self) -> bool:
        return self.name.startswith("check_")

    @property
    def ended(self) -> datetime | None:
        if self.started is None:
            return None
        return self.started + timedelta(seconds=round(self.seconds or 0.0))


def gated(steps: Sequence[Step]) -> list[Stage]:
    """Stages whose gates this run reached."""
    reached = {step.name for step in steps if not step.stale and step.started}
    return [stage for stage in STAGES if f"check_{stage.name}" in reached]


def steps_of_night(runs: Mapping[str, Run], failures: Mapping[str, Mapping[str, Any]]) -> list[Step]:
    """Stages and gates in order. The night is a chain: what began before a step ahead of it is from an earlier run."""
    steps: list[Step] = []
    newest: datetime | None = None
    for stage in STAGES:
        if stage.name == REPORT:
            break
        for name in (stage.name, f"check_{stage.name}") if stage.publishes else (stage.name,):
            step = _step(name, runs.get(name), failures.get(name), newest)
            steps.append(step)
            if step.started and (newest is None or step.started > newest):
                newest = step.started
    return steps


def step_of_report(steps: Sequence[Step], run: Run | None, failure: Mapping[str, Any] | None) -> Step:
    """The report's own step, of a night of which ``steps`` have run."""
    return _step(REPORT, run, failure, max(step.started for step in steps if step.started))


def _step(name: str, run: Run | None, failure: Mapping[str, Any] | None, newest: datetime | None) -> Step:
    started = run.started if run else None
    failed_at = _time(failure.get("time")) if failure else None
    if failed_at and all(moment is None or failed_at >= moment.replace(microsecond=0) for moment in (newest, started)):
        # The scheduler's word counts: a killed job could not write that it failed.
        state = "failed"
    elif run is None:
        return Step(name=name, state="not run")
    elif newest is not None and run.started < newest:
        return Step(name=name, state="not reached", started=started, facts=run.facts, stale=True)
    else:
        state = run.state
    message = run.message if run else None
    if state == "failed" and failure and not message:
        message = how_it_ended(failure)
    return Step(
        name=name,
        state=state,
        started=started or failed_at,
        seconds=run.seconds if run else None,
        message=message,
        facts=run.facts if run else {},
        notes=[note[:MAX_NOTE] for note in run.notes] if run else [],
    )


def read_failures(reports: Path) -> dict[str, dict[str, Any]]:
    """The last failure of each task, as the scheduler recorded it."""
    path = reports / "failures.jsonl"
    lines = json_lines(path, path.read_bytes()) if path.exists() else ()
    return {str(line.get("stage")): line for line in lines}


def _time(text: object) -> datetime | None:
    """An ISO time cut to seconds, the precision of the scheduler's word."""
    try:
        return datetime.fromisoformat(str(text)).replace(microsecond=0)
    except ValueError:
        return None
