"""What the lake knows of the runs of stages and gates."""

from dataclasses import asdict
from typing import Any

from sgrec_core.lake import Lake
from sgrec_core.runtime.runs import last_runs
from sgrec_core.runtime.stages import BY_NAME
from sgrec_core.settings import Settings


def last_run(settings: Settings, day: str, stage: str) -> dict[str, Any]:
    """State, facts, notes and the rest of the newest run of a stage or gate."""
    folder = BY_NAME[stage.removeprefix("check_")].folder
    return asdict(last_runs(Lake(settings.lake_root), day, folder=folder)[stage])
