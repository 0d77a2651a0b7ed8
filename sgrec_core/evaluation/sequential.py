"""Evidence that a challenger is better, gathered night after night; whoever looks every night is not misled.

The same held-out users are measured every night: a night is (user ids [n], paired differences [n] in [-1, 1],
challenger minus baseline), one row per user, and users may be missing. Users are independent of each other; one user's
nights may depend on each other in any way.

The null hypothesis for a margin: on every night k, the mean over the users who appeared by then of the expectation of
their means over nights 1..k is at most the margin. Expectations are those of the models as trained and of the users'
appearances as they were: chance among users is told, not that of training, and whether a user appears must not hang on
what the differences would be.

Night k's evidence is an e-value, the capital won by betting on these means: it is at least 0 and of expectation at most
1 under the null (Waudby-Smith & Ramdas, JRSS-B 2024, arXiv 2010.09686). The nights' e-values depend on each other. A
weighted average is one all the same, under any dependence (Vovk & Wang, Annals of Statistics 2021, arXiv 1912.06116),
with weights that were fixed beforehand and add up to 1 over all nights to come. Partial sums M_1 <= M_2 <= ... only
grow towards that average, so by Markov's inequality P(ever M_k >= 1 / alpha) <= alpha.

Evidence therefore never shrinks: it says that the challenger was better than the margin over the nights up to some
night, this one or an earlier one. A challenger that was better and is no longer is not taken notice of.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Differences = tuple[np.ndarray, np.ndarray]
"""Of one night: user ids [n] and their differences [n]."""

SHARES = 2.0 ** -np.arange(10)
"""Of the capital that is bet on each user, from all to 1/512, one bettor each. Less would pay past a million users."""

CAPITAL = 1.1 / (np.arange(1, 11) * np.arange(2, 12))
"""What the bettors start with, 1 in all. More than half is for the boldest: means over many nights vary little, and
then it wins most."""


def e_value(differences: np.ndarray, margin: float) -> float:
    """Evidence that independent differences [U] in [-1, 1], one per user, have a mean expectation above the margin.

    Of expectation at most 1 if they have not; 1 without users. On one look, 1 / alpha or more rejects at level alpha.

    A bettor with share s multiplies its capital by 1 + s * (x - margin) / (1 + margin) at each user, which is never
    negative; ten bettors with fixed shares (`SHARES`) pool their capital. Shares that follow the users seen before
    (aGRAPA) found fewer differences, .14, .55 and .73 in the simulation of `night_weights`. With fixed ones the product
    depends on no order and falls in the margin, and users may have different expectations e_u: the product of
    (1 + s * (e_u - margin) / (1 + margin)) is largest when all are alike.

    Raises:
        ValueError: differences are not [U], NaN or outside [-1, 1]; a margin that is not between -1 and 1.
    """
    if not -1 < margin < 1:
        raise ValueError(f"a margin lies between -1 and 1, not at {margin}")
    differences = _checked(differences, "differences")
    # In ascending order, so that not even rounding depends on the order.
    gains = (np.sort(differences) - margin) / (1 + margin)
    with np.errstate(divide="ignore"):  # who bets all and loses all has log(0)
        won = np.log1p(SHARES[:, None] * gains).sum(axis=1)
    most = float(won.max())  # finite: only a share of 1 can lose all
    # Past the largest floats evidence stays finite: less evidence is valid too.
    return math.exp(min(most + math.log(CAPITAL @ np.exp(won - most)), 690.0))


def night_weights(nights: int) -> np.ndarray:
    """[K] weights of nights 1..K, 1 / sqrt(k) - 1 / sqrt(k + 1); over all nights they add up to 1.

    Night 1 has .29, nights 8 to 100 together .25, the nights after 100 .10. In a simulation of 200 panels of 140 and
    1,000 users and 50 of 5,000 (NDCG-like differences, a fifth of them a user's own on all nights; 15 true differences
    of .4 to 1.2 times `smallest_detectable`; alpha .05) these weights found shares of .14, .60 and .78 by nights 1, 7
    and 30; 1 / (k (k + 1)) .17, .60 and .75; weights that fall as 1 / (k log(k)^2) .15, .59 and .75, and such in blocks
    of doubled length .17, .58 and .74.
    """
    k = np.arange(1, nights + 1)
    return 1 / np.sqrt(k) - 1 / np.sqrt(k + 1)


def evidence(nights: Sequence[Differences], margin: float = 0.0) -> np.ndarray:
    """[K] M_1..M_K, evidence after each night that the difference is above the margin.

    1 / alpha or more rejects at level alpha, whenever and however often somebody looks. Order of rows does not matter.
    Looked at again with more nights, the first entries stay what they were. However many nights there are, a difference
    is only found if it is about 4 / users above the margin (alpha .05): no bettor can risk more than a user's worst.

    Raises:
        ValueError: see `e_value`; or a night's users and differences do not pair, or it has a user twice.
    """
    return _evidence(_means(nights), margin)


def lower_bound(nights: Sequence[Differences], *, alpha: float = 0.05) -> float:
    """The largest margin that `evidence` rejects at level ``alpha`` after these nights; -1 if it rejects none.

    Over all numbers of nights at once, P(bound ever above the mean) <= alpha; if the mean moves, above the largest of
    the means up to each night. It never falls as nights come. Evidence falls in the margin, so the bound is found by
    bisection and rounded down to within 1e-6. An upper bound is minus the bound of the negated differences.

    Raises:
        ValueError: see `evidence`; an alpha that is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"a level lies between 0 and 1, not at {alpha}")
    means = _means(nights)
    low, high = -1.0, 1.0
    while high - low > 1e-6:
        margin = (low + high) / 2
        rejected = len(means) and _evidence(means, margin)[-1] >= 1 / alpha
        low, high = (margin, high) if rejected else (low, margin)
    return low


def smallest_detectable(deviation: float, users: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that one night's two-sided interval at 1 - ``alpha`` sets apart from 0 with that power.

    ``deviation`` is the standard deviation of the users' paired differences. By the normal approximation.

    Raises:
        ValueError: a negative or infinite deviation, no users, power or alpha not between 0 and 1.
    """
    if not (0 <= deviation < math.inf and users >= 1 and 0 < power < 1 and 0 < alpha < 1):
        raise ValueError(
            "a deviation of 0 or more, 1 or more users, power and alpha between 0 and 1 are needed, not"
            f" {deviation}, {users}, {power} and {alpha}"
        )
    quantile = NormalDist().inv_cdf
    return (quantile(1 - alpha / 2) + quantile(power)) * deviation / math.sqrt(users)


def _evidence(means: Sequence[np.ndarray], margin: float) -> np.ndarray:
    return np.cumsum(night_weights(len(means)) * np.array([e_value(values, margin) for values in means]))


def _means(nights: Sequence[Differences]) -> list[np.ndarray]:
    """Of each night, [users so far] the mean difference of each user over that night and those before."""
    names = [f"night {number}" for number in range(1, len(nights) + 1)]
    for name, (users, differences) in zip(names, nights, strict=True):
        if np.shape(users) != np.shape(differences):
            raise ValueError(f"{name} has users {np.shape(users)} and differences {np.shape(differences)}")
    checked = [_checked(differences, name) for name, (_, differences) in zip(names, nights, strict=True)]
    if not nights:
        return []
    ids, index = np.unique(np.concatenate([np.asarray(users) for users, _ in nights]), return_inverse=True)
    sums, counts = np.zeros(len(ids)), np.zeros(len(ids), dtype=np.int64)
    means, start = [], 0
    for name, differences in zip(names, checked, strict=True):
        present = index[start : start + len(differences)]
        start += len(differences)
        rows = np.bincount(present, minlength=len(ids))
        if rows.max(initial=0) > 1:
            raise ValueError(f"{name} has user {ids[rows.argmax()]} {rows.max()} times; it needs one row per user")
        sums[present] += differences
        counts[present] += 1
        seen = counts > 0
        means.append(sums[seen] / counts[seen])
    return means


def _checked(differences: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name}: one difference per user, not an array of shape {values.shape}")
    wrong = ~(np.abs(values) <= 1)  # NaN too
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{name}: row {row} is {values[row]}; a difference lies in [-1, 1]")
    return values
