"""The Great Expectations suite of a table, generated from its contract.

One expectation per promise of the contract: columns, types, nulls, numbers, allowed values, lengths, unique keys and
emptiness. Three expectations are ours, because Great Expectations has no word for them: exact Arrow types (its own
cannot tell int32 from int64), numbers that are finite and in bounds also inside lists, and unique keys with a list
among them.
"""

import sys
from typing import Any

import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from great_expectations.core import ExpectationSuite
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    MulticolumnMapMetricProvider,
    column_condition_partial,
    multicolumn_condition_partial,
)

from sgrec_core.lake.contracts import Column, Contract

NUMBERS_VALID = "column_values.sgrec_numbers_valid"
ROWS_UNIQUE = "compound_columns.sgrec_rows_unique"


class NumbersValid(ColumnMapMetricProvider):
    """Per row: every number in the value is finite and within bounds. Great Expectations calls it with non-null
    rows."""

    condition_metric_name = NUMBERS_VALID
    condition_value_keys = ("min_value", "max_value", "strict_min")

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(
        cls,  # noqa: N805
        column: pd.Series,
        min_value: float,
        max_value: float,
        strict_min: bool,
        **_: Any,
    ) -> pd.Series:
        values = pa.array(column)
        rows = np.arange(len(values))
        if pa.types.is_list(values.type):
            rows = pc.list_parent_indices(values).to_numpy()
            values = pc.list_flatten(values)
        # A null inside a list becomes NaN, which lies between no bounds.
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        valid = np.ones(len(column), dtype=bool)
        large_enough = numbers > min_value if strict_min else numbers >= min_value
        valid[rows[~(large_enough & (numbers <= max_value))]] = False
        return pd.Series(valid, index=column.index)


class RowsUnique(MulticolumnMapMetricProvider):
    """Per row: no other row has the same values in these columns."""

    condition_metric_name = ROWS_UNIQUE
    condition_domain_keys = ("batch_id", "table", "column_list", "row_condition", "condition_parser", "ignore_row_if")

    @multicolumn_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_list: pd.DataFrame, **_: Any) -> pd.Series:  # noqa: N805
        keys = column_list.copy()
        for name in keys.columns:
            if isinstance(keys[name].dtype.pyarrow_dtype, pa.ListType):  # lists do not hash
                keys[name] = keys[name].map(str)
        return ~keys.duplicated(keep=False)


class ExpectColumnNumbersToBeBetween(gxe.ExpectColumnValuesToBeBetween):
    """Numbers, alone or in lists, are finite and within bounds."""

    map_metric = NUMBERS_VALID


class ExpectRowsToBeUnique(gxe.ExpectCompoundColumnsToBeUnique):
    """No two rows agree in all of the columns."""

    map_metric = ROWS_UNIQUE


class ExpectColumnArrowTypeToBe(gxe.ExpectColumnValuesToBeOfType):
    """The column has exactly this type, in the words of the contracts."""

    def _validate_pandas(self, actual_column_type: Any, expected_type: str | None) -> dict[str, Any]:
        arrow_type = getattr(actual_column_type, "pyarrow_dtype", None)
        observed = str(actual_column_type) if arrow_type is None else type_in_words(arrow_type)
        return {"success": observed == expected_type, "result": {"observed_value": observed}}


def type_in_words(arrow_type: pa.DataType) -> str:
    """A type as the contracts write it: ``list<string>``, ``timestamp[us, UTC]``."""
    if pa.types.is_large_string(arrow_type) or pa.types.is_string_view(arrow_type):
        return "string"
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        return f"list<{type_in_words(arrow_type.value_type)}>"
    if pa.types.is_timestamp(arrow_type):
        return f"timestamp[{arrow_type.unit}, {arrow_type.tz}]" if arrow_type.tz else f"timestamp[{arrow_type.unit}]"
    if pa.types.is_date32(arrow_type):
        return "date32"
    return {"double": "float64", "float": "float32"}.get(str(arrow_type), str(arrow_type))


def suite_from_contract(contract: Contract) -> ExpectationSuite:
    """All expectations of a table; each carries the contract's severity, and in ``meta`` check, owner and runbook."""
    suite = ExpectationSuite(name=contract.table, notes=contract.description)
    for expectation in _expectations(contract):
        suite.add_expectation(expectation)
    return suite


def _expectations(contract: Contract) -> list[gxe.Expectation]:
    def common(check: str, valid: str) -> dict[str, Any]:
        return {
            "severity": contract.severity,
            "meta": {"check": check, "valid": valid, "owner": contract.owner, "runbook": contract.runbook},
        }

    names = [column.name for column in contract.columns]
    expectations: list[gxe.Expectation] = [
        gxe.ExpectTableColumnsToMatchSet(
            column_set=names, exact_match=True, **common("columns", "exactly " + ", ".join(names))
        )
    ]
    if not contract.may_be_empty:
        expectations.append(gxe.ExpectTableRowCountToBeBetween(min_value=1, **common("not empty", "at least one row")))
    for columns in (contract.key, *contract.unique):
        # Unique within a partition, and a batch can hold several: the partition belongs to what must differ.
        whole = list(dict.fromkeys((*contract.partition_by, *columns)))
        within = f" within {', '.join(contract.partition_by)}" if contract.partition_by else ""
        valid = f"{', '.join(name for name in columns if name not in contract.partition_by)} unique{within}"
        if len(whole) > 1:
            expectations.append(ExpectRowsToBeUnique(column_list=whole, **common("unique", valid)))
        else:
            expectations.append(gxe.ExpectColumnValuesToBeUnique(column=whole[0], **common("unique", valid)))
    for column in contract.columns:
        expectations += _column_expectations(column, common)
    return expectations


def _column_expectations(column: Column, common: Any) -> list[gxe.Expectation]:
    expectations: list[gxe.Expectation] = [
        ExpectColumnArrowTypeToBe(column=column.name, type_=column.type, **common("type", column.type))
    ]
    if not column.nullable:
        expectations.append(gxe.ExpectColumnValuesToNotBeNull(column=column.name, **common("not null", "no nulls")))
    if "float" in column.type or column.bounds():
        least = column.minimum if column.above is None else column.above
        expectations.append(
            ExpectColumnNumbersToBeBetween(
                column=column.name,
                # Great Expectations wants at least one bound; these are those of a finite number.
                min_value=-sys.float_info.max if least is None else least,
                strict_min=column.above is not None,
                max_value=sys.float_info.max if column.maximum is None else column.maximum,
                **common("numbers", _bounds_in_words(column)),
            )
        )
    if column.allowed:
        expectations.append(
            gxe.ExpectColumnValuesToBeInSet(
                column=column.name,
                value_set=list(column.allowed),
                **common("allowed values", "one of " + ", ".join(column.allowed)),
            )
        )
    if column.max_length is not None:
        expectations.append(
            gxe.ExpectColumnValueLengthsToBeBetween(
                column=column.name,
                max_value=column.max_length,
                **common("length", f"at most {column.max_length:,} characters"),
            )
        )
    return expectations


def _bounds_in_words(column: Column) -> str:
    bounds = [words for words, _, _ in column.bounds()]
    words = ["finite", *bounds] if "float" in column.type else bounds
    return ", ".join(words) + (" in each element" if column.is_list else "")
