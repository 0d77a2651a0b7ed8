"""Columns that came into contracts since the tables were made."""

from collections.abc import Iterator

import pyarrow as pa
from deltalake import Schema

from sgrec_core.lake import load_contract
from sgrec_core.lake.contracts import table_names
from sgrec_core.night.migration.step import Migration


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
