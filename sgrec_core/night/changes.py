"""What of a night would be computed again, and why: one rule for `backfill`, `backfill --dry-run` and `status`.

A night is as it would be made today when the code of its stages, and all that they read, are those after its last
success. The table ``stage_runs`` tells the code; the rest is kept in ``reports/<day>/inputs.json``, a digest a part. A
doubt costs a run whose stages find out for themselves.
"""

import json
from dataclasses import dataclass
from typing import Any

from sgrec_core.files import read_json, write_json
from sgrec_core.hashing import digest
from sgrec_core.judge.versions.adapters import of_night
from sgrec_core.lake import Lake
from sgrec_core.runtime.code import stage_digests
from sgrec_core.runtime.runs import DONE, last_runs
from sgrec_core.runtime.stages import BY_NAME, STAGES, Stage
from sgrec_core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What has changed since the last success of a night."""

    new: bool
    """Whether it has not come to its end, or never ran."""
    stages: tuple[str, ...] = ()
    """Those whose code has changed."""
    inputs: tuple[str, ...] = ()
    """Kinds of input that have changed, in words."""

    def __bool__(self) -> bool:
        return self.new or bool(self.stages) or bool(self.inputs)

    @property
    def state(self) -> str:
        """``new``, ``stale`` (other code), ``changed`` (other inputs) or ``unchanged``."""
        return "new" if self.new else "stale" if self.stages else "changed" if self.inputs else "unchanged"

    @property
    def computed(self) -> str:
        """What would be computed, in words; of stages behind only those whose inputs come out otherwise."""
        if not self:
            return "nothing"
        if self.new:
            return "every stage"
        if self.inputs:
            return "every stage whose inputs are others"
        behind = stages_behind(self.stages)
        return ", ".join(self.stages) + (f"; behind them {', '.join(behind)}" if behind else "")

    @property
    def why(self) -> str:
        """In words."""
        if self.new:
            return "it has not come to its end"
        reasons = [f"code of {', '.join(self.stages)}"] if self.stages else []
        return "; ".join([*reasons, *self.inputs])


def remember_night(settings: Settings, day: str) -> None:
    """Note what the night of ``day``, which has just succeeded, read and made; see `changes_of_night`."""
    write_json(settings.reports(day) / "inputs.json", inputs_of_night(settings, day))


def changes_of_night(settings: Settings, day: str) -> Changes:
    """What has changed since the night of ``day`` succeeded."""
    runs = last_runs(Lake(settings.lake_root), day)
    if any(stage.name not in runs or runs[stage.name].state not in DONE for stage in STAGES):
        return Changes(new=True)
    stages = stale_stages(settings, day)
    before = read_json(settings.reports(day) / "inputs.json", otherwise="the night is looked at again")
    if not before:
        # A night that no backfill ran.
        return Changes(new=False, stages=stages, inputs=("what it read was not noted",))
    now = inputs_of_night(settings, day)
    return Changes(new=False, stages=stages, inputs=tuple(name for name in now if now[name] != before.get(name)))


def stale_stages(settings: Settings, day: str) -> tuple[str, ...]:
    """Stages of the night of ``day`` whose results other code has made than would make them today.

    Those that have not run are left out, and those whose results stay until somebody asks for others.
    """
    runs = last_runs(Lake(settings.lake_root), day)
    today = stage_digests(settings.home.resolve() / "cache" / "code.json")
    return tuple(
        stage.name
        for stage in STAGES
        if (stage.publishes or stage.registers)
        and not stage.stays
        and stage.name in runs
        and runs[stage.name].state in DONE
        and runs[stage.name].code_digest != today[stage.name]
    )


def stages_behind(stages: tuple[str, ...]) -> list[str]:
    """Stages that read what ``stages`` make, or what is made of it, in order and without these."""
    made: set[str] = set()
    behind = []
    for stage in STAGES:
        if stage.name in stages:
            made |= _makes(stage)
        elif made & {*stage.reads, *stage.uses}:
            made |= _makes(stage)
            behind.append(stage.name)
    return behind


def _makes(stage: Stage) -> set[str]:
    return {*stage.publishes, *stage.registers}


def inputs_of_night(settings: Settings, day: str) -> dict[str, str]:
    """Digests of everything but code that the night of ``day`` reads, and of what it made, by their names in words.

    Tables that are keyed by content are left out: later nights add rows that this one does not use.
    """
    from sgrec_core.logs.parsing import rules
    from sgrec_core.registry import Registry
    from sgrec_core.registry.promotions import accepted

    lake = Lake(settings.lake_root)
    tables = [table for stage in STAGES for table in stage.publishes]
    registry = Registry(settings)
    names = [name for stage in STAGES for name in stage.registers]
    if settings.aggregator.engine == "language_model":
        names += BY_NAME["train_judge_weights"].registers
    models = [
        (version.name, version.version, version.fingerprint)
        for name in names
        for version in registry.versions(name)
        if version.day <= day
    ]
    state: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", exclude={"home", "lake", "airflow", "alerts"}),
        "contracts of the raw logs": rules(),
        "raw logs": raw_state(settings, day),
        "tables of this or earlier days": [line for table in tables for line in lake.published_until(table, day)],
        "models of this or earlier days": sorted(models),
        "champion": str(registry.pinned_champion(day)),
        "judge": str(of_night(settings, day)) if settings.judge.adapter == "active" else None,
    }
    known = sorted(one for one in accepted(registry.promotions.read()) if one[0] <= day)
    if known:  # homes of before have no such line
        state["figures of this or earlier days that were accepted"] = known
    return {name: digest(json.dumps(value, sort_keys=True), length=32) for name, value in state.items()}


def raw_state(settings: Settings, day: str) -> object:
    """What the day's raw logs come from: name, size and time of change of files, and the code that makes them."""
    from sgrec_core.errors import InputError
    from sgrec_core.logs.adaptors import code_of_logs, parse_source
    from sgrec_core.logs.landing import landed
    from sgrec_core.simulator import fingerprint_of_day

    source = parse_source(settings.input)
    if source.path is None:
        return fingerprint_of_day(settings.simulator, day=day, first_day=settings.first_day)
    made: list[object]
    if source.kind == "logs":
        made = [settings.mapping.read_text(encoding="utf-8")] if settings.mapping is not None else []
        try:
            found = landed(source.path, day, needs_catalogue=False)
        except InputError:
            return made
        made += [(one.name, one.why) for one in found.left_out]
        files = {file.name: file.path for file in found.files}
    else:
        made = [code_of_logs()]
        paths = sorted(path for path in source.path.rglob("*") if path.is_file())
        files = {path.relative_to(source.path).as_posix(): path for path in paths}
    return made + [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()]
