"""Which rows are meant: column to value, or to a list of values, in the words of Arrow and of Delta."""

from collections.abc import Mapping
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import ContractError
from sgrec_core.lake.contracts import Contract

Where = Mapping[str, object]


def split(contract: Contract, where: Where) -> tuple[Where, Where]:
    """Conditions on partition columns, which choose files, and the others.

    The others wait until the rows have the contract's types: what a merge wrote comes as string views, which Arrow
    does not compare with strings.
    """
    partition = {name: value for name, value in where.items() if name in contract.partition_by}
    return partition, {name: value for name, value in where.items() if name not in partition}


def expression(contract: Contract, where: Where) -> pc.Expression | None:
    """For Arrow; None where every row is meant."""
    whole = None
    for name, value in where.items():
        values = _values(value)
        arrow_type = contract.column(name).arrow_type
        if pa.types.is_date(arrow_type):
            values = [date.fromisoformat(v) if isinstance(v, str) else v for v in values]
        condition = pc.field(name).isin(pa.array(values, arrow_type))
        whole = condition if whole is None else whole & condition
    return whole


def files(contract: Contract, where: Where) -> list[tuple[str, str, list[str]]] | None:
    """For the choice of a table's files, by partition columns and by the first and last day in each; None for all.

    Without it Arrow looks at each file of the table, however few it reads.
    """
    return [
        (name, "in", [str(value) for value in _values(of)])
        for name, of in where.items()
        if name in contract.partition_by or contract.column(name).type == "date32"
    ] or None


def _values(of: object) -> list[object]:
    return list(of) if isinstance(of, (list, tuple, set, frozenset)) else [of]


def predicate(contract: Contract, partition: Mapping[str, object]) -> str:
    """For Delta."""
    parts = []
    for name, value in sorted(partition.items()):
        text = literal(str(value))
        parts.append(f"{name} = CAST({text} AS DATE)" if contract.column(name).type == "date32" else f"{name} = {text}")
    return " AND ".join(parts)


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def with_partition(contract: Contract, data: pa.Table, partition: Mapping[str, object]) -> pa.Table:
    """``data`` with the partition's values as columns; rows of another partition are an error."""
    for name, value in partition.items():
        if name not in contract.partition_by:
            raise ContractError(
                f"table {contract.table}: {name} is no partition column; valid are {', '.join(contract.partition_by)}"
            )
        column = contract.column(name)
        constant = pa.array([str(value)], pa.string()).cast(column.arrow_type)[0]
        if name not in data.column_names:
            data = data.append_column(name, pa.repeat(constant, data.num_rows))
        elif not pc.all(pc.equal(data[name].cast(column.arrow_type), constant), min_count=0).as_py():
            raise ContractError(f"table {contract.table}: rows outside the partition {name}={value} that is published")
    return data
