"""Train an adapter of the judge's model on labels: supervised, then by GRPO on labels kept from the first stage.

PointAcc on held-out users' labels stands beside each stage. The adapter is registered as ``sgrec-judge`` and laid out under
``<home>/judge`` for vLLM; nights use it once `jobs.evaluate_judge` has activated it.
"""

from typing import Any

import numpy as np

from sgrec_core.errors import InputError
from sgrec_core.evaluation.metrics import per_user
from sgrec_core.evaluation.significance import bootstrap, paired_bootstrap
from sgrec_core.generator.device import use_threads
from sgrec_core.hashing import hash_share
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.judge.engines.backends import model_path
from sgrec_core.judge.rubric import Rubric, load_rubric
from sgrec_core.judge.training.labels import call_of, label_request
from sgrec_core.judge.training.tuner import Labelled, Tuner, correct_points
from sgrec_core.judge.versions.adapters import remember, resolve_adapter, with_adapter
from sgrec_core.judge.versions.registered import check_trainable, lay_out, register_adapter, trained_before
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.runtime.job import Job, stage_command

STAGES = ("base", "supervised", "grpo")


def run(job: Job) -> None:
    resolve_adapter(job)
    settings = job.settings.judge_training
    check_trainable(job.settings)
    has_context = day_has_context(job.lake, job.day)
    fingerprint = job.inputs_fingerprint(
        {
            "training": settings.model_dump(
                exclude={
                    "labels",
                    "simulated_labels",
                    "max_pairs",
                    "max_test_pairs",
                    "min_users",
                    "tolerance",
                    "candidate",
                }
            ),
            "base": judge_version(with_adapter(job.settings, None), has_context),
        }
    )
    registry = Registry(job.settings)
    version = trained_before(job, registry, fingerprint)
    if version is None:
        use_threads(job.settings.threads)
        rubric = load_rubric(has_context, job.settings.judge.rubric)
        training, held_out, users = _samples(job, rubric)
        judge = job.settings.judge
        tuner = Tuner(
            model_path(job.settings), rubric, settings, revision=judge.revision, max_model_len=judge.max_model_len
        )
        cut = max(1, round(len(training) * (1 - settings.grpo_share)))
        correct = {}
        with job.progress_bar(len(STAGES), "training") as advance:
            for stage in STAGES:
                if stage == "supervised":
                    tuner.supervise_labels(training[:cut])
                elif stage == "grpo" and training[cut:]:
                    tuner.reinforce_labels(training[cut:])
                correct[stage] = correct_points(tuner.engine(), held_out)
                advance(1)
        version = register_adapter(job, registry, tuner, fingerprint, _figures(correct, users, settings.seed))
        job.fact("supervised_samples", cut)
        job.fact("grpo_samples", len(training) - cut)
        job.fact("held_out_samples", len(held_out))
    mark_of_night(registry, version)
    remember(job.settings, lay_out(job.settings, registry, version, job.day))
    job.fact("judge_model_version", version.version)


def _samples(job: Job, rubric: Rubric) -> tuple[list[Labelled], list[Labelled], list[str]]:
    """Samples to train on, in an order fixed by hash; held-out ones; and the users of these.

    Who labelled the same item in the same state as a held-out user is not trained on.

    Raises:
        InputError: there are none of either.
    """
    rows = job.lake.read("judge_labels", where={"day": job.day}).to_pylist()
    usable = [row for row in rows if row["aspects"] == rubric.aspect_ids]
    if len(usable) < len(rows):
        job.note(
            f"{len(rows) - len(usable)} samples were left out: they are not labelled for the aspects that nights judge"
            f" ({', '.join(rubric.aspect_ids)})"
        )
    held_out = [row for row in usable if row["split"] == "validation"]
    asked = {call_of(label_request(row)) for row in held_out}
    training = [row for row in usable if row["split"] == "train" and call_of(label_request(row)) not in asked]
    if dropped := len(usable) - len(held_out) - len(training):
        job.note(f"{dropped} samples were left out: held-out users have the same item in the same state")
    if not training or not held_out:
        raise InputError(
            f"judge_labels of {job.day} has {len(training)} samples to train on and {len(held_out)} of held-out users;"
            " it needs both: more labels, or a larger SGREC_STATES__VALIDATION_SHARE"
        )
    order = np.argsort(
        hash_share([row["sample_id"] for row in training], f"judge-training-{job.settings.judge_training.seed}")
    )
    return (
        [_labelled(training[place]) for place in order.tolist()],
        [_labelled(row) for row in held_out],
        [row["user_id"] for row in held_out],
    )


def _labelled(row: dict[str, Any]) -> Labelled:
    return Labelled(request=label_request(row), labels=tuple(row["labels"]))


def _figures(correct: dict[str, np.ndarray], users: list[str], seed: int) -> dict[str, float]:
    """PointAcc after each stage, and the interval of what each adds."""
    of_users = {stage: per_user(points.mean(axis=1), np.array(users)) for stage, points in correct.items()}
    figures: dict[str, float] = {}
    for before, stage in zip((None, *STAGES), STAGES, strict=False):
        interval = bootstrap(of_users[stage], seed=seed)
        figures |= {f"point_acc_{stage}": interval.value}
        if before:
            gain = paired_bootstrap(of_users[stage], of_users[before], seed=seed)
            figures |= {f"point_acc_gain_{stage}_lower": gain.lower, f"point_acc_gain_{stage}_upper": gain.upper}
        else:
            figures |= {"point_acc_base_lower": interval.lower, "point_acc_base_upper": interval.upper}
    return figures


main = stage_command("train_judge", run)

if __name__ == "__main__":
    main()
