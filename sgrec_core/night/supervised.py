"""The night's training on next items: of its starting policy, of what rolls out its groups where that is cross-fitted,
and of a champion that was optimised on fresh groups.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch

from sgrec_core.errors import InputError, SgrecError
from sgrec_core.generator import Generator, TrainingConfig, train_supervised
from sgrec_core.generator.checkpoints import Checkpoints
from sgrec_core.generator.dataset import Catalogue, chain_decisions
from sgrec_core.generator.device import device
from sgrec_core.generator.packing import cut_windows
from sgrec_core.generator.processes import read_results, train_in_processes, write_inputs
from sgrec_core.hashing import digest
from sgrec_core.lake.queries import days_until, decisions, table_versions
from sgrec_core.night.generators import (
    backbone_digest,
    fresh_generator,
    give_weights,
    register_generator,
    take_over,
)
from sgrec_core.night.rollouts import FOLD_SEED, FOLDS, fold_of
from sgrec_core.registry import CODE_TAG, ModelVersion, Registry
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import ROLLOUT

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


@dataclass(frozen=True)
class Training:
    """What a night trains on, and where it is registered."""

    job: Job
    registry: Registry
    catalogue: Catalogue
    states: pa.Table
    """Decisions for items of the catalogue."""
    fingerprint: str
    leave_out_history: bool
    """Whether lists of what is trained leave out the history."""

    @cached_property
    def work(self) -> Path:
        """Where it keeps what it needs to go on after a kill."""
        return work_folder(self.job, self.fingerprint)

    def of_folds(self) -> list[ModelVersion]:
        """A policy for each fold of the users, trained from scratch on the others; those that are there stand."""
        seed = self.job.settings.rollout.seed
        folds = fold_of(self.states["user_id"].to_pylist(), seed)
        policies = []
        for fold in range(FOLDS):
            of_fold = digest(ROLLOUT, self.fingerprint, fold, length=32)
            policy = self.registry.find(ROLLOUT, of_fold)
            if policy is None or self.job.force:
                others = self.states.filter(pa.array(folds != fold))
                trained = train(self.job, self.catalogue, others, self.work / f"fold-{fold}")
                tags = {"sgrec.fold": f"{fold + 1} of {FOLDS}", FOLD_SEED: str(seed)}
                policy = self.register(ROLLOUT, trained, of_fold, tags)
            policies.append(policy)
        return policies

    def start(self, champion: ModelVersion | None) -> Trained:
        """The night's starting policy, which goes on from the champion where it can."""

        def warm_start(model: Generator) -> bool:
            if champion is None:
                return False
            return take_over(model, self.registry, champion, self.catalogue, note=self.job.note)

        return train(self.job, self.catalogue, self.states, self.work, warm_start)

    def register(self, name: str, trained: Trained, fingerprint: str, tags: dict[str, str]) -> ModelVersion:
        settings = self.job.settings
        return register_generator(
            self.registry,
            name,
            trained.model,
            self.catalogue,
            day=self.job.day,
            fingerprint=fingerprint,
            metrics=trained.metrics,
            parameters={
                **settings.supervised.model_dump(),
                "days": settings.states.history_days,
                "decisions": trained.decisions,
            },
            tables=table_versions(self.job.lake, self.job.stage.reads),
            tags={**tags, CODE_TAG: self.job.code_digest},
            leave_out_history=self.leave_out_history,
        )


def training_inputs(job: Job) -> dict[str, object]:
    """For fingerprints: what a training on next items depends on, but for its catalogue and its start."""
    settings = job.settings
    days = days_until(job.day, settings.states.history_days)
    return {
        "states": {day: job.lake.fingerprint("user_states", {"day": day}) for day in days},
        "max_items": settings.states.max_history,
        "supervised": settings.supervised.model_dump(exclude={"checkpoint_steps"}),
        "backbone": backbone_digest(settings.supervised),
    }


def training_states(job: Job, catalogue: Catalogue) -> pa.Table:
    """The decisions, for items of the catalogue, that the night trains on.

    Raises:
        InputError: there are none.
    """
    days = days_until(job.day, job.settings.states.history_days)
    states = decisions(job.lake, days, "train", COLUMNS)
    states = states.filter(pa.array(catalogue.index(states["target_item"]) >= 0))
    if not states.num_rows:
        raise InputError(
            f"user_states has no training decision from {days[0]} to {days[-1]} for one of the {len(catalogue)} items"
            " with codes; nothing to train on"
        )
    return states


def train_on(job: Job, model: Generator, catalogue: Catalogue, fingerprint: str) -> Trained:
    """What the night's starting policy would be, had the champion been ``model``, aligned with the catalogue.

    Raises:
        SgrecError: the settings have another shape.
    """

    def warm_start(fresh: Generator) -> bool:
        misfit = give_weights(model, fresh)
        if misfit is not None:
            raise SgrecError(
                f"what was optimised has {misfit}; run `python -m jobs.train_supervised --day {job.day}` first"
            )
        return True

    work = work_folder(job, fingerprint)
    trained = train(job, catalogue, training_states(job, catalogue), work, warm_start)
    shutil.rmtree(work, ignore_errors=True)
    return trained


def train(
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


def work_folder(job: Job, fingerprint: str) -> Path:
    """Where the training of these inputs keeps what it needs to go on; those of the day's other inputs are removed."""
    folder = job.settings.home.resolve() / "training"
    work = folder / f"{job.day}-{fingerprint}"
    for other in folder.glob(f"{job.day}-*"):
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    return work
