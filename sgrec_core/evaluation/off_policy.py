"""What a policy would earn per decision, from the feedback that another policy logged.

Inverse propensity weighting; self-normalised (Swaminathan & Joachims, NIPS 2015); direct method and doubly robust
(Dudik, Langford & Li, ICML 2011, arXiv 1103.4601). A row is one logged decision, arrays are [N]; every estimator gives
[U], users in ascending order, whose mean is the estimate: every user counts once, and
`sgrec_core.evaluation.significance.paired_bootstrap` compares two policies on the same log.

None of them sees what the logging policy never shows: where it has probability 0 and the target policy has not, only
the reward model can tell.
"""

import numpy as np

from sgrec_core.evaluation.metrics import per_user


def importance_weights(target: np.ndarray, logging: np.ndarray, *, clip: float | None = None) -> np.ndarray:
    """[N] target / logging: the two policies' probabilities of the logged actions, target in [0, 1], logging in (0, 1].

    ``clip`` is the largest weight that is kept. It takes variance and brings bias: inverse propensity then
    underestimates, by the mean of (weight - clip) * reward over the clipped, if rewards are at least 0;
    self-normalised moves towards the logging policy's value; doubly robust errs only by the reward model's error on the
    clipped.

    Raises:
        ValueError: shapes differ or are not [N], no rows, NaN, a probability out of its range, a clip of 0 or less.
    """
    target, logging = _columns({"target probability": target, "logging propensity": logging})
    _refuse((logging <= 0) | (logging > 1), logging, "logging propensity", "above 0 and at most 1")
    _refuse((target < 0) | (target > 1), target, "target probability", "from 0 to 1")
    if clip is not None and not clip > 0:
        raise ValueError(f"weights are clipped at a number above 0, not at {clip}")
    return np.minimum(target / logging, np.inf if clip is None else clip)


def inverse_propensity(rewards: np.ndarray, weights: np.ndarray, users: np.ndarray) -> np.ndarray:
    """[U] mean of weight * reward: unbiased if propensities are right and weights not clipped, of any variance.

    Raises:
        ValueError: shapes differ or are not [N], no rows, NaN, a negative weight.
    """
    rewards, weights = _columns({"reward": rewards, "weight": weights}, users)
    return per_user(weights * rewards, users)


def self_normalised(rewards: np.ndarray, weights: np.ndarray, users: np.ndarray) -> np.ndarray:
    """[U] whose mean is the users' mean of weight * reward over their mean weight.

    Inside the range of the rewards, and unmoved by a factor common to all weights; biased for few users, consistent.
    The estimate is a ratio of means over users, so what stands for one user is the estimate plus that user's influence
    on it, (weighted reward - estimate * weight) / mean weight: resampling these gives the interval of the ratio to
    first order. A single user's value may leave the range of the rewards.

    Raises:
        ValueError: shapes differ or are not [N], no rows, NaN, a negative weight, or all weights are 0.
    """
    rewards, weights = _columns({"reward": rewards, "weight": weights}, users)
    if not weights.any():
        raise ValueError("all weights are 0: the target policy takes none of the logged actions")
    weighted, weight = per_user(weights * rewards, users), per_user(weights, users)
    estimate = weighted.mean() / weight.mean()
    return estimate + (weighted - estimate * weight) / weight.mean()


def direct_method(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """[U] mean of ``values``, the reward model's value of the target policy in each row's context.

    A value is the sum over actions of target probability * predicted reward. Of small variance; biased by the model's
    mean error over the target policy's actions.

    Raises:
        ValueError: shapes differ or are not [N], no rows, NaN.
    """
    (values,) = _columns({"value": values}, users)
    return per_user(values, users)


def doubly_robust(
    rewards: np.ndarray, weights: np.ndarray, predicted: np.ndarray, values: np.ndarray, users: np.ndarray
) -> np.ndarray:
    """[U] mean of value + weight * (reward - predicted): the direct method, corrected by its errors on logged actions.

    ``predicted`` are the reward model's rewards of the logged actions, ``values`` as for `direct_method`, both by a
    model that was fitted on other rows. Unbiased if either the propensities (and weights are not clipped) or the model
    are right.

    Raises:
        ValueError: shapes differ or are not [N], no rows, NaN, a negative weight.
    """
    rewards, weights, predicted, values = _columns(
        {"reward": rewards, "weight": weights, "predicted reward": predicted, "value": values}, users
    )
    return per_user(values + weights * (rewards - predicted), users)


def effective_sample_size(weights: np.ndarray) -> float:
    """Rows of equal weight that would estimate a mean as well as these: (sum)^2 / sum of squares, from 1 to N (Kish).

    0 if all weights are 0. Rows of one user count as if they were independent, so it is rather too many.

    Raises:
        ValueError: weights are not [N], no rows, NaN, a negative weight.
    """
    (weights,) = _columns({"weight": weights})
    # Scaled first: squares of very large weights overflow.
    scaled = weights / max(float(weights.max()), np.finfo(np.float64).tiny)
    return float(scaled.sum() ** 2 / (scaled**2).sum()) if weights.any() else 0.0


def _columns(columns: dict[str, np.ndarray], users: np.ndarray | None = None) -> list[np.ndarray]:
    """The columns as float64, once all are [N] of one N (that of ``users`` too) and finite, and weights not below 0."""
    found = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    shapes = {name: values.shape for name, values in found.items()}
    if users is not None:
        shapes["user"] = np.shape(users)
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError("one entry per row: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    for name, values in found.items():
        if not len(values):
            raise ValueError("no logged decisions: nothing to estimate from")
        _refuse(~np.isfinite(values), values, name, "a finite number")
        if name == "weight":
            _refuse(values < 0, values, name, "0 or more")
    return list(found.values())


def _refuse(wrong: np.ndarray, values: np.ndarray, name: str, valid: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"row {row} has {name} {values[row]}; it must be {valid}")
