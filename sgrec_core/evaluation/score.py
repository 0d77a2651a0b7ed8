"""The score by which policies are compared: next items and expected business value in one figure, by declared weights.

Values count where logged answers correct them (the doubly robust estimator). Told by a reward model alone they do not:
a policy that was optimised for such a model is best by it, whatever it is worth; then they can only refuse
(`sgrec_core.evaluation.gate`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SIGNS = {"ndcg": 1, "ecpm": 1, "gmv": 1, "dislikes": -1}
"""What the score is made of, and whether more of it is better."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of relative differences; what a source cannot tell leaves its weight to the others."""

    ndcg: float
    """NDCG@10."""
    ecpm: float
    gmv: float
    dislikes: float


@dataclass(frozen=True)
class OfUsers:
    """Figures of one policy, of U users in ascending order."""

    users: np.ndarray
    """[U] ids."""
    figures: Mapping[str, np.ndarray]
    """Name as in `SIGNS` -> [U], NaN for a user that it does not tell of."""


def score_differences(ours: OfUsers, theirs: OfUsers, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Users [U] and whose mean is the score of ours minus theirs [U], in units of NDCG@10.

    The mean is (sum of weight * relative difference of the figure's means) / (sum of weights) * NDCG@10 of theirs.
    Of NDCG@10 that is the difference itself, which counts whatever theirs is. A value that is not surely above 0 for
    theirs (by two standard errors) is left out: nothing can be relative to it.

    Raises:
        ValueError: they are of different users.
    """
    if not np.array_equal(ours.users, theirs.users):
        raise ValueError(f"figures of {len(ours.users)} users against those of {len(theirs.users)} others")
    every = len(ours.users)
    ndcg = ours.figures["ndcg"] - theirs.figures["ndcg"]
    unit = float(np.nanmean(theirs.figures["ndcg"]))
    known = np.isfinite(ndcg)
    total, weighed = weights.ndcg * np.where(known, ndcg, 0.0) * every / known.sum(), weights.ndcg
    for name, sign in SIGNS.items():
        weight = getattr(weights, name)
        if name == "ndcg" or not weight or name not in ours.figures or name not in theirs.figures:
            continue
        known = np.isfinite(theirs.figures[name])
        of_theirs = theirs.figures[name][known]
        if of_theirs.mean() <= 2 * of_theirs.std() / len(of_theirs) ** 0.5:
            continue
        # Those that it does not tell of neither add to its mean nor take from it.
        difference = np.where(known, ours.figures[name] - theirs.figures[name], 0.0) * every / known.sum()
        total += sign * weight * difference / of_theirs.mean() * unit
        weighed += weight
    return ours.users, total / weighed
