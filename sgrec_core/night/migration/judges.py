"""Judges under the versions that they have now: the same judge gives the same scores, so no call is paid twice.

In layout 0 ``judge_version`` covered a name of the formula, or how a probe was worded; now it covers the code.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import SettingsError
from sgrec_core.files import write_json
from sgrec_core.hashing import digest
from sgrec_core.judge.rubric import Rubric, load_rubric
from sgrec_core.judge.versions.accepted import accepted_judges
from sgrec_core.judge.versions.adapters import judge_folder
from sgrec_core.lake import Lake
from sgrec_core.night.migration.step import Migration
from sgrec_core.settings import Settings

CODE = {
    "embedding": "10069d870a8d5434",
    "vllm labels": "4b9a6c44f6581b90",
    "vllm reasoning": "0c1513d863093bfd",
    "server labels": "ebfab0a1f305e6ae",
    "server reasoning": "aec5c9ae9a7a425f",
}
"""Digest of the code that judges as layout 0 did, by engine and mode. What judges otherwise later is another judge."""
FORMULA = ["cosines-1", 3.0]


def judges_of_before(settings: Settings, lake: Lake) -> dict[str, str]:
    """``judge_version`` of before to that of the same judge in layout 1, of all that scored or were accepted."""
    found: dict[str, str] = {}
    of_judge: dict[str, list[str]] = {}
    for row in lake.read("judge_versions").to_pylist():
        before, judges = row["judge_version"], judges_now(json.loads(row["facts"]), row["rubric"])
        of_judge[before] = [judge.version for judge in judges]
        aspects = _aspects_of(lake, before)
        for judge in judges:
            if judge.aspects == aspects:
                found[before] = judge.version
    for accepted in accepted_judges(settings):
        # With and without context: of two that were accepted together, one may never have scored.
        known = [of_judge[version] for version in accepted.versions if of_judge.get(version)]
        if known and len(accepted.versions) == 2:
            found |= dict(zip(accepted.versions, known[0], strict=True))
    return found


def _aspects_of(lake: Lake, judge: str) -> list[str] | None:
    """Those that the judge was asked about; None where it scored nothing. The table is still laid out as before."""
    delta = lake.open("aspect_scores")
    if delta is None:
        return None
    where = pc.field("judge_version") == judge
    first = delta.to_pyarrow_dataset().head(1, filter=where, columns=["aspects"]).to_pylist()
    return first[0]["aspects"] if first else None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge of before as it is described now, for data with or without context."""

    version: str
    facts: dict[str, Any]
    aspects: list[str]


def judges_now(before: Mapping[str, Any], text: str) -> list[Judge]:
    """The judge that a row of ``judge_versions`` of before describes, first with context; none where it has no equal.

    Args:
        before: facts of the row.
        text: the rubric's.
    """
    if "formula" in before:
        facts = {name: before[name] for name in ("engine", "model")}
        if before["formula"] != FORMULA:
            return []
    elif before.get("chat_template_arguments") == {"enable_thinking": False}:
        decoding = {name: value for name, value in before["decoding"].items() if name != "temperature"}
        facts = {**{name: before[name] for name in ("engine", "model")}, "decoding": decoding}
    else:
        return []
    mode = before.get("decoding", {}).get("mode")
    code = CODE[f"{before['engine']} {mode}" if mode else before["engine"]]
    try:
        rubrics = _rubrics(text)
    except SettingsError:
        return []
    judges = []
    for rubric in rubrics:
        its = dict(facts)
        if mode == "reasoning":
            # How long an answer could be has followed from the rubric.
            labels = 2 * len(json.dumps({aspect.id: aspect.levels[0].label for aspect in rubric.aspects}))
            room = labels + 32 + 4 * before["decoding"]["reasoning_characters"]
            its["decoding"] = {**its["decoding"], "max_tokens": room}
        complete = {**its, "rubric": rubric.fingerprint, "code": code}
        version = digest(json.dumps(complete, sort_keys=True))
        judges.append(Judge(version=version, facts=its, aspects=rubric.aspect_ids))
    return judges


def describe_judges(migration: Migration) -> Iterator[str]:
    """Rows of ``judge_versions`` for the versions that judges have now; those of before stay."""
    rows = migration.lake.read("judge_versions").to_pylist()
    described = {row["judge_version"] for row in rows}
    new = []
    for row in rows:
        before, facts = row["judge_version"], json.loads(row["facts"])
        if not facts.keys() & {"formula", "chat_template_arguments"}:
            continue
        now = migration.judges.get(before)
        if now is None:
            yield f"judge {before} scored nothing, or has no equal any more: it stays under that version"
        elif now not in described:
            its = next(judge.facts for judge in judges_now(facts, row["rubric"]) if judge.version == now)
            new.append({**row, "judge_version": now, "facts": json.dumps(its, sort_keys=True)})
            yield f"judge {before} is {now} now"
    if new and not migration.dry_run:
        migration.lake.append("judge_versions", pa.Table.from_pylist(new))


def accept_judges(migration: Migration) -> Iterator[str]:
    """Judges that nights might use go on to be those that they may use."""
    judges = [asdict(judge) for judge in accepted_judges(migration.settings)]
    changed = 0
    for judge in judges:
        versions = [migration.judges.get(version, version) for version in judge["versions"]]
        changed += versions != judge["versions"]
        judge["versions"] = versions
    if changed:
        if not migration.dry_run:
            write_json(judge_folder(migration.settings) / "accepted.json", {"judges": judges})
        yield f"{changed} accepted judges have their versions of now"


def _rubrics(text: str) -> tuple[Rubric, Rubric]:
    """The rubric for data with and without context."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rubric.yaml"
        path.write_text(text, encoding="utf-8")
        return load_rubric(True, path), load_rubric(False, path)
