"""Train the night's starting policy on next items, and what rolls out its groups where the champion cannot.

All positions of the training users' sequences of the last ``states.history_days`` days, held-out users left out; the
generator's memory of transitions is counted from the same sequences. The night's starting policy goes on from the
pinned champion when that reads the same semantic ids and has the same shape; otherwise it starts from scratch.

Groups are rolled out by a policy that was trained on none of their decisions (`sgrec_core.night.rollouts`): the
champion, or one for each fold of the users, trained from scratch on the others. These come first and are registered
one by one. A job that was killed goes on from the last checkpoint of what it was training.
"""

import shutil

from sgrec_core.generator.device import use_threads
from sgrec_core.night.generators import day_catalogue
from sgrec_core.night.held_out import shares_as_tags
from sgrec_core.night.recipes import RECIPE_TAG, supervised_recipe
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.rollouts import WARM_STARTED_FROM, as_tag, why_cross_fit
from sgrec_core.night.supervised import Trained, Training, training_inputs, training_states
from sgrec_core.night.tokenizers import current_tokenizer
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import SUPERVISED


def run(job: Job) -> None:
    registry = Registry(job.settings)
    tokenizer_version, tokenizer = current_tokenizer(registry, job.day)
    catalogue = day_catalogue(job.lake, job.day, tokenizer_version, tokenizer["codebook_size"])
    champion = registry.pinned_champion(job.day)
    leave_out = leaves_out_history(job.lake, job.day, job.settings)
    cross_fit = why_cross_fit(job.lake, job.day, job.settings, champion, tokenizer_version)
    fingerprint = job.inputs_fingerprint(
        {
            **training_inputs(job),
            "catalogue": catalogue.digest,
            "champion": champion and champion.fingerprint,
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
    states = training_states(job, catalogue)
    training = Training(job, registry, catalogue, states, fingerprint, leave_out)
    if cross_fit is not None:
        policies = training.of_folds()
    else:
        policies = [champion] if champion is not None else []
    trained = training.start(champion)
    started_from = str(champion) if trained.warm else "scratch"
    version = training.register(
        SUPERVISED,
        trained,
        fingerprint,
        {
            WARM_STARTED_FROM: started_from,
            RECIPE_TAG: supervised_recipe(job.settings, leave_out),
            **as_tag(policies),
            **shares_as_tags(
                job.lake, registry, job.day, job.settings, champion if trained.warm else None, states["user_id"]
            ),
        },
    )
    mark_of_night(registry, version)
    registry.pin_champion(job.day, champion)
    shutil.rmtree(training.work, ignore_errors=True)
    job.fact("policy_version", version.version)
    _tell(job, trained, items=len(catalogue), started_from=started_from)
    job.fact("groups_rolled_out_by", ", ".join(str(policy) for policy in policies))
    if cross_fit is not None:
        job.fact("cross_fitted_because", cross_fit)
        # As the registry has it: the same for a job that found them trained.
        seconds = sum(registry.metrics(policy)["seconds"] for policy in policies)
        job.fact("cross_fitting_seconds", round(seconds, 1))


def _tell(job: Job, trained: Trained, *, items: int, started_from: str) -> None:
    job.fact("decisions", trained.decisions)
    job.fact("sequences", trained.sequences)
    job.fact("items", items)
    job.fact("parameters", sum(parameter.numel() for parameter in trained.model.parameters()))
    job.fact("epochs", trained.epochs)
    job.fact("loss_first_epoch", trained.losses[0])
    job.fact("loss", trained.losses[-1])
    job.fact("warm_started_from", started_from)


main = stage_command("train_supervised", run)

if __name__ == "__main__":
    main()
