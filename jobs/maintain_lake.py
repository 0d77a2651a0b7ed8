"""Compact, checkpoint and vacuum the tables of the lake: once a week, or by `sgrec maintain`."""

from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sgrec_core.lake import Lake
from sgrec_core.lake.maintenance import maintain_all
from sgrec_core.runtime.job import errors_in_words, load_settings


def maintain_lake(
    keep_days: Annotated[
        int, typer.Option(min=1, help="Days for which old versions of the tables can still be read.")
    ] = 30,
) -> None:
    """Make the tables small to open again. No row is deleted: what rewards and models were made of stays.

    Exit codes: 0 done, 1 crashed, 2 a setting is wrong.
    """
    with errors_in_words():
        done = maintain_all(Lake(load_settings().lake_root), timedelta(days=keep_days))
    table = Table("table", "files before", "files", "deleted", "", title="maintained", title_justify="left")
    for one in done:
        note = "a publication came first: not compacted" if one.was_busy else ""
        table.add_row(one.table, f"{one.files_before:,}", f"{one.files:,}", f"{one.deleted:,}", note)
    Console(highlight=False).print(table)


def main() -> None:
    typer.run(maintain_lake)


if __name__ == "__main__":
    main()
