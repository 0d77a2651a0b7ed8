"""Which adapter of the judge's model a night uses: what the judge's training made, and which of that passed its gate.

Adapters lie under ``<home>/judge`` as folders that vLLM loads, copies of what MLflow has under ``sgrec-judge``; beside them
``adapters.json`` says which day's training made which and which were activated. The judge's environment has no MLflow, so this is
how it knows. A night uses what a training of an earlier day activated: like the pinned champion, the same at every re-run.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgrec_core.errors import SettingsError
from sgrec_core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that a training made."""

    day: str
    folder: str
    """Name below ``<home>/judge``."""
    model: str
    """What ``judge.model`` was: an adapter fits no other."""
    version: str
    """Of ``sgrec-judge``."""

    def path(self, settings: Settings) -> Path:
        return judge_folder(settings) / self.folder


def trained(settings: Settings, day: str) -> Adapter | None:
    """What the training of ``day`` made last."""
    return _find(settings, "trained", day)


def remember(settings: Settings, adapter: Adapter) -> None:
    """Note what the training of its day made."""
    _write(settings, "trained", adapter.day, adapter)


def active(settings: Settings, day: str) -> Adapter | None:
    """What a training before ``day`` activated last."""
    days = [activated for activated in _read(settings)["active"] if activated < day]
    return _find(settings, "active", max(days)) if days else None


def activated(settings: Settings, day: str) -> Adapter | None:
    """What the training of ``day`` activated."""
    return _find(settings, "active", day)


def activate(settings: Settings, day: str, adapter: Adapter | None) -> None:
    """Let nights after ``day`` use ``adapter``; None takes back what an earlier run for that day activated."""
    _write(settings, "active", day, adapter)


def settings_of_day(settings: Settings, day: str) -> Settings:
    """Settings in which ``judge.adapter=active`` has become the adapter that night ``day`` uses, if there is any.

    Raises:
        SettingsError: that adapter was trained for another model.
    """
    if settings.judge.adapter != "active":
        return settings
    return with_adapter(settings, active(settings, day))


def with_adapter(settings: Settings, adapter: Adapter | None) -> Settings:
    """Settings whose judge is its model with ``adapter``, or as it came.

    Raises:
        SettingsError: the adapter was trained for another model.
    """
    if adapter is not None and adapter.model != settings.judge.model:
        raise SettingsError(
            f"the adapter that the training of {adapter.day} made is for judge.model={adapter.model!r}, not for"
            f" {settings.judge.model!r}; set SGREC_JUDGE__MODEL to that model, or train again"
        )
    path = None if adapter is None else adapter.path(settings)
    return settings.model_copy(update={"judge": settings.judge.model_copy(update={"adapter": path})})


def judge_folder(settings: Settings) -> Path:
    """Where adapters lie."""
    return settings.home.resolve() / "judge"


def _read(settings: Settings) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads((judge_folder(settings) / "adapters.json").read_text())
    except FileNotFoundError:
        return {"trained": {}, "active": {}}
    return found


def _find(settings: Settings, kind: str, day: str) -> Adapter | None:
    fields = _read(settings)[kind].get(day)
    return Adapter(**fields) if fields else None


def _write(settings: Settings, kind: str, day: str, adapter: Adapter | None) -> None:
    content = _read(settings)
    if adapter is None:
        content[kind].pop(day, None)
    else:
        content[kind][day] = asdict(adapter)
    path = judge_folder(settings) / "adapters.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    scratch.replace(path)
