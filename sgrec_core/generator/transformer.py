"""Our history encoder: a decoder-only transformer over semantic-id codes, which begins each sequence with BOS.

RMSNorm, rotary positions, SwiGLU, no biases; dropout on what enters the residual stream, none on attention weights,
which the fused attention for packed batches does not offer. In training norms and matrices see one long row of tokens
without padding, and attention alone knows where a sequence begins. Before decoding, keys and values of a history are
computed once per user and shared by all continuations (beams or rollout candidates).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.encoder import HistoryEncoder, LayerCache, Prefix
from sgrec_core.generator.packing import Packing

BOS = 0
"""The first token of every sequence; also stands at padded positions, which are never attended to."""


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


class Transformer(HistoryEncoder):
    """See the module's docstring. Weights depend on the seed of torch's global generator."""

    compiles = True
    rotations: Tensor
    """[positions, head width] cosines and sines."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.codebooks = nn.Parameter(torch.empty(config.levels, config.codebook_size, config.width))

        head_width = config.width // config.heads
        positions = torch.arange(1 + (config.max_items + 1) * config.levels)
        frequencies = 10_000 ** -(torch.arange(0, head_width, 2) / head_width)
        angles = positions[:, None] * frequencies
        self.register_buffer("rotations", torch.cat((angles.cos(), angles.sin()), dim=-1), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        residual_scale = (2 * len(self.blocks)) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("project_out.weight", "feed_out.weight"))
                nn.init.normal_(parameter, std=0.02 * (residual_scale if residual else 1.0))

    def packed_states(self, codes: Tensor, packing: Packing) -> Tensor:
        levels = self.levels
        position = (packing.position[:, None] * levels + torch.arange(levels, device=codes.device)).flatten()
        # Each token predicts the next one; the one before a sequence's first is BOS, not its neighbour's last.
        before = F.pad(self.tokens(codes).flatten()[:-1], (1, 0))
        x = self.embedding_dropout(self.embedding(before.masked_fill(position == 0, BOS)))
        rotation = self.rotations[position]
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block.packed(x, rotation, packing)
        return self.final_norm(x).unflatten(0, (-1, levels))

    def read_histories(self, codes: Tensor, items: Tensor) -> Prefix:
        tokens = F.pad(self.tokens(codes).flatten(1), (1, 0), value=BOS)
        length = 1 + items * self.levels
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

    def round_to_bfloat16(self) -> None:
        """All but the output table.

        Logits rounded to bfloat16 would be wrong by a thirtieth of a nat and change three times as many entries of a
        beam of 50.
        """
        exact = self.codebooks.detach().clone()
        self.bfloat16()
        self.codebooks = nn.Parameter(exact)
