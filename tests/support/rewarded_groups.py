"""Rewarded rollout groups for tests of the methods that turn rewards into advantages."""

import numpy as np

from sgrec_core.generator import ItemTrie
from sgrec_core.rewards.advantages import Groups
from sgrec_core.rewards.fusion import Advantages, fuse

CODES = np.array([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2]])
"""Of six items; item 2 is alone below its first code."""
TRIE = ItemTrie.build(CODES, 3)


def groups_of(business: np.ndarray, semantic: np.ndarray | None = None, judged: np.ndarray | None = None) -> Groups:
    """Groups of any size whose candidates are the items in turn."""
    items = np.tile(np.arange(np.shape(business)[-1]) % len(CODES), (len(business), 1))
    return Groups.of(TRIE, items, business, semantic, judged)


def fused(
    objective: str, business: np.ndarray, semantic: np.ndarray | None = None, judged: np.ndarray | None = None
) -> Advantages:
    return fuse(objective, groups_of(business, semantic, judged))
