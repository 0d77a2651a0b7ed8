"""Which item follows which, counted: the part of the policy that no training has to learn.

Sequential rules (Ludewig and Jannach, 2018, arXiv 1803.09587), smoothed by popularity. Where an item has only a few
sequences to be learned from they predict better than a transformer, where it has many the transformer is ahead;
together they are better than either (docs/lab-notes.md). So the policy takes both (`scorers`), as language models take
a memory of their text beside their weights (Khandelwal et al., 2020, arXiv 1911.00172).
"""

import numpy as np
import torch
from torch import Tensor

from sgrec_core.generator.packing import Windows
from sgrec_core.generator.scorers import ItemLogits, Scorer
from sgrec_core.generator.trie import ItemTrie

REACH = 5
"""An item counts as a follower of as many items before it, of the g-th with weight 1 / g."""
FADING = 0.6
"""A history item has this share of the say of the one after it."""
SMOOTHING = 20.0
"""Counts that stand for the popularity of items, beside those of an item's followers."""
UNSEEN = 0.5
"""Added to the popularity of every item, so that none is impossible."""


class TransitionMemory(Scorer):
    """Counts of transitions between V items, for each its M most frequent followers."""

    followers: Tensor
    """[V, M] int32 items; those with a count of zero mean nothing."""
    counts: Tensor
    """[V, M] float32"""
    totals: Tensor
    """[V] float32: what was counted of each item, followers that are not kept included."""
    popularity: Tensor
    """[V] float32: how often each item was a target."""

    def __init__(self, items: int, followers: int) -> None:
        super().__init__()
        self.register_buffer("followers", torch.zeros(items, followers, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(items, followers))
        self.register_buffer("totals", torch.zeros(items))
        self.register_buffer("popularity", torch.zeros(items))

    def count(self, windows: Windows) -> None:
        """Replace what it holds by the transitions to the targets of training windows.

        Each target counts once, with those of the `REACH` items before it that stand in its window.
        """
        items = windows.items.astype(np.int64)
        known, kept = self.followers.shape
        target = (items >= 0) & (np.arange(items.shape[1]) >= windows.first_target[:, None])
        before, after, weight = [], [], []
        for gap in range(1, min(REACH, items.shape[1] - 1) + 1):
            found = target[:, gap:]
            before.append(items[:, :-gap][found])
            after.append(items[:, gap:][found])
            weight.append(np.full(len(after[-1]), 1 / gap))
        pairs, place = np.unique(np.concatenate(before) * known + np.concatenate(after), return_inverse=True)
        counts = np.bincount(place, np.concatenate(weight), minlength=len(pairs))
        # Followers of one item after each other, most frequent first.
        order = np.lexsort((pairs, -counts.round(6), pairs // known))
        pairs, counts = pairs[order], counts[order]
        before_item, after_item = pairs // known, pairs % known
        totals = np.bincount(before_item, counts, minlength=known)
        rank = np.arange(len(pairs)) - np.searchsorted(before_item, before_item)
        first = rank < kept
        followers, table = np.zeros((known, kept), dtype=np.int32), np.zeros((known, kept), dtype=np.float32)
        followers[before_item[first], rank[first]] = after_item[first]
        table[before_item[first], rank[first]] = counts[first]
        popularity = np.bincount(items[target], minlength=known)
        for name, values in (
            ("followers", followers),
            ("counts", table),
            ("totals", totals.astype(np.float32)),
            ("popularity", popularity.astype(np.float32)),
        ):
            getattr(self, name).copy_(torch.from_numpy(values))

    def over(self, trie: ItemTrie) -> ItemLogits:
        return lambda _, histories: self.log_probs(histories).T

    def align(self, rows: Tensor, codes: Tensor) -> None:
        """A new item follows nothing, and nothing follows it."""
        rows = rows.to(self.totals.device)
        old, is_new = rows.clamp(min=0), rows < 0
        number = rows.new_full((len(self.totals),), -1)
        number[rows[~is_new]] = (~is_new).nonzero().squeeze(1)
        followers = number[self.followers[old].long()]
        # What an item that is gone had followed stays in the totals: that much less is known about what follows.
        self.counts = self.counts[old].masked_fill(is_new[:, None] | (followers < 0), 0)
        self.followers = followers.clamp(min=0).int()
        self.totals = self.totals[old].masked_fill(is_new, 0)
        self.popularity = self.popularity[old].masked_fill(is_new, 0)

    def log_probs(self, histories: Tensor) -> Tensor:
        """Log-probability [B, V] of each next item, given histories [B, n], oldest first, -1 after the end.

        Each item of the history says what its followers are, the newer the louder, and smoothes their counts by the
        popularity of all items; without a history that alone remains.
        """
        real = histories >= 0
        age = real.sum(dim=1, keepdim=True) - 1 - torch.arange(histories.shape[1], device=histories.device)
        say = torch.where(real, FADING ** age.clamp(min=0).float(), 0.0)
        say = say / say.sum(dim=1, keepdim=True).clamp(min=1e-9)
        read = histories.clamp(min=0)
        shares = (say / (self.totals[read] + SMOOTHING))[..., None] * self.counts[read]
        popularity = (self.popularity + UNSEEN) / (self.popularity + UNSEEN).sum()
        # A float32 rounds it to 0 where hundreds of millions were counted, and log(0) would spread.
        rest = (1 - shares.sum(dim=(1, 2))).clamp(min=1e-9)
        probability = rest[:, None] * popularity
        return probability.scatter_add(1, self.followers[read].long().flatten(1), shares.flatten(1)).log()
