"""What a night left behind, gathered for the page and the summary: facts, gates, failures, checks and tables.

Every input may be missing: a night that stopped in its first stage has one run and no other table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from sgrec_core.errors import SgrecError
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.glance import Glance
from sgrec_core.quality.alarms import TABLE as NIGHT_METRICS
from sgrec_core.quality.alarms import Alarm, alarms, inherited_alarms, verdict
from sgrec_core.quality.cause import Cause, cause_of_night, measured_by
from sgrec_core.quality.charts import Series, read_series
from sgrec_core.quality.differences import Differences, differences
from sgrec_core.quality.gates import EARLIER_NIGHTS, JUDGE_CALLS, RAW_LOGS, rows_of_day
from sgrec_core.quality.judged import Judged, judged
from sgrec_core.quality.steps import REPORT, Step, gated, read_failures, step_of_report, steps_of_night
from sgrec_core.quality.timeline import Cost, costs
from sgrec_core.quality.validation import Check, TableResult, read_results, short
from sgrec_core.runtime.runs import DONE, last_runs
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import Settings

if TYPE_CHECKING:
    from sgrec_core.registry.promotions import Decision  # imports torch, which `sgrec status` does without

T = TypeVar("T")
SAMPLES_PER_REASON, DECISIONS = 3, 5
NO_METRICS = f"table {NIGHT_METRICS} could not be read, so the verdict knows no metrics"
NOT_COMPARED = "the page cannot say what changed since the night before"


@dataclass(frozen=True, kw_only=True)
class RejectReason:
    """Rejected raw rows of one reason, with a few of them."""

    reason: str
    count: int
    samples: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Night:
    """One day's night as the page shows it."""

    day: str
    source: str
    input: str
    home: Path
    lake: str
    stopped_at: str | None
    """The first step that did not end well."""
    cause: Cause | None
    """Why it is not green."""
    steps: list[Step]
    results: list[TableResult]
    alarms: list[Alarm]
    """Metrics out of the band of their past, critical ones first."""
    inherited: list[Alarm]
    """Critical ones of the days before that the night learns from."""
    metrics: list[Series]
    """Of the last 30 days."""
    changed: Differences | None
    """From the night before; None where there is none, or where it cannot be read."""
    judged: Judged | None
    """What the judge said; None where the night did not get to its rewards."""
    costs: list[Cost]
    """Of the judge."""
    rejects: list[RejectReason]
    evaluations: list[dict[str, Any]]
    meaningless: bool | None
    """Whether the judge's scores say nothing; None when the night did not get to the judge."""
    tables: list[dict[str, Any]]
    """Per table: table, version, rows of the day, owner."""
    hold: str | None
    """The hold on promotion that stands, in words."""
    decisions: "list[Decision]"
    """The newest about promotion, the newest first."""
    problems: list[str] = field(default_factory=list)
    """What could not be read for this page, in words."""

    @property
    def status(self) -> str:
        return "succeeded" if self.stopped_at is None else "stopped"

    @property
    def verdict(self) -> str:
        """``green``, ``amber`` or ``red``; see `alarms.verdict`."""
        return verdict(self.stopped_at is None, [*self.alarms, *self.inherited])

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def facts(self, stage: str) -> dict[str, Any]:
        """Facts of a stage of this run; empty when the run did not get there."""
        step = self.step(stage)
        return {} if step.stale else step.facts

    @property
    def stages(self) -> list[tuple[Step, Step | None]]:
        """Each stage with the gate behind it."""
        gates = {step.name: step for step in self.steps if step.is_gate}
        return [(step, gates.get(f"check_{step.name}")) for step in self.steps if not step.is_gate]

    @property
    def broken(self) -> list[TableResult]:
        """Tables with failed checks, critical ones first."""
        return sorted((result for result in self.results if result.failures), key=lambda result: result.success)

    @property
    def failures(self) -> list[Check]:
        """All failed checks."""
        return [check for result in self.results for check in result.failures]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Declared rules, fallbacks and warnings of the stages, with the stage that wrote each."""
        return [(step.name, note) for step in self.steps if not step.stale for note in step.notes]


def gather_night(settings: Settings, day: str, lake: Glance | None = None) -> Night:
    """Read everything that is there for ``day``.

    Args:
        lake: the tables, where many nights are gathered from one state of them.
    """
    reports, lake = settings.reports(day), lake or Glance(settings.lake_root)
    failures = read_failures(reports)
    steps = steps_of_night(last_runs(lake, day), failures)
    results = _results_of_run(reports, steps)
    ended = {step.name for step in steps if step.state in DONE}
    problems: list[str] = []
    measured = measured_by(steps)
    decisions = _decisions(lake, problems)

    def rows(table: str, stage: str) -> pa.Table:
        """The day's rows as they lie in the lake, if this run published them; the page outlives a damaged table."""
        if stage in ended:
            try:
                return rows_of_day(lake, table, day)
            except (OSError, ValueError, KeyError, DeltaError, pa.ArrowException) as error:
                problems.append(f"table {table} could not be read: {error}")
        return load_contract(table).arrow_schema.empty_table()

    return Night(
        day=day,
        source=settings.source,
        input=settings.input,
        home=settings.home.resolve(),
        lake=settings.lake_root if settings.lake else "lake",
        stopped_at=next((step.name for step in steps if step.state not in DONE), None),
        cause=cause_of_night(settings, lake, day, steps, results, failures),
        steps=steps,
        results=results,
        alarms=_readable(lambda: alarms(lake, day, stages=measured), [], NO_METRICS, problems),
        inherited=_readable(lambda: inherited_alarms(lake, settings, day), [], NO_METRICS, problems),
        metrics=_readable(lambda: read_series(lake, day, stages=measured), [], NO_METRICS, problems),
        changed=_readable(lambda: differences(settings, lake, day, steps), None, NOT_COMPARED, problems),
        judged=_readable(lambda: _judged(lake, day, steps), None, "the page cannot show what the judge said", problems),
        costs=_readable(lambda: costs(lake, day), [], "the page cannot say what the judge took", problems),
        rejects=_rejects(rows("events_rejected", "ingest_events")),
        evaluations=rows("evaluations", "evaluate_generator").to_pylist(),
        meaningless=_meaningless(settings, steps),
        tables=_tables(lake, day, problems),
        hold=_hold(decisions),
        decisions=[one for one in decisions if one.action != "pin"][: -DECISIONS - 1 : -1],
        problems=problems,
    )


def _results_of_run(reports: Path, steps: list[Step]) -> list[TableResult]:
    """A table whose gate this run did not reach was validated by an earlier one; that says nothing of this night."""
    current = {table for stage in gated(steps) for table in stage.publishes}
    if "events" in current:
        current.add(RAW_LOGS)
    if "aspect_scores" in current:
        current.add(JUDGE_CALLS)
    if current:
        current.add(EARLIER_NIGHTS)
    return [result for result in read_results(reports) if result.table in current]


@dataclass(frozen=True, kw_only=True)
class At:
    """How far a night got."""

    state: str
    """``succeeded``, ``stopped`` or ``unfinished`` (running, or interrupted)."""
    step: Step
    """The one that tells most: that which failed, else the last one that began."""
    steps: list[Step]
    failures: dict[str, dict[str, Any]]


def state_of_night(settings: Settings, lake: Lake, day: str) -> At | None:
    """In a few words what `gather_night` says at length; None where no stage of the night has run."""
    runs, failures = last_runs(lake, day), read_failures(settings.reports(day))
    steps = steps_of_night(runs, failures)
    if all(step.started is None for step in steps):
        return None
    steps.append(step_of_report(steps, runs.get(REPORT), failures.get(REPORT)))
    if all(step.state in DONE for step in steps):
        return At(state="succeeded", step=steps[-1], steps=steps, failures=failures)
    failed = next((step for step in steps if step.state == "failed"), None)
    current = [step for step in steps if step.started and not step.stale]
    state = "stopped" if failed else "unfinished"
    return At(state=state, step=failed or current[-1], steps=steps, failures=failures)


def why_red(settings: Settings, lake: Lake, day: str, at: At) -> Cause | None:
    """What the page says of a night that has not come to its end."""
    results = _results_of_run(settings.reports(day), at.steps)
    return cause_of_night(settings, lake, day, at.steps, results, at.failures)


def _rejects(rows: pa.Table) -> list[RejectReason]:
    """Rejected rows by reason, most frequent first."""
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["reason"]).to_pylist()}
    reasons = []
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        few = rows.filter(pc.equal(rows["reason"], reason)).slice(0, SAMPLES_PER_REASON)
        samples = few.select(["record", "file", "line", "detail", "raw_text"]).to_pylist()
        reasons.append(
            RejectReason(
                reason=str(short(reason)),
                count=count,
                samples=[{name: short(value) for name, value in sample.items()} for sample in samples],
            )
        )
    return reasons


def _judged(lake: Lake, day: str, steps: list[Step]) -> Judged | None:
    facts = {step.name: step.facts for step in steps if step.state in DONE and not step.stale}
    if not {"score_aspects", "materialize_rewards"} <= {*facts}:
        return None
    return judged(lake, day, facts["score_aspects"], facts["materialize_rewards"].get("reward_version"))


def _meaningless(settings: Settings, steps: list[Step]) -> bool | None:
    """What the judge counted, else what the settings say of it."""
    from sgrec_core.judge.engines import is_meaningless

    step = next(step for step in steps if step.name == "score_aspects")
    if step.stale or not step.facts.get("judge_engine"):
        return None
    return bool(step.facts.get("judge_meaningless", is_meaningless(settings) and step.facts.get("judge_asked")))


def _tables(lake: Lake, day: str, problems: list[str]) -> list[dict[str, Any]]:
    """Delta version of each table and its rows of the day; rows of all days where a table has none."""
    tables = []
    for table in (table for stage in STAGES for table in stage.publishes):
        contract = load_contract(table)
        dated = "day" in contract.partition_by
        version = rows = None
        try:
            version = lake.version(table)
            rows = lake.count(table, where={"day": day} if dated else None)
        except (OSError, ValueError, DeltaError, pa.ArrowException) as error:
            problems.append(f"table {table} could not be read: {error}")
        tables.append({"table": table, "version": version, "rows": rows, "of_day": dated, "owner": contract.owner})
    return tables


def _readable(read: Callable[[], T], otherwise: T, lost: str, problems: list[str]) -> T:
    """What ``read`` gives; ``otherwise`` where a table is damaged, and ``lost`` says what the page lacks for it."""
    try:
        return read()
    except (OSError, ValueError, DeltaError, pa.ArrowException, SgrecError) as error:
        problem = f"{lost}: {error}"
        if problem not in problems:
            problems.append(problem)
        return otherwise


def _decisions(lake: Lake, problems: list[str]) -> "list[Decision]":
    from sgrec_core.registry import promotions

    lost = f"table {promotions.TABLE} could not be read"
    return _readable(lambda: promotions.Promotions(lake).read(), [], lost, problems)


def _hold(decisions: "list[Decision]") -> str | None:
    from sgrec_core.registry import promotions

    hold = promotions.held(decisions)
    return None if hold is None else str(hold)
