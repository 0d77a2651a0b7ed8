"""The gate of promotion: is the challenger better than the baseline?"""

from dataclasses import dataclass
from typing import Any

from sgrec_core.evaluation.ranking import CUTOFF, Ranking, Resampling
from sgrec_core.evaluation.significance import Interval, paired_bootstrap


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate passes its gate, and why, in words."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Differences:
    """Challenger minus baseline at cutoff 10, paired over users."""

    ndcg: Interval
    hit_rate: Interval


def differences(challenger: Ranking, baseline: Ranking, resampling: Resampling) -> Differences:
    """With 95% intervals by a bootstrap over users."""

    def of(metric: str) -> Interval:
        ours, theirs = challenger.per_user(metric), baseline.per_user(metric)
        return paired_bootstrap(ours, theirs, seed=resampling.seed, resamples=resampling.resamples)

    return Differences(ndcg=of("ndcg"), hit_rate=of("hit_rate"))


def difference_rows(challenger: Ranking, found: Differences, split: str) -> list[dict[str, Any]]:
    """Rows of ``evaluations`` of the challenger, without the day."""
    common = {
        "model": challenger.model,
        "model_version": challenger.version,
        "role": "challenger",
        "split": split,
        "cutoff": CUTOFF,
        "bucket": "all",
        "users": len(challenger.per_user("ndcg")),
    }
    return [{**common, "metric": f"difference_{metric}", **vars(interval)} for metric, interval in vars(found).items()]


def compare(challenger: Ranking, baseline: Ranking, found: Differences, *, tolerance: float) -> Verdict:
    """The gate: NDCG@10 above the baseline's, and the interval of the difference not far below zero.

    The interval must not reach below -``tolerance`` times the baseline's value.
    """
    ours, theirs, difference = challenger.per_user("ndcg"), baseline.per_user("ndcg"), found.ndcg
    name = baseline.model if baseline.model == "popularity" else f"{baseline.model} version {baseline.version}"
    figures = (
        f"NDCG@10 {ours.mean():.4f} against {theirs.mean():.4f} of {name}, difference {difference.value:+.4f}"
        f" [{difference.lower:+.4f}, {difference.upper:+.4f}] over {len(ours)} users"
    )
    floor = -tolerance * float(theirs.mean())
    if difference.value <= 0:
        return Verdict(False, f"not better: {figures}")
    if difference.lower < floor:
        return Verdict(False, f"better, but not surely: {figures}; the interval may not reach below {floor:+.4f}")
    return Verdict(True, f"better: {figures}")
