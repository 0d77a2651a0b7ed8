"""Residual k-means: one k-means a level, each on what the level before left unexplained.

With plain residuals one centroid near zero attracts almost all of them and the later levels collapse. Both cures are
arguments here: normalised residuals compare directions, so that no centroid lies in everybody's middle; a balanced last
level puts a price on popular codes. `make bench-tokenizers` measures them.
"""

import numpy as np
from sklearn.cluster import kmeans_plusplus

from sgrec_core.items.quantiser import Quantiser, Residuals, next_residuals, pairwise_costs, unit

_SAMPLE = 50_000
_CHUNK = 65_536
_ROUNDS = 30
_TEMPERATURES = (0.3, 0.1, 0.03, 0.01)
_SINKHORN_ROUNDS = 10


def fit_residual_kmeans(
    embeddings: np.ndarray,
    levels: int,
    codebook_size: int,
    seed: int,
    *,
    residuals: Residuals = "normalised",
    balanced_last_level: bool = False,
) -> Quantiser:
    """A quantiser of ``embeddings`` [N, d], N >= 1, which are read at unit length.

    Deterministic in the rows and their order. Catalogues above 50,000 items are fitted on a sample.
    The first centroids are spread out by k-means++. Where a level has fewer distinct residuals than codes, the codes
    left over are random directions: room for items of later nights.
    """
    generator = np.random.default_rng(seed)
    return fit_levels(
        unit(sample(embeddings, generator)),
        levels,
        codebook_size,
        generator,
        residuals=residuals,
        balanced_last_level=balanced_last_level,
    )


def sample(embeddings: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """At most 50,000 rows of ``embeddings`` [N, d], in their order: what a fit reads of a large catalogue."""
    if len(embeddings) <= _SAMPLE:
        return embeddings
    return embeddings[np.sort(generator.choice(len(embeddings), _SAMPLE, replace=False))]


def fit_levels(
    points: np.ndarray,
    levels: int,
    codebook_size: int,
    generator: np.random.Generator,
    *,
    residuals: Residuals,
    balanced_last_level: bool = False,
) -> Quantiser:
    """Residual k-means of ``points`` [N, c] as they are: `fit_residual_kmeans` without sampling and unit length."""
    codebooks = []
    prices = None
    for level in range(levels):
        balanced = balanced_last_level and level == levels - 1
        codebook, level_prices = _kmeans(points, codebook_size, generator, residuals, balanced)
        codebooks.append(codebook)
        if balanced:
            prices = level_prices
        points = next_residuals(points, codebook[_cheapest(points, codebook, residuals)[0]], residuals)
    return Quantiser(codebooks=np.stack(codebooks), residuals=residuals, prices=prices)


def _kmeans(
    points: np.ndarray, size: int, generator: np.random.Generator, rule: Residuals, balanced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """``size`` centroids float32 of ``points`` [N, c] by Lloyd's rounds, and a price for each of them [size].

    Centroids are means (plain) or means at unit length (normalised). Prices are 0, or, when ``balanced``, such that the
    clusters of cost plus price have nearly equal size: those of optimal transport from points to centroids. Equal
    points stay together.
    """
    distinct = np.unique(points, axis=0)
    clusters = min(size, len(distinct))
    centroids, _ = kmeans_plusplus(distinct, clusters, random_state=int(generator.integers(1 << 31)))
    prices = np.zeros(clusters, dtype=np.float32)
    if balanced:
        prices = balancing_prices(pairwise_costs(points, centroids, rule), prices)
    for _ in range(_ROUNDS):
        nearest, costs = _cheapest(points, centroids, rule, prices)
        counts = np.bincount(nearest, minlength=clusters)
        sums = np.zeros(centroids.shape, dtype=np.float64)
        np.add.at(sums, nearest, points)
        empty = np.flatnonzero(counts == 0)
        # A cluster that lost all its points restarts at one that is badly served.
        sums[empty] = points[np.argsort(-costs, kind="stable")[: len(empty)]]
        moved = unit(sums) if rule == "normalised" else (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        if np.allclose(moved, centroids, atol=1e-6):
            break
        centroids = moved
        if balanced:
            prices = balancing_prices(pairwise_costs(points, centroids, rule), prices)
    spare = unit(generator.normal(size=(size - clusters, points.shape[1])))
    if rule == "plain":
        spare *= np.sqrt((points**2).sum(axis=1).mean()) or 1
    # Spare codes cost what the dearest code costs: they are for items of later nights.
    prices = np.concatenate([prices, np.full(size - clusters, prices.max(), dtype=np.float32)])
    return np.concatenate([centroids, spare]).astype(np.float32), prices


def balancing_prices(costs: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Prices float32 [K] under which ``(costs + prices).argmin(axis=1)`` uses all K codes nearly evenly.

    Sinkhorn's iterations on ``costs`` [N, K], with ever less entropy, so that the soft assignment ends near the hard
    one (the dual of optimal transport to equal masses). ``prices`` [K] is where to start.
    """
    spread = float(costs.std())
    if spread == 0:
        return prices
    for temperature in _TEMPERATURES:
        for _ in range(_SINKHORN_ROUNDS):
            scores = (costs + prices) / (-temperature * spread)
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=1, keepdims=True)
            mass = scores.mean(axis=0, dtype=np.float64) * costs.shape[1]
            # A code that nothing comes near has no mass at all: its price falls by a bounded step.
            prices = prices + (temperature * spread * np.log(np.maximum(mass, 1e-6))).astype(np.float32)
    return prices - prices.min()


def _cheapest(
    points: np.ndarray, centroids: np.ndarray, rule: Residuals, prices: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Index of the cheapest centroid of each point, and its cost."""
    nearest = np.empty(len(points), dtype=np.int64)
    cheapest = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), _CHUNK):
        costs = pairwise_costs(points[start : start + _CHUNK], centroids, rule)
        if prices is not None:
            costs += prices
        nearest[start : start + _CHUNK] = costs.argmin(axis=1)
        cheapest[start : start + _CHUNK] = costs.min(axis=1)
    return nearest, cheapest
