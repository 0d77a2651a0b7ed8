"""Improve the night's policy with its rewards and register it as challenger.

``policy.mode=stored``: its starting policy, on the candidates of the night's rollout, made by policies that did not
know the decisions, with the advantages of the night's reward version. ``on_policy``: the champion, which does not know
the decisions either, on groups of the same decisions that it rolls out anew, each once, as it is by then; scored by the
judge in this process (what ``aspect_scores`` holds is not asked again, what is new is published), weighed by the day's
``user_weights`` and fused from raw rewards. Then it learns the clicks as the starting policy did. What is optimised is
the KL reference of both. A night whose groups have no such champion trains on the stored ones.
"""

from collections.abc import Mapping, Sequence

from sgrec_core.errors import SettingsError, SgrecError
from sgrec_core.generator.device import use_threads
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.lake.queries import table_versions
from sgrec_core.night.generators import generator_of_day, register_generator
from sgrec_core.night.held_out import MODEL_SHARE
from sgrec_core.night.optimisation import fresh_settings, optimise, stored_groups
from sgrec_core.night.recipes import RECIPE_TAG, REWARDS_TAG, optimised_recipe
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.rewards import version_of_day
from sgrec_core.night.rollouts import as_tag, champion_to_optimise, rollout_policies
from sgrec_core.night.supervised import train_on, training_inputs
from sgrec_core.registry import CHALLENGER, CODE_TAG, ModelVersion, Registry
from sgrec_core.registry.nights import mark_of_night, of_night
from sgrec_core.registry.promotions import last_change
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import GENERATOR, SUPERVISED

FACTS = (
    "loss",
    "kl_reference",
    "clip_fraction",
    "entropy",
    "signal_share",
    "idle_steps",
    "agreement_rate",
    "mean_gate",
    "covered_groups",
    "loss_of_clicks",
)
"""Statistics of the training that the page tells, those of them that there are."""


def run(job: Job) -> None:
    resolve_adapter(job)
    if job.settings.policy.mode == "on_policy" and job.settings.judge.engine == "vllm":
        raise SettingsError(
            "policy.mode=on_policy scores in the process that trains, and the environment of the engine vllm has no"
            " MLflow; valid with judge.engine=vllm is policy.mode=stored"
        )
    registry = Registry(job.settings)
    start = of_night(registry, SUPERVISED, job.day, stage="train_supervised")
    policies = rollout_policies(registry, start)
    begin = _what_is_optimised(job, start, policies)
    fresh = job.settings.policy.mode == "on_policy"
    reward_version = version_of_day(job.lake, job.day, job.settings)
    partition = {"day": job.day, "reward_version": reward_version}
    published = job.lake.fingerprint("rewards", partition)
    if published is None:
        raise SgrecError(
            f"rewards has no rows of version {reward_version} for {job.day};"
            f" run `python -m jobs.materialize_rewards --day {job.day}` first"
        )
    leave_out = leaves_out_history(job.lake, job.day, job.settings)
    fingerprint = job.inputs_fingerprint(
        {
            "start": [start.version, start.fingerprint],
            "rewards": [reward_version, published],
            "begin": [str(begin), begin.fingerprint],
            "policy": job.settings.policy.model_dump(),
            # The judge, the fusion and the training on clicks work here then, so their settings count.
            "fresh": fresh and fresh_settings(job.settings),
            "clicks": fresh and training_inputs(job),
            "leave_out_history": leave_out,
        }
    )
    made_before = registry.find(GENERATOR, fingerprint)
    if made_before is not None and not job.force:
        _nominate(job, registry, made_before)
        job.keep_facts()
        return

    use_threads(job.settings.threads)
    model, catalogue = generator_of_day(job.lake, registry, begin, job.day)
    groups = stored_groups(job.lake, job.day, job.settings, catalogue, reward_version, policies)
    found = optimise(job, registry, model.without_memory(), catalogue, groups)
    statistics = found.statistics
    if fresh:
        trained = train_on(job, model, catalogue, fingerprint)
        model = trained.model
        statistics = statistics | {"loss_of_clicks": trained.losses[-1]}

    version = register_generator(
        registry,
        GENERATOR,
        model,
        catalogue,
        day=job.day,
        fingerprint=fingerprint,
        metrics=statistics,
        parameters={
            **job.settings.policy.model_dump(),
            "objective": job.settings.fusion.objective,
            "groups": found.groups_with_advantage,
        },
        tables=table_versions(job.lake, job.stage.reads),
        tags={
            REWARDS_TAG: reward_version,
            "sgrec.policy_version": str(begin),
            "sgrec.policy_mode": job.settings.policy.mode,
            **as_tag(policies),
            RECIPE_TAG: optimised_recipe(job.lake, job.day, job.settings, leave_out),
            CODE_TAG: job.code_digest,
            **{name: start.tags[name] for name in (MODEL_SHARE,) if name in start.tags},
        },
        leave_out_history=leave_out,
    )
    _nominate(job, registry, version)
    job.fact("challenger_version", version.version)
    job.fact("policy_mode", job.settings.policy.mode)
    job.fact("started_from", str(begin))
    job.fact("groups", len(groups.items))
    job.fact("groups_with_advantage", found.groups_with_advantage)
    job.fact("steps", found.steps)
    if found.judge_paid is not None:
        job.fact("on_policy_judge_paid", found.judge_paid)
    for name in FACTS:
        if name in statistics:
            job.fact(name, statistics[name])
    _watch(job, statistics)
    if not found.groups_with_advantage:
        job.note("no candidate has any advantage: the challenger equals the night's starting policy")


def _what_is_optimised(job: Job, start: ModelVersion, policies: Sequence[ModelVersion]) -> ModelVersion:
    """The night's starting policy, or the champion on its own fresh groups; settings of ``job`` say which it is."""
    policy = job.settings.policy
    if policy.mode == "stored":
        return start
    champion = champion_to_optimise(start, policies)
    if champion is not None:
        return champion
    job.note(
        "policy.mode=on_policy: trained on the stored groups all the same; the night has no champion that knows none of"
        " its decisions and that its supervised policy went on from"
    )
    job.settings = job.settings.model_copy(update={"policy": policy.model_copy(update={"mode": "stored"})})
    return start


def _watch(job: Job, statistics: Mapping[str, float]) -> None:
    """Say so where the policy left the region in which ratios to its start can be trusted, or had little to learn."""
    settings = job.settings.quality
    for name, limit in (("clip_fraction", settings.clip_fraction_limit), ("kl_reference", settings.kl_limit)):
        if statistics.get(name, 0.0) > limit:
            job.note(
                f"outside its trust region: {name.replace('_', ' ')} {statistics[name]:.3g}, above {limit:g};"
                " a lower SGREC_POLICY__LEARNING_RATE, fewer epochs or a higher SGREC_POLICY__KL_WEIGHT keep it inside"
            )
    share, idle = statistics.get("signal_share", 0.0), statistics.get("idle_steps", 0.0)
    if 0 < share < settings.least_signal_share:
        steps = f", and {idle:.0%} of the steps had no other" if idle else ""
        job.note(
            f"little signal: {1 - share:.1%} of the rollout groups tell no candidates apart and teach nothing{steps};"
            f" {share:.1%} do, below {settings.least_signal_share:.0%}; a higher SGREC_ROLLOUT__GROUP_SIZE tells more"
            " of them apart"
        )


def _nominate(job: Job, registry: Registry, version: ModelVersion) -> None:
    """Make ``version`` the night's generator and the challenger, unless the champion was changed as of a later one."""
    mark_of_night(registry, version)
    last = last_change(registry.promotions.read())
    if last is None or last.day <= job.day:
        registry.set_alias(version, CHALLENGER)
    else:
        job.note(f"alias challenger stays: {last}")


main = stage_command("train_generator", run)

if __name__ == "__main__":
    main()
