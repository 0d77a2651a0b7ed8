"""Label files of the judge: one JSON object a line, each enough to ask the judge and to tell whether it was right.

    {"sample_id": "s1", "user_id": "u7", "source": "human", "history": ["blue kettle", "tea cup"],
     "profile": {"age": 30}, "context": {"hour": 20}, "item": "green tea",
     "labels": {"s0": "A", "s1": "B", "s2": "C", "s3": "A"}}

``user_id`` decides which samples are held out (by default each state is a user of its own); ``profile``, ``context``
and ``reasoning`` may be absent. ``labels`` names a level of every aspect of the rubric, except of those that need a
context where there is none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sgrec_core.errors import InputError
from sgrec_core.hashing import digest, hash_share, is_validation_user
from sgrec_core.items.encoder import item_text
from sgrec_core.judge.calls.requests import Call, Texts
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import Aspect, Rubric
from sgrec_core.lake import Lake
from sgrec_core.logs.landing import day_folder
from sgrec_core.logs.readers import FORMATS, read_rows
from sgrec_core.logs.rows import Layout, Limits, Problem, Reading
from sgrec_core.logs.text import canonical_json, storable
from sgrec_core.simulator.world import ASPECTS

Text = Field(min_length=1)
TRUE_ASPECTS = {f"s{number}": name for number, name in enumerate(ASPECTS)}
"""The default rubric's aspects, and what the simulator calls them."""


class _Row(BaseModel):
    """A line of a label file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sample_id: str = Text
    user_id: str | None = Field(None, min_length=1)
    source: str = Text
    history: list[str]
    profile: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    item: str = Text
    labels: dict[str, str]
    reasoning: str | None = None


class RejectedLabel(NamedTuple):
    """A row of ``judge_labels_rejected`` without ``day``."""

    reason: str
    detail: str
    file: str
    line: int
    raw_text: str | None


def label_files(folder: Path) -> list[Path]:
    """The label files in a folder, sorted.

    Raises:
        InputError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("_", ".")))
    if not files:
        raise InputError(
            f"no label files in {folder}; expected {', '.join(f'*{ending}' for ending in FORMATS if ending)}"
        )
    return files


def read_labels(
    folder: Path, rubric: Rubric, limits: Limits, validation_share: float
) -> tuple[list[dict[str, Any]], list[RejectedLabel]]:
    """Rows of ``judge_labels`` without ``day``, and the rows that were not accepted.

    Args:
        rubric: with all its aspects, whether or not they need a context.
        validation_share: share of users whose samples are held out; the same users as in nights.

    Raises:
        InputError: there are no files.
    """
    accepted: list[dict[str, Any]] = []
    rejected: list[RejectedLabel] = []
    seen: dict[str, str] = {}
    for path in label_files(folder):
        file = path.relative_to(folder).as_posix()
        for row in read_rows(path, path.name, limits, Layout(), Reading()):
            found = row.problem if row.fields is None else _read_row(row.fields, rubric)
            assert found is not None, "a reader gives fields or a problem"
            if isinstance(found, dict) and (name := found["sample_id"]) in seen:
                found = Problem("duplicate_key", f"column sample_id: {name!r} was seen before, in {seen[name]}")
            if isinstance(found, Problem):
                rejected.append(RejectedLabel(found.reason, found.detail, file, row.line, row.raw_text))
            else:
                seen[found["sample_id"]] = f"{file} line {row.line}"
                accepted.append(found)
    held_out = is_validation_user([row["user_id"] for row in accepted], validation_share)
    for sample, validation in zip(accepted, held_out.tolist(), strict=True):
        sample["split"] = "validation" if validation else "train"
    return accepted, rejected


def _read_row(fields: dict[str, Any], rubric: Rubric) -> dict[str, Any] | Problem:
    """A row of ``judge_labels`` without day and split, or what is wrong."""
    try:
        row = _Row.model_validate(fields)
        profile, context = (None if value is None else canonical_json(value) for value in (row.profile, row.context))
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        reason = "missing_field" if first["type"] == "missing" else "invalid_value"
        if first["type"].endswith("_type"):
            reason = "wrong_type"
        value = "" if reason == "missing_field" else f" (found {str(first['input'])[:80]!r})"
        return _problem(reason, f"column {place}: {first['msg']}{value}")
    except ValueError as error:
        return _problem("invalid_value", f"a text cannot be stored: {error}")
    aspects = rubric.aspects_for(row.context is not None)
    if unknown := sorted(row.labels.keys() - {aspect.id for aspect in aspects}):
        valid = ", ".join(aspect.id for aspect in aspects)
        return _problem("invalid_value", f"column labels: {unknown[0]!r} is no aspect of this row; valid are {valid}")
    for aspect in aspects:
        level = row.labels.get(aspect.id)
        if level is None:
            return _problem("missing_field", f"column labels.{aspect.id}: absent; every aspect needs a level")
        if level not in aspect.value_of:
            valid = ", ".join(aspect.value_of)
            return _problem("invalid_value", f"column labels.{aspect.id}: {level!r} is no level; valid are {valid}")
    return {
        "sample_id": row.sample_id,
        # The same state is the same user, so that no two labels of one state lie on both sides of the split.
        "user_id": row.user_id or digest("label", *row.history, profile, context),
        "source": row.source,
        "history": row.history,
        "profile": profile,
        "context": context,
        "item_text": row.item,
        "aspects": [aspect.id for aspect in aspects],
        "labels": [row.labels[aspect.id] for aspect in aspects],
        "reasoning": row.reasoning,
    }


def _problem(reason: str, detail: str) -> Problem:
    return Problem(reason, storable(detail))


def label_request(row: Mapping[str, Any]) -> JudgeRequest:
    """What the judge is asked for a row of ``judge_labels``; keyed by content, with texts made as the catalogue's."""
    state = digest("label", *row["history"], row["profile"], row["context"])
    item = digest("label", row["item_text"])
    return JudgeRequest(
        state_id=f"label-{state}",
        item_id=f"label-{item}",
        item_hash=item,
        history_texts=tuple(_as_in_catalogue(text) for text in row["history"]),
        profile=row["profile"],
        context=row["context"],
        item_text=_as_in_catalogue(row["item_text"]),
    )


def _as_in_catalogue(text: str) -> str:
    return item_text(text, None, None, None, limit=len(text))


def call_of(request: JudgeRequest) -> Call:
    """The key of a request in ``aspect_scores``."""
    return request.state_id, request.item_id, request.item_hash


def simulated_labels(
    lake: Lake, texts: Texts, truth: Path, day: str, rubric: Rubric, count: int
) -> list[dict[str, Any]]:
    """Lines of a label file from what the simulator knows: the level nearest to the true aspect of a shown item.

    ``count`` impressions of the day's decisions, chosen by hash, one a decision.

    Raises:
        InputError: the day was not simulated, or has no decisions, or the rubric has other aspects.
    """
    if unknown := sorted(set(rubric.aspect_ids) - TRUE_ASPECTS.keys()):
        raise InputError(f"the simulator knows nothing of aspect {unknown[0]!r}; it knows {', '.join(TRUE_ASPECTS)}")
    path = day_folder(truth, day) / "impressions.parquet"
    columns = ["request_id", "user_id", "state_id", "position", "history", "profile", "context"]
    states = lake.read("user_states", where={"day": day}, columns=columns).to_pylist()
    if not path.is_file() or not states:
        raise InputError(f"no simulated decisions of {day} in {path.parent}; run the night of that day first")
    # A request may lead to several decisions; at the first of them the state is the one that the slate was made for.
    first = {row["request_id"]: row for row in sorted(states, key=lambda row: -row["position"])}
    shown: dict[str, list[dict[str, Any]]] = {}
    for impression in _impressions(path, first.keys()):
        shown.setdefault(impression["request_id"], []).append(impression)
    requests = sorted(shown)
    chosen = np.argsort(hash_share(requests, "simulated-labels"), kind="stable")[:count]
    places = hash_share(requests, "simulated-labels-item")
    lines = []
    for number in chosen.tolist():
        request = requests[number]
        slate = [impression for impression in shown[request] if texts.get(impression["item_id"], ("", ""))[1]]
        if not slate:
            continue
        state, impression = first[request], slate[int(places[number] * len(slate))]
        lines.append(
            {
                "sample_id": f"{request}-{impression['position']}",
                "user_id": state["user_id"],
                "source": "simulator",
                "history": [texts[item][1] for item in state["history"] if texts.get(item, ("", ""))[1]],
                "profile": state["profile"] and json.loads(state["profile"]),
                "context": state["context"] and json.loads(state["context"]),
                "item": texts[impression["item_id"]][1],
                "labels": {
                    aspect.id: nearest_label(aspect, impression[TRUE_ASPECTS[aspect.id]])
                    for aspect in rubric.aspects_for(state["context"] is not None)
                },
            }
        )
    return lines


def nearest_label(aspect: Aspect, share: float) -> str:
    """The level nearest to a true aspect in [0, 1] on the aspect's own scale."""
    score = aspect.lowest + (aspect.highest - aspect.lowest) * share
    return min(aspect.value_of, key=lambda label: abs(aspect.value_of[label] - score))


def _impressions(path: Path, requests: Any) -> list[dict[str, Any]]:
    rows = pq.read_table(path)
    return rows.filter(pc.is_in(rows["request_id"], value_set=pa.array(sorted(requests)))).to_pylist()
