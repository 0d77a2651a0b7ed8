"""A fitted quantiser: what turns a vector into a short tuple of codes, coarse to fine. It is data, not a model.

Level by level a vector gets the code of the cheapest centroid, and what that centroid leaves unexplained goes to the
next level. Three things tell the kinds apart: the rule by which residuals are made and compared, prices on the codes
of the last level, and an encoder in front. `sgrec_core.items.fitting` fits all kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

Residuals = Literal["plain", "normalised"]
"""plain: squared distance, and the difference from the centroid goes on. normalised: cosine with unit centroids, and
the part at right angles to the centroid goes on, at unit length."""

_CHUNK = 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantiser:
    """Codebooks and how they are read."""

    codebooks: np.ndarray
    """float32 [L, K, c]."""
    residuals: Residuals
    prices: np.ndarray | None = None
    """float32 [K], added to the costs of the last level so that its codes are used evenly; None: no prices."""
    encoder: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """(weights [in, out], biases [out]) of an MLP with ReLU between its layers, from embeddings to latents [N, c];
    empty: the embeddings themselves (c = d)."""

    @property
    def levels(self) -> int:
        return self.codebooks.shape[0]

    @property
    def codebook_size(self) -> int:
        return self.codebooks.shape[1]

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """Codes int32 [N, L] of ``embeddings`` [N, d]: the cheapest code level by level. Not collision-free."""
        codes = np.empty((len(embeddings), self.levels), dtype=np.int32)
        for start in range(0, len(embeddings), _CHUNK):
            chunk = codes[start : start + _CHUNK]
            residuals = self._project(embeddings[start : start + _CHUNK])
            for level in range(self.levels):
                chunk[:, level] = self._level_costs(residuals, level).argmin(axis=1)
                residuals = next_residuals(residuals, self.codebooks[level][chunk[:, level]], self.residuals)
        return codes

    def costs(self, embeddings: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
        """What each code would cost after a prefix: float32 [N, K], lower is nearer.

        Args:
            embeddings: [N, d].
            prefixes: int [N, D], D < L: the codes of the first D levels, which need not be the cheapest ones.
        """
        residuals = self._project(embeddings)
        for level, codes in enumerate(np.asarray(prefixes).T):
            residuals = next_residuals(residuals, self.codebooks[level][codes], self.residuals)
        return self._level_costs(residuals, np.shape(prefixes)[1])

    def _project(self, embeddings: np.ndarray) -> np.ndarray:
        vectors = unit(embeddings)
        for layer, (weights, biases) in enumerate(self.encoder):
            vectors = (np.maximum(vectors, 0) if layer else vectors) @ weights + biases
        return vectors

    def _level_costs(self, residuals: np.ndarray, level: int) -> np.ndarray:
        costs = pairwise_costs(residuals, self.codebooks[level], self.residuals)
        return costs if self.prices is None or level < self.levels - 1 else costs + self.prices

    def tensors(self) -> dict[str, torch.Tensor]:
        """The arrays, as a safetensors file holds them."""
        arrays = {"codebooks": self.codebooks}
        if self.prices is not None:
            arrays["prices"] = self.prices
        for layer, (weights, biases) in enumerate(self.encoder):
            arrays |= {f"encoder_weights_{layer}": weights, f"encoder_biases_{layer}": biases}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def config(self) -> dict[str, Any]:
        """What the arrays alone do not tell, for JSON."""
        return {"residuals": self.residuals, "encoder_layers": len(self.encoder)}

    @classmethod
    def load(cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> "Quantiser":
        """The quantiser that ``tensors()`` and ``config()`` were taken of: it gives the same codes."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        layers = range(config["encoder_layers"])
        return cls(
            codebooks=arrays["codebooks"],
            residuals=config["residuals"],
            prices=arrays.get("prices"),
            encoder=tuple((arrays[f"encoder_weights_{n}"], arrays[f"encoder_biases_{n}"]) for n in layers),
        )


def pairwise_costs(points: np.ndarray, centroids: np.ndarray, residuals: Residuals) -> np.ndarray:
    """[N, K] squared distances of ``points`` [N, c] to ``centroids`` [K, c] (plain), or minus cosines (normalised)."""
    products = points @ centroids.T
    if residuals == "normalised":
        return -products
    return (points**2).sum(axis=1)[:, None] - 2 * products + (centroids**2).sum(axis=1)


def next_residuals(residuals: np.ndarray, centroids: np.ndarray, rule: Residuals) -> np.ndarray:
    """What ``centroids`` leave of ``residuals`` (both [N, c]) for the next level."""
    if rule == "plain":
        return residuals - centroids
    along = (residuals * centroids).sum(axis=-1, keepdims=True)
    return unit(residuals - along * centroids)


def unit(vectors: np.ndarray) -> np.ndarray:
    """``vectors`` [..., d] at length one, float32; a vector of nothing but rounding has no direction and becomes 0."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(norms > 1e-5, vectors / np.maximum(norms, 1e-5), np.float32(0))
