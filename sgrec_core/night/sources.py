"""Where a day's raw logs lie: they come from the user, or are made here first."""

from pathlib import Path

from sgrec_core.logs.adaptors import parse_source, write_day
from sgrec_core.settings import Settings
from sgrec_core.simulator import raw_logs


def prepare_landing(settings: Settings, day: str) -> Path:
    """The root of the landing that holds ``day``, made first where the source is not raw logs already.

    Raises:
        InputError: the source cannot be read, or has no such day.
    """
    source = parse_source(settings.input)
    if source.path is not None and source.kind == "logs":
        return source.path
    root = settings.home.resolve() / "landing" / source.kind
    if source.path is None:
        raw_logs.write_day(
            settings.simulator,
            day=day,
            first_day=settings.first_day,
            landing_root=root,
            truth_root=settings.home.resolve() / "simulator",
        )
    else:
        write_day(source, day=day, first_day=settings.first_day, days=settings.adaptor.days, landing_root=root)
    return root
