"""Why a night is not green: one answer for page, summary and `sgrec status`.

The first thing wrong in the order in which data flows is the cause; what else was found follows from it. Rules over the
raw input are in `findings`, over the stop in `stops`; owners and runbooks are those of contracts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from sgrec_core.lake import Lake
from sgrec_core.quality.alarms import Alarm, alarms, critical_in_words, inherited_alarms, inherited_in_words
from sgrec_core.quality.commands import job_of_night, ran_with, sgrec_of_night
from sgrec_core.quality.evidence import INGEST, UNREADABLE, Evidence, damage_before, raw_evidence
from sgrec_core.quality.findings import (
    TABLE_OF_RECORD,
    Finding,
    Mend,
    likely_name,
    lost_files,
    nothing_chosen,
    raw_findings,
    unknown_types,
)
from sgrec_core.quality.gates import RAW_LOGS
from sgrec_core.quality.night_metrics import declared, measured_behind
from sgrec_core.quality.steps import Step, gated
from sgrec_core.quality.stops import STANDS_FIRST, stop_finding, unmatched
from sgrec_core.quality.validation import TableResult, owner_and_runbook
from sgrec_core.runtime.runs import DONE
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import Settings
from sgrec_core.wording import without_secrets

T = TypeVar("T")
CATALOGUE = ("items", "items_with_text", "distinct_titles")
"""Metrics of the catalogue alone."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """The first thing wrong, since when, whose it is and what to paste."""

    kind: str
    step: str | None
    """Where the night stopped; None where it came to its end."""
    reason: str
    """In one sentence."""
    since: datetime | None
    owner: str
    runbook: str
    command: str
    file: str | None
    table: str | None
    column: str | None
    value: str | None
    day: str | None
    version: int | None
    consequences: tuple[str, ...]
    """What else was found, in sentences."""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "since": self.since.isoformat() if self.since else None,
            "consequences": list(self.consequences),
        }


def cause_of_night(
    settings: Settings,
    lake: Lake,
    day: str,
    steps: Sequence[Step],
    results: Sequence[TableResult],
    failures: Mapping[str, Mapping[str, Any]],
) -> Cause | None:
    """Why the night of ``day`` is not green, by what it left behind; None where it is.

    Args:
        results: validations of this run.
        failures: the scheduler's word, by step.
    """
    step = next((step for step in steps if step.state not in DONE), None)
    own = _readable(lambda: alarms(lake, day, stages=measured_by(steps)))
    inherited = [] if step else _readable(lambda: inherited_alarms(lake, settings, day))
    if step is None and not any(alarm.severity == "critical" for alarm in [*own, *inherited]):
        return None
    evidence = Evidence(
        day=day,
        step=step,
        failure=failures.get(step.name, {}) if step else {},
        results=results,
        alarms=own,
        inherited=inherited,
        damage=_readable(lambda: damage_before(lake, settings, day, step.name)) if step else [],
        variables=ran_with(settings, day),
        lake=settings.lake_root,
    )
    ingested = next(one for one in steps if one.name == INGEST)
    if ingested.state in DONE and not ingested.stale:
        with suppress(*UNREADABLE):  # what is lost is told by its damage
            evidence = replace(evidence, **raw_evidence(settings, lake, day))
    return cause(settings, evidence, _since(evidence, steps))


def measured_by(steps: Sequence[Step]) -> list[str]:
    """Stages that the gates of this run have measured."""
    return [one for stage in gated(steps) for one in measured_behind(stage.name)]


def _since(evidence: Evidence, steps: Sequence[Step]) -> datetime | None:
    """When the night stopped, or when the first metric was found to be out of its band."""
    if evidence.step is not None:
        return evidence.step.ended
    stage = next((one.stage for one in evidence.alarms if one.severity == "critical"), STAGES[-2].name)
    gate = next(
        (one for one in steps if one.is_gate and stage in measured_behind(one.name.removeprefix("check_"))), None
    )
    return gate.ended if gate else None


def _readable(read: Callable[[], list[T]]) -> list[T]:
    """Nothing of a table that cannot be read."""
    try:
        return read()
    except UNREADABLE:
        return []


def cause(settings: Settings, evidence: Evidence, since: datetime | None) -> Cause | None:
    """The first of what was found, with owner, runbook and command."""
    found = list(findings(evidence))
    if not found:
        return None
    first, *others = found
    owner, runbook = owner_and_runbook(first.table, evidence.day) if first.table else ("", "")
    told = [without_secrets(one.sentence) for one in others if one.sentence != first.sentence]
    return Cause(
        kind=first.kind,
        step=evidence.step.name if evidence.step else None,
        reason=without_secrets(first.sentence),
        since=since,
        owner=first.owner or owner,
        runbook=first.runbook or runbook,
        command=command(settings, evidence.day, first.mend),
        file=first.file,
        table=first.table,
        column=first.column,
        value=first.value and without_secrets(first.value),
        day=first.day,
        version=first.version,
        consequences=tuple(dict.fromkeys(told)),
    )


def command(settings: Settings, day: str, mend: Mend) -> str:
    """What to paste once the cause is mended."""
    again = f"nightly --day {day}"
    if mend.force_from:
        again += f" --from {mend.force_from} --force"
    if mend.backfill_from:
        again = f"backfill --from {mend.backfill_from} --to {day}"
    last = sgrec_of_night(settings, day, again, without=mend.without)
    first = [job_of_night(settings, day, stage, f"--day {earlier} --force") for earlier, stage in mend.before]
    if mend.instead:
        first.append(sgrec_of_night(settings, day, mend.instead))
    return " && ".join([*first, last])


def findings(evidence: Evidence) -> Iterator[Finding]:
    """All that was found, the cause first."""
    critical = [one for one in evidence.alarms if one.severity == "critical"]
    if evidence.step is None:
        if critical:
            yield from _of_rows(evidence)
            yield from _of_alarms(evidence, critical)
        yield from _of_days_before(evidence)
        return
    stop = stop_finding(evidence)
    at_input = evidence.step.name.removeprefix("check_") == INGEST
    if stop is not None and (stop.kind in STANDS_FIRST or (at_input and not evidence.step.is_gate)):
        yield stop
        return
    if at_input and stop is not None and _is_of_a_folder(evidence):
        yield stop  # of which the day's rows together, and what is usual among them, tell nothing
        return
    if at_input:
        # What a gate says of the tables themselves no raw row explains.
        yield from () if _are_tables_wrong(evidence) else raw_findings(evidence)
    elif stop is not None and stop.kind in ("broken_contract", "missing_work"):
        yield from _of_rows(evidence)
        yield from _of_alarms(evidence, critical)
    else:
        yield from nothing_chosen(evidence)
    yield from [stop] if stop is not None else unmatched(evidence)


def _are_tables_wrong(evidence: Evidence) -> bool:
    """Whether nothing but the tables themselves failed: their rows were counted otherwise, or break their contract."""
    failed = [
        (one.table, check.name) for one in evidence.results for check in one.failures if check.severity == "critical"
    ]
    of_rows = {name for table, name in failed if table == RAW_LOGS} - {"nothing lost", "nothing lost in a file"}
    return not of_rows and any(name != "not empty" for _, name in failed)


def _is_of_a_folder(evidence: Evidence) -> bool:
    """Whether nothing but the share of rejected rows of one kind of record stops the night."""
    failed = [check.name for one in evidence.results for check in one.failures if check.severity == "critical"]
    return bool(failed) and all(name.startswith("rejected share of ") for name in failed)


def _of_rows(evidence: Evidence) -> Iterator[Finding]:
    """Of rows that their gate let pass: what is more than on other days, or leaves nothing to learn from."""
    is_unusual = any(one.metric == "rejected_share" and one.value > one.high for one in evidence.alarms)
    if is_unusual or next(nothing_chosen(evidence), None):
        yield from raw_findings(evidence)
    else:
        yield from lost_files(evidence.files)
        yield from unknown_types(evidence)


def _of_days_before(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.inherited:
        return
    first = evidence.inherited[0]
    runbook = (
        f"Mend {first.day} and run it again, or accept it (`sgrec accept-night --day {first.day} --reason WHY`); the"
        " command brings the days behind it to that."
    )
    yield Finding(
        kind="learns_from_amber",
        sentence=inherited_in_words(evidence.inherited) or "",
        table="night_metrics",
        owner=_owner(first),
        runbook=runbook,
        day=first.day,
        mend=Mend(backfill_from=first.day),
    )


def _of_alarms(evidence: Evidence, critical: Sequence[Alarm]) -> Iterator[Finding]:
    if not critical:
        return
    first = critical[0]
    said = critical_in_words(critical) or ""
    column, name, why = None, None, ""
    if first.metric == "null":
        column, record = first.dimension, "event"
    elif first.metric == "items_with_text":
        column, record = "title", "item"
    if column:
        name = likely_name(evidence, record, column, ())
        why = f"; it is called {name} now, most likely" if name else ""
        field = f"field {column} of {TABLE_OF_RECORD[record]} is missing where it was there"
        said = f"{said}: {field}{why}" if first.value > first.high or first.metric == "items_with_text" else said
    is_shrunken = first.metric == "items" and first.value < first.low
    yield Finding(
        kind="renamed_field" if name else "shrunken_catalogue" if is_shrunken else "out_of_band",
        sentence=said,
        table="items" if first.metric in CATALOGUE else "events" if first.stage == INGEST else "night_metrics",
        owner=_owner(first),
        runbook=owner_and_runbook("night_metrics", evidence.day)[1],
        column=column or (first.dimension if first.metric in ("zero", "price", "bid") else None),
        value=name,
        day=first.day,
    )


def _owner(alarm: Alarm) -> str | None:
    metric = declared().metrics.get(alarm.metric)
    return metric.owner if metric else None
