"""What one night's figures say of generators, held against what users truly do.

The truth of a pair is the relative difference of a figure of the simulated A/B test, the click-through rate first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from benchmarks.gate_market import NIGHT
from benchmarks.gate_months import Judging, Lazy, Panel
from benchmarks.gate_requests import Recommended
from sgrec_core.evaluation.gate import Comparison, decide
from sgrec_core.evaluation.ranking import Ranking
from sgrec_core.evaluation.roles import CHAMPION, POPULARITY, SUPERVISED
from sgrec_core.evaluation.score import OfUsers, Weights, score_differences
from sgrec_core.evaluation.sequential import smallest_detectable
from sgrec_core.evaluation.significance import Interval, bootstrap, relative_difference
from sgrec_core.evaluation.simulated_ab import METRICS, Outcomes
from sgrec_core.evaluation.value import DIRECT, DOUBLY_ROBUST

TRUTHS = ("CTR", "revenue", "GMV", "dislike rate")
DECIDED = TRUTHS[:3]
"""Truths that the gate is held against."""
LOWER_IS_BETTER = ("dislike rate",)
CLOSE = 0.05
"""Generators whose truth is within this share of the best one's stand apart too."""
CLEAR = 2.0
"""A truth is clear that is above so many times what the night can detect."""


@dataclass(frozen=True)
class Power:
    """What the paired differences of two generators let one night see."""

    deviation: float
    """Of a user's difference on one day, in units of NDCG@10."""
    level: float
    """NDCG@10, of which differences are shares."""
    lasting: float
    """Share of the variance that is a user's own on all days: nights add nothing to it, users do."""

    @classmethod
    def of(cls, differences: np.ndarray, level: float) -> "Power":
        """From users' differences by day [D, U], NaN where a user was not there."""
        variance = float(np.nanmean(np.nanvar(differences, axis=1)))
        # The mean product of a user's differences on two days, less the squared mean.
        products = [differences[one] * differences[other] for one in range(len(differences)) for other in range(one)]
        shared = float(np.nanmean(products)) - float(np.nanmean(differences)) ** 2 if products else 0.0
        return cls(variance**0.5, level, float(np.clip(shared / max(variance, 1e-12), 0, 1)))

    def detectable(self, users: int, nights: int = 1) -> float:
        """A share of NDCG@10, by the mean over so many nights of the same users."""
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


@dataclass(frozen=True)
class Variant:
    """A score that may decide."""

    ecpm: float
    """Weight of expected eCPM beside that of NDCG@10, which is 1."""
    estimator: str

    def __str__(self) -> str:
        return f"eCPM {self.ecpm:g}, {self.estimator}" if self.ecpm else "NDCG@10 alone"

    @property
    def weights(self) -> Weights:
        return Weights(ndcg=1.0, ecpm=self.ecpm, gmv=0.0, dislikes=0.0)


VARIANTS = (
    Variant(0.0, DOUBLY_ROBUST),
    *(Variant(weight, how) for how in (DOUBLY_ROBUST, DIRECT) for weight in (0.25, 0.5, 1.0, 2.0)),
)
DEFAULT = "default"


class Reweighted(Lazy):
    """The comparisons of another, by another score."""

    def __init__(self, base: Lazy, variant: Variant) -> None:
        super().__init__(base.rankings, base.pairs, base.judging)
        self.base, self.variant = base, variant

    def __getitem__(self, pair: tuple[str, str]) -> Comparison:
        if pair not in self.made:
            found = self.base[pair]
            _, scores = score_differences(
                self._of_users(found.ours), self._of_users(found.theirs), self.variant.weights
            )
            score = bootstrap(scores, seed=self.judging.draws.seed, resamples=self.judging.draws.resamples)
            self.made[pair] = replace(found, score=score, scores=scores)
        return self.made[pair]

    def _of_users(self, ranking: Ranking) -> OfUsers:
        """The figures that count, where the variant's estimator is taken for the doubly robust one."""
        if ranking.worth is None:
            return ranking.of_users()
        told = {
            (outcome, DOUBLY_ROBUST): values
            for (outcome, how), values in ranking.worth.per_user.items()
            if how == self.variant.estimator
        }
        return replace(
            ranking, worth=replace(ranking.worth, per_user=told, effective=float("inf"), covered=1.0)
        ).of_users()


def agreement_nights(recommended: Recommended, day: int, users: int, judging: Judging) -> dict[str, np.ndarray]:
    """Every pair of candidate and champion on an evaluation day, with one draw of users for all.

    Columns [nights]: candidate, champion, day, users, and of the gate's own score and of every variant (as
    ``promoted:...``): promoted, reason, detectable and estimate, the night's own difference, both shares of the
    champion's NDCG@10.
    """
    present = np.unique(recommended.user[recommended.day == day])
    drawn = np.random.default_rng([day, users]).choice(present, min(users, len(present)), replace=False)
    rows, _ = recommended.requests(day, np.sort(drawn))
    rankings = {name: recommended.ranking(name, rows) for name in recommended.items}
    floors: dict[str, Comparison] = {}
    nights: list[dict[str, object]] = []
    for candidate, champion in pairs_of(list(rankings)):
        roles = {SUPERVISED: candidate, CHAMPION: champion, POPULARITY: POPULARITY}
        # Where popularity is what serves, there is no champion beside it.
        pairs = [(SUPERVISED, other) for other in (CHAMPION, POPULARITY) if other != CHAMPION or champion != POPULARITY]
        base = Lazy({role: rankings[name] for role, name in roles.items()}, pairs, judging)
        if candidate in floors:
            base.made[SUPERVISED, POPULARITY] = floors[candidate]
        night: dict[str, object] = {"candidate": candidate, "champion": champion, "day": day, "users": len(drawn)}
        for name, asked in ((DEFAULT, base), *((str(one), Reweighted(base, one)) for one in VARIANTS)):
            choice = decide(asked, judging.margins, {})
            against = asked[pairs[0]]
            unit = max(against.unit, 1e-12)
            night |= {
                f"promoted:{name}": choice.serves == SUPERVISED,
                f"reason:{name}": why_not(choice.reason),
                f"detectable:{name}": smallest_detectable(float(against.scores.std()), len(against.scores)) / unit,
                f"estimate:{name}": against.score.value / unit,
            }
        if (SUPERVISED, POPULARITY) in base.made:
            floors[candidate] = base.made[SUPERVISED, POPULARITY]
        nights.append(night)
    return {name: np.array([night[name] for night in nights]) for name in nights[0]}


def why_not(reason: str) -> str:
    """The kind of refusal in a decision's words; empty for a promotion."""
    if "policy not:" not in reason:
        return ""
    kinds = ("better, but not surely", "not better", "of targets in bucket", "@50 surely worse", "coverage")
    kinds += ("surely worse than",)  # a value: the others name no figure of the other one
    return next((kind for kind in kinds if kind in reason), "other")


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Candidate and champion; popularity is the floor and no candidate."""
    return [(one, other) for one, other in permutations(names, 2) if one != POPULARITY]


def true_differences(
    recommended: Recommended, metric: str, pairs: set[tuple[str, str]]
) -> dict[tuple[str, str], Interval]:
    """Relative difference of candidate from champion in the A/B test."""
    return {
        (one, other): relative_difference(
            METRICS[metric](recommended.truth[one]), METRICS[metric](recommended.truth[other]), seed=0, resamples=500
        )
        for one, other in sorted(pairs)
    }


@dataclass(frozen=True)
class Agreement:
    """How a gate with some score stands to a truth over nights; arrays [nights]."""

    score: str
    metric: str
    truth: np.ndarray
    """Relative true difference of each night's pair."""
    sure: np.ndarray
    """Bool: whether its interval leaves 0 out."""
    detectable: np.ndarray
    promoted: np.ndarray
    reason: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Bool: promoted what is better, or kept what is not."""
        return self.promoted == (self.truth > 0)

    @property
    def clear(self) -> np.ndarray:
        return self.sure & clear(self.truth, self.detectable)


def agreements(recommended: Recommended, nights: Mapping[str, np.ndarray]) -> list[Agreement]:
    """Of every score that may decide, with every truth that the gate is held against."""
    pairs = list(zip(nights["candidate"].tolist(), nights["champion"].tolist(), strict=True))
    result = []
    for metric in DECIDED:
        of_pair = true_differences(recommended, metric, set(pairs))
        truth = np.array([of_pair[pair].value for pair in pairs])
        sure = np.array([of_pair[pair].lower > 0 or of_pair[pair].upper < 0 for pair in pairs])
        for score in (DEFAULT, *map(str, VARIANTS)):
            columns = (nights[f"{name}:{score}"] for name in ("detectable", "promoted", "reason"))
            result.append(Agreement(score, metric, truth, sure, *columns))
    return result


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
    """By estimate: [G, U] mean over the days that a user came, NaN for who never did.

    Figures, and scores against a night's supervised policy, which ranks generators as the gate does.
    """
    names = [name.replace("ndcg", "NDCG").replace("hit_rate", "HR") for name in recommended.figures[NIGHT]]
    found = {
        name: np.stack([recommended.figures[one][which][days] for one in recommended.items])
        for name, which in zip(names, recommended.figures[NIGHT], strict=True)
    }
    for variant in VARIANTS[1:]:
        found[f"score, {variant}"] = np.stack(
            [
                Panel.of(recommended, one, NIGHT, variant.weights, variant.estimator).differences[days]
                for one in recommended.items
            ]
        )
    came = {name: np.isfinite(values).sum(axis=1) for name, values in found.items()}
    return {
        name: np.where(came[name] > 0, np.nansum(values, axis=1) / np.maximum(came[name], 1), np.nan)
        for name, values in found.items()
    }


def correlation_table(
    estimates: Mapping[str, np.ndarray], recommended: Recommended
) -> list[tuple[str, str, str, int, Interval, Interval]]:
    """Rows: estimate, truth, which generators, how many, Spearman, Kendall; few dislikes are better on both sides."""
    rows = []
    outcomes = list(recommended.truth.values())
    for metric in TRUTHS:
        above, below = (np.stack(side) for side in zip(*(METRICS[metric](one) for one in outcomes), strict=True))
        close = close_to_best(above.sum(axis=1) / below.sum(axis=1), metric)
        above = -above if metric in LOWER_IS_BETTER else above
        for name, values in estimates.items():
            signed = -values if name.startswith("dislikes") else values
            for which, chosen in (("all", np.arange(len(outcomes))), ("close", close)):
                if len(chosen) > 2:
                    found = correlations(signed[chosen], above[chosen], below[chosen])
                    rows.append((name, metric, which, len(chosen), *found))
    return rows
