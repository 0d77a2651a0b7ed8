"""What one night's figures say of generators, held against what users truly do.

The truth of a pair is the relative difference of a figure of the simulated A/B test, the click-through rate first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from benchmarks.gate_market import Recommended
from benchmarks.gate_months import Judging, Lazy, user_days
from sgrec_core.evaluation.gate import decide
from sgrec_core.evaluation.roles import CHAMPION, POPULARITY, SUPERVISED
from sgrec_core.evaluation.sequential import smallest_detectable
from sgrec_core.evaluation.significance import Interval
from sgrec_core.evaluation.simulated_ab import METRICS, Outcomes

ESTIMATES = {"NDCG@10": ("ndcg", 10), "HR@10": ("hit_rate", 10), "HR@50": ("hit_rate", 50)}
LOWER_IS_BETTER = ("dislike rate",)
CLOSE = 0.05
"""Generators whose truth is within this share of the best one's stand apart too."""
CLEAR = 2.0
"""A truth is clear that is above so many times what the night can detect."""


@dataclass(frozen=True)
class Power:
    """What the paired differences of two generators let one night see."""

    deviation: float
    """Of a user's difference in NDCG@10 on one day."""
    level: float
    """NDCG@10 of the second."""
    lasting: float
    """Share of the variance that is a user's own on all days: nights add nothing to it, users do."""

    @classmethod
    def of(cls, ours: np.ndarray, theirs: np.ndarray) -> "Power":
        """From users' NDCG@10 by day [D, U], NaN where a user has no decision."""
        found = ours - theirs
        variance = float(np.nanmean(np.nanvar(found, axis=1)))
        # The mean product of a user's differences on two days, less the squared mean.
        products = [found[a] * found[b] for a in range(len(found)) for b in range(a)]
        shared = float(np.nanmean(products)) - float(np.nanmean(found)) ** 2 if products else 0.0
        return cls(variance**0.5, float(np.nanmean(theirs)), float(np.clip(shared / max(variance, 1e-12), 0, 1)))

    def detectable(self, users: int, nights: int = 1) -> float:
        """Relative to the second's NDCG@10, by the mean over so many nights of the same users."""
        over_nights = self.deviation * ((1 - self.lasting) / nights + self.lasting) ** 0.5
        return smallest_detectable(over_nights, users) / self.level

    def users_for(self, effect: float) -> int:
        """Users with whom one night detects a relative difference."""
        return int(np.ceil((self.detectable(1) / effect) ** 2))

    def nights_for(self, effect: float, users: int) -> float:
        """Nights of the same users that detect it together, looked at once; inf where no number does."""
        room = (effect / self.detectable(users)) ** 2 - self.lasting
        return float(np.ceil(max((1 - self.lasting) / room, 1.0))) if room > 0 else float("inf")


def truth_of(outcomes: Outcomes, metric: str) -> float:
    above, below = METRICS[metric](outcomes)
    return float(above.sum() / below.sum())


def clear(truth: np.ndarray, detectable: np.ndarray, times: float = CLEAR) -> np.ndarray:
    """Bool [N]: whether relative true differences are above ``times`` what their nights detect, relative too."""
    return np.abs(truth) > times * detectable


def agreement_nights(
    recommended: Recommended, day: int, sizes: Sequence[int], judging: Judging, pairs: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Every pair of candidate and champion on an evaluation day, with users drawn anew for each night.

    Columns [nights]: candidate, champion, day, users, detectable (relative to the champion's NDCG@10), estimate (the
    night's own relative difference), promoted, reason.
    """
    rows: list[tuple[object, ...]] = []
    draw = np.random.default_rng([0, day])
    of_day = np.flatnonzero(recommended.day == day)
    present = np.unique(recommended.user[of_day])
    for users in sorted({min(size, len(present)) for size in sizes}):
        for candidate, champion in pairs:
            drawn = draw.choice(present, users, replace=False)
            chosen = of_day[np.isin(recommended.user[of_day], drawn)]
            rows.append((candidate, champion, day, users, *_night(recommended, candidate, champion, chosen, judging)))
    names = ("candidate", "champion", "day", "users", "detectable", "estimate", "promoted", "reason")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _night(
    recommended: Recommended, candidate: str, champion: str, chosen: np.ndarray, judging: Judging
) -> tuple[float, float, bool, str]:
    rankings = {
        SUPERVISED: recommended.ranking(candidate, chosen),
        CHAMPION: recommended.ranking(champion, chosen),
        POPULARITY: recommended.ranking(POPULARITY, chosen),
    }
    # Where popularity is what serves, there is no champion beside it.
    others = [POPULARITY] if champion == POPULARITY else [CHAMPION, POPULARITY]
    comparisons = Lazy(rankings, [(SUPERVISED, other) for other in others], judging.draws)
    choice = decide(comparisons, judging.margins, None)
    against = comparisons[SUPERVISED, others[0]]
    ours, theirs = (ranking.per_user("ndcg") for ranking in (against.ours, against.theirs))
    level = max(float(theirs.mean()), 1e-12)
    found = smallest_detectable(float((ours - theirs).std()), len(ours)) / level
    return found, float(ours.mean()) / level - 1, choice.serves == SUPERVISED, why_not(choice.reason)


def why_not(reason: str) -> str:
    """The kind of refusal in a decision's words; empty for a promotion."""
    if "policy not:" not in reason:
        return ""
    kinds = ("better, but not surely", "not better", "of targets in bucket", "@50 surely worse", "coverage")
    return next((kind for kind in kinds if kind in reason), "other")


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Candidate and champion; popularity is the floor and no candidate."""
    return [(one, other) for one, other in permutations(names, 2) if one != POPULARITY]


def rank_correlations(estimates: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's and Kendall's (tau-a) correlation of the rows of [..., G], ties as they fall in order."""
    count = estimates.shape[-1]
    ranks = [np.argsort(np.argsort(values, axis=-1, kind="stable"), axis=-1) for values in (estimates, truths)]
    spearman = 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum(axis=-1) / (count * (count**2 - 1))
    first, second = np.triu_indices(count, 1)
    signs = [np.sign(values[..., first] - values[..., second]) for values in (estimates, truths)]
    return spearman, (signs[0] * signs[1]).mean(axis=-1)


def correlations(
    values: np.ndarray, above: np.ndarray, below: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> tuple[Interval, Interval]:
    """Spearman's and Kendall's correlation of estimates and truths of G generators; intervals over users.

    Args:
        values: [G, U] a user's estimate, NaN where the user was not there; an estimate is their mean.
        above: [G, U], with ``below`` [G, U]: a truth is a ratio of sums. Users are resampled on both sides at once.
    """
    present = np.isfinite(values)
    sides = [np.nan_to_num(values), present.astype(float), above, below]
    draw, users = np.random.default_rng(seed), values.shape[1]
    weights = np.ones((resamples + 1, users))
    for row in range(1, resamples + 1):
        weights[row] = np.bincount(draw.integers(0, users, users), minlength=users)
    sums = [weights @ side.T for side in sides]
    found = rank_correlations(sums[0] / sums[1], sums[2] / sums[3])
    return tuple(Interval(float(one[0]), *map(float, np.quantile(one[1:], (0.025, 0.975)))) for one in found)  # type: ignore[return-value]


def close_to_best(truths: np.ndarray, metric: str) -> np.ndarray:
    """Indices of generators within `CLOSE` of the best."""
    if metric in LOWER_IS_BETTER:
        return np.flatnonzero(truths <= truths.min() * (1 + CLOSE))
    return np.flatnonzero(truths >= truths.max() * (1 - CLOSE))


def user_estimates(recommended: Recommended, days: slice) -> dict[str, np.ndarray]:
    """By estimate: [G, U] mean over the days that a user came, NaN for who never did."""
    found = {}
    for name, (metric, cutoff) in ESTIMATES.items():
        by_day = np.stack([user_days(recommended, one, metric, cutoff)[days] for one in recommended.items])
        came = np.isfinite(by_day).sum(axis=1)
        found[name] = np.where(came > 0, np.nansum(by_day, axis=1) / np.maximum(came, 1), np.nan)
    return found


def correlation_table(
    estimates: Mapping[str, np.ndarray], recommended: Recommended
) -> list[tuple[str, str, str, int, Interval, Interval]]:
    """Rows: estimate, truth, which generators, how many, Spearman, Kendall; a lower dislike rate counts as better."""
    rows = []
    outcomes = list(recommended.truth.values())
    for metric in ("CTR", "GMV", "revenue", "dislike rate"):
        above, below = (np.stack(side) for side in zip(*(METRICS[metric](one) for one in outcomes), strict=True))
        close = close_to_best(above.sum(axis=1) / below.sum(axis=1), metric)
        above = -above if metric in LOWER_IS_BETTER else above
        for name, values in estimates.items():
            for which, chosen in (("all", np.arange(len(outcomes))), ("close", close)):
                if len(chosen) > 2:
                    found = correlations(values[chosen], above[chosen], below[chosen])
                    rows.append((name, metric, which, len(chosen), *found))
    return rows
