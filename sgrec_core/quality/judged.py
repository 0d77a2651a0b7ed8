"""What the judge said this night: how its scores lie beside those of the night before, six examples, odd texts.

Read from the table ``rewards``, which has the scores of the night's own candidates, cached ones too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.lake import Lake
from sgrec_core.quality.validation import short
from sgrec_core.wording import number

BINS, EXAMPLES, HISTORY, MOST_FLAGGED = 10, 6, 5, 10
COLUMNS = ["state_id", "item_id", "aspects", "scores", "holistic"]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Scores of an aspect in ten bins from -1 to 1: shares, of this night and of the night before."""

    aspect: str
    now: list[float]
    before: list[float] | None
    mean: float
    mean_before: float | None

    @property
    def in_words(self) -> str:
        told = f"{self.aspect}: mean score {self.mean:.2f}"
        return told if self.mean_before is None else f"{told}, the night before {self.mean_before:.2f}"

    @property
    def drawing(self) -> dict[str, Any]:
        """``bars`` (x, y, width, height) of this night and the ``line`` of the night before, on 100 by 40."""
        highest = max([*self.now, *(self.before or [])]) or 1.0
        wide = 100 / BINS
        heights = [round(38 * share / highest, 1) for share in self.now]
        steps = [
            f"{x:g},{40 - 38 * share / highest:.1f}"
            for place, share in enumerate(self.before or [])
            for x in (place * wide, (place + 1) * wide)
        ]
        return {
            "bars": [
                (place * wide + 1, round(40 - height, 1), wide - 2, height) for place, height in enumerate(heights)
            ],
            "line": " ".join(steps),
        }


@dataclass(frozen=True, kw_only=True)
class Example:
    """One judged candidate as the judge saw it."""

    history: list[str]
    """The last items of the user, the newest last."""
    item: str
    scores: list[tuple[str, str]]
    """Aspect and score."""
    holistic: str
    evidence: str | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The panel of the judge."""

    before: str | None
    """The night that it is compared with."""
    histograms: list[Histogram]
    examples: list[Example]
    """From the lowest semantic reward to the highest, evenly spaced."""
    flagged: list[tuple[str, str, str]]
    """Whose text, what is suspicious about it, and the text."""


def judged(lake: Lake, day: str, judge: Mapping[str, Any], reward_version: str | None) -> Judged | None:
    """None where nothing was judged.

    Args:
        judge: the facts of ``score_aspects``.
        reward_version: that of the night; None for all.
    """
    rows = _rewards(lake, day, COLUMNS, reward_version)
    if not rows.num_rows:
        return None
    days = [one["day"] for one in lake.partitions("rewards") if one["day"] < day]
    before = max(days, default=None)
    then = _scores(_rewards(lake, before, COLUMNS[2:4])) if before else {}
    order = pc.sort_indices(rows, [(name, "ascending") for name in ("holistic", "state_id", "item_id")])
    chosen = rows.take(order.take(np.linspace(0, rows.num_rows - 1, min(EXAMPLES, rows.num_rows)).astype(int)))
    items = dict(list((judge.get("judge_flagged_items_shown") or {}).items())[:MOST_FLAGGED])
    users = dict(list((judge.get("judge_flagged_users_shown") or {}).items())[:MOST_FLAGGED])
    histories = _column(lake, "user_states", day, "state_id", chosen["state_id"].to_pylist(), "history")
    shown = {item for history in histories.values() for item in history[-HISTORY:]}
    titles = _column(lake, "items", day, "item_id", [*shown, *items, *chosen["item_id"].to_pylist()], "title")
    profiles = _column(lake, "users", day, "user_id", [*users], "profile") if users else {}
    evidence = _evidence(lake, day, judge.get("judge_version"), chosen["state_id"].to_pylist())

    def title(item: str) -> str:
        return str(short(titles.get(item) or item))

    return Judged(
        before=before if then else None,
        histograms=_histograms(_scores(rows), then),
        examples=[
            Example(
                history=[title(item) for item in histories.get(row["state_id"], [])[-HISTORY:]],
                item=title(row["item_id"]),
                scores=[(name, f"{score:.2f}") for name, score in zip(row["aspects"], row["scores"], strict=True)],
                holistic=number(row["holistic"]),
                evidence=None if not (told := evidence.get((row["state_id"], row["item_id"]))) else str(short(told)),
            )
            for row in chosen.to_pylist()
        ],
        flagged=[
            *((f"item {short(name)}", ", ".join(signs), title(name)) for name, signs in items.items()),
            *((f"user {short(name)}", ", ".join(signs), str(short(profiles.get(name) or "no profile")))
              for name, signs in users.items()),
        ],
    )  # fmt: skip


def _rewards(lake: Lake, day: str, columns: Sequence[str], version: str | None = None) -> pa.Table:
    """Judged candidates of the day."""
    where = {"day": day} | ({"reward_version": version} if version else {})
    rows = lake.read("rewards", where=where, columns=columns, ordered=False)
    return rows.filter(pc.is_valid(rows["scores"]))


def _scores(rows: pa.Table) -> dict[str, np.ndarray]:
    """Scores by aspect, of the rows that have the aspects of the first."""
    if not rows.num_rows:
        return {}
    aspects = rows["aspects"][0].as_py()
    same = rows.filter(pc.equal(pc.binary_join(rows["aspects"], "\n"), "\n".join(aspects)))
    values = pc.list_flatten(same["scores"]).to_numpy().reshape(-1, len(aspects))
    return dict(zip(aspects, values.T, strict=True))


def _histograms(now: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> list[Histogram]:
    return [
        Histogram(
            aspect=aspect,
            now=_shares(scores),
            before=_shares(before[aspect]) if aspect in before else None,
            mean=float(scores.mean()),
            mean_before=float(before[aspect].mean()) if aspect in before else None,
        )
        for aspect, scores in now.items()
    ]


def _shares(scores: np.ndarray) -> list[float]:
    counts = np.histogram(np.clip(scores, -1, 1), np.linspace(-1, 1, BINS + 1))[0]
    return (counts / max(1, len(scores))).tolist()


def _column(lake: Lake, table: str, day: str, key: str, wanted: Sequence[str], column: str) -> dict[str, Any]:
    rows = lake.read(table, where={"day": day, key: sorted(set(wanted))}, columns=[key, column], ordered=False)
    return dict(zip(rows[key].to_pylist(), rows[column].to_pylist(), strict=True))


def _evidence(lake: Lake, day: str, version: str | None, states: Sequence[str]) -> dict[tuple[str, str], str]:
    """Of calls that were made for the day; an answer that was known before has its evidence there."""
    where = {"judge_version": version, "day": day, "state_id": sorted(set(states))}
    columns = ["state_id", "item_id", "evidence"]
    rows = lake.read("aspect_scores", where=where, columns=columns, ordered=False).to_pylist() if version else []
    return {(row["state_id"], row["item_id"]): row["evidence"] for row in rows if row["evidence"]}
