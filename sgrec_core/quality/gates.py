"""The gate behind a stage: validate what it published for a day, and stop the night on a critical failure.

What its contract cannot tell, the nights before can: it also measures the day (`sgrec_core.quality.night_metrics`).
"""

from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from sgrec_core.errors import ContractError, GateError
from sgrec_core.files import write_json
from sgrec_core.hashing import digest
from sgrec_core.judge.calls.scores import find_scores
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.judge.versions.adapters import settings_of_stage
from sgrec_core.lake import Lake
from sgrec_core.lake.conditions import files
from sgrec_core.lake.contracts import Contract, load_contract
from sgrec_core.lake.queries import item_hashes
from sgrec_core.quality.alarms import Alarm
from sgrec_core.quality.balance import RAW_LOGS, balance_of_rows
from sgrec_core.quality.evidence import damage_before
from sgrec_core.quality.night_metrics import write_metrics
from sgrec_core.quality.validation import (
    Check,
    TableResult,
    owner_and_runbook,
    raw_result_path,
    result_path,
    validate,
)
from sgrec_core.runtime.code import code_digest
from sgrec_core.runtime.runs import Run, last_done, record
from sgrec_core.runtime.stages import BY_NAME
from sgrec_core.settings import Settings

JUDGE_CALLS = "judge_calls"
"""Name of the result that counts the judge's failed calls; no table."""
EARLIER_NIGHTS = "earlier_nights"
"""Name of the result that says whether what nights have written is there still; no table."""
COUNTED = (RAW_LOGS, JUDGE_CALLS, EARLIER_NIGHTS)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The outcome of one gate."""

    stage: str
    results: list[TableResult]
    state: str
    """``finished``, ``skipped`` (all tables were validated before, as they are) or ``failed`` (a critical check)."""
    message: str | None
    """The first critical failure in one line."""
    alarms: list[Alarm]
    """Metrics out of the band of their past: they stop no night."""
    seconds: float


def check_stage(settings: Settings, stage: str, day: str, *, force: bool = False) -> Gate:
    """Validate each table that ``stage`` publishes; write results under ``reports/<day>`` and a run.

    A table whose rows and contract are those of an earlier successful validation is not validated again. Critical
    failures are part of the outcome, not an exception: see `stop_on_critical`.

    Args:
        force: validate even so.

    Raises:
        GateError: there are no facts of ``ingest_events`` to balance rows by.
    """
    settings = settings_of_stage(settings, BY_NAME[stage], day)
    reports, lake = settings.reports(day, BY_NAME[stage].folder), Lake(settings.lake_root)
    results: list[TableResult] = []
    run = Run(day=day, stage=f"check_{stage}", folder=BY_NAME[stage].folder, input=settings.input)
    record(lake, [run])
    try:
        if stage == "ingest_events":
            results.append(balance_of_rows(settings, lake, day))
            results[-1].write(result_path(reports, RAW_LOGS))
        if stage == "score_aspects":
            results.append(failures_of_judge(settings, lake, day))
            results[-1].write(result_path(reports, JUDGE_CALLS))
        validated = 0
        for table in BY_NAME[stage].publishes:
            result, is_new = _check_table(settings, lake, reports, table, day, force)
            results.append(result)
            validated += is_new
        results.append(what_is_lost(settings, lake, day, stage))
        results[-1].write(result_path(reports, EARLIER_NIGHTS))
        message = critical_failures_in_words(results)
        found = _metrics(settings, lake, day, stage, broken=message is not None)
    except BaseException as error:
        record(lake, [run.ended("failed", message=f"{type(error).__name__}: {error}")])
        raise
    state = "failed" if message else "finished" if validated else "skipped"
    run = run.ended(state, message=message)
    record(lake, [run])
    return Gate(stage=stage, results=results, state=state, message=message, alarms=found, seconds=run.seconds)


def _metrics(settings: Settings, lake: Lake, day: str, stage: str, *, broken: bool) -> list[Alarm]:
    """What is out of its band behind ``stage``; a stopped night is measured too, as far as its tables let it."""
    try:
        return write_metrics(settings, lake, day, stage)
    except (KeyError, ValueError, ContractError, DeltaError, pa.ArrowException):
        if not broken:
            raise
        return []


def stop_on_critical(gate: Gate) -> None:
    """Raise where a critical check failed; warnings pass.

    Raises:
        GateError: one line that names table, column, check, how many rows, and a sample value.
    """
    if gate.message:
        raise GateError(gate.message)


def critical_failures_in_words(results: list[TableResult]) -> str | None:
    """The first critical failure in one line, and how many more there are; None where there is none."""
    failed = [(result, check) for result in results for check in result.failures if check.severity == "critical"]
    if not failed:
        return None
    result, check = failed[0]
    others = f"; {len(failed) - 1} more critical checks failed" if len(failed) > 1 else ""
    return f"{failure_in_words(result, check)}; owner {result.owner}{others}"


def failure_in_words(result: TableResult, check: Check) -> str:
    """One failed check in one line."""
    where = f"table {result.table}" + (f", column {check.column}" if check.column else "")
    how_many = (
        f"{check.unexpected_count:,} of {result.rows:,} rows ({check.unexpected_share:.2%}), e.g. "
        if check.unexpected_count
        else ""
    )
    line = f"{where}, check {check.name!r}: {how_many}{check.observed}; valid is {check.expected}"
    return " ".join(line.split())


def rows_of_day(lake: Lake, table: str, day: str) -> pa.Table:
    """The rows that a gate looks at, as they lie in the lake: not cast to the contract, which is what is checked.

    Of a table with days: the day. Of a table without (they are keyed by content): all of it.
    """
    contract = load_contract(table)
    delta = lake.open(table)
    if delta is None:
        return contract.arrow_schema.empty_table()
    if "day" in contract.arrow_schema.names:
        dataset = delta.to_pyarrow_dataset(file_pruning_predicate=files(contract, {"day": day}))
        rows = dataset.to_table(filter=pc.field("day") == date.fromisoformat(day))
    else:
        rows = delta.to_pyarrow_table()
    # Sorted, so that the sample rows of a repeated gate are the same ones.
    order = [(name, "ascending") for name in contract.key if name in rows.column_names]
    return rows.sort_by(order) if order else rows


def identity_of_rows(lake: Lake, contract: Contract, day: str) -> str:
    """Digest of what `rows_of_day` gives and of the rules it is checked by, without reading a row."""
    code = code_digest(f"{__name__}:check_stage")
    return digest(code, contract.table, day, lake.version(contract.table), contract, length=32)


def failures_of_judge(settings: Settings, lake: Lake, day: str) -> TableResult:
    """Not too many calls of the day's judge failed: scores of what is left would be of a chosen few."""
    owner, runbook = owner_and_runbook("aspect_scores", day)
    version = judge_version(settings, day_has_context(lake, day))
    # Training on fresh groups, and the judge's own training, add calls that this stage does not ask for and would never
    # try again.
    pairs = lake.read("preference_pairs", where={"day": day})
    train = lake.read("user_states", where={"day": day, "split": "train"}, columns=["decision_id"])["decision_id"]
    pairs = pairs.filter(pc.is_in(pairs["decision_id"], value_set=pc.unique(train)))
    asked_for = [
        lake.read("candidates", where={"day": day}, columns=["state_id", "item_id"]),
        *(
            pairs.select(["state_id", name]).rename_columns(["state_id", "item_id"])
            for name in ("preferred_item", "other_item")
        ),
    ]
    calls = pa.concat_tables(asked_for)
    calls = calls.append_column("item_hash", item_hashes(lake, day, calls["item_id"]))
    rows = find_scores(lake, day, version, calls, ["failure"])
    scored = last_done(lake, day, "score_aspects")
    judged = scored.facts.get("judge_version", version) if scored else version
    failed = rows.filter(pc.is_valid(rows["failure"]))
    share, limit = (failed.num_rows / rows.num_rows if rows.num_rows else 0.0), settings.judge.max_failed_share
    reasons = Counter(failed["failure"].to_pylist()).most_common(1)
    check = Check(
        name="failed calls",
        column="failure",
        severity="critical",
        success=share <= limit,
        observed=f"mostly {reasons[0][0]!r}" if share > limit else f"{share:.2%} failed",
        expected=f"at most {limit:.2%} failed (SGREC_JUDGE__MAX_FAILED_SHARE)",
        unexpected_count=failed.num_rows,
        unexpected_share=share,
    )
    same = Check(
        name="judge version",
        column="judge_version",
        severity="critical",
        success=judged == version,
        observed=f"the stage judged with {judged}",
        expected=f"judge version {version}, that of these settings: the gate would look at other rows",
    )
    checks = [same, check]
    return TableResult(table=JUDGE_CALLS, day=day, rows=rows.num_rows, owner=owner, runbook=runbook, checks=checks)


def what_is_lost(settings: Settings, lake: Lake, day: str, stage: str) -> TableResult:
    """Whether the tables that ``stage`` reads and publishes still hold what this night and those before it wrote.

    A stage makes a table that is gone anew, with its own day alone.
    """
    # A table that is older than it was may hold all its days all the same.
    damage = [one for one in damage_before(lake, settings, day, stage) if one.kind != "version"]
    owner, runbook = owner_and_runbook(damage[0].table if damage else BY_NAME[stage].publishes[0], day)
    check = Check(
        name="earlier nights are there",
        column=None,
        severity="critical",
        success=not damage,
        observed="; ".join(str(one) for one in damage[:3]) + (f"; {len(damage) - 3} more" if len(damage) > 3 else ""),
        expected="every file of the log, and every day that a gate has passed",
    )
    return TableResult(table=EARLIER_NIGHTS, day=day, rows=0, owner=owner, runbook=runbook, checks=[check])


def _check_table(
    settings: Settings, lake: Lake, reports: Path, table: str, day: str, force: bool
) -> tuple[TableResult, bool]:
    """The validation of one table, and whether it was made now."""
    contract = load_contract(table)
    identity = identity_of_rows(lake, contract, day)
    path = result_path(reports, table)
    earlier = None if force else _earlier(path)
    if earlier is not None and earlier.success and earlier.identity == identity:
        return earlier, False
    result, raw = validate(
        contract, rows_of_day(lake, table, day), day=day, sample_rows=settings.quality.sample_rows, identity=identity
    )
    write_json(raw_result_path(reports, table), raw)
    result.write(path)
    return result, True


def _earlier(path: Path) -> TableResult | None:
    """The last result, if there is one that can be read."""
    try:
        return TableResult.read(path)
    except (OSError, ValueError, TypeError, KeyError):
        return None
