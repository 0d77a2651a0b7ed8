"""Bootstrap intervals over users."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval."""

    value: float
    lower: float
    upper: float


def bootstrap(values: np.ndarray, *, seed: int, resamples: int = 2000, confidence: float = 0.95) -> Interval:
    """Interval of the mean of values [U], one per user, by resampling users."""
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    draw = np.random.default_rng(seed)
    means = np.empty(resamples)
    for index in range(resamples):
        means[index] = values[draw.integers(0, len(values), len(values))].mean()
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(means, (tail, 1 - tail))
    return Interval(float(values.mean()), float(lower), float(upper))


def paired_bootstrap(
    challenger: np.ndarray, baseline: np.ndarray, *, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Interval of the mean difference challenger - baseline, values [U] of the same users in the same order."""
    if challenger.shape != baseline.shape:
        raise ValueError(f"pairs need the same users: {challenger.shape} against {baseline.shape}")
    return bootstrap(challenger - baseline, seed=seed, resamples=resamples, confidence=confidence)
