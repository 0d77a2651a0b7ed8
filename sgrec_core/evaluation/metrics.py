"""Item-level ranking metrics over the whole catalogue.

Ranked lists are item indices [N, K], best first, one row per decision, -1 for no item; ranks of targets are
from 0.
"""

import numpy as np

CUTOFFS = (1, 5, 10, 20, 50)

NOVELTY_BUCKETS = ("in_history", "shares_two_codes", "shares_one_code", "shares_none")


def target_ranks(ranked: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[N] float64 rank of each target from 0; inf where the list does not hold it."""
    hits = ranked == targets[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), np.inf)


def identity_ranks(ranked: np.ndarray, targets: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """[N] float64 rank of each target when items that share an identity [items] count as one; inf where it is absent.

    The id-level protocol of MiniOneRec (arXiv 2510.24431), whose lists hold semantic ids: a collision counts as a hit.
    An identity takes one place of the list, that of its first item.
    """
    found = np.where(ranked >= 0, identities[ranked], -1)
    same = found[:, :, None] == found[:, None, :]
    first = ~np.tril(same, k=-1).any(axis=2) & (found >= 0)
    place = np.cumsum(first, axis=1) - 1
    hits = (found == np.where(targets >= 0, identities[targets], -2)[:, None]) & first
    return np.where(hits.any(axis=1), place[np.arange(len(place)), hits.argmax(axis=1)], np.inf)


def hit_rate(ranks: np.ndarray, cutoff: int) -> np.ndarray:
    """[N] 1 where the target is among the first ``cutoff`` items."""
    return (ranks < cutoff).astype(np.float64)


def ndcg(ranks: np.ndarray, cutoff: int) -> np.ndarray:
    """[N] 1 / log2(rank + 2) where the target is among the first ``cutoff`` items, else 0 (one relevant item)."""
    return np.where(ranks < cutoff, 1.0 / np.log2(ranks + 2.0), 0.0)


def per_user(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Mean of values [N] of each user, users in ascending order: every user counts once, however active."""
    _, index = np.unique(users, return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index)


def coverage(ranked: np.ndarray, items: int, cutoff: int) -> float:
    """Share of the catalogue that appears in someone's first ``cutoff`` items."""
    top = ranked[:, :cutoff]
    return len(np.unique(top[top >= 0])) / items


def gini(ranked: np.ndarray, items: int, cutoff: int) -> float:
    """Gini index of how often each item of the catalogue is recommended: 0 alike, towards 1 always the same few."""
    top = ranked[:, :cutoff]
    counts = np.sort(np.bincount(top[top >= 0], minlength=items))
    if not counts.sum():
        return 0.0
    position = np.arange(1, items + 1)
    return float(((2 * position - items - 1) * counts).sum() / (items * counts.sum()))


def novelty_buckets(histories: np.ndarray, targets: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[N] index into `NOVELTY_BUCKETS`: how new the target is to the user.

    Histories [N, n] are padded with -1; codes are [items, L]. The target is in the history, or shares its two
    leading codes with some history item, or its first, or none.
    """
    real = histories >= 0
    same = (histories == targets[:, None]) & real
    history_codes, target_codes = codes[np.where(real, histories, 0)], codes[targets][:, None]
    first = (history_codes[..., 0] == target_codes[..., 0]) & real
    both = first & (history_codes[..., :2] == target_codes[..., :2]).all(axis=-1)
    return np.select([same.any(axis=1), both.any(axis=1), first.any(axis=1)], [0, 1, 2], default=3)
