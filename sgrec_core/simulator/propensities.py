"""The probability with which a noisy, exploring ranking puts an item at a position.

Scores with Gumbel noise rank as exponential arrivals do (Yellott, J. Math. Psychology 1977; it is the Plackett-Luce
model): an item of score a and noise Gumbel(0, b) stands before another exactly where an arrival of rate exp(a / b)
comes before the other's. So an item stands at position k, from 0, where k others arrive before it. The item-position
model's estimators divide by this probability (Li et al. 2018, arXiv 1804.10488).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

FIRST, LAST = 1e-2, 25.0
"""Where the integral begins and ends, in expected arrivals: of the fastest item, and of the slowest that matters."""
STEP = 1.25
"""Of the trapezoid rule, in standard deviations of the logarithm of the time at which the slate is full."""
FINE = 1024
"""Rates a step that others are rounded to: by .02% at most where a slate has 8 items."""
NUMBERS_AT_ONCE = 1_000_000
"""In the largest array."""


def position_probabilities(
    log_rates: np.ndarray, shown: np.ndarray, *, explored: float, log_boost: float
) -> np.ndarray:
    """[R, K] the probability that an item stands where ``shown`` has it: as many have arrived before as its position.

    The integral over time of the item's density of arrival times the probability that exactly so many others have
    arrived, by the trapezoid rule in the logarithm of time: its error falls exponentially with the step, since all that
    is integrated is smooth. How many have arrived is built item by item from sums of products, without a difference
    that could cancel. The relative error is below 1e-3; with hundreds of items it is some 1e-5.

    Args:
        log_rates: of each item's arrival [R, N].
        shown: item indices by position [R, K], no item twice in a row.
        explored: the probability with which an item's rate is boosted, each independently of the others.
        log_boost: what is then added to the logarithm of its rate.
    """
    count, slate = shown.shape
    step = STEP / np.sqrt(slate + 1)
    last = min(slate, log_rates.shape[1] - 1)
    begin = np.log(FIRST) - log_boost - log_rates.max(axis=1)
    end = np.log(LAST) + np.partition(-log_rates, last, axis=1)[:, last]
    moments = int(np.ceil((end - begin).max() / step)) + 1
    # A moment on, an item has come as far as another at first whose rate is a step higher: one table serves them all.
    places = np.round((log_rates.T + begin) * (FINE / step)).astype(np.int64)
    lowest = places.min()
    coarse, fine = np.divmod(places - lowest, FINE)
    expected = lowest / FINE + np.arange(coarse.max() + moments) + np.arange(FINE)[:, None] / FINE
    table = sliding_window_view(_waiting(np.exp(expected * step), explored, log_boost), moments, axis=1)
    probability = np.empty(shown.shape)
    at_once = max(1, NUMBERS_AT_ONCE // (moments * log_rates.shape[1]))
    for start in range(0, count, at_once):
        rows = slice(start, start + at_once)
        items = shown[rows].T, np.arange(len(shown[rows]))
        waiting = table[fine[:, rows], coarse[:, rows]]
        still = waiting[items]
        waiting[items] = 1.0
        arrivals = np.exp(log_rates[rows].T[items][..., None] + begin[rows, None] + step * np.arange(moments))
        probability[rows] = _integrals(_density(arrivals, explored, log_boost), still, waiting, step)
    return np.minimum(probability, 1.0)


def _waiting(arrivals: np.ndarray, explored: float, log_boost: float) -> np.ndarray:
    """The probability that an item has not arrived when ``arrivals`` of it, not boosted, were to be expected."""
    return (1 - explored) * np.exp(-arrivals) + explored * np.exp(-np.exp(log_boost) * arrivals)


def _density(arrivals: np.ndarray, explored: float, log_boost: float) -> np.ndarray:
    """Of arrival, in the logarithm of time; what `_waiting` falls by."""
    boosted = np.exp(log_boost) * arrivals
    return (1 - explored) * arrivals * np.exp(-arrivals) + explored * boosted * np.exp(-boosted)


def _integrals(density: np.ndarray, still: np.ndarray, waiting: np.ndarray, step: float) -> np.ndarray:
    """[R, K] of K shown items over T moments.

    Args:
        density: of the shown items' arrivals [K, R, T].
        still: the probability that they have not arrived [K, R, T].
        waiting: that of all items [N, R, T], 1 in place of those shown.
        step: between moments, in the logarithm of time.
    """
    come = np.empty_like(density[1:])
    others = np.zeros_like(density)
    others[0] = 1.0
    for item in waiting:
        _arrive(others, item, come)
    found = np.empty(density.shape[:2])
    for position in range(len(density)):
        before = others[: position + 1].copy()
        for other in range(len(density)):
            if other != position:
                _arrive(before, still[other], come[:position])
        integrand = before[position] * density[position]
        # Before the first moment it grows like the power of time that is one more than the position.
        found[position] = step * integrand.sum(axis=1) + step * integrand[:, 0] / np.expm1((position + 1) * step)
    return found.T


def _arrive(counts: np.ndarray, waiting: np.ndarray, come: np.ndarray) -> None:
    """One item more in ``counts`` [k, R, T], how probable 0 to k - 1 arrivals are; ``come`` [k - 1, R, T] is space."""
    np.multiply(counts[:-1], 1 - waiting, out=come)
    counts *= waiting
    counts[1:] += come
