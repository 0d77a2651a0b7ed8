"""Train the night's starting policy on next items, and what rolls out its groups where the champion cannot.

All positions of the training users' sequences of the last ``states.history_days`` days, held-out users left out; the
generator's memory of transitions is counted from the same sequences. The night's starting policy goes on from the
pinned champion when that reads the same semantic ids and has the same shape; otherwise it starts from scratch.

Groups are rolled out by a policy that was trained on none of their decisions (`sgrec_core.night.rollouts`): the
champion, or one for each fold of the users, trained from scratch on the others. These come first and are registered
one by one. A job that was killed goes on from the last checkpoint of what it was training.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from sgrec_core.errors import InputError
from sgrec_core.generator import Generator, TrainingConfig, train_supervised
from sgrec_core.generator.checkpoints import Checkpoints
from sgrec_core.generator.dataset import Catalogue, chain_decisions
from sgrec_core.generator.device import device, use_threads
from sgrec_core.generator.packing import cut_windows
from sgrec_core.generator.processes import read_results, train_in_processes, write_inputs
from sgrec_core.hashing import digest
from sgrec_core.lake.queries import days_until, decisions, table_versions
from sgrec_core.night.generators import backbone_digest, day_catalogue, fresh_generator, register_generator, take_over
from sgrec_core.night.recipes import RECIPE_TAG, supervised_recipe
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.rollouts import FOLD_SEED, FOLDS, as_tag, fold_of, why_cross_fit
from sgrec_core.night.tokenizers import current_tokenizer
from sgrec_core.registry import CODE_TAG, ModelVersion, Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import ROLLOUT, SUPERVISED

COLUMNS = ["user_id", "as_of", "position", "history", "target_item"]


@dataclass(frozen=True)
class Trained:
    """A generator, and what its training was."""

    model: Generator
    warm: bool
    """Whether it went on from the champion."""
    epochs: int
    sequences: int
    decisions: int
    losses: list[float]
    """Of each epoch; of none where there was nothing to train on."""
    seconds: float
    """Since the job was started last."""

    @property
    def metrics(self) -> dict[str, float]:
        ends = {"loss_first_epoch": self.losses[0], "loss_last_epoch": self.losses[-1]} if self.losses else {}
        return {**ends, "seconds": self.seconds}


def run(job: Job) -> None:
    settings = job.settings.supervised
    registry = Registry(job.settings)
    days = days_until(job.day, job.settings.states.history_days)
    tokenizer_version, tokenizer = current_tokenizer(registry, job.day)
    catalogue = day_catalogue(job.lake, job.day, tokenizer_version, tokenizer["codebook_size"])
    champion = registry.pinned_champion(job.day)
    leave_out = leaves_out_history(job.lake, job.day, job.settings)
    cross_fit = why_cross_fit(job.lake, job.day, job.settings, champion, tokenizer_version)
    fingerprint = job.inputs_fingerprint(
        {
            "states": {day: job.lake.fingerprint("user_states", {"day": day}) for day in days},
            "catalogue": catalogue.digest,
            "champion": champion and champion.fingerprint,
            "max_items": job.settings.states.max_history,
            "supervised": settings.model_dump(exclude={"checkpoint_steps"}),
            "backbone": backbone_digest(settings),
            "leave_out_history": leave_out,
            "folds": cross_fit and job.settings.rollout.seed,
        }
    )
    made_before = registry.find(SUPERVISED, fingerprint)
    if made_before is not None and not job.force:
        mark_of_night(registry, made_before)
        registry.pin_champion(job.day, champion)
        job.keep_facts()
        return

    use_threads(job.settings.threads)
    states = decisions(job.lake, days, "train", COLUMNS)
    states = states.filter(pa.array(catalogue.index(states["target_item"]) >= 0))
    if not states.num_rows:
        raise InputError(
            f"user_states has no training decision from {days[0]} to {days[-1]} for one of the {len(catalogue)} items"
            " with codes; nothing to train on"
        )
    work = _work_folder(job, fingerprint)

    def registered(name: str, trained: Trained, fingerprint: str, tags: dict[str, str]) -> ModelVersion:
        return register_generator(
            registry,
            name,
            trained.model,
            catalogue,
            day=job.day,
            fingerprint=fingerprint,
            metrics=trained.metrics,
            parameters={**settings.model_dump(), "days": len(days), "decisions": trained.decisions},
            tables=table_versions(job.lake, job.stage.reads),
            tags={**tags, CODE_TAG: job.code_digest},
            leave_out_history=leave_out,
        )

    policies = [champion] if champion is not None else []
    if cross_fit is not None:
        seed = job.settings.rollout.seed
        folds = fold_of(states["user_id"].to_pylist(), seed)
        policies = []
        for fold in range(FOLDS):
            of_fold = digest(ROLLOUT, fingerprint, fold, length=32)
            policy = registry.find(ROLLOUT, of_fold)
            if policy is None or job.force:
                trained = _train(job, catalogue, states.filter(pa.array(folds != fold)), work / f"fold-{fold}")
                policy = registered(
                    ROLLOUT, trained, of_fold, {"sgrec.fold": f"{fold + 1} of {FOLDS}", FOLD_SEED: str(seed)}
                )
            policies.append(policy)

    def warm_start(model: Generator) -> bool:
        return champion is not None and take_over(model, registry, champion, catalogue, note=job.note)

    trained = _train(job, catalogue, states, work, warm_start)
    started_from = str(champion) if trained.warm else "scratch"
    version = registered(
        SUPERVISED,
        trained,
        fingerprint,
        {
            "sgrec.warm_started_from": started_from,
            RECIPE_TAG: supervised_recipe(job.settings, leave_out),
            **as_tag(policies),
        },
    )
    mark_of_night(registry, version)
    registry.pin_champion(job.day, champion)
    shutil.rmtree(work, ignore_errors=True)
    job.fact("policy_version", version.version)
    job.fact("decisions", trained.decisions)
    job.fact("sequences", trained.sequences)
    job.fact("items", len(catalogue))
    job.fact("parameters", sum(parameter.numel() for parameter in trained.model.parameters()))
    job.fact("epochs", trained.epochs)
    job.fact("loss_first_epoch", trained.losses[0])
    job.fact("loss", trained.losses[-1])
    job.fact("warm_started_from", started_from)
    job.fact("groups_rolled_out_by", ", ".join(str(policy) for policy in policies))
    if cross_fit is not None:
        job.fact("cross_fitted_because", cross_fit)
        # As the registry has it: the same for a job that found them trained.
        seconds = sum(registry.metrics(policy)["seconds"] for policy in policies)
        job.fact("cross_fitting_seconds", round(seconds, 1))


def _train(
    job: Job,
    catalogue: Catalogue,
    states: pa.Table,
    work: Path,
    warm_start: Callable[[Generator], bool] | None = None,
) -> Trained:
    """A generator trained on the decisions ``states``, from scratch where ``warm_start`` does not give it weights."""
    settings, max_items = job.settings.supervised, job.settings.states.max_history
    began = time.monotonic()
    torch.manual_seed(settings.seed)
    sequences = chain_decisions(states, catalogue, max_items)
    windows = cut_windows(sequences.items, sequences.first_target, max_items)
    model = fresh_generator(catalogue, settings, max_items)
    warm = warm_start is not None and warm_start(model)
    model.remember(windows)
    training = TrainingConfig(
        epochs=settings.warm_epochs if warm else settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.warm_learning_rate if warm else settings.learning_rate,
        weight_decay=settings.weight_decay,
        label_smoothing=settings.label_smoothing,
        bfloat16=settings.bfloat16,
        seed=settings.seed,
        compile=settings.compile == "on"
        or (settings.compile == "auto" and device().type == "cuda" and model.encoder.compiles),
    )
    with job.progress_bar(training.epochs * len(windows.items), "training windows") as advance:

        def progress(count: int, loss: float) -> None:
            advance(count)

        if settings.processes == 1 or not len(windows.items):
            checkpoints = Checkpoints(work / "checkpoints", settings.checkpoint_steps)
            losses = train_supervised(
                model, catalogue.trie, windows, training, checkpoints=checkpoints, progress=progress
            )
        else:
            write_inputs(work, model, catalogue.trie, windows, training, checkpoint_every=settings.checkpoint_steps)
            train_in_processes(work, settings.processes, threads=job.settings.threads, progress=progress)
            losses = read_results(work, model)
    seconds = round(time.monotonic() - began, 1)
    return Trained(model, warm, training.epochs, len(sequences.items), sequences.decisions, losses, seconds)


def _work_folder(job: Job, fingerprint: str) -> Path:
    """Where the training of these inputs keeps what it needs to go on; those of the day's other inputs are removed."""
    folder = job.settings.home.resolve() / "training"
    work = folder / f"{job.day}-{fingerprint}"
    for other in folder.glob(f"{job.day}-*"):
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    return work


main = stage_command("train_supervised", run)

if __name__ == "__main__":
    main()
