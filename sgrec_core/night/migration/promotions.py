"""Promotions: in layout 0 tags of versions in MLflow, by which the champion of any night was told anew each time."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime

import pyarrow as pa

from sgrec_core.lake import load_contract
from sgrec_core.night.migration.step import Migration
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.promotions import TABLE, Action, Decision, Promotions, champion
from sgrec_core.runtime.runs import last_runs
from sgrec_core.runtime.stages import GENERATOR

DAY, ORDER, TAKEN_BACK = "sgrec.promoted_day", "sgrec.promotion", "sgrec.rolled_back"
PINNED_BY = "train_supervised"
"""The stage that pins."""


def record_promotions(migration: Migration) -> Iterator[str]:
    """The table ``promotions`` that makes the champion, and each night's pin, those of before; in one commit."""
    if Promotions(migration.lake).rows().num_rows or not _has_registry(migration):
        return
    registry = Registry(migration.settings)
    decisions = decisions_of_before(registry.versions(GENERATOR), _nights(migration))
    if not decisions:
        return
    if not migration.dry_run:
        now = datetime.now(UTC)
        rows = [
            {**asdict(decision), "day": date.fromisoformat(decision.day), "sequence": number, "decided_at": now}
            for number, decision in enumerate(decisions, start=1)
        ]
        migration.lake.append(TABLE, pa.Table.from_pylist(rows, schema=load_contract(TABLE).arrow_schema))
    actions = [decision.action for decision in decisions]
    counts = ", ".join(f"{actions.count(action)} {action}" for action in dict.fromkeys(actions))
    yield f"table {TABLE}: {counts}; champion: version {champion(decisions) or 'none'}"


def decisions_of_before(versions: list[ModelVersion], nights: list[str]) -> list[Decision]:
    """What was decided, in an order of days.

    A night worked against the version promoted last by a night before it. Of what was rolled back only that is known,
    not when: it is promoted and taken back as of its own night.
    """
    promoted = sorted(
        (version for version in versions if DAY in version.tags),
        key=lambda version: (version.tags[DAY], int(version.tags[ORDER])),
    )
    moments: list[tuple[str, int, Decision]] = []
    for night in nights:
        before = [version for version in promoted if version.tags[DAY] < night]
        moments.append((night, 0, _decision("pin", night, before[-1] if before else None)))
    for version in versions:
        if TAKEN_BACK in version.tags and DAY not in version.tags:
            moments += [(version.day, 1, _decision(action, version.day, version)) for action in ("promote", "rollback")]
    moments += [(version.tags[DAY], 2, _decision("promote", version.tags[DAY], version)) for version in promoted]
    return [decision for _, _, decision in sorted(moments, key=lambda moment: moment[:2])]


def _decision(action: Action, day: str, version: ModelVersion | None) -> Decision:
    return Decision(
        day=day,
        action=action,
        model=GENERATOR,
        version=version.version if version else None,
        fingerprint=version.fingerprint if version else None,
        who="unknown",
        reason="as the tags of the version told, before there was this table",
    )


def _nights(migration: Migration) -> list[str]:
    """Those that came as far as to work against a champion."""
    days = {day for day, folder, _ in migration.reports() if not folder}
    files = {day for day, _, path in migration.reports() if (path / "stages" / f"{PINNED_BY}.json").exists()}
    return sorted(files | {day for day in days if PINNED_BY in last_runs(migration.lake, day)})


def _has_registry(migration: Migration) -> bool:
    return migration.settings.mlflow_uri is not None or (migration.home / "mlflow" / "mlflow.db").exists()
