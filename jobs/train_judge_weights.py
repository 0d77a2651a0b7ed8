"""Train an adapter that names how much each aspect counts for a user: the form of the answer first, then GRPO on pairs.

The alternative to the small network of `jobs.train_aggregator`, and compared with it: PairAUC on pairs of held-out
users, with the aspects as the adapter of the same day's `jobs.train_judge` scores them, for uniform weights, after each
stage, and for the network fitted to the same pairs. Registered as ``sgrec-judge-weights``; nights use it with
``aggregator.engine=language_model``.
"""

from sgrec_core.errors import InputError
from sgrec_core.generator.device import use_threads
from sgrec_core.judge.calls.requests import day_pairs, day_texts
from sgrec_core.judge.engines import day_has_context, judge_version
from sgrec_core.judge.engines.backends import model_path
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.training.measures import ordered_pairs, weight_figures
from sgrec_core.judge.training.samples import day_scored_pairs
from sgrec_core.judge.training.tuner import Tuner
from sgrec_core.judge.versions.adapters import resolve_adapter, trained, with_adapter
from sgrec_core.judge.versions.registered import check_trainable, lay_out, register_adapter, trained_before
from sgrec_core.night.aggregators import network_weights
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.runtime.job import Job, stage_command


def run(job: Job) -> None:
    resolve_adapter(job)
    settings = job.settings.judge_training
    check_trainable(job.settings)
    if not settings.max_pairs:
        job.note("SGREC_JUDGE_TRAINING__MAX_PAIRS=0: no weights were trained")
        return
    judge = trained(job.settings, job.day)
    if judge is None:
        raise InputError(f"no judge was trained for {job.day}; run `python -m jobs.train_judge --day {job.day}` first")
    has_context = day_has_context(job.lake, job.day)
    fingerprint = job.inputs_fingerprint(
        {
            "training": settings.model_dump(
                exclude={"labels", "simulated_labels", "grpo_share", "min_users", "tolerance", "candidate"}
            ),
            "pairs": job.settings.judge.seed,
            "network": job.settings.aggregator.model_dump(),
            "judge": judge_version(with_adapter(job.settings, judge), has_context),
        }
    )
    registry = Registry(job.settings)
    version = trained_before(job, registry, fingerprint)
    if version is None:
        texts = day_texts(job.lake, job.day, job.settings)
        pairs = {
            split: day_pairs(job.lake, job.day, split, texts, limit=limit, seed=job.settings.judge.seed)
            for split, limit in (("train", settings.max_pairs), ("validation", settings.max_test_pairs))
        }
        if not all(pairs.values()):
            job.note(
                f"preference_pairs of {job.day} has {len(pairs['train'])} pairs to train on and"
                f" {len(pairs['validation'])} of held-out users; weights need both: none were trained"
            )
            return
        use_threads(job.settings.threads)
        rubric = load_rubric(has_context, job.settings.judge.rubric)
        base = model_path(job.settings)
        revision, room = job.settings.judge.revision, job.settings.judge.max_model_len
        adapter = judge.path(job.settings)
        of_aspects = Tuner(base, rubric, settings, adapter=adapter, revision=revision, max_model_len=room)
        engine, scored = of_aspects.engine(), []
        for split in ("train", "validation"):
            with job.progress_bar(len(pairs[split]), "judging pairs") as advance:
                scored.append(day_scored_pairs(job.lake, job.day, engine, pairs[split], texts, advance=advance))
        training, held_out = scored
        if not training or not held_out:
            raise InputError(
                f"{job.day}: the judge could not score the pairs of one side; none of their items has text"
            )
        tuner = Tuner(base, rubric, settings, revision=revision, max_model_len=room)
        states = [pair.state for pair in held_out]
        right = {"uniform": ordered_pairs(held_out)}
        tuner.supervise_form_of_weights([pair.state for pair in training])
        right["form"] = ordered_pairs(held_out, tuner.weights(states))
        tuner.reinforce_weights(training)
        weights = tuner.weights(states)
        right["grpo"] = ordered_pairs(held_out, weights)
        right["network"] = ordered_pairs(held_out, network_weights(job, training, states, rubric.aspect_ids))
        figures = weight_figures(right, [pair.user_id for pair in held_out], settings.seed)
        if figures["pair_auc_gain_grpo_over_network_lower"] <= 0:
            job.note("the named weights order held-out pairs no better than the small network's, beyond chance")
        version = register_adapter(job, registry, tuner, fingerprint, figures)
        job.fact("training_pairs", len(training))
        job.fact("held_out_pairs", len(held_out))
        job.fact("mean_weights", dict(zip(rubric.aspect_ids, weights.mean(axis=0).round(4).tolist(), strict=True)))
    mark_of_night(registry, version)
    lay_out(job.settings, registry, version, job.day)
    job.fact("weights_model_version", version.version)


main = stage_command("train_judge_weights", run)

if __name__ == "__main__":
    main()
