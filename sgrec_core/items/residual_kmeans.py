"""Residual k-means: a vector becomes a short tuple of codes, coarse to fine.

Level by level, each vector gets the code of the centroid nearest in angle; what that centroid leaves unexplained,
scaled to unit length, goes to the next level. Both the unit length and the angle matter: with plain distances one
centroid near zero attracts almost all residuals and the later levels collapse (perplexity 222/19/20 of 256 on
Amazon Scientific, 22% collisions; this quantiser 210/238/241, 13%; see papers.md section 5 for the same on Office).
"""

import math
from collections import Counter
from typing import Any

import numpy as np

from sgrec_core.errors import SettingsError

_SAMPLE = 50_000
_CHUNK = 65_536
_ROUNDS = 30
_ITEMS_PER_CODE = 8
_ROOM = 64


def shrunk_codebook_size(items: int, levels: int, codebook_size: int) -> int:
    """The codebook size for a catalogue of ``items``: at most ``codebook_size``, smaller for a small catalogue.

    A level should group items (about eight a code on the first), or codes are item numbers and nothing is
    shared between items; and there must be room for items of later nights (64 tuples for each item of today).
    Raises SettingsError when even ``codebook_size`` leaves no free tuple for each item.
    """
    if codebook_size**levels < items:
        raise SettingsError(
            f"items.levels={levels} and items.codebook_size={codebook_size} make {codebook_size**levels} semantic "
            f"ids for {items} items: raise one of them"
        )
    room = math.ceil((_ROOM * max(items, 1)) ** (1 / levels))
    return max(2, min(codebook_size, max(room, items // _ITEMS_PER_CODE)))


def fit(embeddings: np.ndarray, levels: int, codebook_size: int, seed: int) -> np.ndarray:
    """Codebooks float32 [L, K, d] of ``embeddings`` [N, d], N >= 1; K comes from ``shrunk_codebook_size``.

    Centroids have unit length. Deterministic in the rows and their order. Catalogues above 50,000 items are fitted on
    a sample. Where a level has fewer distinct residuals than codes, the codes left over are random directions: room
    for items of later nights.
    """
    size = shrunk_codebook_size(len(embeddings), levels, codebook_size)
    generator = np.random.default_rng(seed)
    if len(embeddings) > _SAMPLE:
        embeddings = embeddings[np.sort(generator.choice(len(embeddings), _SAMPLE, replace=False))]
    residuals = unit(embeddings)
    codebooks = []
    for _ in range(levels):
        codebook = _spherical_kmeans(residuals, size, generator)
        codebooks.append(codebook)
        residuals = next_residual(residuals, codebook[_nearest(residuals, codebook)[0]])
    return np.stack(codebooks)


def encode(embeddings: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Codes int32 [N, L] of ``embeddings`` [N, d]: the nearest centroid level by level. Not collision-free."""
    residuals = unit(embeddings)
    codes = np.empty((len(residuals), len(codebooks)), dtype=np.int32)
    for level, codebook in enumerate(codebooks):
        codes[:, level] = _nearest(residuals, codebook)[0]
        residuals = next_residual(residuals, codebook[codes[:, level]])
    return codes


def next_residual(residuals: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The part of ``residuals`` at right angles to their unit ``centroids`` (both [..., d]), at unit length."""
    along = (residuals * centroids).sum(axis=-1, keepdims=True)
    return unit(residuals - along * centroids)


def unit(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` [..., d] at length one, float32; a vector of nothing but rounding has no direction and becomes 0."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(norms > 1e-5, vectors / np.maximum(norms, 1e-5), np.float32(0))


def diagnostics(codes: np.ndarray, codebook_size: int) -> dict[str, Any]:
    """How well a tokenizer spreads items: ``codes`` [N, L] before collisions are resolved.

    ``collision`` = 1 - unique/N; ``sharing`` = share of items whose tuple another item has too; per level
    ``utilisation`` = share of codes used and ``perplexity`` = exp(entropy of the code's distribution): at most
    ``codebook_size``, and the one that does not mislead (papers.md section 5).
    """
    if len(codes) == 0:
        return {"items": 0, "collision": 0.0, "sharing": 0.0, "utilisation": [], "perplexity": []}
    buckets = Counter(map(tuple, codes.tolist()))
    utilisation, perplexity = [], []
    for level in range(codes.shape[1]):
        counts = np.unique(codes[:, level], return_counts=True)[1]
        shares = counts / counts.sum()
        utilisation.append(float(len(counts) / codebook_size))
        perplexity.append(float(np.exp(-(shares * np.log(shares)).sum())))
    return {
        "items": len(codes),
        "collision": 1 - len(buckets) / len(codes),
        "sharing": sum(count for count in buckets.values() if count > 1) / len(codes),
        "utilisation": utilisation,
        "perplexity": perplexity,
    }


def _spherical_kmeans(points: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """``size`` unit centroids of unit ``points`` [N, d], by Lloyd's rounds from distinct points chosen at random."""
    distinct = np.unique(points, axis=0)
    clusters = min(size, len(distinct))
    centroids = distinct[np.sort(generator.choice(len(distinct), clusters, replace=False))]
    for _ in range(_ROUNDS):
        nearest, cosines = _nearest(points, centroids)
        sums = np.zeros(centroids.shape, dtype=np.float64)
        np.add.at(sums, nearest, points)
        empty = np.flatnonzero(np.bincount(nearest, minlength=clusters) == 0)
        # A cluster that lost all its points restarts at one that is badly served.
        sums[empty] = points[np.argsort(cosines, kind="stable")[: len(empty)]]
        moved = unit(sums)
        if np.allclose(moved, centroids, atol=1e-6):
            break
        centroids = moved
    spare = generator.normal(size=(size - clusters, points.shape[1]))
    return np.concatenate([centroids, unit(spare)])


def _nearest(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the centroid with the largest cosine for each point, and that cosine."""
    nearest = np.empty(len(points), dtype=np.int64)
    cosines = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), _CHUNK):
        similarity = points[start : start + _CHUNK] @ centroids.T
        nearest[start : start + _CHUNK] = similarity.argmax(axis=1)
        cosines[start : start + _CHUNK] = similarity.max(axis=1)
    return nearest, cosines
