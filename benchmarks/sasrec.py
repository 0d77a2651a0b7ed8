"""SASRec (Kang and McAuley, 2018) with a softmax over the whole catalogue: the baseline for the generator's quality.

Item embeddings, learned positions, a causal transformer, tied output. The full softmax in place of the original's one
sampled negative is what makes it strong (gSASRec and others); training windows and histories are the generator's.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sgrec_core.evaluation.metrics import ndcg, target_ranks
from sgrec_core.generator.device import device
from sgrec_core.generator.packing import Windows
from sgrec_core.generator.training import catalogue_loss, optimiser_of


@dataclass(frozen=True, kw_only=True)
class SASRecConfig:
    """Shape and training; `epochs` is the most, the best on validation is kept."""

    width: int
    layers: int
    heads: int
    dropout: float
    learning_rate: float
    weight_decay: float
    epochs: int
    batch_size: int
    check_every: int
    """Epochs between looks at validation."""


class SASRec(nn.Module):
    def __init__(self, items: int, positions: int, config: SASRecConfig) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, config.width, padding_idx=items)
        self.positions = nn.Embedding(positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                4 * config.width,
                config.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """Hidden states [B, n, width] of items [B, n], -1 after the end."""
        known = torch.where(items < 0, self.items.num_embeddings - 1, items)
        x = self.dropout(self.items(known) * self.items.embedding_dim**0.5 + self.positions.weight[: items.shape[1]])
        mask = nn.Transformer.generate_square_subsequent_mask(items.shape[1], device=items.device)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.norm(x)

    def vectors(self) -> Tensor:
        """[items, width]: an item's logit is the product of its vector and the hidden state."""
        return self.items.weight[:-1]


def train(
    items: int,
    windows: Windows,
    validation: tuple[np.ndarray, np.ndarray],
    config: SASRecConfig,
    seed: int,
    *,
    report: Callable[[int, float], None] | None = None,
) -> tuple[SASRec, float]:
    """The model as it was when its NDCG@10 on validation (histories, targets) was best, and that figure."""
    torch.manual_seed(seed)
    shuffle = np.random.default_rng(seed)
    place = device()
    model = SASRec(items, windows.items.shape[1], config).to(place)
    optimiser = optimiser_of(model, config.learning_rate, config.weight_decay)
    lengths = (windows.items >= 0).sum(axis=1)
    best, kept, misses = -1.0, copy.deepcopy(model.state_dict()), 0
    for epoch in range(1, config.epochs + 1):
        model.train()
        order = shuffle.permutation(len(lengths))
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            batch = torch.as_tensor(windows.items[rows, : lengths[rows].max()], dtype=torch.int64, device=place)
            first = torch.as_tensor(windows.first_target[rows], device=place)[:, None]
            target = (batch >= 0) & (torch.arange(batch.shape[1], device=place) >= first)
            with torch.autocast(place.type, torch.bfloat16):
                hidden = model(batch[:, :-1])[target[:, 1:]]
                items = batch[:, 1:][target[:, 1:]]
                loss = catalogue_loss(hidden, model.vectors(), items) / len(items)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        if epoch % config.check_every == 0:
            found = float(ndcg(target_ranks(rank(model, validation[0]), validation[1]), 10).mean())
            if report is not None:
                report(epoch, found)
            if found > best:
                best, kept, misses = found, copy.deepcopy(model.state_dict()), 0
            else:
                misses += 1
                if misses == 3:
                    break
    model.load_state_dict(kept)
    return model.eval(), best


@torch.inference_mode()
def rank(model: SASRec, histories: np.ndarray, count: int = 20) -> np.ndarray:
    """[N, count] best items for histories [N, n], -1 after the end, none empty; the history stays in the ranking."""
    model.eval()
    place = model.items.weight.device
    ranked = []
    for start in range(0, len(histories), 512):
        batch = torch.as_tensor(histories[start : start + 512], dtype=torch.int64, device=place)
        last = (batch >= 0).sum(dim=1) - 1
        hidden = model(batch)[torch.arange(len(batch), device=place), last]
        ranked.append((hidden @ model.vectors().T).topk(count, dim=1).indices.cpu())
    return torch.cat(ranked).numpy()
