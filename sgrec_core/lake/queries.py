"""Days, and the questions about tables that several stages ask."""

from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import QueryBuilder

from sgrec_core.lake.glance import Glance
from sgrec_core.lake.tables import Lake


def days_until(day: str, count: int) -> list[str]:
    """The ``count`` days that end with ``day``, oldest first."""
    last = date.fromisoformat(day)
    return [(last - timedelta(days=back)).isoformat() for back in reversed(range(count))]


def decisions(lake: Lake, days: list[str], split: str, columns: list[str]) -> pa.Table:
    """Rows of user_states of a split over several days."""
    return lake.read("user_states", where={"day": days, "split": split}, columns=columns)


def has_labels(lake: Lake, day: str) -> bool:
    """Whether the day's source says which decisions are held out; elsewhere users are."""
    return lake.count("events", where={"day": day, "role": "validation"}) > 0


def item_hashes(lake: Lake, day: str, item_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Content hash of each item as it is on ``day``; null for one that the day does not have."""
    items = lake.read("items", where={"day": day}, columns=["item_id", "item_hash"])
    return items["item_hash"].take(pc.index_in(item_ids, items["item_id"].combine_chunks()))


def table_versions(lake: Lake, tables: tuple[str, ...]) -> dict[str, int | None]:
    """Current Delta version of each table."""
    return {table: lake.version(table) for table in tables}


def ask(lake: Lake, table: str, question: str) -> list[dict[str, Any]]:
    """Rows that SQL makes of ``rows``, the table; none while nothing was published.

    Not `Lake.read`: Arrow's dataset imports pandas, which takes longer than all that a glance does.
    """
    known = lake.answers if isinstance(lake, Glance) else {}
    if (table, question) in known:
        return known[(table, question)]
    delta = lake.open(table)
    if delta is None:
        return []
    found = QueryBuilder().register("rows", delta).execute(question)
    known[(table, question)] = list(pa.RecordBatchReader.from_stream(found).read_all().to_pylist())
    return known[(table, question)]
