"""What a method turns into advantages, and what it gives: N rollout groups of G candidates with L codes each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sgrec_core.generator.trie import ItemTrie

SMALLEST_DEVIATION = 1e-8
"""A group whose rewards deviate by no more than this has nothing to tell its candidates apart."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Rewarded rollout groups; `Groups.of` builds them.

    Raises:
        ValueError: rewards are not [N, G], or a judged group lacks a number.
    """

    business: np.ndarray
    """[N, G] float64."""
    semantic: np.ndarray | None
    """[N, G] float64, of any value in groups that are not judged; None where nothing is."""
    judged: np.ndarray
    """[N] which groups have a semantic reward for every candidate."""
    items: np.ndarray
    """[N, G] item indices; samples may repeat."""
    codes: np.ndarray
    """[N, G, L] the items' codes."""
    path: np.ndarray
    """[N, G, L] node of the trie in which each code was chosen."""
    forced: np.ndarray
    """[N, G, L] whether it is the only valid code there: such a code has probability 1 and no gradient."""
    resolution: float = SMALLEST_DEVIATION
    """Deviation up to which semantic rewards of a group differ by the judge's rounding, and say nothing."""
    target_codes: np.ndarray | None
    """[N, L] codes of the item that was chosen, -1 where it is not in the catalogue; None where nothing was chosen."""

    def __post_init__(self) -> None:
        _check_finite("business", self.business)
        if self.semantic is not None:
            _check_finite("semantic", np.where(self.judged[:, None], self.semantic, 0.0), "judged ")

    @classmethod
    def of(
        cls,
        trie: ItemTrie,
        items: np.ndarray,
        business: np.ndarray,
        semantic: np.ndarray | None = None,
        judged: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        *,
        resolution: float = SMALLEST_DEVIATION,
    ) -> "Groups":
        """Groups of ``items`` of a trie on the CPU, ``targets`` [N] among them, -1 for others.

        With ``semantic`` and without ``judged`` every group is judged. Eight parameters, because a group has as many
        sides.
        """
        every = np.full(len(items), semantic is not None)
        codes, chosen = trie.codes.numpy(), torch.tensor(items, dtype=torch.int64)
        return cls(
            business=np.asarray(business, dtype=np.float64),
            semantic=None if semantic is None else np.asarray(semantic, dtype=np.float64),
            judged=every if judged is None else judged,
            items=items,
            codes=codes[items],
            path=trie.path[chosen].numpy(),
            resolution=resolution,
            forced=trie.forced(chosen).numpy(),
            target_codes=None if targets is None else np.where(targets[:, None] >= 0, codes[targets], -1),
        )

    @cached_property
    def business_advantage(self) -> np.ndarray:
        """[N, G] business rewards standardised within the group."""
        return standardise(self.business)

    @cached_property
    def semantic_advantage(self) -> np.ndarray:
        """[N, G] the same of semantic rewards; zeros in groups that are not judged."""
        if self.semantic is None:
            return np.zeros_like(self.business)
        return standardise(np.where(self.judged[:, None], self.semantic, 0.0), self.resolution)


@dataclass(frozen=True)
class Fused:
    """What a method gives."""

    advantage: np.ndarray
    """[N, G], or [N, G, L] where codes have their own."""
    gate: np.ndarray
    """[N, G] weight of the semantic advantage, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to fuse business and semantic reward, and which groups it wants judged."""

    fuse: Callable[[Groups, float], Fused]
    """Groups and ``fusion.epsilon`` to advantages."""
    reads_semantic: bool = True
    """Whether semantic rewards move its advantages."""
    learns_without_variance: bool = False
    """Whether groups whose business rewards are all alike can have advantages."""
    needs_every_group: bool = False
    """Whether groups that are not judged have no advantages, so that sampling a share of them would lose the rest."""


def standardise(rewards: np.ndarray, resolution: float = SMALLEST_DEVIATION) -> np.ndarray:
    """(reward - mean) / population deviation within each row of [N, G]; zeros where that is at most ``resolution``."""
    values = _tensor(rewards)
    # Subtracting the first candidate's reward first keeps equal rewards exactly equal, whatever their size.
    centred = _centre(values - values[:, :1])
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > resolution, centred / deviation, 0.0).numpy()


def tell_apart(standardised: np.ndarray) -> np.ndarray:
    """[N] whether the standardised rewards [N, G] of a group tell its candidates apart: whether they have variance."""
    return np.any(standardised, axis=1)


def centre(values: np.ndarray) -> np.ndarray:
    """Each row of [N, G] less its mean."""
    return _centre(_tensor(values)).numpy()


def _centre(values: Tensor) -> Tensor:
    # Means are torch's: numpy adds up in another order, which would move the last digit of published advantages.
    return values - values.mean(dim=1, keepdim=True)


def _tensor(values: np.ndarray) -> Tensor:
    # Arrow hands out arrays that may not be written to, which torch warns of; a copy is cheap.
    return torch.tensor(values, dtype=torch.float64)


def _check_finite(name: str, rewards: np.ndarray, which: str = "") -> None:
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [groups, candidates], not {rewards.shape}")
    bad = np.argwhere(~np.isfinite(rewards))
    if len(bad):
        group, candidate = bad[0].tolist()
        raise ValueError(
            f"{name} reward of candidate {candidate} in {which}group {group} is {rewards[group, candidate]};"
            f" {which}groups need a finite reward for every candidate"
        )
