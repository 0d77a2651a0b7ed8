"""Learn how much each aspect counts for a user, and weigh the aspects of the day's states.

Pairs of training users whose two items were judged train a small network from the state alone to weights (S-GRec, PSJ
part B); its PairAUC on users held out from the fit stands beside that of uniform weights. Without judged pairs the
weights are uniform; without any aspect score there are none, and rewards are business only.

With ``aggregator.engine=language_model`` nothing is fitted: the adapter that `jobs.train_judge_weights` made last before the night
names the weights.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sgrec_core import __version__
from sgrec_core.aggregator.weights import AspectWeights, Pairs, day_features, fit
from sgrec_core.errors import SettingsError
from sgrec_core.hashing import digest
from sgrec_core.judge.calls.requests import day_states, day_texts, split_pairs, state_request
from sgrec_core.judge.calls.scores import CALL, find_scores
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.judge.engines.backends import model_path
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.versions.adapters import resolve_adapter, with_adapter
from sgrec_core.judge.versions.registered import MODEL_TAG, lay_out, model_tag
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import mark_of_night, of_night
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import AGGREGATOR, JUDGE_WEIGHTS


@dataclass(frozen=True)
class Scores:
    """What the judge said of the day's items: (state, item) -> scores, in the order of ``aspects``."""

    aspects: list[str]
    of: dict[tuple[str, str], list[float]]

    def fingerprint(self) -> str:
        return digest(self.aspects, sorted(self.of.items()))


def run(job: Job) -> None:
    resolve_adapter(job)
    pairs = split_pairs(job.lake, job.day, "train")
    candidates = job.lake.read("candidates", where={"day": job.day}, columns=["state_id"])
    wanted = sorted(set(candidates["state_id"].to_pylist()))
    judge = judge_version(job.settings, day_has_context(job.lake, job.day))
    scores = _scores(job, judge, {*wanted, *(pair["state_id"] for pair in pairs)})
    settings = job.settings.aggregator
    registry = Registry(job.settings)
    adapter = _adapter(job, registry) if settings.engine == "language_model" else None
    fingerprint = job.inputs_fingerprint(
        {
            "settings": settings.model_dump(),
            "judge": judge,
            "scores": scores.fingerprint(),
            "adapter": adapter and adapter.fingerprint,
        }
    )
    partition = {"day": job.day}
    if job.skip_if_published({"user_weights": partition}, fingerprint):
        return
    if not scores.of:
        job.note("no aspect scores: no weights; rewards are business only")
        job.fact("weighted_states", 0)
        job.lake.publish(
            "user_weights", _rows([], "", [], np.empty((0, 0))), partition=partition, fingerprint=fingerprint
        )
        return

    weights, version = np.empty((0, len(scores.aspects))), ""
    if adapter is not None:
        version = f"{adapter.name}/{adapter.version}"
        if wanted:
            weights = _named_weights(job, registry, adapter, wanted, scores.aspects)
    else:
        wanted_states = {*wanted, *(pair["state_id"] for pair in pairs)}
        states = day_features(job.lake, job.settings, job.day, wanted_states, job.progress)
        judged = [
            pair
            for pair in pairs
            if (pair["state_id"], pair["preferred_item"]) in scores.of
            and (pair["state_id"], pair["other_item"]) in scores.of
        ]
        module, fitted = _train(job, registry, judged, states, scores)
        mark_of_night(registry, fitted)
        version = fitted.version
        if wanted:
            weights = module.weights(np.stack([states[state] for state in wanted]))
        job.fact("preference_pairs", len(pairs))
        job.fact("judged_pairs", len(judged))
    rows = _rows(wanted, version, scores.aspects, weights)
    job.lake.publish("user_weights", rows, partition=partition, fingerprint=fingerprint)
    job.fact("aggregator_engine", settings.engine)
    job.fact("weighted_states", len(wanted))
    if wanted:
        means = zip(scores.aspects, weights.mean(axis=0).tolist(), strict=True)
        job.fact("mean_weights", {aspect: round(mean, 4) for aspect, mean in means})
        job.fact("weight_deviation", round(float(weights.std(axis=0).mean()), 4))


def _adapter(job: Job, registry: Registry) -> ModelVersion:
    """The adapter that names the night's weights: the newest of an earlier day for the judge's model that passed its gate.

    The gate: on held-out pairs its PairAUC is below the small network's by no more than
    ``judge_training.tolerance`` at the lower end of the interval.

    Raises:
        SettingsError: there is none.
    """
    model, tolerance = model_tag(job.settings.judge), job.settings.judge_training.tolerance
    refused: list[str] = []
    days = {
        version.day
        for version in registry.versions(JUDGE_WEIGHTS)
        if version.day < job.day and version.tags.get(MODEL_TAG) == model
    }
    for day in sorted(days, reverse=True):
        version = of_night(registry, JUDGE_WEIGHTS, day, stage="train_judge_weights")
        if version.tags.get(MODEL_TAG) != model:
            continue
        lower = registry.metrics(version)["pair_auc_gain_grpo_over_network_lower"]
        if lower >= -tolerance:
            if refused:
                job.note(f"{JUDGE_WEIGHTS} {version.version} of {day} names the weights: {', '.join(refused)}")
            return version
        refused.append(
            f"version {version.version} of {day} may order pairs worse than the small network by {-lower:.4f}, above"
            f" {tolerance} (SGREC_JUDGE_TRAINING__TOLERANCE)"
        )
    raise SettingsError(
        f"SGREC_AGGREGATOR__ENGINE=language_model: no {JUDGE_WEIGHTS} was trained for {model} and a day before"
        f" {job.day} and passed its gate{': ' if refused else ''}{', '.join(refused)}; run `sgrec train-judge`, or set it to"
        " network"
    )


def _named_weights(
    job: Job, registry: Registry, version: ModelVersion, wanted: list[str], aspects: list[str]
) -> np.ndarray:
    """Weights [N, A] that the adapter names for states ``wanted``; uniform where it leaves the form."""
    from sgrec_core.judge.training.tuner import Tuner

    adapter = lay_out(job.settings, registry, version, version.day)
    settings = with_adapter(job.settings, adapter)
    rubric = load_rubric(day_has_context(job.lake, job.day), settings.judge.rubric)
    if rubric.aspect_ids != aspects:
        raise SettingsError(f"the night's scores are of aspects {aspects}, the rubric has {rubric.aspect_ids}")
    texts, states = day_texts(job.lake, job.day, job.settings), day_states(job.lake, job.day, wanted)
    tuner = Tuner(
        model_path(settings),
        rubric,
        settings.judge_training,
        adapter=adapter.path(settings),
        revision=settings.judge.revision,
        max_model_len=settings.judge.max_model_len,
    )
    parts = []
    with job.progress_bar(len(wanted), "weighing") as advance:
        for start in range(0, len(wanted), 256):
            part = wanted[start : start + 256]
            parts.append(tuner.weights([state_request(state, states[state], texts) for state in part]))
            advance(len(part))
    return np.concatenate(parts)


def _scores(job: Job, judge: str, states: set[str]) -> Scores:
    """Scores of ``states`` by this judge, of items as they are today."""
    items = job.lake.read("items", where={"day": job.day}, columns=["item_id", "item_hash"]).to_pylist()
    hash_of = {item["item_id"]: item["item_hash"] for item in items}
    found = find_scores(job.lake, job.day, judge, states, [*CALL, "aspects", "scores"]).to_pylist()
    rows = [row for row in found if row["scores"] is not None and hash_of.get(row["item_id"]) == row["item_hash"]]
    return Scores(
        aspects=rows[0]["aspects"] if rows else [],
        of={(row["state_id"], row["item_id"]): row["scores"] for row in rows},
    )


def _train(
    job: Job, registry: Registry, judged: list[dict[str, str]], states: dict[str, np.ndarray], scores: Scores
) -> tuple[AspectWeights, ModelVersion]:
    """Fit on the judged pairs, report, and register."""
    settings = job.settings.aggregator
    width = len(next(iter(states.values())))

    def scored(side: str) -> np.ndarray:
        found = [scores.of[pair["state_id"], pair[side]] for pair in judged]
        return np.array(found, dtype=np.float32).reshape(-1, len(scores.aspects))

    pairs = Pairs(
        users=[pair["user_id"] for pair in judged],
        features=np.array([states[pair["state_id"]] for pair in judged], dtype=np.float32).reshape(-1, width),
        preferred=scored("preferred_item"),
        other=scored("other_item"),
    )
    module, figures = fit(
        pairs,
        scores.aspects,
        seed=settings.seed,
        held_out_share=settings.held_out_share,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        bootstrap_samples=job.settings.evaluation.bootstrap_samples,
    )
    if not judged:
        job.note("no preference pair was judged: the weights are uniform")
    elif figures.get("pair_auc_gain_lower", 0.0) <= 0:
        job.note("the learnt weights order held-out pairs no better than uniform ones, beyond chance")
    for name, value in figures.items():
        job.fact(name, round(value, 4))
    module_hash = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.tensors().items()):
        module_hash.update(name.encode() + tensor.numpy().tobytes())
    version = registry.register(
        AGGREGATOR,
        day=job.day,
        # The content itself: new candidates alone make no new aggregator.
        fingerprint=digest(__version__, job.day, scores.aspects, module_hash.hexdigest(), length=32),
        tensors=module.tensors(),
        config={**module.config(), "seed": settings.seed, "figures": figures},
        metrics=figures,
        parameters=settings.model_dump(),
        tables={
            table: job.lake.version(table) for table in ("preference_pairs", "aspect_scores", "user_states", "items")
        },
    )
    return module, version


def _rows(states: list[str], version: str, aspects: list[str], weights: np.ndarray) -> pa.Table:
    """Rows of ``user_weights`` without the day."""
    return pa.table(
        {
            "state_id": pa.array(states, pa.string()),
            "aggregator_version": pa.array([version] * len(states), pa.string()),
            "aspects": pa.array([aspects] * len(states), pa.list_(pa.string())),
            "weights": pa.array(weights.tolist(), pa.list_(pa.float32())),
        }
    )


main = stage_command("train_aggregator", run)

if __name__ == "__main__":
    main()
