"""The next-item ranking reward, for data without prices and bids (MiniOneRec, arXiv 2510.24431)."""

import numpy as np


def ranking_reward(items: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rule plus ranking reward [N, G] float64 of candidates ``items`` [N, G], best beam first, for targets [N].

    The candidate that is the target gets 1. In a group that holds the target, a miss at beam rank k (from 0) gets
    -(1 / log2(k + 2)) / sum_j 1 / log2(j + 2), the sum over all ranks of the group: the higher a miss was ranked,
    the more it costs. An item that comes twice, as samples may, has the rank of its first place. Without the target all
    get 0.
    """
    hits = items == targets[:, None]
    discount = 1.0 / np.log2(np.arange(items.shape[1]) + 2.0)
    first_place = (items[:, :, None] == items[:, None, :]).argmax(axis=2)
    rewards = np.where(hits, 1.0, -discount[first_place] / discount.sum())
    return np.where(hits.any(axis=1, keepdims=True), rewards, 0.0)
