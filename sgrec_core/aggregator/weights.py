"""How much each aspect counts for a user: w(x), a softmax over aspects from the state alone.

S-GRec (arXiv 2602.10606, PSJ part B) trains an LLM on x by pairwise reinforcement learning: for a preferred over b it
samples discrete weight vectors and rewards each with 1[s_hol(x,a) > s_hol(x,b)]. This is the cheap differentiable
alternative: a small network over features of the state, trained with the pairwise logistic loss on s_hol(x,a) -
s_hol(x,b), of which that reward is the step-function limit. Inputs never include the target. The last layer starts at
zero, so that without evidence the weights are uniform.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from sgrec_core.hashing import hash_share
from sgrec_core.items import TextEncoder, embeddings_cache, item_text
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings

PROJECTED = 24
"""Dimensions that a history's mean embedding is reduced to."""
HASHED = 32
"""Buckets of the profile's and context's fields."""
_HALF_LIFE = 3.0
_SCALARS = 7


def state_features(
    states: pa.Table, item_ids: Sequence[str], item_vectors: np.ndarray | None, *, seed: int
) -> np.ndarray:
    """Features float32 [N, 2 * 24 + 7 + 32] of N rows of ``user_states`` (columns history, profile, context).

    ``item_vectors`` [I, d] are unit vectors of ``item_ids``; None where items have no text. In order: the mean of the
    history's vectors and its recency-weighted mean (half-life three items), each through one random projection fixed
    by ``seed``; length, repetition, diversity and drift of the history and how fully profile and context are known;
    and the fields of profile and context hashed into buckets. Items that left the catalogue count for length only.
    """
    features = np.zeros((states.num_rows, 2 * PROJECTED + _SCALARS + HASHED), dtype=np.float32)
    row_of = {item: row for row, item in enumerate(item_ids)} if item_vectors is not None else {}
    dimensions = 0 if item_vectors is None else item_vectors.shape[1]
    projection = np.random.default_rng(seed).normal(size=(dimensions, PROJECTED)) / np.sqrt(PROJECTED)
    hashed: dict[str | None, tuple[np.ndarray, int]] = {}
    columns = (states[name].to_pylist() for name in ("history", "profile", "context"))
    for row, (history, profile, context) in enumerate(zip(*columns, strict=True)):
        rows = [row_of[item] for item in history if item in row_of]
        scalars = features[row, 2 * PROJECTED : 2 * PROJECTED + _SCALARS]
        scalars[0] = np.log1p(len(history))
        scalars[1] = 1 - len(set(history)) / len(history) if history else 0
        scalars[2] = float(bool(history) and history[-1] in history[:-1])
        if rows and item_vectors is not None:
            vectors = item_vectors[rows].astype(np.float64)
            mean = vectors.mean(axis=0)
            recency = 0.5 ** (np.arange(len(rows) - 1, -1, -1) / _HALF_LIFE)
            recent = recency @ vectors / recency.sum()
            features[row, :PROJECTED] = mean @ projection
            features[row, PROJECTED : 2 * PROJECTED] = recent @ projection
            scalars[3] = 1 - mean @ mean
            scalars[4] = vectors[-1] @ mean
        for text in (profile, context):
            if text not in hashed:
                hashed[text] = _hashed_fields(text)
        buckets = features[row, 2 * PROJECTED + _SCALARS :]
        for offset, (text, known) in enumerate(((profile, 5), (context, 6))):
            values, fields = hashed[text]
            # Profile and context take turns in the buckets, so that equal field names do not meet.
            buckets += np.roll(values, offset)
            scalars[known] = np.log1p(fields)
    return features


def day_features(
    lake: Lake, settings: Settings, day: str, wanted: set[str], progress: Callable[..., Any] | None = None
) -> dict[str, np.ndarray]:
    """Features of the day's states ``wanted`` by state_id; what they were chosen for is not read.

    ``progress`` wraps the encoding of item texts that are new.
    """
    columns = ["state_id", "history", "profile", "context"]
    states = lake.read("user_states", where={"day": day}, columns=columns)
    _, first = np.unique(np.array(states["state_id"].to_pylist(), dtype=object), return_index=True)
    states = states.take(first)
    states = states.filter(pa.array([state in wanted for state in states["state_id"].to_pylist()]))
    seen = {item for history in states["history"].to_pylist() for item in history}
    columns = ["item_id", "title", "brand", "category", "description"]
    items = lake.read("items", where={"day": day}, columns=columns).to_pylist()
    texts = {
        item["item_id"]: item_text(item["title"], item["brand"], item["category"], item["description"])
        for item in items
        if item["item_id"] in seen
    }
    texts = {item: text for item, text in texts.items() if text}
    encoder = TextEncoder(embeddings_cache(settings), threads=settings.threads)
    vectors = encoder.encode(list(texts.values()), progress=progress)
    features = state_features(states, list(texts), vectors, seed=settings.aggregator.seed)
    return dict(zip(states["state_id"].to_pylist(), features, strict=True))


class AspectWeights(nn.Module):
    """Features [N, F] -> weights over A aspects [N, A]: non-negative, each row sums to one."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int, aspects: Sequence[str], hidden: int = 32) -> None:
        super().__init__()
        self.aspects = list(aspects)
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, len(self.aspects))
        self.sharpness = nn.Parameter(torch.tensor(1.0))
        """Scale of score differences in the logistic loss; it does not change the weights."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        standardised = (features - self.mean) / self.deviation
        return torch.softmax(self.output(torch.tanh(self.hidden(standardised))), dim=-1)

    def weights(self, features: np.ndarray) -> np.ndarray:
        """Weights float32 [N, A] of features [N, F], renormalised after rounding to float32."""
        with torch.inference_mode():
            weights = self(torch.from_numpy(np.asarray(features, dtype=np.float32))).double().numpy()
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    def config(self) -> dict[str, Any]:
        """For JSON; `from_tensors` builds the same module from both."""
        return {
            "kind": "state_network",
            "features": self.hidden.in_features,
            "hidden": self.hidden.out_features,
            "aspects": self.aspects,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> "AspectWeights":
        """The module that ``tensors`` and ``config`` describe."""
        module = cls(config["features"], config["aspects"], config["hidden"])
        module.load_state_dict(dict(tensors))
        return module.eval()


@dataclass(frozen=True)
class Pairs:
    """P preference pairs: user [P] ids, features [P, F] of the state, scores [P, A] of both items."""

    users: Sequence[str]
    features: np.ndarray
    preferred: np.ndarray
    other: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


def fit(
    pairs: Pairs,
    aspects: Sequence[str],
    *,
    seed: int,
    held_out_share: float = 0.2,
    epochs: int = 20,
    learning_rate: float = 3e-3,
    weight_decay: float = 3.0,
    bootstrap_samples: int = 1000,
) -> tuple[AspectWeights, dict[str, float]]:
    """Weights learnt from ``pairs`` and what they are worth on users held out from the fit.

    Returns the module and its figures: `pairs`, `held_out_pairs`, `held_out_users`, the PairAUC with uniform weights
    (`pair_auc_uniform`) and with the learnt ones (`pair_auc`), and their difference `pair_auc_gain`, each with a 95%
    bootstrap interval over users (`_lower`, `_upper`). AUC figures are left out when nobody is held out. Deterministic.
    """
    held_out = hash_share(pairs.users, f"aggregator-{seed}") < held_out_share if len(pairs) else np.zeros(0, dtype=bool)
    features = torch.from_numpy(np.asarray(pairs.features, dtype=np.float32))
    differences = torch.from_numpy(np.asarray(pairs.preferred - pairs.other, dtype=np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = AspectWeights(pairs.features.shape[1], aspects)
        training = torch.from_numpy(np.flatnonzero(~held_out))
        if len(training):
            deviation, mean = torch.std_mean(features[training], dim=0, correction=0)
            module.mean.copy_(mean)
            module.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
            _train(module, features, differences, training, epochs, learning_rate, weight_decay)
    module.eval()
    figures: dict[str, float] = {
        "pairs": len(pairs),
        "held_out_pairs": int(held_out.sum()),
        "held_out_users": len({user for user, out in zip(pairs.users, held_out, strict=True) if out}),
    }
    if held_out.any():
        users = [user for user, out in zip(pairs.users, held_out, strict=True) if out]
        gap = (pairs.preferred - pairs.other)[held_out]
        learnt = module.weights(pairs.features[held_out])
        uniform = np.full_like(learnt, 1 / len(aspects))
        figures |= _pair_auc(users, gap, uniform, learnt, seed, bootstrap_samples)
    return module, figures


def _train(
    module: AspectWeights,
    features: Tensor,
    differences: Tensor,
    training: Tensor,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """AdamW on the pairwise logistic loss, in batches of 256."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    module.train()
    for _ in range(epochs):
        for batch in training[torch.randperm(len(training))].split(256):
            gap = (module(features[batch]) * differences[batch]).sum(dim=1)
            loss = nn.functional.softplus(-gap * module.sharpness.exp()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _pair_auc(
    users: Sequence[str], gap: np.ndarray, uniform: np.ndarray, learnt: np.ndarray, seed: int, samples: int
) -> dict[str, float]:
    """PairAUC = share of pairs in the right order, ties counting half; interval by resampling users."""
    numbers = {user: number for number, user in enumerate(sorted(set(users)))}
    user = np.array([numbers[name] for name in users])
    right = {}
    for name, weights in (("pair_auc_uniform", uniform), ("pair_auc", learnt)):
        margin = np.round((weights.astype(np.float64) * gap).sum(axis=1), 9)
        right[name] = np.bincount(user, weights=(margin > 0) + 0.5 * (margin == 0), minlength=len(numbers))
    right["pair_auc_gain"] = right["pair_auc"] - right["pair_auc_uniform"]
    pairs = np.bincount(user, minlength=len(numbers)).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(len(numbers), size=(samples, len(numbers)))
    figures = {}
    for name, values in right.items():
        resampled = values[drawn].sum(axis=1) / pairs[drawn].sum(axis=1)
        figures[name] = float(values.sum() / pairs.sum())
        figures[f"{name}_lower"], figures[f"{name}_upper"] = np.quantile(resampled, [0.025, 0.975]).tolist()
    return figures


def _hashed_fields(text: str | None) -> tuple[np.ndarray, int]:
    """Signed hashes of the scalar fields of a JSON object [32], and how many there are; numbers by order of magnitude."""
    values = np.zeros(HASHED, dtype=np.float32)
    try:
        fields = json.loads(text) if text else {}
    except json.JSONDecodeError:
        fields = {}
    if not isinstance(fields, dict):
        return values, 0
    for key, value in sorted(fields.items()):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"2^{round(float(np.sign(value) * np.log2(1 + abs(value))), 1)}"
        digest = hashlib.blake2b(f"{key}={value}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        values[digest[0] % HASHED] += 1.0 if digest[1] % 2 else -1.0
    return values, len(fields)
