"""Who weighs the aspects for a night's users: a small network fitted to the night's pairs, or an adapter of the judge.

Both answer to `sgrec_core.aggregator.protocol.Aggregator`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sgrec_core.aggregator.features import state_features
from sgrec_core.aggregator.network import AspectWeights, Pairs, fit
from sgrec_core.errors import SettingsError
from sgrec_core.hashing import digest
from sgrec_core.items import TextEncoder, embeddings_cache, item_text
from sgrec_core.judge.calls.requests import day_states, day_texts, state_request
from sgrec_core.judge.calls.scores import CALL, scores_of_states
from sgrec_core.judge.engines import day_has_context
from sgrec_core.judge.engines.backends import model_path
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.training.samples import ScoredPair
from sgrec_core.judge.training.tuner import Tuner
from sgrec_core.judge.versions.adapters import with_adapter
from sgrec_core.judge.versions.registered import lay_out
from sgrec_core.lake import Lake
from sgrec_core.registry import CODE_TAG, ModelVersion, Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import AGGREGATOR
from sgrec_core.settings import Settings

STATES_AT_ONCE = 256
"""Of which a language model names the weights between two steps of the progress bar."""


@dataclass(frozen=True)
class Scores:
    """What the judge said of the day's items: (state, item) -> scores, in the order of ``aspects``."""

    aspects: list[str]
    of: dict[tuple[str, str], list[float]]

    def fingerprint(self) -> str:
        return digest(self.aspects, sorted(self.of.items()))


def day_scores(lake: Lake, day: str, judge: str, states: set[str]) -> Scores:
    """Scores of ``states`` by this judge version, of items as they are today."""
    items = lake.read("items", where={"day": day}, columns=["item_id", "item_hash"]).to_pylist()
    hash_of = {item["item_id"]: item["item_hash"] for item in items}
    found = scores_of_states(lake, day, judge, states, [*CALL, "aspects", "scores"]).to_pylist()
    rows = [row for row in found if row["scores"] is not None and hash_of.get(row["item_id"]) == row["item_hash"]]
    return Scores(
        aspects=rows[0]["aspects"] if rows else [],
        of={(row["state_id"], row["item_id"]): row["scores"] for row in rows},
    )


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


@dataclass(frozen=True)
class Network:
    """The small network, and the features of the states that it is asked about."""

    module: AspectWeights
    features: Mapping[str, np.ndarray]
    version: str

    def weights(self, states: Sequence[str]) -> np.ndarray:
        return self.module.weights(np.stack([self.features[state] for state in states]))


def fit_network(
    job: Job, registry: Registry, pairs: Sequence[Mapping[str, str]], scores: Scores, wanted: Sequence[str]
) -> Network:
    """The network fitted to those of ``pairs`` whose items were judged, ready for states ``wanted``.

    ``pairs`` are rows of ``preference_pairs`` with the user. The network is registered as the night's, with the figures
    of the fit as facts of ``job``.
    """
    states = {*wanted, *(pair["state_id"] for pair in pairs)}
    features = day_features(job.lake, job.settings, job.day, states, job.progress)
    judged = [
        pair
        for pair in pairs
        if (pair["state_id"], pair["preferred_item"]) in scores.of
        and (pair["state_id"], pair["other_item"]) in scores.of
    ]
    module, figures = fit(
        _scored_pairs(judged, features, scores),
        scores.aspects,
        job.settings.aggregator,
        bootstrap_samples=job.settings.evaluation.bootstrap_samples,
    )
    if not judged:
        job.note("no preference pair was judged: the weights are uniform")
    elif figures.get("pair_auc_gain_lower", 0.0) <= 0:
        job.note("the learnt weights order held-out pairs no better than uniform ones, beyond chance")
    for name, value in figures.items():
        job.fact(name, round(value, 4))
    version = _register(job, registry, module, figures)
    mark_of_night(registry, version)
    job.fact("preference_pairs", len(pairs))
    job.fact("judged_pairs", len(judged))
    return Network(module, features, version.version)


def _scored_pairs(judged: Sequence[Mapping[str, str]], features: Mapping[str, np.ndarray], scores: Scores) -> Pairs:
    width = len(next(iter(features.values())))

    def scored(side: str) -> np.ndarray:
        found = [scores.of[pair["state_id"], pair[side]] for pair in judged]
        return np.array(found, dtype=np.float32).reshape(-1, len(scores.aspects))

    return Pairs(
        users=[pair["user_id"] for pair in judged],
        features=np.array([features[pair["state_id"]] for pair in judged], dtype=np.float32).reshape(-1, width),
        preferred=scored("preferred_item"),
        other=scored("other_item"),
    )


def _register(job: Job, registry: Registry, module: AspectWeights, figures: Mapping[str, float]) -> ModelVersion:
    settings = job.settings.aggregator
    content = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.tensors().items()):
        content.update(name.encode() + tensor.numpy().tobytes())
    return registry.register(
        AGGREGATOR,
        day=job.day,
        # The content itself: new candidates alone make no new aggregator.
        fingerprint=digest(job.code_digest, job.day, module.aspects, content.hexdigest(), length=32),
        tensors=module.tensors(),
        config={**module.config(), "seed": settings.seed, "figures": figures},
        metrics=figures,
        parameters=settings.model_dump(),
        tables={
            table: job.lake.version(table) for table in ("preference_pairs", "aspect_scores", "user_states", "items")
        },
        tags={CODE_TAG: job.code_digest},
    )


def network_weights(
    job: Job, training: Sequence[ScoredPair], states: list[JudgeRequest], aspects: list[str]
) -> np.ndarray:
    """Weights [N, A] of the small network for ``states``, fitted to the same pairs with the night's settings."""
    wanted = {state.state_id for state in [*states, *(pair.state for pair in training)]}
    features = day_features(job.lake, job.settings, job.day, wanted, job.progress)
    module, _ = fit(
        Pairs(
            [pair.user_id for pair in training],
            np.stack([features[pair.state.state_id] for pair in training]),
            np.array([pair.preferred for pair in training]),
            np.array([pair.other for pair in training]),
        ),
        aspects,
        job.settings.aggregator.model_copy(update={"held_out_share": 0.0}),
    )
    return module.weights(np.stack([features[state.state_id] for state in states]))


@dataclass(frozen=True)
class LanguageModel:
    """An adapter of the judge's model that names weights; the model is loaded when first asked."""

    job: Job
    registry: Registry
    adapter: ModelVersion
    aspects: list[str]
    """Of the night's scores."""

    @property
    def version(self) -> str:
        # The code is part of it: it words the question and reads the answer.
        return f"{self.adapter.name}/{self.adapter.version}/{self.job.code_digest}"

    def weights(self, states: Sequence[str]) -> np.ndarray:
        """Uniform where an answer leaves the form.

        Raises:
            SettingsError: the rubric has other aspects than the night's scores.
        """
        job = self.job
        adapter = lay_out(job.settings, self.registry, self.adapter, self.adapter.day)
        settings = with_adapter(job.settings, adapter)
        rubric = load_rubric(day_has_context(job.lake, job.day), settings.judge.rubric)
        if rubric.aspect_ids != self.aspects:
            raise SettingsError(f"the night's scores are of aspects {self.aspects}, the rubric has {rubric.aspect_ids}")
        texts, of_state = day_texts(job.lake, job.day, job.settings), day_states(job.lake, job.day, states)
        tuner = Tuner(
            model_path(settings),
            rubric,
            settings.judge_training,
            adapter=adapter.path(settings),
            revision=settings.judge.revision,
            max_model_len=settings.judge.max_model_len,
        )
        parts = []
        with job.progress_bar(len(states), "weighing") as advance:
            for start in range(0, len(states), STATES_AT_ONCE):
                part = states[start : start + STATES_AT_ONCE]
                parts.append(tuner.weights([state_request(state, of_state[state], texts) for state in part]))
                advance(len(part))
        return np.concatenate(parts)
