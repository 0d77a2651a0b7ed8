"""Supervised training of the generator: next item, every position of a sequence at once.

One step reads a batch of windows laid end to end, without padding (`packing.Packing`). Everything random derives from
(seed, epoch) for the order of the windows and from (seed, step, process) for dropout, so a checkpoint needs no state of
a random generator, and a training that was killed ends with the same bits as one that was not.

Under torchrun each process takes its share of every batch; gradients are summed after each had divided by the
targets of the whole batch, which is what one process computes, up to rounding. What was left out: sharding of
weights or optimiser (a generator is small), overlap of the sum with the backward pass, gradient accumulation.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_core.generator.checkpoints import Checkpoints
from sgrec_core.generator.model import Generator
from sgrec_core.generator.packing import Batch, Windows
from sgrec_core.generator.transformer import leave_rectangles_uncompiled
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
    """Windows of mean length per step: steps differ in windows and are alike in tokens."""
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    bfloat16: bool
    """Multiply matrices in bfloat16 (autocast)."""
    seed: int
    compile: bool = False
    """Compile the step; batches then all get one shape."""


def packed_loss(model: Generator, trie: ItemTrie, batch: Batch, smoothing: float) -> Tensor:
    """Sum of the cross-entropies, in nats, over all codes of a batch's targets, and those of the item head's items.

    Over the whole codebook, not only over valid children: it is the harder task, and teaches a model that knows
    which codes exist. The item head is trained beside the codes, not through the policy that both make.
    """
    codes = trie.codes[batch.items]
    hidden = model.encoder.packed_states(codes, batch.packing)
    # Not selected but ignored: how many targets there are must not change the shape of a compiled step.
    loss = _cross_entropy(
        model.encoder.code_logits(hidden), codes.masked_fill(~batch.target[:, None], IGNORED), smoothing
    )
    if model.item_head is not None:
        before, items = hidden[:, 0], batch.items.masked_fill(~batch.target, IGNORED)
        if not torch.compiler.is_compiling():
            # A row of logits for each item of the catalogue is too much for items that are only read.
            before, items = before[batch.target], items[batch.target]
        loss = loss + catalogue_loss(before, model.item_head.vectors(), items, smoothing)
    return loss


ROWS = 256
"""States whose logits over the catalogue are made at once on a CPU."""


def catalogue_loss(hidden: Tensor, vectors: Tensor, items: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum of the cross-entropies, in nats, of items [N] under a softmax of hidden [N, width] over vectors [V, width].

    On a CPU a few rows at a time: one matrix of all the logits is memory that the system hands out anew at every step,
    and filling its pages takes as long as the arithmetic.
    """
    rows = ROWS if hidden.device.type == "cpu" else max(1, len(hidden))
    hidden = hidden.to(vectors.dtype)
    parts = zip(hidden.split(rows), items.split(rows), strict=True)
    return torch.stack([_cross_entropy(some @ vectors.T, labels, smoothing) for some, labels in parts]).sum()


IGNORED = -100
"""The label of what is not predicted."""


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Sum over labels [...] of logits [..., classes], `IGNORED` left out."""
    exact = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, labels.flatten(), ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")


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
    checkpoints: Checkpoints | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``model`` in place; the mean loss of each epoch, in nats per code, the item head's included.

    With ``checkpoints`` it goes on from the newest one there, bit for bit as if it had never stopped. ``progress`` gets
    (windows seen in this step, loss); windows of the steps before a checkpoint come in one call with a loss of nan.
    Deterministic by ``config.seed`` on one machine with one number of threads (on a GPU as far as its kernels are; see
    `torch.use_deterministic_algorithms`); the seed is set on torch's global generator, which dropout draws from.

    In a process group all processes must call it with equal arguments; all end with the same weights.

    Raises:
        InputError: the newest checkpoint is of another training.
        ValueError: the item head is of other items; see `Generator.align`.
    """
    if not len(windows.items):
        return []
    processes, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    trie = trie.to(model.device)
    if model.item_head is not None:
        model.item_head.check(trie)
    lengths = (windows.items >= 0).sum(axis=1)
    batches = math.ceil(len(lengths) / config.batch_size)
    steps = config.epochs * batches
    optimiser = optimiser_of(model, config.learning_rate, config.weight_decay)
    loss_of: Callable[..., Tensor] = packed_loss
    filled_to = 0
    if config.compile:
        leave_rectangles_uncompiled()
        loss_of = torch.compile(packed_loss, dynamic=False)
        filled_to = _largest(_largest(int(lengths.sum()), batches, lengths), processes, lengths)

    losses: list[float] = []
    first, seen, total = 0, 0, 0.0
    if checkpoints is not None:
        identity = _identity(model, trie, windows, config, processes)
        found = checkpoints.newest(identity, model.device)
        if found is not None:
            tensors, state = found
            _restore(model, optimiser, tensors)
            first, seen, losses, total = state["step"], state["windows"], state["losses"], state["total"]
            if progress is not None:
                progress(seen, math.nan)

    model.train()
    for step in range(first, steps):
        epoch, index = divmod(step, batches)
        if index == 0 or step == first:
            order = np.random.default_rng((config.seed, epoch)).permutation(len(lengths))
            plan = _split(order, lengths, batches)
        torch.manual_seed(int(np.random.SeedSequence((config.seed, step, rank)).generate_state(1, np.uint64)[0]))
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate_at(step, steps)
        rows = plan[index]
        # Codes predicted in the whole batch, whichever process predicts them.
        predicted = trie.levels * int((lengths[rows] - windows.first_target[rows]).sum())
        share = _split(rows, lengths, processes)[rank]
        optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=model.device)
        if len(share):
            batch = Batch.of(windows, share, model.device, filled_to=filled_to)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=config.bfloat16):
                loss = loss_of(model, trie, batch, config.label_smoothing) / predicted
            loss.backward()
        if processes > 1:
            loss = _sum_over_processes(model, loss)
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimiser.step()

        total += loss.item()
        seen += len(rows)
        if index == batches - 1:
            losses.append(total / batches)
            total = 0.0
        if progress is not None:
            progress(len(rows), loss.item())
        if checkpoints is not None and rank == 0 and (step + 1) % checkpoints.every == 0:
            state = {"losses": losses, "total": total, "windows": seen}
            checkpoints.publish(step + 1, _tensors(model, optimiser), state, identity)
    model.eval()
    return losses


def _split(rows: np.ndarray, lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut ``rows`` into ``parts`` runs with about equal numbers of items.

    A window belongs to the part that its middle lies in, and a part that would stay empty takes its neighbour's first
    one. No part has more items than `_largest`, and none is empty where there are as many rows as parts.
    """
    ends = np.cumsum(lengths[rows])
    part = (2 * ends - lengths[rows]) * parts // (2 * ends[-1])
    number = np.arange(1, parts)
    surplus = np.maximum.accumulate(np.searchsorted(part, number) - number)
    return np.split(rows, number + np.clip(surplus, 0, max(0, len(rows) - parts)))


def _largest(items: int, parts: int, lengths: np.ndarray) -> int:
    """Bound on the items of a part of `_split`: its share and half a window at each end."""
    return math.ceil(items / parts) + int(lengths.max())


def _sum_over_processes(model: nn.Module, loss: Tensor) -> Tensor:
    """Replace every gradient by its sum over the processes; the loss, summed likewise."""
    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.detach().to(gradients[0].dtype)[None]])
    dist.all_reduce(flat)
    *sums, loss = flat.split([*(gradient.numel() for gradient in gradients), 1])
    for gradient, summed in zip(gradients, sums, strict=True):
        gradient.copy_(summed.view_as(gradient))
    return loss.squeeze(0)


def _tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and the optimiser's moments by name."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight/{name}"] = parameter
        tensors |= {f"{moment}/{name}": value for moment, value in optimiser.state[parameter].items()}
    return tensors


@torch.no_grad()
def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """What `_tensors` gave, put back."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        kind, name = key.split("/", 1)
        if kind == "weight":
            parameters[name].copy_(tensor)
        else:
            # AdamW counts its steps on the CPU.
            optimiser.state[parameters[name]][kind] = tensor.cpu() if kind == "step" else tensor


def _identity(
    model: Generator, trie: ItemTrie, windows: Windows, config: TrainingConfig, processes: int
) -> dict[str, Any]:
    """What determines the weights of every step, as JSON."""
    data = hashlib.blake2b(digest_size=16)
    for array in (trie.codes.cpu().numpy(), windows.items, windows.first_target):
        data.update(np.ascontiguousarray(array).tobytes())
    start = hashlib.blake2b(digest_size=16)
    for parameter in model.parameters():
        start.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "model": asdict(model.config),
        "training": asdict(config),
        "processes": processes,
        "data": data.hexdigest(),
        "starting weights": start.hexdigest(),
    }
