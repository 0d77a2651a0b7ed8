"""The tables as they were at one moment, for who only reads."""

from typing import Any

from deltalake import DeltaTable

from sgrec_core.lake.tables import Lake


class Glance(Lake):
    """A lake whose tables are opened once: most of the time of many small questions is spent on opening them.

    What is published meanwhile is not seen.
    """

    def __init__(self, root: str):
        super().__init__(root)
        self._opened: dict[str, DeltaTable | None] = {}
        self.answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
        """By table and question: what `queries.ask` has found."""

    def open(self, table: str, version: int | None = None) -> DeltaTable | None:
        if version is not None:
            return super().open(table, version)
        if table not in self._opened:
            self._opened[table] = super().open(table)
        return self._opened[table]
