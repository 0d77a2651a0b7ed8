"""What the largest importance weight does to the estimates of expected eCPM, where the truth is known."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.gate_nights import rank_correlations
from benchmarks.gate_requests import Recommended
from sgrec_core.evaluation.off_policy import (
    direct_method,
    doubly_robust,
    effective_sample_size,
    importance_weights,
    inverse_propensity,
    self_normalised,
)
from sgrec_core.evaluation.simulated_ab import Outcomes

CLIPS = (50.0, 200.0, 1000.0, None)


@dataclass(frozen=True)
class Estimated:
    """One estimator's eCPM of G generators, all days together."""

    clip: float | None
    estimator: str
    value: np.ndarray
    """[G]"""
    error: np.ndarray
    """[G] standard error over users."""
    weight: float
    """Mean importance weight, 1 where nothing is clipped away; mean over generators."""
    effective: float
    """Impressions of equal weight, mean over generators."""


def estimates(recommended: Recommended) -> list[Estimated]:
    """Of every clip and estimator."""
    slate = recommended.logged["shown"].shape[1]
    users = np.repeat(recommended.user, slate)
    flat = {name: values.reshape(-1) for name, values in recommended.logged.items()}
    rewards, predicted = flat["reward:ecpm"], flat["predicted:ecpm"]
    found: dict[tuple[float | None, str], list[tuple[float, ...]]] = {}
    for name, lists in recommended.items.items():
        same = (lists[:, :slate].reshape(-1) == flat["shown"]).astype(float)
        values = recommended.expected[name]["ecpm"].reshape(-1).astype(float)
        for clip in CLIPS:
            weights = importance_weights(same, flat["propensity"], clip=clip)
            of_users = {
                "direct": direct_method(values, users),
                "doubly robust": doubly_robust(rewards, weights, predicted, values, users),
                "inverse propensity": inverse_propensity(rewards, weights, users),
                "self-normalised": self_normalised(rewards, weights, users),
            }
            if clip != CLIPS[0]:
                del of_users["direct"]  # it has no weights
            for how, each in of_users.items():
                row = (each.mean(), each.std() / len(each) ** 0.5, weights.mean(), effective_sample_size(weights))
                found.setdefault((None if how == "direct" else clip, how), []).append(row)
    return [
        Estimated(clip, how, *np.array(rows)[:, :2].T, *np.array(rows)[:, 2:].mean(axis=0))
        for (clip, how), rows in sorted(found.items(), key=lambda one: (one[0][1], one[0][0] or np.inf))
    ]


def true_ecpm(truth: Mapping[str, Outcomes]) -> np.ndarray:
    """[G] bids of what was clicked per thousand impressions."""
    return np.array([1000 * one.revenue.sum() / one.impressions.sum() for one in truth.values()])


def table(recommended: Recommended) -> list[str]:
    """As Markdown; a mean error of +50% says half as much again as is true."""
    truth = true_ecpm(recommended.truth)
    columns = ["estimator", "largest weight", "mean weight", "effective", "mean error", "from", "to"]
    columns += ["standard error", "Spearman", "Kendall"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for one in estimates(recommended):
        off = one.value / truth - 1
        direct = one.estimator == "direct"
        cells = [one.estimator, "" if direct else f"{one.clip:g}" if one.clip else "none"]
        cells += ["", ""] if direct else [f"{one.weight:.2f}", f"{one.effective:.0f}"]
        cells += [f"{off.mean():+.0%}", f"{off.min():+.0%}", f"{off.max():+.0%}", f"{(one.error / truth).mean():.0%}"]
        cells += [f"{float(value):+.2f}" for value in rank_correlations(one.value, truth)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
