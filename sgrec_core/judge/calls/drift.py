"""How far a night's scores lie from those of the night before: by a new judge, or by other users and items."""

import numpy as np

from sgrec_core.judge.calls.scores import scores_of_states
from sgrec_core.lake import Lake
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.runs import last_done

DRIFTED = 0.2
"""A stability index that calls for a look, by the usual rule of thumb."""
_BINS = 10
_FLOOR = 1e-3
"""Least share of a bin, so that an empty one does not make the index infinite."""


def stability_index(now: np.ndarray, before: np.ndarray) -> float:
    """Population stability index of scores in [-1, 1]: sum over ten equal bins of (p - q) ln(p / q)."""
    edges = np.linspace(-1, 1, _BINS + 1)
    p, q = (
        np.maximum(np.histogram(np.clip(scores, -1, 1), edges)[0] / len(scores), _FLOOR) for scores in (now, before)
    )
    return float(((p - q) * np.log(p / q)).sum())


def drift(lake: Lake, day: str, version: str) -> tuple[str, dict[str, float]] | None:
    """The night before and the stability index of each aspect over the candidates' scores of both nights.

    None where there is no night before that judged anything.
    """
    days = [partition["day"] for partition in lake.partitions("candidates") if partition["day"] < day]
    if not days:
        return None
    before = max(days)
    judged = last_done(lake, before, "score_aspects")
    earlier = judged and judged.facts.get("judge_version")
    if not earlier:
        return None
    ours, theirs = _scores(lake, day, version), _scores(lake, before, earlier)
    shared = {aspect: stability_index(ours[aspect], theirs[aspect]) for aspect in ours if aspect in theirs}
    return (before, shared) if shared else None


def _scores(lake: Lake, day: str, version: str) -> dict[str, np.ndarray]:
    """Aspect -> scores of the day's candidates by judge ``version``."""
    shown = lake.read("candidates", where={"day": day}, columns=["state_id", "item_id"]).to_pylist()
    # The same state may have been asked about other items on other nights.
    calls = {(row["state_id"], row["item_id"]) for row in shown}
    columns = ["state_id", "item_id", "aspects", "scores"]
    rows = scores_of_states(lake, day, version, {state for state, _ in calls}, columns).to_pylist()
    found = [row for row in rows if (row["state_id"], row["item_id"]) in calls and row["scores"] is not None]
    if not found:
        return {}
    return dict(zip(found[0]["aspects"], np.array([row["scores"] for row in found]).T, strict=True))


def tell_drift(job: Job, version: str) -> None:
    """Facts and notes of ``job`` about the drift of the scores by judge ``version``."""
    compared = drift(job.lake, job.day, version)
    if compared is None:
        return
    before, indices = compared
    job.fact("judge_drift", {aspect: round(index, 4) for aspect, index in indices.items()})
    if drifted := [aspect for aspect, index in indices.items() if index > DRIFTED]:
        job.note(
            f"the scores of {', '.join(drifted)} are distributed otherwise than on {before} (stability index"
            f" {max(indices.values()):.2f}, above {DRIFTED}): another judge, or other users and items"
        )
