"""How much each aspect counts for a user: w(x), a softmax over aspects from the state alone.

S-GRec (arXiv 2602.10606, PSJ part B) trains an LLM on x by pairwise reinforcement learning: for a preferred over b it
samples discrete weight vectors and rewards each with 1[s_hol(x,a) > s_hol(x,b)]. This is the cheap differentiable
alternative: a small network over features of the state, trained with the pairwise logistic loss on s_hol(x,a) -
s_hol(x,b), of which that reward is the step-function limit. Inputs never include the target. The last layer starts at
zero, so that without evidence the weights are uniform.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgrec_core.hashing import hash_share
from sgrec_core.settings import AggregatorSettings


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
    settings: AggregatorSettings,
    *,
    bootstrap_samples: int = 1000,
) -> tuple[AspectWeights, dict[str, float]]:
    """Weights learnt from ``pairs`` and what they are worth on users held out from the fit.

    Returns the module and its figures: `pairs`, `held_out_pairs`, `held_out_users`, the PairAUC with uniform weights
    (`pair_auc_uniform`) and with the learnt ones (`pair_auc`), and their difference `pair_auc_gain`, each with a 95%
    bootstrap interval over users (`_lower`, `_upper`). AUC figures are left out when nobody is held out. Deterministic.
    """
    held_out = np.zeros(0, dtype=bool)
    if len(pairs):
        held_out = hash_share(pairs.users, f"aggregator-{settings.seed}") < settings.held_out_share
    features = torch.from_numpy(np.asarray(pairs.features, dtype=np.float32))
    differences = torch.from_numpy(np.asarray(pairs.preferred - pairs.other, dtype=np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        module = AspectWeights(pairs.features.shape[1], aspects)
        training = torch.from_numpy(np.flatnonzero(~held_out))
        if len(training):
            deviation, mean = torch.std_mean(features[training], dim=0, correction=0)
            module.mean.copy_(mean)
            module.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
            _train(module, features, differences, training, settings)
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
        figures |= _pair_auc(users, gap, uniform, learnt, settings.seed, bootstrap_samples)
    return module, figures


def _train(
    module: AspectWeights,
    features: Tensor,
    differences: Tensor,
    training: Tensor,
    settings: AggregatorSettings,
) -> None:
    """AdamW on the pairwise logistic loss, in batches of 256."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    module.train()
    for _ in range(settings.epochs):
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
