"""Validate one day of a table against its contract, and keep the result in plain words.

The checks run in an in-memory Great Expectations context, so gates may run side by side; `data_docs` later copies the
raw results into the one context on disk.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sgrec_core.files import write_json
from sgrec_core.lake.contracts import Contract, load_contract

MAX_CELL = 200
"""Characters of a value that are kept in sample rows and messages."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of one promise of a contract."""

    name: str
    """What was checked: columns, not empty, unique, type, not null, numbers, allowed values or length."""
    column: str | None
    """The column, several joined by comma, or None for the table as a whole."""
    severity: str
    """``critical`` stops the night; ``warning`` is only reported."""
    success: bool
    observed: str
    expected: str
    unexpected_count: int = 0
    unexpected_share: float = 0.0
    """Unexpected rows by all rows of the day."""
    sample_rows: list[dict[str, Any]] = field(default_factory=list)
    """A few of the unexpected rows: key columns and the column that was checked."""


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """All checks of one table and day."""

    table: str
    day: str
    rows: int
    owner: str
    runbook: str
    checks: list[Check]
    seconds: float = 0.0
    identity: str = ""
    """Digest of what was validated and by which rules; equal identities need no second validation."""

    @property
    def failures(self) -> list[Check]:
        """Failed checks, critical ones first."""
        return sorted((c for c in self.checks if not c.success), key=lambda check: check.severity != "critical")

    @property
    def success(self) -> bool:
        """True unless a critical check failed."""
        return not any(check.severity == "critical" for check in self.failures)

    def write(self, path: Path) -> None:
        """Write as JSON; a reader sees the old file or the new one, never half a file."""
        write_json(path, {**asdict(self), "success": self.success})

    @staticmethod
    def read(path: Path) -> "TableResult":
        content = json.loads(path.read_text())
        content.pop("success")
        return TableResult(**{**content, "checks": [Check(**check) for check in content["checks"]]})


def validate(
    contract: Contract, data: pa.Table, *, day: str, sample_rows: int = 5, identity: str = ""
) -> tuple[TableResult, dict[str, Any]]:
    """Run the contract's expectation suite on the rows of one day.

    Args:
        data: the rows; wrong columns and types are findings, not errors.
        sample_rows: unexpected rows kept per failed check.
        identity: kept in the result; see `TableResult.identity`.

    Returns:
        The result in plain words, and Great Expectations' own result as a JSON-able dict (for the Data Docs).
    """
    import great_expectations as gx
    import pandas as pd

    from sgrec_core.quality.suites import suite_from_contract

    started = time.monotonic()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    batches = context.data_sources.add_pandas("lake").add_dataframe_asset(contract.table)
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name=contract.table,
            data=batches.add_batch_definition_whole_dataframe("day"),
            suite=context.suites.add(suite_from_contract(contract)),
        )
    )
    outcome = definition.run(
        batch_parameters={"dataframe": data.to_pandas(types_mapper=pd.ArrowDtype)},
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": sample_rows},
    )
    raw = outcome.to_json_dict()
    outcomes = [_plain(result, data, contract) for result in raw["results"]]
    mistyped = {check.column for check in outcomes if check and check.name == "type" and not check.success}
    checks = [
        check
        for check in outcomes
        # Of a column of the wrong type only the type is news: the other checks may not even run on it.
        if check and (check.success or check.name == "type" or check.column not in mistyped)
    ]
    order = {column.name: position for position, column in enumerate(contract.columns)}
    checks.sort(key=lambda check: (order.get(check.column or "", -1), check.name))
    result = TableResult(
        table=contract.table,
        day=day,
        rows=data.num_rows,
        owner=contract.owner,
        runbook=contract.runbook.replace("{day}", day),
        checks=checks,
        seconds=round(time.monotonic() - started, 3),
        identity=identity,
    )
    return result, raw


def result_path(reports: Path, table: str) -> Path:
    """Where the last validation of ``table`` lies within the reports folder of a day."""
    return reports / "quality" / f"{table}.json"


def raw_result_path(reports: Path, table: str) -> Path:
    """Great Expectations' own result of the last validation, input of the Data Docs."""
    return reports / "quality" / "great_expectations" / f"{table}.json"


def read_results(reports: Path) -> list[TableResult]:
    """The last validations of a day, in the order of the tables' names; a damaged file is skipped."""
    results = []
    for path in sorted((reports / "quality").glob("*.json")):
        try:
            results.append(TableResult.read(path))
        except (ValueError, TypeError, KeyError):
            continue
    return results


def _plain(result: dict[str, Any], data: pa.Table, contract: Contract) -> Check | None:
    """One expectation's result in plain words; None where a missing column leaves nothing to check."""
    config = result["expectation_config"]
    kwargs, meta = config["kwargs"], config["meta"]
    columns = kwargs.get("column_list") or ([kwargs["column"]] if "column" in kwargs else [])
    if not set(columns) <= set(data.column_names):
        return None  # the check of the columns says so once
    details = result["result"]
    count = details.get("unexpected_count") or 0
    positions = (details.get("partial_unexpected_index_list") or []) if not result["success"] else []
    shown = [name for name in dict.fromkeys([*contract.key, *columns]) if name in data.column_names]
    samples = [
        {name: short(value) for name, value in row.items()}
        for row in data.select(shown).take(pa.array(positions, pa.int64())).to_pylist()
    ]
    if result["success"]:
        observed = "as expected"
    elif result["exception_info"].get("exception_message"):
        observed = f"the check could not run: {result['exception_info']['exception_message']}"
    elif meta["check"] == "columns":
        observed = _columns_in_words(data, contract)
    elif samples:
        observed = ", ".join(f"{name}={samples[0][name]!r}" for name in columns)
    else:
        observed = str(details.get("observed_value"))
    return Check(
        name=meta["check"],
        column=", ".join(name for name in columns if len(columns) == 1 or name not in contract.partition_by) or None,
        severity=config["severity"],
        success=result["success"],
        observed=observed,
        expected=meta["valid"],
        unexpected_count=count,
        unexpected_share=count / data.num_rows if data.num_rows else 0.0,
        sample_rows=samples,
    )


def _columns_in_words(data: pa.Table, contract: Contract) -> str:
    wanted = {column.name for column in contract.columns}
    missing, unknown = sorted(wanted - set(data.column_names)), sorted(set(data.column_names) - wanted)
    parts = [f"missing {', '.join(missing)}"] if missing else []
    return "; ".join(parts + ([f"unknown {', '.join(unknown)}"] if unknown else []))


def short(value: Any) -> Any:
    """A value for people: numbers and null as they are (NaN and infinities as text), the rest as short text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    text = str(value)
    return text if len(text) <= MAX_CELL else text[:MAX_CELL] + "…"


def owner_and_runbook(table: str, day: str) -> tuple[str, str]:
    """Who answers for a table and what to do when it is broken."""
    contract = load_contract(table)
    return contract.owner, contract.runbook.replace("{day}", day)
