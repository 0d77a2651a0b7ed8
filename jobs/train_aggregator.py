"""Learn how much each aspect counts for a user, and weigh the aspects of the day's states.

Pairs of training users whose two items were judged train a small network from the state alone to weights (S-GRec, PSJ
part B); its PairAUC on users held out from the fit stands beside that of uniform weights. Without judged pairs the
weights are uniform; without any aspect score there are none, and rewards are business only.

With ``aggregator.engine=language_model`` nothing is fitted: the adapter that `jobs.train_judge_weights` made last
before the night names the weights.
"""

import numpy as np
import pyarrow as pa

from sgrec_core.aggregator.protocol import Aggregator
from sgrec_core.judge.calls.requests import split_pairs
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.judge.versions.weights import accepted_weights
from sgrec_core.night.aggregators import LanguageModel, day_scores, fit_network
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import JUDGE_WEIGHTS


def run(job: Job) -> None:
    resolve_adapter(job)
    pairs = split_pairs(job.lake, job.day, "train")
    candidates = job.lake.read("candidates", where={"day": job.day}, columns=["state_id"])
    wanted = sorted(set(candidates["state_id"].to_pylist()))
    judge = judge_version(job.settings, day_has_context(job.lake, job.day))
    scores = day_scores(job.lake, job.day, judge, {*wanted, *(pair["state_id"] for pair in pairs)})
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

    aggregator: Aggregator
    if adapter is not None:
        aggregator = LanguageModel(job, registry, adapter, scores.aspects)
    else:
        aggregator = fit_network(job, registry, pairs, scores, wanted)
    weights = aggregator.weights(wanted) if wanted else np.empty((0, len(scores.aspects)))
    rows = _rows(wanted, aggregator.version, scores.aspects, weights)
    job.lake.publish("user_weights", rows, partition=partition, fingerprint=fingerprint)
    job.fact("aggregator_engine", settings.engine)
    job.fact("weighted_states", len(wanted))
    if wanted:
        means = zip(scores.aspects, weights.mean(axis=0).tolist(), strict=True)
        job.fact("mean_weights", {aspect: round(mean, 4) for aspect, mean in means})
        job.fact("weight_deviation", round(float(weights.std(axis=0).mean()), 4))


def _adapter(job: Job, registry: Registry) -> ModelVersion:
    """The adapter that names the night's weights."""
    version, refused = accepted_weights(registry, job.settings, job.day)
    if refused:
        job.note(f"{JUDGE_WEIGHTS} {version.version} of {version.day} names the weights: {', '.join(refused)}")
    return version


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
