"""`sgrec migrate`: a home of an older version of sgrec becomes one of this version, and pays and refits nothing.

A migration is a list of steps. Each looks at what is there, says what it does about it, and finds nothing to do where
it was done before; what it writes to a table is one commit. So a migration that was killed is run again.
"""

from collections.abc import Iterator

from sgrec_core.lake import Lake
from sgrec_core.night.airflow import only_night
from sgrec_core.night.migration import judges, promotions, runs, scores, tables
from sgrec_core.night.migration.judges import judges_of_before
from sgrec_core.night.migration.step import Migration
from sgrec_core.runtime.layout import LAYOUT, home_notes, layout_of, note_layout
from sgrec_core.settings import Settings

STEPS = (
    tables.add_columns,
    judges.describe_judges,
    scores.write_ledger,
    scores.lay_out_scores,
    tables.set_properties,
    judges.accept_judges,
    runs.record_runs,
    promotions.record_promotions,
    runs.remove_files,
)
"""From layout 0 to 1, in order."""
STEPS_OF_ANY_LAYOUT = (tables.refuse_other_changes, tables.add_columns)
"""What a home of today's layout may still lack: that is told by its tables, not by the number of its layout."""


def migrate(settings: Settings, *, dry_run: bool = False) -> Iterator[str]:
    """Bring the home of ``settings`` to today's layout and contracts, step by step; what each does, in words.

    Raises:
        SettingsError: a night runs in the home, or a file that it needs is damaged.
    """
    home = settings.home.resolve()
    layout = layout_of(home)
    if layout > LAYOUT:
        return
    with only_night(settings, "a migration"):
        lake = Lake(settings.lake_root)
        if layout == LAYOUT:
            migration = Migration(settings=settings, lake=lake, judges={}, dry_run=dry_run)
            for step in STEPS_OF_ANY_LAYOUT:
                yield from step(migration)
            return
        # Noted before anything changes: afterwards nothing tells the judges of before, nor that the home is an old one.
        of_judges = home_notes(home).get("judges") or judges_of_before(settings, lake)
        if not dry_run:
            note_layout(home, 0, judges=of_judges)
        migration = Migration(settings=settings, lake=lake, judges=of_judges, dry_run=dry_run)
        for step in STEPS:
            yield from step(migration)
        if not dry_run:
            note_layout(home, LAYOUT)
