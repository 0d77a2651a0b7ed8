"""Whether a night would find everything up to date."""

import json
import re

from sgrec_core.files import write_text
from sgrec_core.hashing import digest
from sgrec_core.judge.versions.adapters import of_night
from sgrec_core.runtime.stages import BY_NAME, STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings


def remember_night(settings: Settings, day: str) -> None:
    """Note what the night of ``day``, which has just succeeded, depended on; see `night_is_unchanged`."""
    write_text(settings.reports(day) / "inputs.txt", inputs_of_night(settings, day) + "\n")


def night_is_unchanged(settings: Settings, day: str) -> bool:
    """Whether running the night of ``day`` again would find every stage up to date.

    It would when code, settings, raw logs, the tables up to the day and the models that it used are those after its
    last success. A doubt costs a run whose stages find out for themselves.
    """
    stamp = settings.reports(day) / "inputs.txt"
    return stamp.exists() and stamp.read_text(errors="replace").strip() == inputs_of_night(settings, day)


def inputs_of_night(settings: Settings, day: str) -> str:
    """Digest of everything that the night of ``day`` reads, and of what it made.

    Tables without a day are left out: they are keyed by content and later nights add rows that this one does not use.
    """
    from sgrec_core.lake import Lake, load_contract
    from sgrec_core.registry import Registry

    code = [
        (path.relative_to(PROJECT_ROOT).as_posix(), digest(path.read_bytes().hex()))
        for folder in ("sgrec_core", "jobs", "schemas")
        for path in sorted((PROJECT_ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".yaml", ".jinja")
    ]
    lake = Lake(settings.lake_root)
    files = []
    for table in (table for stage in STAGES for table in stage.publishes):
        delta = lake.open(table)
        if delta is None or "day" not in load_contract(table).partition_by:
            files.append(f"{table}: {'nothing' if delta is None else 'not by day'}")
            continue
        # Every publication writes files with new names, so the names of the active ones tell its state.
        for uri in delta.file_uris():
            partition = re.search(r"/day=(\d{4}-\d{2}-\d{2})/", uri)
            if partition is None or partition[1] <= day:
                files.append(uri)
    registry = Registry(settings)
    names = [stage.registers for stage in STAGES if stage.registers]
    if settings.aggregator.engine == "language_model":
        names.append(BY_NAME["train_judge_weights"].registers or "")
    models = [
        (version.name, version.version, version.fingerprint)
        for name in names
        for version in registry.versions(name)
        if version.day <= day
    ]
    state = {
        "code": code,
        "settings": settings.model_dump(mode="json", exclude={"home", "lake", "airflow"}),
        "raw": raw_state(settings, day),
        "files": sorted(files),
        "models": sorted(models),
        "champion": str(registry.pinned_champion(day)),
        "judge": str(of_night(settings, day)) if settings.judge.adapter == "active" else None,
    }
    return digest(json.dumps(state, sort_keys=True), length=32)


def raw_state(settings: Settings, day: str) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that the day's raw logs come from; none for the simulator."""
    from sgrec_core.logs.adaptors import parse_source
    from sgrec_core.logs.landing import day_folder

    source = parse_source(settings.input)
    if source.path is None:
        return []
    root = day_folder(source.path, day) if source.kind == "logs" else source.path
    return [
        (path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
