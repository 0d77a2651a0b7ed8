"""Supervised training of the generator: next item, every position of a sequence at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_core.generator.model import Generator
from sgrec_core.generator.trie import ItemTrie

WARMUP = 0.05
"""Share of all steps in which the learning rate rises; it then falls to zero along a cosine."""
GRADIENT_NORM = 1.0
"""Longer gradients are cut to this length."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train, with AdamW."""

    epochs: int
    batch_size: int
    """Windows per step."""
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    bfloat16: bool
    """Multiply matrices in bfloat16 (autocast)."""
    seed: int


@dataclass(frozen=True)
class Windows:
    """Training windows: W sequences of at most max_items + 1 items, padded on the right."""

    items: np.ndarray
    """[W, n] int32 item indices, -1 after the end."""
    first_target: np.ndarray
    """[W] int32: items at this position and after it are predicted, those before it only read."""

    @property
    def targets(self) -> int:
        """How many items are predicted."""
        return int(((self.items >= 0).sum(axis=1) - self.first_target).sum())


def cut_windows(sequences: list[np.ndarray], first_target: list[int], max_items: int) -> Windows:
    """Cut sequences of item indices into windows of at most ``max_items`` + 1 items.

    Items of sequence s from position ``first_target[s]`` on are targets. Each target lies in exactly one window as
    a target; in a sequence that needs several windows each window's targets follow at least ``max_items`` // 2
    items of history.
    """
    size = max_items + 1
    pieces: list[np.ndarray] = []
    starts: list[int] = []
    for sequence, first in zip(sequences, first_target, strict=True):
        while first < len(sequence):
            # Where targets remain beyond this window, the next one starts half a history earlier.
            begin = 0 if len(sequence) <= size else max(0, first - max_items // 2)
            begin = max(0, min(begin, len(sequence) - size))
            end = min(begin + size, len(sequence))
            pieces.append(sequence[begin:end])
            starts.append(first - begin)
            first = end
    items = np.full((len(pieces), size), -1, dtype=np.int32)
    for row, piece in enumerate(pieces):
        items[row, : len(piece)] = piece
    return Windows(items, np.array(starts, dtype=np.int32))


def supervised_loss(model: Generator, trie: ItemTrie, items: Tensor, first_target: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy in nats per code over the targets of windows items [B, n] (see `Windows`).

    Over the whole codebook, not only over valid children: it is the harder task, and teaches a model that knows
    which codes exist.
    """
    logits = model.sequence_logits(trie.codes[items.clamp(min=0)])
    target = (items >= 0) & (torch.arange(items.shape[1], device=items.device) >= first_target[:, None])
    chosen = logits[target].flatten(0, 1)
    return F.cross_entropy(chosen.float(), trie.codes[items[target]].flatten(), label_smoothing=smoothing)


def optimiser_of(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at ``step`` of ``steps``: linear warm-up, then a cosine to zero."""
    rising = max(1, round(WARMUP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train_supervised(
    model: Generator,
    trie: ItemTrie,
    windows: Windows,
    config: TrainingConfig,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``model`` in place; the mean loss of each epoch, in nats per code.

    ``progress`` gets (windows seen in this step, loss). Deterministic by ``config.seed`` on one machine with one
    number of threads; the seed is set on torch's global generator, which dropout draws from.
    """
    if not len(windows.items):
        return []
    torch.manual_seed(config.seed)
    shuffle = np.random.default_rng(config.seed)
    trie = trie.to(model.device)
    lengths = (windows.items >= 0).sum(axis=1)
    batches = math.ceil(len(lengths) / config.batch_size)
    steps = config.epochs * batches
    optimiser = optimiser_of(model, config.learning_rate, config.weight_decay)
    model.train()
    losses = []
    for epoch in range(config.epochs):
        total = 0.0
        for index, rows in enumerate(_batches(lengths, config.batch_size, shuffle)):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * rate_at(epoch * batches + index, steps)
            items = torch.as_tensor(windows.items[rows, : lengths[rows].max()], dtype=torch.int64, device=model.device)
            first_target = torch.as_tensor(windows.first_target[rows], device=model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=config.bfloat16):
                loss = supervised_loss(model, trie, items, first_target, config.label_smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
            optimiser.step()
            total += loss.item()
            if progress is not None:
                progress(len(rows), loss.item())
        losses.append(total / batches)
    model.eval()
    return losses


def _batches(lengths: np.ndarray, batch_size: int, shuffle: np.random.Generator) -> list[np.ndarray]:
    """Rows in random batches of about equal length, so that little is padded.

    Rows are shuffled, sorted by length within pools of 16 batches, cut, and the batches shuffled again.
    """
    order = shuffle.permutation(len(lengths))
    pool = 16 * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches.extend(rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
    return [batches[index] for index in shuffle.permutation(len(batches))]
