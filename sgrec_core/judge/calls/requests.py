"""What a call to the judge is about, and how it is worded from the day's tables.

A call is a distinct (state, item, item content); with ``judge_version`` it is the key of ``aspect_scores``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sgrec_core.errors import ContractError
from sgrec_core.hashing import hash_share
from sgrec_core.items.encoder import TEXT_LIMIT, item_text
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings

Call = tuple[str, str, str]
"""state_id, item_id, item_hash."""
Texts = Mapping[str, tuple[str, str]]
"""item_id -> (item_hash, text)."""


def day_texts(lake: Lake, day: str, settings: Settings) -> dict[str, tuple[str, str]]:
    """Content hash and text of each of the day's items, no longer than the judge reads."""
    limit = TEXT_LIMIT
    if settings.judge.engine != "embedding":
        limits = load_rubric(True, settings.judge.rubric).limits
        limit = max(limits.item, limits.history_entry)
    columns = ["item_id", "item_hash", "title", "brand", "category", "description"]
    rows = lake.read("items", where={"day": day}, columns=columns).to_pylist()
    return {
        row["item_id"]: (
            row["item_hash"],
            item_text(row["title"], row["brand"], row["category"], row["description"], limit=limit),
        )
        for row in rows
    }


def day_states(lake: Lake, day: str, state_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """state_id -> history, profile and context; the target is not read.

    Raises:
        ContractError: a state is not among the day's.
    """
    wanted = set(state_ids)
    columns = ["state_id", "history", "profile", "context"]
    rows = lake.read("user_states", where={"day": day}, columns=columns).to_pylist()
    states = {row["state_id"]: row for row in rows if row["state_id"] in wanted}
    if missing := sorted(wanted - states.keys()):
        raise ContractError(
            f"table user_states of {day}: {len(missing)} states of the candidates or pairs are missing, first "
            f"{missing[0]!r}; re-run build_states and generate_candidates"
        )
    return states


class Pair(NamedTuple):
    """A preference pair as two calls of one state."""

    name: str
    user_id: str
    preferred: Call
    other: Call


def split_pairs(lake: Lake, day: str, split: str) -> list[dict[str, str]]:
    """Rows of ``preference_pairs`` of a split's decisions, with the user."""
    states = lake.read("user_states", where={"day": day, "split": split}, columns=["decision_id", "user_id"])
    user_of = dict(zip(*(column.to_pylist() for column in states.columns), strict=True))
    columns = ["decision_id", "state_id", "preferred_item", "other_item"]
    pairs = lake.read("preference_pairs", where={"day": day}, columns=columns).to_pylist()
    return [{**pair, "user_id": user_of[pair["decision_id"]]} for pair in pairs if pair["decision_id"] in user_of]


def day_pairs(lake: Lake, day: str, split: str, texts: Texts, *, limit: int, seed: int) -> list[Pair]:
    """At most ``limit`` preference pairs of a split's decisions between items of ``texts``, ordered by seeded hash."""
    rows = [
        row for row in split_pairs(lake, day, split) if row["preferred_item"] in texts and row["other_item"] in texts
    ]
    names = [f"{row['decision_id']}/{row['other_item']}" for row in rows]
    chosen = np.argsort(hash_share(names, f"judge-pairs-{seed}"), kind="stable")[:limit].tolist()
    return [
        Pair(
            names[number],
            rows[number]["user_id"],
            *(
                (rows[number]["state_id"], item, texts[item][0])
                for item in (rows[number]["preferred_item"], rows[number]["other_item"])
            ),
        )
        for number in chosen
    ]


def request(call: Call, state: Mapping[str, Any], texts: Texts) -> JudgeRequest:
    """What the engine is asked for ``call``."""
    state_id, item_id, item_hash = call
    about = state_request(state_id, state, texts)
    return replace(about, item_id=item_id, item_hash=item_hash, item_text=texts[item_id][1])


def have_texts(calls: Iterable[Call], texts: Texts) -> bool:
    """Whether a group or pair of calls can be judged: one without all of its scores is of no use to anybody."""
    return all(texts[item][1] for _, item, _ in calls)


def state_request(state_id: str, state: Mapping[str, Any], texts: Texts) -> JudgeRequest:
    """A request about a state and no item: what weights are asked for."""
    return JudgeRequest(
        state_id=state_id,
        item_id="",
        item_hash="",
        # Items of the history that have left the catalogue, or have no text, tell the judge nothing.
        history_texts=tuple(texts[item][1] for item in state["history"] if item in texts and texts[item][1]),
        profile=state["profile"],
        context=state["context"],
        item_text="",
    )
