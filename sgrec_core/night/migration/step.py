"""What the steps of a migration share."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sgrec_core.lake import Lake
from sgrec_core.settings import Settings

VERSION = "0.1.0"
"""Of sgrec while it had layout 0."""


@dataclass(frozen=True, kw_only=True)
class Migration:
    """A home on its way to today's layout and contracts."""

    settings: Settings
    lake: Lake
    judges: dict[str, str]
    """``judge_version`` of layout 0 to that of the same judge now."""
    dry_run: bool

    @property
    def home(self) -> Path:
        return self.settings.home.resolve()

    def reports(self) -> Iterator[tuple[str, str, Path]]:
        """Day, folder (see `Stage`) and path of every report, the oldest first."""
        for path in sorted((self.home / "reports").glob("*")):
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", path.name):
                yield path.name, "", path
                yield path.name, "judge_training", path / "judge_training"
