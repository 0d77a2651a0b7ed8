"""The learning core from training to metrics where only torch, numpy and pyarrow are installed; all else is hidden.

Run by tests/test_architecture.py in a process of its own.
"""

import importlib
import pkgutil
import re
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# ruff: noqa: E402 - what is not there must be hidden before anything is imported


def needed(*names: str) -> set[str]:
    """These distributions and what they require, extras aside."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                requirements = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            waiting += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements if "extra ==" not in line]
    return found


def hide_all_but(visible: set[str]) -> None:
    """Have no module found that another distribution brings, as if it were not installed."""
    hidden = {
        module
        for module, names in metadata.packages_distributions().items()
        if not visible & {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    }
    find = PathFinder.find_spec

    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return None if name.split(".")[0] in hidden else find(name, path, target)

    PathFinder.find_spec = staticmethod(find_spec)  # type: ignore[method-assign, assignment]


hide_all_but(needed("torch", "numpy", "pyarrow"))

for room in ("generator", "rewards", "policy", "evaluation"):
    package = importlib.import_module(f"sgrec_core.{room}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

import numpy as np
import pyarrow as pa
import torch

from sgrec_core.evaluation.metrics import ndcg, per_user, target_ranks
from sgrec_core.evaluation.significance import paired_bootstrap
from sgrec_core.generator import Generator, GeneratorConfig, TrainingConfig, rank_items, train_supervised
from sgrec_core.generator.dataset import Catalogue, history_matrix
from sgrec_core.generator.packing import cut_windows
from sgrec_core.policy import PolicyConfig, StoredGroups, train_stored
from sgrec_core.rewards.advantages.groups import Groups
from sgrec_core.rewards.fusion import fuse
from sgrec_core.rewards.ranking import ranking_reward

ITEMS, WALK = 12, 6
torch.set_num_threads(1)
torch.manual_seed(0)
codes = np.array([[number // 4, number % 4] for number in range(ITEMS)])
catalogue = Catalogue(pa.array([f"i{number:02d}" for number in range(ITEMS)]), codes, 4, "t")
walks = [(start + np.arange(WALK)) % ITEMS for start in range(ITEMS)] * 4
windows = cut_windows(walks, [1] * len(walks), WALK - 1)
shape = {"levels": 2, "codebook_size": 4, "width": 32, "layers": 1, "heads": 2, "max_items": WALK - 1, "dropout": 0.0}
scorers = {"items": ITEMS, "item_weight": 0.8, "followers": 3, "memory_weight": 0.5}
model = Generator(GeneratorConfig(**shape, **scorers))
model.align(catalogue.trie)
model.remember(windows)
losses = train_supervised(
    model,
    catalogue.trie,
    windows,
    TrainingConfig(
        epochs=2, batch_size=8, learning_rate=1e-3, weight_decay=0.0, label_smoothing=0.0, bfloat16=False, seed=0
    ),
)
assert losses[-1] < losses[0]

ids = pa.array([[catalogue.item_ids[item].as_py() for item in walk[:-1]] for walk in walks[:ITEMS]])
histories, targets = history_matrix(ids, catalogue, WALK - 1), np.array([walk[-1] for walk in walks[:ITEMS]])


def gains() -> np.ndarray:
    """NDCG@10 of each user."""
    found = rank_items(network, catalogue.trie, histories, width=ITEMS).items.numpy()
    return per_user(ndcg(target_ranks(found, targets), 10), np.arange(ITEMS))


network = model.without_memory()
before = gains()
rolled_out = rank_items(network, catalogue.trie, histories, width=6)
candidates = rolled_out.items.numpy()
rewards = ranking_reward(candidates, targets)
fused = fuse("a2po", Groups.of(catalogue.trie, candidates, rewards, candidates / ITEMS, targets=targets))
log = train_stored(
    network,
    catalogue.trie,
    StoredGroups(histories, candidates, rolled_out.log_probs.numpy(), fused.advantage),
    PolicyConfig(epochs=10, batch_size=4, learning_rate=3e-3, clip=0.2, beta=0.01, seed=0),
)
assert log[-1]["kl_reference"] > 0
difference = paired_bootstrap(gains(), before, seed=0, resamples=100)
assert difference.value > 0, (difference, before)
assert rank_items(model, catalogue.trie, histories, width=ITEMS).items[:, 0].tolist() == targets.tolist(), "by heart"
print(f"NDCG@10 {before.mean():.3f}, after the rewards {difference.value:+.3f}")
