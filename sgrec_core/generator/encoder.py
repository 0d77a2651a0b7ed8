"""What reads histories: one interface for training on packed sequences and for decoding with a cache.

A user is read as one sequence of tokens: something to begin with, then the codes of each history item, oldest item
first. With L levels the hidden state before code ``l`` of an item predicts that code, so every position of a sequence
is trained at once. Level ``l`` has its own range of tokens and its own slice of the output table.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.packing import Packing

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


@dataclass(frozen=True)
class Prefix:
    """What an encoder remembers of a batch of histories, [B] users and P tokens, padded on the right."""

    layers: list[LayerCache]
    """Per layer keys and values, each [B, heads, P, head width]."""
    mask: Tensor
    """[B, P] true at real tokens."""
    length: Tensor
    """[B] number of real tokens, those before the first item included."""
    hidden: Tensor
    """[B, width] final hidden state of the last real token: predicts the first code of the next item."""


class HistoryEncoder(nn.Module):
    """Reads sequences of items, given as their codes, with everything that was read before a code in its state."""

    compiles: bool
    """Whether batches filled up to one shape are read in one shape, so that compiling the step pays."""
    codebooks: Tensor
    """Output table: [levels, codebook size, width]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.levels, self.codebook_size = config.levels, config.codebook_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def packed_states(self, codes: Tensor, packing: Packing) -> Tensor:
        """Final hidden states [I, L, width] before every code of sequences of items laid end to end, codes [I, L]."""
        raise NotImplementedError

    def read_histories(self, codes: Tensor, items: Tensor) -> Prefix:
        """Read histories: codes [B, n, L], of which the first ``items`` [B] items of each row are real."""
        raise NotImplementedError

    def extend(
        self, prefix: Prefix, tokens: Tensor, past: list[LayerCache] | None = None
    ) -> tuple[Tensor, list[LayerCache]]:
        """Read tokens [B, N, S] as N continuations of each user's history; hidden states [B, N, S, width].

        ``past`` is what an earlier call returned for the tokens before these, reordered by the caller where beams
        moved: per layer keys and values [B, N, T, heads, d].
        """
        raise NotImplementedError

    def round_to_bfloat16(self) -> None:
        """Read in bfloat16 from now on, for decoding."""
        self.bfloat16()

    def tokens(self, codes: Tensor) -> Tensor:
        """Tokens of codes [..., L] (all levels of an item, or its first few), those of the first level from 1 on."""
        return 1 + codes + torch.arange(codes.shape[-1], device=codes.device) * self.codebook_size

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., L, codebook size] of all codes of an item from the hidden states [..., L, width] before them."""
        return torch.einsum("...lw,lkw->...lk", hidden, self.codebooks)

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Logits [..., codebook size] of code ``level`` from hidden states [..., width]."""
        codebooks = self.codebooks
        return hidden.to(codebooks.dtype) @ codebooks[level].T
