"""Which adapter of the judge's model a night uses: what the judge's training made, and which of that passed its gate.

Adapters lie under ``<home>/judge`` as folders that vLLM loads, copies of what MLflow has under ``sgrec-judge``; beside
them ``adapters.json`` says which day's training made which and which were activated. The judge's environment has no
MLflow, so this is how it knows. A night uses what a training of an earlier day had activated when the night began, the
same at every re-run: ``reports/<day>/judge.json`` keeps it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sgrec_core.errors import SettingsError
from sgrec_core.files import warn_of_damage, write_json, write_json_once
from sgrec_core.hashing import digest
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import Stage
from sgrec_core.settings import Settings

KINDS = ("trained", "active")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that a training made."""

    day: str
    folder: str
    """Name below ``<home>/judge``."""
    model: str
    """What ``judge.model`` was: an adapter fits no other."""
    revision: str | None
    rubric: str
    """Digest of the rubric that it was trained and compared for (`rubric_digest`)."""
    version: str
    """Of ``sgrec-judge``."""

    def path(self, settings: Settings) -> Path:
        return judge_folder(settings) / self.folder

    def fits(self, settings: Settings) -> bool:
        """Whether it was trained for the judge's model and rubric."""
        of_judge = (settings.judge.model, settings.judge.revision, rubric_digest(settings))
        return (self.model, self.revision, self.rubric) == of_judge


def rubric_digest(settings: Settings) -> str:
    """Of the rubric's words."""
    from sgrec_core.judge.rubric import load_rubric

    return digest(load_rubric(True, settings.judge.rubric).text)


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


def newest(settings: Settings) -> Adapter | None:
    """What the newest training that activated anything did activate."""
    return active(settings, "9999-12-31")


def activate(settings: Settings, day: str, adapter: Adapter | None) -> None:
    """Let nights after ``day`` use ``adapter``; None takes back what an earlier run for that day activated."""
    _write(settings, "active", day, adapter)


def of_night(settings: Settings, day: str, *, pin: bool = False) -> Adapter | None:
    """The adapter of night ``day``: what was active when its first stage asked, else what is active now.

    ``pin`` makes this the first time: a training that ends while the night runs, or after it, changes nothing about it.
    """
    path = _pin(settings, day)
    try:
        return _read_pin(path)
    except FileNotFoundError:
        write = write_json_once
    except (ValueError, TypeError) as error:
        warn_of_damage(path, str(error), f"night {day} uses the adapter that is active for it now")
        write = write_json
    found = active(settings, day)
    if not pin:
        return found
    write(path, found and asdict(found))
    return _read_pin(path)


def unpin(settings: Settings, day: str) -> None:
    """Forget which adapter night ``day`` began with."""
    _pin(settings, day).unlink(missing_ok=True)


def settings_of_stage(settings: Settings, stage: Stage, day: str, *, pin: bool = True) -> Settings:
    """Settings in which ``judge.adapter=active`` has become the adapter that night ``day`` uses, if there is any.

    ``pin`` as in `of_night`.

    Stages of the judge's training start from the model as it came; the report comes out whatever the judge is.

    Raises:
        SettingsError: that adapter was trained for another model or rubric.
    """
    if settings.judge.adapter != "active":
        return settings
    asks_no_judge = stage.folder or stage.engine == "quality"
    return with_adapter(settings, None if asks_no_judge else of_night(settings, day, pin=pin))


def resolve_adapter(job: Job) -> Job:
    """Put what `settings_of_stage` says into the settings of ``job``: every stage that asks a judge begins with it."""
    job.settings = settings_of_stage(job.settings, job.stage, job.day, pin=not job.looks_only)
    return job


def with_adapter(settings: Settings, adapter: Adapter | None) -> Settings:
    """Settings whose judge is its model with ``adapter``, or as it came.

    Raises:
        SettingsError: the adapter was trained for another model or rubric.
    """
    if adapter is not None and not adapter.fits(settings):
        raise SettingsError(
            f"the adapter that the training of {adapter.day} made is for judge.model={adapter.model!r}"
            f" (revision {adapter.revision}) and rubric {adapter.rubric}, not for {settings.judge.model!r} (revision"
            f" {settings.judge.revision}) and rubric {rubric_digest(settings)}; go back to these"
            " (SGREC_JUDGE__MODEL, SGREC_JUDGE__REVISION, SGREC_JUDGE__RUBRIC), or train again and judge later days"
            " with the new one"
        )
    path = None if adapter is None else adapter.path(settings)
    return settings.model_copy(update={"judge": settings.judge.model_copy(update={"adapter": path})})


def judge_folder(settings: Settings) -> Path:
    """Where adapters lie."""
    return settings.home.resolve() / "judge"


def _pin(settings: Settings, day: str) -> Path:
    return settings.reports(day) / "judge.json"


def _read_pin(path: Path) -> Adapter | None:
    fields = json.loads(path.read_bytes())
    return None if fields is None else Adapter(**fields)


def _read(settings: Settings) -> dict[str, dict[str, Any]]:
    """What ``adapters.json`` holds.

    Raises:
        SettingsError: it was damaged. To go on without it would judge, and pay, with another judge.
    """
    path = judge_folder(settings) / "adapters.json"
    try:
        found = json.loads(path.read_bytes())
        return {kind: {day: asdict(Adapter(**fields)) for day, fields in found[kind].items()} for kind in KINDS}
    except FileNotFoundError:
        return {kind: {} for kind in KINDS}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingsError(
            f"{path}: not what `sgrec` writes ({error}); put it right, or remove it: nights then use the model as it"
            " came until `sgrec train-judge` activates an adapter"
        ) from error


def _find(settings: Settings, kind: str, day: str) -> Adapter | None:
    fields = _read(settings)[kind].get(day)
    return Adapter(**fields) if fields else None


def _write(settings: Settings, kind: str, day: str, adapter: Adapter | None) -> None:
    content = _read(settings)
    if adapter is None:
        content[kind].pop(day, None)
    else:
        content[kind][day] = asdict(adapter)
    write_json(judge_folder(settings) / "adapters.json", content)
