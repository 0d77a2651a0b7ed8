"""Which layout the data of a home has: what it keeps where, by number. `sgrec migrate` brings older ones to today's."""

from pathlib import Path
from typing import Any

from sgrec_core.errors import SettingsError
from sgrec_core.files import read_json, write_json

LAYOUT = 1
"""Runs, promotions and what the judge was paid are tables; before, in layout 0, they were files, tags and commits."""
_FILE = "home.json"


def layout_of(home: Path) -> int:
    """The layout of a home; of a home without data today's."""
    noted = home_notes(home).get("layout")
    if isinstance(noted, int):
        return noted
    # Layout 0 had no note of itself. Every stage left a file.
    folders = ("reports/*/stages", "reports/*/judge_training/stages")
    return 0 if any(next(home.glob(folder), None) for folder in folders) else LAYOUT


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
