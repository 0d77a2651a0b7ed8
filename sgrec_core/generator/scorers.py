"""What scores whole items beside the codes: a list, of which `decoding` makes one expectation of the next item.

A scorer is prepared for a trie and then gives, for each batch of users, logits of all items. They are averaged down the
list: a scorer's weight is its share beside all before it, which have the rest.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.trie import ItemTrie

ItemLogits = Callable[[Tensor, Tensor], Tensor]
"""States [B, width] after histories, and the histories [B, n] of item indices, -1 after the end, to logits [items, B].

Up to a constant for each user, which the softmax over items takes away.
"""


class Scorer(nn.Module):
    """Scores the V items of a catalogue, known by their numbers in it."""

    def over(self, trie: ItemTrie) -> ItemLogits:
        """Its logits of the items of ``trie``, all that batches share computed once.

        Raises:
            ValueError: it knows other items; see `Generator.align`.
        """
        raise NotImplementedError

    def align(self, rows: Tensor, codes: Tensor) -> None:
        """Make item ``rows[v]`` [V'], which is -1 for a new one, the item v with codes [V', L]."""
        raise NotImplementedError


def together(scorers: Sequence[tuple[Scorer, float]], trie: ItemTrie) -> ItemLogits:
    """What all expect, each with its weight; the first has none before it, and who has a weight of 0 is not asked."""
    (leader, _), *others = scorers
    first, rest = leader.over(trie), [(scorer.over(trie), weight) for scorer, weight in others if weight]

    def expected(hidden: Tensor, histories: Tensor) -> Tensor:
        mixed = first(hidden, histories).float()
        for logits_of, weight in rest:
            mixed = mixed.lerp(logits_of(hidden, histories).float(), weight)
        return mixed

    return expected


class ItemHead(Scorer):
    """Scores whole items from the hidden state that predicts their first code: a softmax over the catalogue.

    What codes lose against a flat softmax is the first place of a list (docs/lab-notes.md); LIGER (Yang et al., arXiv
    2411.18814) ranks what codes found by such scores. An item's vector is the sum of one for each of its codes, which
    it shares, and one of its own: a new item has the first at once.
    """

    codes: Tensor
    """[items, L] int64 codes of the items, in the order of the rows of `own`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(config.items, config.levels, dtype=torch.int64))
        self.of_codes = nn.Parameter(torch.empty(config.levels, config.codebook_size, config.width))
        self.own = nn.Parameter(torch.zeros(config.items, config.width))
        nn.init.normal_(self.of_codes, std=0.02)

    def vectors(self) -> Tensor:
        """[items, width]: an item's logit is the product of its vector and the hidden state."""
        levels = torch.arange(self.codes.shape[1], device=self.codes.device)
        rows = self.codes + levels * self.of_codes.shape[1]
        # The gradient of indexing adds up in any order where there are several threads; that of an embedding does not.
        return self.own + F.embedding(rows, self.of_codes.flatten(0, 1)).sum(dim=1)

    def over(self, trie: ItemTrie) -> ItemLogits:
        self.check(trie)
        vectors = self.vectors()
        return lambda hidden, _: vectors @ hidden.to(vectors.dtype).T

    def check(self, trie: ItemTrie) -> None:
        """Raise ValueError unless its items are those of ``trie``."""
        if not torch.equal(self.codes, trie.codes):
            raise ValueError(
                f"the item head is not that of the {trie.items} items of this trie; align the model with it"
            )

    def rows_of(self, codes: Tensor) -> Tensor:
        """[V'] which of its items have the codes [V', L], -1 for none."""
        known = {tuple(row): number for number, row in enumerate(self.codes.tolist())}
        return torch.tensor([known.get(tuple(row), -1) for row in codes.tolist()], device=self.own.device)

    @torch.no_grad()
    def align(self, rows: Tensor, codes: Tensor) -> None:
        """What is new to it starts without a vector of its own; that of an item which is gone is forgotten."""
        own = self.own.new_zeros(len(codes), self.own.shape[1])
        own[rows >= 0] = self.own[rows[rows >= 0]]
        self.own, self.codes = nn.Parameter(own), codes.clone()
