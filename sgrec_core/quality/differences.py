"""What is otherwise than in the night before: settings, code, what the stages say of themselves, tables and rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sgrec_core.files import read_json
from sgrec_core.lake import Lake
from sgrec_core.quality.steps import Step
from sgrec_core.quality.validation import short
from sgrec_core.runtime.runs import DONE, Run, days_with_runs, last_runs
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import RAN_WITH, Settings

DEFAULT, SECRET, NOTHING = "default", "a secret", "none"
SAID_ANYWAY = ("reason", "report", "data_docs")
"""Texts among the facts that are others every night."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing, before and now."""

    name: str
    before: str
    now: str


@dataclass(frozen=True, kw_only=True)
class Differences:
    """A night beside the one before it."""

    before: str
    """Its day."""
    settings: list[Difference]
    code: list[str]
    """Stages that other code has computed."""
    versions: list[Difference]
    """Of sgrec and of its checkout."""
    facts: list[Difference]
    """Texts that a stage told otherwise: which judge, which champion, what was rolled out by whom."""
    tables: dict[str, dict[str, int | None]] = field(default_factory=dict)
    """Version and rows that the night before told of, by table."""

    @property
    def are_none(self) -> bool:
        return not (self.settings or self.code or self.versions or self.facts)


def differences(settings: Settings, lake: Lake, day: str, steps: Sequence[Step]) -> Differences | None:
    """Of the night of ``day``, as far as ``steps`` came, from the newest earlier one; None where there is none."""
    earlier = ((one, last_runs(lake, one)) for one in days_with_runs(lake) if one < day)
    before, runs_of_before = next(((one, found) for one, found in earlier if found), (None, {}))
    if before is None:
        return None
    ended = {step.name for step in steps if step.state in DONE and not step.stale}
    runs = {name: run for name, run in last_runs(lake, day).items() if name in ended}
    runs_before = {name: run for name, run in runs_of_before.items() if run.state in DONE}
    both = [(runs_before[stage.name], runs[stage.name]) for stage in STAGES if {stage.name} <= {*runs} & {*runs_before}]
    return Differences(
        before=before,
        settings=_of_settings(settings.reports(before) / RAN_WITH, settings.reports(day) / RAN_WITH),
        code=[now.stage for then, now in both if then.code_digest != now.code_digest],
        versions=_of_versions(both),
        facts=[one for then, now in both for one in _of_facts(then, now)],
        tables=_tables(settings.reports(before), runs_before),
    )


def _of_settings(before: Path, now: Path) -> list[Difference]:
    told = [read_json(path, otherwise="the page cannot say which settings changed") for path in (before, now)]
    if not all(told):
        return []
    then, today = ({name: SECRET if value is None else str(value) for name, value in one.items()} for one in told)
    return [
        Difference(name=name, before=str(short(then.get(name, DEFAULT))), now=str(short(today.get(name, DEFAULT))))
        for name in sorted({*then, *today})
        if then.get(name) != today.get(name)
    ]


def _of_versions(both: Sequence[tuple[Run, Run]]) -> list[Difference]:
    found: dict[tuple[str, str, str], Difference] = {}
    for then, now in both:
        for name, old, new in (
            ("sgrec", then.sgrec_version, now.sgrec_version),
            ("revision", then.git_revision, now.git_revision),
        ):
            if old != new:
                told = ((old or NOTHING)[:12], (new or NOTHING)[:12])
                found[(name, *told)] = Difference(name=name, before=told[0], now=told[1])
    return list(found.values())


def _of_facts(then: Run, now: Run) -> list[Difference]:
    """Counts are others every night; a text is not."""
    return [
        Difference(name=f"{now.stage}: {name}", before=_text(then.facts, name), now=_text(now.facts, name))
        for name in dict.fromkeys([*then.facts, *now.facts])
        if name not in SAID_ANYWAY
        and any(isinstance(one.facts.get(name), str) for one in (then, now))
        and then.facts.get(name) != now.facts.get(name)
    ]


def _text(facts: Mapping[str, Any], name: str) -> str:
    return NOTHING if facts.get(name) is None else str(short(facts[name]))


def _tables(reports: Path, runs: Mapping[str, Run]) -> dict[str, dict[str, int | None]]:
    rows = (
        read_json(reports / "summary.json", otherwise="rows of that night are not compared").get("rows_of_tables") or {}
    )
    return {
        table: {"version": runs[stage.name].tables_written.get(table), "rows": rows.get(table)}
        for stage in STAGES
        if stage.name in runs
        for table in stage.publishes
    }
