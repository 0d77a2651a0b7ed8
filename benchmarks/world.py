"""What a comparison of objectives needs of a data set: the arrays that every objective shares."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sgrec_core.generator import ItemTrie
from sgrec_core.generator.packing import Windows
from sgrec_core.policy.trainer import BusinessReward, SemanticReward


@dataclass(frozen=True)
class Decisions:
    """N decision points."""

    histories: np.ndarray
    """[N, n] item indices, oldest first, -1 after the end."""
    targets: np.ndarray
    """[N]"""
    users: np.ndarray
    """[N] user numbers: the unit that is resampled."""


@dataclass(frozen=True)
class World:
    """A data set cut in four: supervised training, feedback for policy optimisation, validation and test.

    The feedback comes after all that supervised training reads, so that rollouts meet targets they have not learnt.
    """

    name: str
    trie: ItemTrie
    windows: Windows
    """Of supervised training."""
    feedback: Decisions
    """Prompts of the rollouts; their targets are for the business reward alone."""
    business: BusinessReward
    """Rows of ``feedback`` and items [B, G] to rewards."""
    semantic: Mapping[str, SemanticReward]
    """By judge; the same."""
    validation: Decisions
    test: Decisions
