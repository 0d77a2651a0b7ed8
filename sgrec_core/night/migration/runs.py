"""Runs of stages and gates: in layout 0 a file each, that of the newest run."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sgrec_core.files import read_json
from sgrec_core.hashing import digest
from sgrec_core.night.migration.scores import COUNTED
from sgrec_core.night.migration.step import VERSION, Migration
from sgrec_core.runtime.runs import Run, record, runs_of_day

KINDS = ("stages", "gates")
OBSOLETE = (*KINDS, COUNTED, "inputs.txt")
"""Of a report, what tables tell now; the digest in ``inputs.txt`` says nothing to the rule for stale nights."""


def record_runs(migration: Migration) -> Iterator[str]:
    """Rows of ``stage_runs``, those of a report in one commit. No code digest: other code has made their results."""
    count, days = 0, set()
    for day, folder, reports in migration.reports():
        runs = [run for kind in KINDS for path in _files(reports / kind) for run in _runs(migration, day, folder, path)]
        known = {run.run_id for run in runs_of_day(migration.lake, day, folder=folder)}
        runs = [run for run in runs if run.run_id not in known]
        if runs and not migration.dry_run:
            record(migration.lake, runs)
        count += len(runs)
        days |= {day} if runs else set()
    if count:
        yield f"table stage_runs: {count} runs of {len(days)} days"


def remove_files(migration: Migration) -> Iterator[str]:
    """What is in tables now, once it is."""
    found = [path for _, _, reports in migration.reports() for path in map(reports.joinpath, OBSOLETE) if path.exists()]
    for path in found if not migration.dry_run else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if found:
        yield f"{len(found)} files and folders of reports removed: tables tell what they told"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _runs(migration: Migration, day: str, folder: str, path: Path) -> Iterator[Run]:
    """What a file tells: its run, and before it those whose facts a stage that did not come to its end had kept."""
    content = read_json(path, otherwise="that run is left out")
    if not content:
        return
    started = datetime.fromisoformat(content["started"]).astimezone(UTC)
    for back, earlier in enumerate(content.get("earlier", []), start=1):
        # Only their order is known.
        moment = started - timedelta(seconds=back)
        yield _run(migration, day, folder, {**earlier, "stage": content["stage"], "state": "finished"}, moment)
    yield _run(migration, day, folder, content, started)


def _run(migration: Migration, day: str, folder: str, content: dict[str, Any], started: datetime) -> Run:
    facts = dict(content.get("facts", {}))
    if "judge_version" in facts:
        facts["judge_version"] = migration.judges.get(facts["judge_version"], facts["judge_version"])
    tables = {table: version for table, version in content.get("tables", {}).items() if version is not None}
    return Run(
        day=day,
        stage=content["stage"],
        folder=folder,
        input=migration.settings.input,
        run_id=digest("layout 0", day, folder, content["stage"], started.isoformat(), length=32),
        sequence=int(content["state"] != "running"),
        state=content["state"],
        started=started,
        seconds=float(content.get("seconds", 0.0)),
        message=content.get("message"),
        facts=facts,
        notes=content.get("notes", []),
        fingerprint=content.get("fingerprint"),
        tables_written=tables,
        sgrec_version=content.get("sgrec_version", VERSION),
        git_revision=None,
    )
