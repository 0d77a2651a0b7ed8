"""Train an adapter of the judge's model on labels: supervised, then by GRPO on labels kept from the first stage.

PointAcc on held-out users' labels stands beside each stage. The adapter is registered as ``sgrec-judge`` and laid out
under ``<home>/judge`` for vLLM; nights use it once `jobs.evaluate_judge` has activated it.
"""

from sgrec_core.generator.device import use_threads
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.judge.engines.backends import model_path
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.training.measures import LABEL_STAGES, correct_points, label_figures
from sgrec_core.judge.training.samples import day_samples
from sgrec_core.judge.training.tuner import Tuner
from sgrec_core.judge.versions.adapters import remember, resolve_adapter, with_adapter
from sgrec_core.judge.versions.registered import check_trainable, lay_out, register_adapter, trained_before
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.runtime.job import Job, stage_command


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
        samples = day_samples(job.lake, job.day, rubric, settings.seed, job.note)
        judge = job.settings.judge
        tuner = Tuner(
            model_path(job.settings), rubric, settings, revision=judge.revision, max_model_len=judge.max_model_len
        )
        cut = max(1, round(len(samples.training) * (1 - settings.grpo_share)))
        supervised, reinforced = samples.training[:cut], samples.training[cut:]
        correct = {}
        with job.progress_bar(len(LABEL_STAGES), "training") as advance:
            for stage in LABEL_STAGES:
                if stage == "supervised":
                    tuner.supervise_labels(supervised)
                elif stage == "grpo" and reinforced:
                    tuner.reinforce_labels(reinforced)
                correct[stage] = correct_points(tuner.engine(), samples.held_out)
                advance(1)
        figures = label_figures(correct, samples.held_out_users, settings.seed)
        version = register_adapter(job, registry, tuner, fingerprint, figures)
        job.fact("supervised_samples", len(supervised))
        job.fact("grpo_samples", len(reinforced))
        job.fact("held_out_samples", len(samples.held_out))
    mark_of_night(registry, version)
    remember(job.settings, lay_out(job.settings, registry, version, job.day))
    job.fact("judge_model_version", version.version)


main = stage_command("train_judge", run)

if __name__ == "__main__":
    main()
