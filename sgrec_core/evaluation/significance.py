"""Intervals by resampling users, and over seeds and users."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A figure and its interval."""

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


def relative_gain(
    challenger: np.ndarray, baseline: np.ndarray, *, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Interval of mean(challenger) / mean(baseline) - 1 over seeds and users.

    ``challenger`` and ``baseline`` are [S, U]: S trainings with different seeds, each pair of trainings from one start,
    and the same U users in the same order. A bootstrap over users, with the trainings as they are, gives one
    half-width; the deviation of the S gains of single trainings, with the quantile of Student's t for S - 1 degrees of
    freedom, another; they are added in squares. So few trainings make a wide interval, and a gain that hangs on one
    lucky training is no gain. With one training there is no second half-width: the interval is over users alone.

    Raises:
        ValueError: the shapes differ, or the baseline is zero throughout.
    """
    if challenger.shape != baseline.shape or challenger.ndim != 2:
        raise ValueError(f"pairs need [seeds, users] of one shape: {challenger.shape} against {baseline.shape}")
    if not baseline.any():
        raise ValueError("a relative gain needs a baseline that is not zero throughout")
    seeds, users = baseline.shape
    value = float(challenger.mean() / baseline.mean() - 1)
    ours, theirs = challenger.sum(axis=0), baseline.sum(axis=0)
    draw = np.random.default_rng(seed)
    gains = np.empty(resamples)
    for index in range(resamples):
        weight = np.bincount(draw.integers(0, users, users), minlength=users)
        gains[index] = float(ours @ weight) / max(float(theirs @ weight), 1e-12) - 1
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(gains, (tail, 1 - tail))
    of_trainings = 0.0
    if seeds > 1:
        single = (challenger - baseline).mean(axis=1) / baseline.mean()
        of_trainings = student_quantile(1 - tail, seeds - 1) * float(single.std(ddof=1)) / seeds**0.5
    return Interval(
        value,
        value - float(np.hypot(value - lower, of_trainings)),
        value + float(np.hypot(upper - value, of_trainings)),
    )


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t by numerical integration; scipy is not on a bare GPU machine."""
    points = np.linspace(0.0, 1.0, 20_001)[:-1] + 0.5 / 20_000
    # x = u / (1 - u) takes [0, 1) to [0, inf).
    x, weight = points / (1 - points), 1 / (1 - points) ** 2 / 20_000
    density = (1 + x * x / degrees) ** (-(degrees + 1) / 2) * weight
    cumulative = np.cumsum(density) / density.sum() / 2 + 0.5
    return float(np.interp(probability, cumulative, x))


def relative_difference(
    challenger: tuple[np.ndarray, np.ndarray],
    baseline: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of how far a ratio of sums lies above another, relative to it, by resampling users in pairs.

    Each side is (numerators [U], denominators [U]) of the same users in the same order, and stands for
    sum(numerators) / sum(denominators). NaN where the baseline's ratio is 0, also for resamples in which it is.
    """
    sides = np.stack([*challenger, *baseline], axis=1).astype(np.float64)

    def relative(sums: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])
        return np.where(np.isfinite(ratio), ratio - 1, np.nan)

    draw = np.random.default_rng(seed)
    sums = np.stack([sides[draw.integers(0, len(sides), len(sides))].sum(axis=0) for _ in range(resamples)])
    tail = (1 - confidence) / 2
    # A resample without a ratio makes the interval NaN: leaving it out would narrow the interval.
    lower, upper = np.quantile(relative(sums), (tail, 1 - tail))
    return Interval(float(relative(sides.sum(axis=0))), float(lower), float(upper))


def two_proportions(hits: tuple[int, int], trials: tuple[int, int]) -> float:
    """Standard errors by which two shares hits / trials differ, were they the same; 0 where one side has no trials.

    The pooled two-proportion z. Trials count as independent: several of one user's make it a little too large.
    """
    pooled = sum(hits) / max(sum(trials), 1)
    if not all(trials) or pooled in (0, 1):
        return 0.0
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / trials[0] + 1 / trials[1]))
    return float((hits[0] / trials[0] - hits[1] / trials[1]) / deviation)
