"""A decoder-only transformer over semantic-id codes.

A user is read as one sequence of tokens: BOS, then the codes of each history item, oldest item first. With L
levels the hidden state at token ``i * L + l`` predicts code ``l`` of item ``i``, so every position of a sequence is
trained at once. Level ``l`` has its own range of the vocabulary and its own slice of the output table.

RMSNorm, rotary positions, SwiGLU, no biases; dropout on what enters the residual stream, none on attention weights,
which the fused attention for packed batches does not offer. The transformer has three ways in:

* `Generator.packed_states` reads sequences laid end to end (training): norms and matrices see one long row of tokens
  without padding, and attention alone knows where a sequence begins;
* `Generator.forward` reads whole sequences, padded on the right (the history of a user before decoding);
* `Generator.extend` reads a few more tokens for many continuations of the same history (beams or rollout
  candidates). Keys and values of the history are computed once per user and shared by all continuations.

Beside the codes it may score whole items (`ItemHead`) and remember which item followed which (`TransitionMemory`);
`decoding` makes one policy of all.
"""

import copy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_core.generator.memory import TransitionMemory
from sgrec_core.generator.trie import ItemTrie

if TYPE_CHECKING:
    from sgrec_core.generator.training import Windows

BOS = 0
"""The first token of every sequence; also stands at padded positions, which are never attended to."""

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Shape of a generator; plain JSON through `as_json` and `GeneratorConfig(**json)`."""

    levels: int
    """Codes per item."""
    codebook_size: int
    """Codes of each level are in [0, codebook_size)."""
    width: int
    layers: int
    heads: int
    max_items: int
    """Longest history in items; older items are cut."""
    dropout: float
    items: int = 0
    """Items that the item head knows; 0: no item head."""
    item_weight: float = 0.0
    """Weight of item head and memory in the policy, that of the codes' logits being 1 - ``item_weight``; 0 leaves them out."""
    followers: int = 0
    """Followers of each item that the memory of transitions keeps; 0: no memory. It needs an item head beside it."""
    memory_weight: float = 0.0
    """Weight of the memory in what the policy expects of items, that of the item head being 1 - ``memory_weight``."""

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        for name in ("levels", "codebook_size", "layers", "max_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("items", "followers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("item_weight", "memory_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        if self.followers and not self.items:
            raise ValueError(
                f"followers is {self.followers}, and there is no item head beside which a memory could stand"
            )

    @property
    def vocabulary(self) -> int:
        """BOS and one range of codes for each level."""
        return 1 + self.levels * self.codebook_size

    def as_json(self) -> dict[str, int | float]:
        """Plain values for ``config.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Prefix:
    """What the model remembers of a batch of histories, [B] users and P tokens, padded on the right."""

    layers: list[LayerCache]
    """Per layer keys and values, each [B, heads, P, head width]."""
    mask: Tensor
    """[B, P] true at real tokens."""
    length: Tensor
    """[B] number of real tokens, BOS included."""
    hidden: Tensor
    """[B, width] final hidden state of the last real token: predicts the first code of the next item."""
    memory: Tensor | None = None
    """[B, items] log-probabilities of the next item by `TransitionMemory`, where there is one."""


@dataclass(frozen=True)
class Packing:
    """Where sequences of items begin that are laid end to end: S sequences, I items in all."""

    position: Tensor
    """[I] int64 position of each item in its sequence."""
    bounds: Tensor
    """[S' + 1] int32 first item of each sequence, then I; sequences after S are empty and keep the shape."""
    longest: int
    """No sequence has more items."""
    runs: tuple[tuple[int, int], ...]
    """(sequences, items of each) of neighbours of the same length: a rectangle, read without padding."""

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device | str, *, count: int = 0, longest: int = 0) -> "Packing":
        """Packing of sequences with ``lengths`` [S] items each, none 0. Equal lengths should be neighbours.

        ``count`` is the least S', ``longest`` the least `longest`: given alike for all batches they leave nothing
        but contents to differ, so that a compiled or captured step serves them all.
        """
        ends = np.cumsum(lengths)
        bounds = np.full(max(count, len(lengths)) + 1, ends[-1], dtype=np.int32)
        bounds[0] = 0
        bounds[1 : 1 + len(ends)] = ends
        position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        changes = np.flatnonzero(np.diff(lengths)) + 1
        runs = tuple((len(run), int(run[0])) for run in np.split(lengths, changes))
        return cls(
            torch.from_numpy(position).to(device),
            torch.from_numpy(bounds).to(device),
            max(longest, int(lengths.max())),
            runs,
        )

    def rectangles(self, values: Tensor) -> list[Tensor]:
        """Values [I * k, ...] of the items, k for each, as one [sequences, items * k, ...] a run; views."""
        each = len(values) // len(self.position)
        parts = values.split([count * items * each for count, items in self.runs])
        return [part.unflatten(0, (count, -1)) for part, (count, _) in zip(parts, self.runs, strict=True)]


def packed_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """Causal attention within each sequence: [T, heads, d] each, T = I * levels tokens."""
    # Flash attention takes half precision and head widths in eights.
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0:
        from torch.nn.attention.varlen import varlen_attn

        levels = len(query) // len(packing.position)
        bounds, longest = packing.bounds * levels, packing.longest * levels
        # Nothing to the right: causal.
        mixed = varlen_attn(query, key, value, bounds, bounds, longest, longest, window_size=(-1, 0))
        assert isinstance(mixed, Tensor)
        return mixed
    return rectangle_attention(query, key, value, packing)


def _rectangle_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        # Fused attention on these short sequences takes four times as long in bfloat16 as in float32 on a CPU.
        query, key, value = query.float(), key.float(), value.float()
    mixed = []
    with torch.autocast(query.device.type, enabled=False):
        for parts in zip(*(packing.rectangles(part) for part in (query, key, value)), strict=True):
            q, k, v = (part.transpose(1, 2) for part in parts)
            mixed.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed).to(dtype)


rectangle_attention = _rectangle_attention


def leave_rectangles_uncompiled() -> None:
    """To be called before a model is compiled: the rectangles differ in every batch, and each would be compiled anew.

    Not a decorator, because `torch.compiler` takes longer to import than all the rest.
    """
    global rectangle_attention
    rectangle_attention = torch.compiler.disable(_rectangle_attention)


class Attention(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.project_in = nn.Linear(config.width, 3 * config.width, bias=False)
        self.project_out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, LayerCache]:
        """Causal attention over whole sequences x [B, T, width]; also the keys and values [B, heads, T, d]."""
        query, key, value = self._heads(x, rotation)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project_out(mixed.transpose(1, 2).flatten(2)), (key, value)

    def packed(self, x: Tensor, rotation: Tensor, packing: Packing) -> Tensor:
        """Causal attention within the sequences of a packed batch x [T, width]."""
        return self.project_out(packed_attention(*self._heads(x, rotation), packing).flatten(1))

    def extend(
        self, x: Tensor, rotation: Tensor, prefix: LayerCache, prefix_mask: Tensor, past: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        """Attention of x [B, N, S, width], S new tokens of N continuations, to their history and to themselves.

        ``past`` holds keys and values [B, N, T, heads, d] of tokens that the continuations read before; returned
        with the new ones appended.
        """
        continuations, new = x.shape[1:3]
        query, key, value = self._heads(x, rotation)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        prefix_key, prefix_value = prefix
        query = query * query.shape[-1] ** -0.5

        # [B, heads, N * S, d] against the one copy of the history's keys [B, heads, P, d].
        shared = query.permute(0, 3, 1, 2, 4).flatten(2, 3) @ prefix_key.transpose(2, 3)
        shared = shared.masked_fill_(~prefix_mask[:, None, None, :], -torch.inf)
        # A continuation has few tokens of its own: products and sums take less time than many tiny matrices.
        own = (query.unsqueeze(3) * key.unsqueeze(2)).sum(dim=-1).permute(0, 4, 1, 2, 3)
        total = own.shape[-1]
        if new > 1:
            seen = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
            own = own.masked_fill(~seen, -torch.inf)

        weights = torch.cat((shared, own.flatten(2, 3)), dim=-1).softmax(dim=-1)
        from_prefix, from_own = weights.split((prefix_key.shape[2], total), dim=-1)
        mixed = (from_prefix @ prefix_value).unflatten(2, (continuations, new)).permute(0, 2, 3, 1, 4)
        of_own = from_own.unflatten(2, (continuations, new)).permute(0, 2, 3, 4, 1)
        mixed = mixed + (of_own.unsqueeze(-1) * value.unsqueeze(2)).sum(dim=3)
        return self.project_out(mixed.flatten(3)), (key, value)

    def newest(self, x: Tensor, rotation: Tensor, mask: Tensor, newest: Tensor) -> tuple[Tensor, LayerCache]:
        """What `forward` gives for the token at ``newest`` [B] of each row of x [B, T, width], and the whole cache.

        ``mask`` [B, T] is true up to that token.
        """
        rows = torch.arange(len(x), device=x.device)
        width = x.shape[-1]
        weight = self.project_in.weight
        query = F.linear(x[rows, newest], weight[:width]).unflatten(-1, (self.heads, -1))
        query = rotate(query, rotation[newest])
        key, value = F.linear(x, weight[width:]).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        key, value = rotate(key, rotation).transpose(1, 2), value.transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query.unsqueeze(2), key, value, attn_mask=mask[:, None, None, :])
        return self.project_out(mixed.flatten(1)), (key, value)

    def _heads(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value [..., heads, d], the first two rotated; ``rotation`` is [..., d] (cos, sin)."""
        rotated, value = self.project_in(x).unflatten(-1, (3, self.heads, -1)).split((2, 1), dim=-3)
        query, key = rotate(rotated, rotation.unsqueeze(-2)).unbind(-3)
        return query, key, value.squeeze(-3)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary embedding of x [..., heads, d] by ``rotation`` [..., d]: cosines, then sines, of d / 2 angles."""
    cos, sin = rotation.to(x.dtype).unsqueeze(-2).chunk(2, dim=-1)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        hidden = 8 * config.width // 3 // 8 * 8
        self.attention_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config)
        self.feed_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.feed_in = nn.Linear(config.width, 2 * hidden, bias=False)
        self.feed_out = nn.Linear(hidden, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, LayerCache]:
        mixed, cache = self.attention(self.attention_norm(x), rotation)
        return self._feed(x + self.dropout(mixed)), cache

    def packed(self, x: Tensor, rotation: Tensor, packing: Packing) -> Tensor:
        return self._feed(x + self.dropout(self.attention.packed(self.attention_norm(x), rotation, packing)))

    def extend(
        self, x: Tensor, rotation: Tensor, prefix: LayerCache, prefix_mask: Tensor, past: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        mixed, cache = self.attention.extend(self.attention_norm(x), rotation, prefix, prefix_mask, past)
        return self._feed(x + self.dropout(mixed)), cache

    def newest(self, x: Tensor, rotation: Tensor, mask: Tensor, newest: Tensor) -> tuple[Tensor, LayerCache]:
        mixed, cache = self.attention.newest(self.attention_norm(x), rotation, mask, newest)
        return self._feed(x[torch.arange(len(x), device=x.device), newest] + self.dropout(mixed)), cache

    def _feed(self, x: Tensor) -> Tensor:
        gate, value = self.feed_in(self.feed_norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.feed_out(F.silu(gate) * value))


class ItemHead(nn.Module):
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

    def vectors(self) -> Tensor:
        """[items, width]: an item's logit is the product of its vector and the hidden state."""
        levels = torch.arange(self.codes.shape[1], device=self.codes.device)
        return self.own + self.of_codes[levels, self.codes].sum(dim=1)

    def check(self, trie: ItemTrie) -> None:
        """Raise ValueError unless its items are those of ``trie``."""
        if not torch.equal(self.codes, trie.codes):
            raise ValueError(
                f"the item head is not that of the {trie.items} items of this trie; align the model with it"
            )

    @torch.no_grad()
    def align(self, codes: Tensor) -> Tensor | None:
        """Make its items those of codes [items, L], in their order.

        The row [items] that each had before, -1 for a new one; None where they are its items already.
        What is new to it starts without a vector of its own; that of an item which is not among them is forgotten.
        """
        codes = codes.to(self.codes.device)
        if torch.equal(self.codes, codes):
            return None
        known = {tuple(row): number for number, row in enumerate(self.codes.tolist())}
        rows = torch.tensor([known.get(tuple(row), -1) for row in codes.tolist()], device=self.own.device)
        own = self.own.new_zeros(len(codes), self.own.shape[1])
        own[rows >= 0] = self.own[rows[rows >= 0]]
        self.own, self.codes = nn.Parameter(own), codes.clone()
        return rows


class Generator(nn.Module):
    """See the module's docstring. Weights depend on the seed of torch's global generator."""

    rotations: Tensor
    """[positions, head width] cosines and sines."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.codebooks = nn.Parameter(torch.empty(config.levels, config.codebook_size, config.width))
        """Output table: [levels, codebook size, width]."""
        self.item_head = ItemHead(config) if config.items else None
        self.memory = TransitionMemory(config.items, config.followers) if config.followers else None

        head_width = config.width // config.heads
        positions = torch.arange(1 + (config.max_items + 1) * config.levels)
        frequencies = 10_000 ** -(torch.arange(0, head_width, 2) / head_width)
        angles = positions[:, None] * frequencies
        self.register_buffer("rotations", torch.cat((angles.cos(), angles.sin()), dim=-1), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        residual_scale = (2 * self.config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and name != "item_head.own":
                residual = name.endswith(("project_out.weight", "feed_out.weight"))
                nn.init.normal_(parameter, std=0.02 * (residual_scale if residual else 1.0))

    @property
    def device(self) -> torch.device:
        return self.codebooks.device

    def align(self, trie: ItemTrie) -> None:
        """Make item head and memory, where there are any, those of the items of ``trie``: new ones are known by their codes."""
        if self.item_head is not None:
            rows = self.item_head.align(trie.codes)
            if self.memory is not None and rows is not None:
                self.memory.align(rows)
            self.config = replace(self.config, items=trie.items)

    def reweighted(self, **weights: Any) -> "Generator":
        """The same parameters, shared, in a policy with other ``weights`` (``item_weight``, ``memory_weight``)."""
        same = copy.copy(self)
        same.config = replace(self.config, **weights)
        return same

    def without_memory(self) -> "Generator":
        """The same parameters, shared, in a policy that leaves the memory out: for rollouts and what learns from them.

        The memory has counted the targets of the training decisions. Of a policy that takes it into account nearly every group
        rolled out for such a decision would hold the target, by heart and not by any skill that could grow.
        """
        return self.reweighted(memory_weight=0.0)

    def remember(self, windows: "Windows") -> None:
        """Have the memory, where there is one, hold the transitions of these training windows and no others."""
        if self.memory is not None:
            self.memory.count(windows)

    def tokens(self, codes: Tensor) -> Tensor:
        """Vocabulary indices of codes [..., L] (all levels of an item, or its first few)."""
        return 1 + codes + torch.arange(codes.shape[-1], device=codes.device) * self.config.codebook_size

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[LayerCache]]:
        """Final hidden states [B, T, width] of token sequences [B, T], and keys and values of each layer."""
        x = self.embedding_dropout(self.embedding(tokens))
        rotation = self.rotations[: tokens.shape[1]]
        caches = []
        for block in self.blocks:
            x, cache = block(x, rotation)
            caches.append(cache)
        return self.final_norm(x), caches

    def sequence_logits(self, codes: Tensor) -> Tensor:
        """Logits [B, n, L, codebook size] of every code of sequences of items, codes [B, n, L].

        Items after the end of a shorter sequence may hold any code: attention is causal, so they change nothing
        before them.
        """
        tokens = F.pad(self.tokens(codes).flatten(1)[:, :-1], (1, 0), value=BOS)
        hidden, _ = self(tokens)
        return self.code_logits(hidden.unflatten(1, (codes.shape[1], self.config.levels)))

    def packed_states(self, codes: Tensor, packing: Packing) -> Tensor:
        """Final hidden states [I, L, width] before every code of sequences of items laid end to end, codes [I, L]."""
        levels = self.config.levels
        position = (packing.position[:, None] * levels + torch.arange(levels, device=codes.device)).flatten()
        # Each token predicts the next one; the one before a sequence's first is BOS, not its neighbour's last.
        before = F.pad(self.tokens(codes).flatten()[:-1], (1, 0))
        x = self.embedding_dropout(self.embedding(before.masked_fill(position == 0, BOS)))
        rotation = self.rotations[position]
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block.packed(x, rotation, packing)
        return self.final_norm(x).unflatten(0, (-1, levels))

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., L, codebook size] of all codes of an item from the hidden states [..., L, width] before them."""
        return torch.einsum("...lw,lkw->...lk", hidden, self.codebooks)

    def read_histories(self, codes: Tensor, items: Tensor) -> Prefix:
        """Read histories: codes [B, n, L], of which the first ``items`` [B] items of each row are real."""
        tokens = F.pad(self.tokens(codes).flatten(1), (1, 0), value=BOS)
        length = 1 + items * self.config.levels
        mask = torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]
        rotation = self.rotations[: tokens.shape[1]]
        x = self.embedding_dropout(self.embedding(tokens))
        caches = []
        for block in self.blocks[:-1]:
            x, cache = block(x, rotation)
            caches.append(cache)
        # Of the last block only the newest token's output is read; of the others, keys and values.
        last = self.blocks[-1]
        assert isinstance(last, Block)
        x, cache = last.newest(x, rotation, mask, length - 1)
        return Prefix([*caches, cache], mask, length, self.final_norm(x))

    def extend(
        self, prefix: Prefix, tokens: Tensor, past: list[LayerCache] | None = None
    ) -> tuple[Tensor, list[LayerCache]]:
        """Read tokens [B, N, S] as continuations of each user's history; hidden states [B, N, S, width].

        ``past`` is what an earlier call returned for the tokens before these, reordered by the caller where beams
        moved: per layer keys and values [B, N, T, heads, d].
        """
        seen = 0 if past is None else past[0][0].shape[2]
        positions = prefix.length[:, None] + seen + torch.arange(tokens.shape[2], device=tokens.device)
        rotation = self.rotations[positions][:, None]
        x = self.embedding_dropout(self.embedding(tokens))
        caches = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            layer_past = None if past is None else past[index]
            x, cache = block.extend(x, rotation, prefix.layers[index], prefix.mask, layer_past)
            caches.append(cache)
        return self.final_norm(x), caches

    def level_logits(self, hidden: Tensor, level: int) -> Tensor:
        """Logits [..., codebook size] of code ``level`` from hidden states [..., width]."""
        return hidden.to(self.codebooks.dtype) @ self.codebooks[level].T

    def in_bfloat16(self) -> "Generator":
        """A copy that reads in bfloat16, for decoding; only the output tables stay as they are.

        Logits rounded to bfloat16 would be wrong by a thirtieth of a nat and change three times as many entries of a
        beam of 50.
        """
        rounded = copy.deepcopy(self).bfloat16()
        rounded.codebooks = nn.Parameter(self.codebooks.detach().clone())
        rounded.item_head, rounded.memory = copy.deepcopy(self.item_head), copy.deepcopy(self.memory)
        rounded.requires_grad_(False)
        return rounded.eval()
