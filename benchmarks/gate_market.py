"""The market on which the gate is measured: generators of different quality, what each recommends, what users truly do.

Nothing here decides anything. Generators are trained on the supervised days, optimised ones go on with the feedback
day; all rank the held-out decisions of every evaluation day, and fill the slates of a simulated A/B test on the days
after. No user is held out: what is evaluated lies on later days than all training.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.gate_requests import Recommended
from benchmarks.gate_values import Appraisal
from benchmarks.simulated import Log, Market, read_log, world
from benchmarks.simulated_ab import AB, compare
from benchmarks.world import World
from sgrec_core.evaluation.metrics import CUTOFFS
from sgrec_core.evaluation.roles import POPULARITY
from sgrec_core.evaluation.simulated_ab import Outcomes, pooled
from sgrec_core.generator import Generator, GeneratorConfig, TrainingConfig, rank_items, train_supervised
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.hashing import digest
from sgrec_core.policy import PolicyConfig, StoredGroups, train_stored
from sgrec_core.rewards.advantages import Groups
from sgrec_core.rewards.fusion import fuse
from sgrec_core.runtime.code import code_digest
from sgrec_core.settings import EvaluationSettings, PolicySettings, SimulatorSettings

# Not the seed of a market on which anything was chosen. Smaller than that of the A2PO benchmark, with more evaluation
# days, and generators of half the width of a night's: fourteen of them have to be trained, ranked and served.
MARKET = Market(
    SimulatorSettings(seed=23, users=1600, items=300, new_items_per_day=0, requests_per_user=3.0, slate=8),
    first_day="2026-01-02",
    supervised_days=3,
    evaluation_days=3,
)
SHORT = Market(
    SimulatorSettings(seed=23, users=200, items=80, new_items_per_day=0, requests_per_user=4.0, slate=6),
    first_day="2026-01-02",
    supervised_days=2,
    evaluation_days=2,
)
TRUTH = AB(market=MARKET, days=2, seeds=(0, 1), resamples=1000)
SHORT_TRUTH = AB(market=SHORT, days=1, seeds=(0,), resamples=100)
"""The A/B tests that tell the truth: every generator serves all users, with common random numbers."""
GROUP, GROUPS = 16, 2048
BEAM, SERVED_BEAM = max(CUTOFFS), 16
OUTCOME, LOGGED = "outcome:", ("shown", "propensity")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a generator is made; defaults are those of a night, but for the width."""

    name: str
    epochs: int = 20
    width: int = 64
    item_weight: float = 0.8
    memory_weight: float = 0.7
    dropout: float = 0.2
    seed: int = 0
    judge: str | None = None
    """Of an optimised one: ``business`` alone, or A2PO with this judge of the world."""
    learning_rate: float = PolicySettings().learning_rate
    """Of the optimisation."""
    by_price: float = 0.0
    """A list is put in the order of log-probability plus so many times the logarithm of the price."""

    @property
    def start(self) -> "Recipe":
        """The supervised policy that an optimised one is made of."""
        return Recipe(name=NIGHT, seed=self.seed)


NIGHT, AGAIN, OPTIMISED = "night", "night, seed 1", "business"
"""The supervised policy of a night, another training of it, and what business rewards make of the first."""
RECIPES = (
    Recipe(name=POPULARITY),
    Recipe(name="counts alone", item_weight=1.0, memory_weight=1.0, epochs=0),
    Recipe(name="narrow codes, 1 epoch", width=32, item_weight=0.0, epochs=1),
    Recipe(name="narrow codes, 4 epochs", width=32, item_weight=0.0, epochs=4),
    Recipe(name="codes", item_weight=0.0),
    Recipe(name="codes and item head", item_weight=0.67, memory_weight=0.0),
    Recipe(name=NIGHT),
    Recipe(name=AGAIN, seed=1),
    Recipe(name="night, 50 epochs, no dropout", epochs=50, dropout=0.0),
    Recipe(name=OPTIMISED, judge="business"),
    Recipe(name="business, rate 1e-4", judge="business", learning_rate=1e-4),
    Recipe(name="business, rate 1e-3", judge="business", learning_rate=1e-3),
    Recipe(name="a2po embedding, rate 3e-4", judge="embedding", learning_rate=3e-4),
    Recipe(name="a2po oracle, rate 1e-3", judge="noisy_oracle", learning_rate=1e-3),
    Recipe(name="night, dear items first", by_price=0.5),
)
SHORT_RECIPES = ("narrow codes, 1 epoch", NIGHT, AGAIN, OPTIMISED, POPULARITY)


class OutOfTimeError(Exception):
    """The time of this call is over; what was done is kept."""


@dataclass(frozen=True)
class Kept:
    """Pieces of work, each done once and kept in a folder."""

    folder: Path
    until: float
    """When by `time.monotonic` no further piece is begun."""

    def piece(self, name: str, key: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What ``make`` gives, or gave when it was last called under ``key``."""
        path = self.folder / f"gate-{key}.npz"
        if path.exists():
            return dict(np.load(path))
        if time.monotonic() > self.until:
            raise OutOfTimeError(name)
        started = time.monotonic()
        found = dict(make())
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under its name only once it is whole; savez would add a suffix to a name of another kind.
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **found)
        part.rename(path)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        return found


def code_key(*definitions: str, files: tuple[str, ...]) -> str:
    """Digest of the project's code that ``definitions`` reach, and of modules of the benchmarks."""
    folder = Path(__file__).parent
    return digest(code_digest(*definitions), *((folder / f"{name}.py").read_text() for name in files))


class Workshop:
    """Makes generators, their lists and their truth, each piece once."""

    def __init__(self, kept: Kept, cache: Path, *, short: bool) -> None:
        self.kept, self.cache, self.short = kept, cache, short
        self.market, self.test = (SHORT, SHORT_TRUTH) if short else (MARKET, TRUTH)
        self.recipes = [recipe for recipe in RECIPES if not short or recipe.name in SHORT_RECIPES]
        definitions = (
            *(f"sgrec_core.generator:{name}" for name in ("Generator", "train_supervised", "rank_items")),
            *(f"sgrec_core.simulator:{name}" for name in ("simulate_day", "day_requests", "event_rows")),
            "sgrec_core.policy:train_stored",
            "sgrec_core.rewards.business:EcpmModel",
            "sgrec_core.rewards.responses:ResponseModel",
            "sgrec_core.rewards.fusion:fuse",
            "sgrec_core.items.fitting:fit_quantiser",
            "sgrec_core.judge.engines.embedding:EmbeddingEngine.score",
            "sgrec_core.aggregator.network:fit",
            "sgrec_core.evaluation.simulated_ab:serve",
        )
        self.key = code_key(*definitions, files=("gate_market", "gate_values", "simulated", "simulated_ab"))
        self._models: dict[Recipe, Generator] = {}

    def recommended(self) -> Recommended:
        requests = self.kept.piece("market", self._key("market"), self._requests)
        made = {
            recipe.name: self.kept.piece(
                f"generator {recipe.name}", self._key(recipe), lambda recipe=recipe: self._made(recipe, requests)
            )
            for recipe in self.recipes
        }
        codes, fields = requests["codes"], Outcomes.__dataclass_fields__
        return Recommended(
            **{name: requests[name] for name in ("day", "user", "histories", "targets")},
            logged={name: requests[name] for name in requests if name in LOGGED or ":" in name},
            catalogue=Catalogue(
                pa.array([f"i{item:06d}" for item in range(len(codes))]), codes, int(requests["codebook_size"]), "gate"
            ),
            items={name: found["items"] for name, found in made.items()},
            expected={
                name: {key.split(":")[1]: values for key, values in found.items() if key.startswith("expected:")}
                for name, found in made.items()
            },
            truth={
                name: Outcomes(**{field: found[f"{OUTCOME}{field}"] for field in fields})
                for name, found in made.items()
            },
            clip=EvaluationSettings().weight_limit,
        )

    @cached_property
    def log(self) -> Log:
        return read_log(self.market)

    @cached_property
    def world(self) -> World:
        return world(short=self.short, cache=self.cache, market=self.market)

    def _key(self, part: object) -> str:
        return digest(self.key, self.short, part)

    @cached_property
    def appraisal(self) -> Appraisal:
        log = read_log(self.market, propensities=True)
        rows = np.flatnonzero(log.day > self.market.supervised_days)
        return Appraisal(log, rows[log.histories(rows)[:, 0] >= 0])

    def _requests(self) -> dict[str, np.ndarray]:
        log, rows = self.appraisal.log, self.appraisal.rows
        return {
            "day": log.day[rows] - self.market.supervised_days - 1,
            "user": log.user[rows],
            "histories": log.histories(rows).astype(np.int32),
            "targets": np.where(log.clicked[rows].any(axis=1), log.targets(rows), -1),
            "codes": self.world.trie.codes.numpy(),
            "codebook_size": np.array(self.world.trie.codebook_size),
            **self.appraisal.logged(),
        }

    def _made(self, recipe: Recipe, requests: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Lists for all requests, what is expected of them, and outcomes of the A/B test."""
        ranked = self._popular() if recipe.name == POPULARITY else self._ranked(recipe)
        items = ranked(requests["histories"], BEAM)
        found = {"items": items.astype(np.int16)}
        slates = items[:, : requests["shown"].shape[1]]
        found |= {f"expected:{name}": values for name, values in self.appraisal.expected(slates).items()}

        def arm(histories: np.ndarray) -> np.ndarray:
            return ranked(histories, SERVED_BEAM)

        runs = [compare({recipe.name: arm}, seed, test=self.test)[recipe.name] for seed in self.test.seeds]
        outcomes = pooled(runs)
        return found | {f"{OUTCOME}{field}": values for field, values in vars(outcomes).items()}

    def _popular(self) -> Callable[[np.ndarray, int], np.ndarray]:
        items = self.world.windows.items
        counts = np.bincount(items[items >= 0], minlength=self.world.trie.items)
        best = np.argsort(-counts, kind="stable")
        return lambda histories, width: np.tile(best[:width], (len(histories), 1))

    def _ranked(self, recipe: Recipe) -> Callable[[np.ndarray, int], np.ndarray]:
        """Histories [S, n] and the width of the beam to as many ranked items [S, width]."""
        model = self._model(replace(recipe, name=NIGHT, by_price=0.0) if recipe.by_price else recipe)
        prices = np.log(self.log.items.price)

        def ranked(histories: np.ndarray, width: int) -> np.ndarray:
            beams = rank_items(model, self.world.trie, histories, width=width, batch_size=64)
            items = beams.items.numpy()
            if not recipe.by_price:
                return items
            order = np.argsort(-(beams.scores.numpy() + recipe.by_price * prices[items]), axis=1, kind="stable")
            return np.take_along_axis(items, order, axis=1)

        return ranked

    def _model(self, recipe: Recipe) -> Generator:
        if recipe not in self._models:
            self._models[recipe] = self._supervised(recipe) if recipe.judge is None else self._optimised(recipe)
        return self._models[recipe]

    def _supervised(self, recipe: Recipe) -> Generator:
        trie, windows = self.world.trie, self.world.windows
        scorers: dict[str, Any] = {}
        if recipe.item_weight:
            scorers = {"items": trie.items, "item_weight": recipe.item_weight}
            scorers |= {"followers": min(64, trie.items), "memory_weight": recipe.memory_weight}
        torch.manual_seed(recipe.seed)
        config = GeneratorConfig(
            levels=trie.levels,
            codebook_size=trie.codebook_size,
            max_items=self.world.feedback.histories.shape[1],
            width=recipe.width,
            layers=2,
            heads=4,
            dropout=recipe.dropout,
            **scorers,
        )
        model = Generator(config)
        model.align(trie)
        model.remember(windows)
        training = TrainingConfig(
            epochs=min(recipe.epochs, 3) if self.short else recipe.epochs,
            batch_size=128,
            learning_rate=1e-3,
            weight_decay=0.1,
            label_smoothing=0.0,
            bfloat16=True,
            seed=recipe.seed,
        )
        train_supervised(model, trie, windows, training)
        return model.eval()

    def _optimised(self, recipe: Recipe) -> Generator:
        """On groups of the feedback day, which its start has not seen; rollouts and training leave the memory out."""
        model, trie = copy.deepcopy(self._model(recipe.start)), self.world.trie
        feedback, policy = self.world.feedback, model.without_memory()
        rows = np.sort(np.random.default_rng(0).permutation(len(feedback.targets))[:GROUPS])
        histories, targets = feedback.histories[rows], feedback.targets[rows]
        beams = rank_items(policy, trie, histories, width=GROUP, batch_size=64)
        items = beams.items.numpy()
        semantic = None if recipe.judge == "business" else self.world.semantic[str(recipe.judge)](rows, items)
        groups = Groups.of(trie, items, self.world.business(rows, items), semantic, None, targets)
        fused = fuse("business" if semantic is None else "a2po", groups)
        stored = StoredGroups(histories, items, beams.log_probs.numpy(), fused.advantage)
        config = PolicyConfig(
            epochs=1, batch_size=64, learning_rate=recipe.learning_rate, clip=0.2, beta=1e-3, seed=recipe.seed
        )
        train_stored(policy, trie, stored, config)
        return model.eval()
