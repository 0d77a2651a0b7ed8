"""Which layout the data of a home has: what it keeps where, by number. `sgrec migrate` brings older ones to today's."""

from pathlib import Path
from typing import Any

from sgrec_core.errors import SettingsError
from sgrec_core.files import read_json, write_json

LAYOUT = 1
"""Runs, promotions and what the judge was paid are tables; before, in layout 0, they were files, tags and commits."""
_FILE = "home.json"
CHECKPOINTS = "delta.checkpointInterval"
"""A property of every table since layout 1."""


def layout_of(home: Path) -> int:
    """The layout of a home; of a home without data today's."""
    noted = home_notes(home).get("layout")
    if isinstance(noted, int):
        return noted
    # Layout 0 had no note of itself. Every stage left a file; where reports were cleaned away the tables are left.
    folders = ("reports/*/stages", "reports/*/judge_training/stages")
    return 0 if any(next(home.glob(folder), None) for folder in folders) or _tables_are_of_before(home) else LAYOUT


def _tables_are_of_before(home: Path) -> bool:
    """Whether layout 0 made the tables of a home: the scores lie otherwise, or no run is noted beside older tables."""
    from sgrec_core.lake import Lake, table_names  # heavy, and most homes are told without it

    lake = Lake(str(home / "lake"))  # then it was nowhere else
    scores = lake.open("aspect_scores")
    if scores is not None and "day" not in scores.metadata().partition_columns:
        return True
    if lake.open("stage_runs") is not None:
        return False
    tables = (lake.open(name) for name in table_names())
    return any(CHECKPOINTS not in table.metadata().configuration for table in tables if table is not None)


def home_notes(home: Path) -> dict[str, Any]:
    """What `note_layout` has written."""
    return read_json(home / _FILE, otherwise="its layout is told from the files of the home")


def note_layout(home: Path, layout: int, **notes: Any) -> None:
    """Write the number of the layout into the home, with what else a migration must remember."""
    write_json(home / _FILE, {"layout": layout, **notes})


def check_layout(home: Path) -> None:
    """Raise where the data of the home are laid out otherwise than this version of sgrec expects.

    Raises:
        SettingsError: they are.
    """
    layout = layout_of(home)
    if layout < LAYOUT:
        raise SettingsError(f"home {home} was made by an older version of sgrec: run `sgrec migrate` once")
    if layout > LAYOUT:
        raise SettingsError(f"home {home} was made by a newer version of sgrec (layout {layout}, here {LAYOUT})")
