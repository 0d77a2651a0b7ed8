"""Train the night's starting policy on next items.

All positions of the training users' sequences of the last ``states.history_days`` days, held-out users left out; the
generator's memory of transitions is counted from the same sequences. The night's starting policy goes on from the
pinned champion when that reads the same semantic ids and has the same shape; otherwise it starts from scratch. A job
that was killed goes on from its last checkpoint.
"""

import shutil
from pathlib import Path

import torch

from sgrec_core.errors import InputError
from sgrec_core.generator import TrainingConfig, train_supervised
from sgrec_core.generator.checkpoints import Checkpoints
from sgrec_core.generator.dataset import chain_decisions
from sgrec_core.generator.device import device, use_threads
from sgrec_core.generator.packing import cut_windows
from sgrec_core.generator.processes import read_results, train_in_processes, write_inputs
from sgrec_core.lake.queries import days_until, decisions, table_versions
from sgrec_core.night.generators import backbone_digest, day_catalogue, fresh_generator, register_generator, take_over
from sgrec_core.night.recipes import RECIPE_TAG, supervised_recipe
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.tokenizers import current_tokenizer
from sgrec_core.registry import CODE_TAG, Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import SUPERVISED

COLUMNS = ["user_id", "as_of", "position", "history", "target_item"]


def run(job: Job) -> None:
    settings = job.settings.supervised
    registry = Registry(job.settings)
    days = days_until(job.day, job.settings.states.history_days)
    tokenizer_version, tokenizer = current_tokenizer(registry, job.day)
    catalogue = day_catalogue(job.lake, job.day, tokenizer_version, tokenizer["codebook_size"])
    champion = registry.pinned_champion(job.day)
    leave_out = leaves_out_history(job.lake, job.day, job.settings)
    fingerprint = job.inputs_fingerprint(
        {
            "states": {day: job.lake.fingerprint("user_states", {"day": day}) for day in days},
            "catalogue": catalogue.digest,
            "champion": champion and champion.fingerprint,
            "max_items": job.settings.states.max_history,
            "supervised": settings.model_dump(exclude={"checkpoint_steps"}),
            "backbone": backbone_digest(settings),
            "leave_out_history": leave_out,
        }
    )
    made_before = registry.find(SUPERVISED, fingerprint)
    if made_before is not None and not job.force:
        mark_of_night(registry, made_before)
        registry.pin_champion(job.day, champion)
        job.keep_facts()
        return

    use_threads(job.settings.threads)
    torch.manual_seed(settings.seed)
    states = decisions(job.lake, days, "train", COLUMNS)
    sequences = chain_decisions(states, catalogue, job.settings.states.max_history)
    if not sequences.decisions:
        raise InputError(
            f"user_states has {states.num_rows} training decisions from {days[0]} to {days[-1]}, none of them for one"
            f" of the {len(catalogue)} items with codes; nothing to train on"
        )
    windows = cut_windows(sequences.items, sequences.first_target, job.settings.states.max_history)
    model = fresh_generator(catalogue, settings, job.settings.states.max_history)
    warm = champion is not None and take_over(model, registry, champion, catalogue, note=job.note)
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
    work = _work_folder(job, fingerprint)
    with job.progress_bar(training.epochs * len(windows.items), "training windows") as advance:

        def progress(count: int, loss: float) -> None:
            advance(count)

        if settings.processes == 1:
            checkpoints = Checkpoints(work / "checkpoints", settings.checkpoint_steps)
            losses = train_supervised(
                model, catalogue.trie, windows, training, checkpoints=checkpoints, progress=progress
            )
        else:
            write_inputs(work, model, catalogue.trie, windows, training, checkpoint_every=settings.checkpoint_steps)
            train_in_processes(work, settings.processes, threads=job.settings.threads, progress=progress)
            losses = read_results(work, model)

    version = register_generator(
        registry,
        SUPERVISED,
        model,
        catalogue,
        day=job.day,
        fingerprint=fingerprint,
        metrics={"loss_first_epoch": losses[0], "loss_last_epoch": losses[-1]},
        parameters={**settings.model_dump(), "days": len(days), "decisions": sequences.decisions},
        tables=table_versions(job.lake, job.stage.reads),
        tags={
            "sgrec.warm_started_from": str(champion) if warm else "scratch",
            RECIPE_TAG: supervised_recipe(job.settings),
            CODE_TAG: job.code_digest,
        },
        leave_out_history=leave_out,
    )
    registry.pin_champion(job.day, champion)
    shutil.rmtree(work, ignore_errors=True)
    job.fact("policy_version", version.version)
    job.fact("decisions", sequences.decisions)
    job.fact("sequences", len(sequences.items))
    job.fact("items", len(catalogue))
    job.fact("parameters", sum(parameter.numel() for parameter in model.parameters()))
    job.fact("epochs", training.epochs)
    job.fact("loss_first_epoch", losses[0])
    job.fact("loss", losses[-1])
    job.fact("warm_started_from", str(champion) if warm else "scratch")


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
