"""The gate of promotion: which of a night's candidates serves from now on, if any.

Candidates are the night's supervised policy and its optimised one; they are compared, paired over the same held-out
users, with the champion, or where there is none with popularity, which is the floor in any case. A candidate passes
when its score (`score`: next items, and expected business value where logged answers tell it) is above that of both,
surely not far below, and nothing beside it is surely worse than the champion's. The optimised policy comes first, but
only where its recipe was shown to be better over nights (`sequential`), and where this night's users do not say that it
has lost what its own start, the supervised policy, had. Either has to be of the champion's recipe, or of one that was
shown to be better than that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgrec_core.evaluation import metrics
from sgrec_core.evaluation.ranking import CUTOFF, MEASURES, Ranking, Resampling
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, POPULARITY, SUPERVISED
from sgrec_core.evaluation.score import Weights, score_differences
from sgrec_core.evaluation.sequential import smallest_detectable
from sgrec_core.evaluation.significance import Interval, bootstrap, paired_bootstrap
from sgrec_core.evaluation.value import DIRECT, OUTCOMES, common_estimator

LEAST_USERS = 30
"""With held-out targets in a novelty bucket, below which it has no say: a bootstrap over few users is sure too soon."""
DEEP = 50
"""Cutoff at which a list must not have lost what its top has gained."""


@dataclass(frozen=True, kw_only=True)
class Margins:
    """How far below another a candidate's interval may reach, as shares of the other's figure."""

    baseline: float
    """Score, of champion or popularity."""
    start: float
    """Score of the supervised policy, for the optimised one."""
    coverage: float
    """Smallest coverage, as a share of the champion's."""
    value: float
    """How much of eCPM or GMV may surely be lost, or how much the dislikes may surely grow."""
    users: int = 1
    """With fewer of them a night says nothing against a champion: a bootstrap over few users is sure too soon."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What nights so far say of one recipe against another."""

    nights: int
    users: int
    """Who appeared in one of these nights."""
    mean: float
    """Of the users' mean scores over these nights, as they are: evidence is of scores cut to what it can bear."""
    value: float
    """Betting capital against "it is not better": it exceeds 1 / alpha only with probability alpha, ever."""
    against: float
    """The same against "it is not worse". Evidence never shrinks, so a recipe that has turned has both."""
    needed: float

    @property
    def is_enough(self) -> bool:
        return self.value >= self.needed > self.against and self.mean > 0

    def __str__(self) -> str:
        worse = f", and {self.against:.3g} that it is worse" if self.against >= self.needed else ""
        if self.value >= self.needed and not self.mean > 0:
            worse += f", yet {self.mean:+.4f} on average: few users lost more than evidence can bear"
        return (
            f"evidence {self.value:.3g} of {self.needed:g} after {self.nights} night{'s' * (self.nights != 1)}{worse};"
            f" {self.users} users can show {min(4 / self.users, 1):.4f} or more, however many nights"
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate passes its gate, and why, in words."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The role that serves from now on, None for the champion as before, and why, in words."""

    serves: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One ranking minus another, paired over users, with 95% intervals by a bootstrap over users."""

    ours: Ranking
    theirs: Ranking
    differences: Mapping[tuple[str, int, str], Interval]
    """(metric, cutoff, novelty bucket of the target, or "all") -> difference."""
    values: Mapping[str, Interval]
    """Outcome -> difference of what is expected; empty where the source logs no impressions."""
    estimator: str
    """Of the values: the one that both have."""
    score: Interval
    """What decides, in units of NDCG@10; see `score_differences`."""
    scores: np.ndarray
    """[U] whose mean it is."""

    @property
    def unit(self) -> float:
        """NDCG@10 of the other, of which margins are shares."""
        return float(self.theirs.per_user("ndcg").mean())

    def rows(self, role: str, split: str, prefix: str) -> list[dict[str, Any]]:
        """Rows of ``evaluations`` of ``role``, without the day."""
        of_users = {("score", CUTOFF, "all"): self.score}
        buckets, users = self.ours.buckets(), {"all": len(np.unique(self.ours.users))}
        for number, name in enumerate(metrics.NOVELTY_BUCKETS):
            users[name] = len(np.unique(self.ours.users[buckets == number]))
        counts = {"score": len(self.scores)}
        if self.ours.worth is not None:
            places = self.ours.worth.places
            of_users |= {(f"{name}_{self.estimator}", places, "all"): found for name, found in self.values.items()}
            counts |= {f"{name}_{self.estimator}": len(self.ours.worth.users) for name in self.values}
        return [
            {
                "model": self.ours.model,
                "model_version": self.ours.version,
                "role": role,
                "split": split,
                "metric": f"{prefix}_{metric}",
                "cutoff": cutoff,
                "bucket": bucket,
                "users": counts.get(metric, users[bucket]),
                **vars(found),
            }
            for (metric, cutoff, bucket), found in {**self.differences, **of_users}.items()
        ]

    def surely_worse(self, margins: Margins) -> list[str]:
        """What a better score does not excuse, in words: a deep list, a kind of target, a share of the catalogue, or
        more business value than the margin that is surely lost. Optimising for a reward is known to gain the one and
        lose the other."""
        lost = self._lost_value(margins.value)
        for (metric, cutoff, bucket), found in self.differences.items():
            if found.upper < 0 and (cutoff == DEEP or bucket != "all"):
                where = "" if bucket == "all" else f" of targets in bucket {bucket}"
                interval = f"{found.value:+.4f} [{found.lower:+.4f}, {found.upper:+.4f}]"
                lost.append(f"{metric}@{cutoff}{where} surely worse: {interval}")
        # In items: a model of another tokenizer knows others of the day's, and its share is of these.
        ours, theirs = (round(one.coverage() * len(one.catalogue)) for one in (self.ours, self.theirs))
        if ours < margins.coverage * theirs:
            lost.append(f"coverage {self.ours.coverage():.1%} of the catalogue, {ours} items against {theirs}")
        return lost

    def _lost_value(self, margin: float) -> list[str]:
        if self.estimator == DIRECT and self.theirs.optimised and not self.ours.optimised:
            # Whoever was optimised for the model would be defended by it for good.
            return []
        lost = []
        for outcome, found in self.values.items():
            other = self._expected(self.theirs, outcome)
            loss = found.lower if outcome == "dislikes" else -found.upper
            if loss > margin * abs(other):
                interval = f"{found.value:+.4g} [{found.lower:+.4g}, {found.upper:+.4g}]"
                lost.append(f"{outcome} surely worse than {other:.4g} by more than {margin:.0%}: {interval}")
        return lost

    def _expected(self, one: Ranking, outcome: str) -> float:
        return float(one.worth.per_user[outcome, self.estimator].mean()) if one.worth else 0.0

    def figures(self) -> str:
        """NDCG@10 and eCPM of both and the difference."""
        theirs, users = self.theirs, len(self.scores)
        name = theirs.model if theirs.model == POPULARITY else f"{theirs.model} version {theirs.version}"
        score = self.score
        told = [f"NDCG@10 {self.ours.per_user('ndcg').mean():.4f} against {self.unit:.4f} of {name}"]
        if "ecpm" in self.values:
            how = "told by a model alone, so that it can only refuse" if self.estimator == DIRECT else "doubly robust"
            both = [self._expected(one, "ecpm") for one in (self.ours, theirs)]
            told.append(f"eCPM {both[0]:.1f} against {both[1]:.1f} ({how})")
        return (
            f"{', '.join(told)}, {'difference' if len(told) == 1 else 'in all'} {score.value:+.4f}"
            f" [{score.lower:+.4f}, {score.upper:+.4f}] over {users} users; one night shows"
            f" {smallest_detectable(float(self.scores.std()), users):.4f} or more"
        )


def compare(ours: Ranking, theirs: Ranking, resampling: Resampling, weights: Weights) -> Comparison:
    """Two rankings of the same decisions, and of the same requests where there are some."""

    def interval(metric: str, cutoff: int, inside: np.ndarray) -> Interval:
        users = ours.users[inside]
        of_both = (metrics.per_user(one.values(metric, cutoff)[inside], users) for one in (ours, theirs))
        return paired_bootstrap(*of_both, seed=resampling.seed, resamples=resampling.resamples)

    every, buckets = np.ones(len(ours.users), dtype=bool), ours.buckets()
    wanted = [(metric, cutoff, "all", every) for metric in MEASURES for cutoff in (CUTOFF, DEEP)]
    wanted += [
        ("hit_rate", CUTOFF, bucket, buckets == number)
        for number, bucket in enumerate(metrics.NOVELTY_BUCKETS)
        if len(np.unique(ours.users[buckets == number])) >= LEAST_USERS
    ]
    differences = {
        (metric, cutoff, bucket): interval(metric, cutoff, inside) for metric, cutoff, bucket, inside in wanted
    }
    draws: dict[str, Any] = vars(resampling)
    values, estimator = {}, DIRECT
    if ours.worth is not None and theirs.worth is not None:
        estimator = common_estimator([ours.worth, theirs.worth])
        for outcome in OUTCOMES:
            if (outcome, estimator) in ours.worth.per_user:
                both = (one.per_user[outcome, estimator] for one in (ours.worth, theirs.worth))
                values[outcome] = paired_bootstrap(*both, **draws)
    _, scores = score_differences(ours.of_users(), theirs.of_users(), weights)
    return Comparison(
        ours=ours,
        theirs=theirs,
        differences=differences,
        values=values,
        estimator=estimator,
        score=bootstrap(scores, **draws),
        scores=scores,
    )


def decide(
    comparisons: Mapping[tuple[str, str], Comparison],
    margins: Margins,
    evidence: Mapping[tuple[str, str], Evidence],
) -> Choice:
    """What serves.

    Args:
        comparisons: (candidate, other) -> candidate minus other, of all that the night has.
        evidence: (candidate, other) -> of the candidate's recipe against the other's. An optimised policy needs that
            against its start. Against the champion it is there where that is of another recipe: a night's margins alone
            would let a recipe that is worse in by patience.
    """
    reasons: list[str] = []
    for candidate in (OPTIMISED, SUPERVISED):
        others = [other for one, other in comparisons if one == candidate]
        if not others:
            continue
        why_not = _against_optimised(comparisons, margins, evidence) if candidate == OPTIMISED else []
        of_champion = evidence.get((candidate, CHAMPION))
        if not why_not and of_champion is not None and not of_champion.is_enough:
            why_not = [f"its recipe is not shown to be better than the champion's ({of_champion})"]
        for other in (CHAMPION, POPULARITY):
            if not why_not and other in others:
                why_not += against(comparisons[candidate, other], margins)
        baseline = comparisons[candidate, CHAMPION if CHAMPION in others else POPULARITY]
        if not why_not:
            return Choice(candidate, "; ".join([f"{candidate} policy better: {baseline.figures()}", *reasons]))
        reasons.append(f"{candidate} policy not: {', '.join(why_not)}")
    return Choice(None, "; ".join(reversed(reasons)))


def _against_optimised(
    comparisons: Mapping[tuple[str, str], Comparison],
    margins: Margins,
    evidence: Mapping[tuple[str, str], Evidence],
) -> list[str]:
    start, shown = comparisons[OPTIMISED, SUPERVISED], evidence.get((OPTIMISED, SUPERVISED))
    if shown is None or not shown.is_enough:
        return [f"its recipe is not shown to be better than its start ({shown or 'no evidence'}): {start.figures()}"]
    # What is no number passes nothing.
    if not start.score.upper >= 0:
        return [f"surely worse than its start: {start.figures()}"]
    floor = -margins.start * start.unit
    if not start.score.lower >= floor:
        why = f"{start.figures()}; the interval may not reach below {floor:+.4f}"
        return [f"it may have lost what its start had ({why})"]
    return start.surely_worse(margins)


def against(comparison: Comparison, margins: Margins) -> list[str]:
    """What speaks against promoting a candidate over champion or popularity, in words."""
    floor, users = -margins.baseline * comparison.unit, len(comparison.scores)
    if comparison.theirs.model != POPULARITY and users < margins.users:
        return [f"{users} users are too few to replace a champion, {margins.users} are needed: {comparison.figures()}"]
    if not comparison.score.value > 0:  # what is no number passes nothing
        return [f"not better: {comparison.figures()}"]
    if not comparison.score.lower >= floor:
        return [f"better, but not surely: {comparison.figures()}; the interval may not reach below {floor:+.4f}"]
    return [] if comparison.theirs.model == POPULARITY else comparison.surely_worse(margins)
