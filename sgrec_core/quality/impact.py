"""How bad a night is that is not green: what was measured against what is valid, and what hangs on it."""

from dataclasses import dataclass

from sgrec_core.night.changes import stages_behind
from sgrec_core.quality.night import Night
from sgrec_core.runtime.runs import DONE
from sgrec_core.runtime.stages import BY_NAME
from sgrec_core.wording import number, share

MOST_FIGURES = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing that was measured and is not as it should be, in words."""

    name: str
    value: str
    valid: str
    """The band, or what the contract allows."""


@dataclass(frozen=True, kw_only=True)
class Impact:
    """What the first screen says of how bad it is."""

    figures: tuple[Figure, ...]
    """The first few; none where a stage crashed before anything was measured."""
    more: int
    """How many others there are."""
    downstream: str
    """What it touches, in a sentence or two."""


def impact_of(night: Night) -> Impact | None:
    """None of a green night."""
    if night.verdict == "green":
        return None
    own = [alarm for alarm in night.alarms if alarm.severity == "critical"]
    of_metrics = own or ([] if night.stopped_at else night.inherited)
    figures = [
        Figure(
            name=alarm.name if alarm.day == night.day else f"{alarm.name} of {alarm.day}",
            value=number(alarm.value),
            valid=f"{number(alarm.low)} to {number(alarm.high)}",
        )
        for alarm in of_metrics
    ]
    if night.stopped_at:
        # What stopped it stands before what was merely unusual.
        figures = [*_failed_checks(night), *figures]
    return Impact(
        figures=tuple(figures[:MOST_FIGURES]),
        more=max(0, len(figures) - MOST_FIGURES),
        downstream=_stopped(night, night.stopped_at) if night.stopped_at else _amber(night),
    )


def _failed_checks(night: Night) -> list[Figure]:
    return [
        Figure(
            name=f"{result.table}{f'.{check.column}' if check.column else ''}: {check.name}",
            value=f"{number(check.unexpected_count)} of {number(result.rows)} rows ({share(check.unexpected_share)})"
            if check.unexpected_count
            else check.observed,
            valid=check.expected,
        )
        for result in night.broken
        for check in result.failures
        if check.severity == "critical"
    ]


def _stopped(night: Night, stopped_at: str) -> str:
    missing = [step.name for step, _ in night.stages if step.state not in DONE and step.name != stopped_at]
    not_run = f"{_count(missing, 'stage')} did not run: {', '.join(missing)}." if missing else "No stage is missing."
    if night.step("evaluate_generator").state in DONE:
        return f"{not_run} The champion was decided before the stop."
    return f"{not_run} The champion and the tables of these stages are as the last good night left them."


def _amber(night: Night) -> str:
    serves = night.facts("evaluate_generator").get("serves")
    promoted = f"The {serves} policy was promoted before this was measured." if serves else "Nothing is promoted."
    own = [alarm.stage for alarm in night.alarms if alarm.severity == "critical"]
    if not own:
        return f"All tables are published. Every model of this night has learnt from the day before. {promoted}"
    behind = stages_behind((own[0],))
    if not behind:
        return f"All tables are published; no other stage reads it. {promoted}"
    tables = [table for stage in behind for table in BY_NAME[stage].publishes]
    models = [model for stage in behind for model in BY_NAME[stage].registers]
    made = " and ".join(_count(one, word) for one, word in ((tables, "table"), (models, "model")) if one)
    return f"All tables are published; {made} of this night are made of it ({', '.join(behind)}). {promoted}"


def _count(found: list[str], word: str) -> str:
    return f"{len(found)} {word}{'' if len(found) == 1 else 's'}"
