"""Columns and properties that came into contracts since the tables were made."""

from collections.abc import Iterator

import pyarrow as pa
from deltalake import Schema

from sgrec_core.errors import ContractError
from sgrec_core.lake import load_contract
from sgrec_core.lake.contracts import table_names
from sgrec_core.night.migration.step import Migration


def refuse_other_changes(migration: Migration) -> Iterator[str]:
    """An edited contract may have more columns that may be null, no others and none that are otherwise.

    Raises:
        ContractError: it has; nothing was changed.
    """
    found = []
    for table in table_names():
        delta, contract = migration.lake.open(table), load_contract(table)
        if delta is None:
            continue
        present = {field.name: field.type for field in delta.schema().fields}
        wanted = {field.name: field for field in contract.arrow_schema}
        for name, field in wanted.items():
            kind = Schema.from_arrow(pa.schema([field])).fields[0].type
            if name not in present and not field.nullable:
                found.append(f"table {table}: new column {name} may not be null, but the rows of before have none")
            elif name in present and present[name] != kind:
                told = [getattr(one, "type", one) for one in (kind, present[name])]
                found.append(f"table {table}: column {name} is {told[0]} in the contract, {told[1]} in the table")
        found += [f"table {table}: column {name} is not in the contract" for name in present if name not in wanted]
    if found:
        raise ContractError(
            f"{'; '.join(found)}. The contract of a living table may get columns with `nullable: true` and no other"
            " change: take it back, or begin another home"
        )
    yield from ()


def add_columns(migration: Migration) -> Iterator[str]:
    """Nulls in the rows of before; a column that may not be null comes with a step of its own."""
    for table in table_names():
        delta = migration.lake.open(table)
        if delta is None:
            continue
        present = {field.name for field in delta.schema().fields}
        fields = [field for field in load_contract(table).arrow_schema if field.nullable and field.name not in present]
        if not fields:
            continue
        if not migration.dry_run:
            delta.alter.add_columns(Schema.from_arrow(pa.schema(fields)).fields)
        yield f"table {table}: column {', '.join(field.name for field in fields)} added"


def set_properties(migration: Migration) -> Iterator[str]:
    """How often Delta's log is checkpointed, and for which columns it keeps statistics."""
    changed = 0
    for table in table_names():
        delta = migration.lake.open(table)
        wanted = load_contract(table).delta_properties
        if delta is None or wanted.items() <= delta.metadata().configuration.items():
            continue
        changed += 1
        if not migration.dry_run:
            delta.alter.set_table_properties(wanted)
    if changed:
        yield f"properties of {changed} tables set"
