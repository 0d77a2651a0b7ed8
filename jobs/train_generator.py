"""Improve the night's starting policy with its rewards and register it as challenger.

``policy.mode=stored``: the candidates and log-probabilities of the night's rollout, the advantages of the night's
reward version. ``on_policy``: the same decisions, rolled out anew at every step, scored by the judge in this process
(what ``aspect_scores`` holds is not asked again, what is new is published), weighed by the day's ``user_weights`` and
fused from raw rewards. The starting policy is the KL reference of both.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import SettingsError, SgrecError
from sgrec_core.generator import Generator
from sgrec_core.generator.dataset import Catalogue, history_matrix
from sgrec_core.generator.device import use_threads
from sgrec_core.hashing import hash_share
from sgrec_core.judge.calls.cached import CachedJudge
from sgrec_core.judge.versions.accepted import check_accepted
from sgrec_core.judge.versions.adapters import resolve_adapter
from sgrec_core.lake.queries import decisions, table_versions
from sgrec_core.night.generators import generator_of_day, register_generator
from sgrec_core.night.rewards import business_reward, version_of_day
from sgrec_core.policy import (
    PolicyConfig,
    RolloutConfig,
    StoredGroups,
    means_of_last_epoch,
    train_on_policy,
    train_stored,
)
from sgrec_core.registry import CHALLENGER, ModelVersion, Registry
from sgrec_core.registry.nights import mark_of_night, of_night
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import BUSINESS_REWARD, GENERATOR, SUPERVISED


def run(job: Job) -> None:
    resolve_adapter(job)
    settings = job.settings.policy
    if settings.mode == "on_policy" and job.settings.judge.engine == "vllm":
        raise SettingsError(
            "policy.mode=on_policy scores in the process that trains, and the environment of the engine vllm has no"
            " MLflow; valid with judge.engine=vllm is policy.mode=stored"
        )
    registry = Registry(job.settings)
    start = of_night(registry, SUPERVISED, job.day, stage="train_supervised")
    reward_version = version_of_day(job.lake, job.day, job.settings)
    partition = {"day": job.day, "reward_version": reward_version}
    published = job.lake.fingerprint("rewards", partition)
    if published is None:
        raise SgrecError(
            f"rewards has no rows of version {reward_version} for {job.day};"
            f" run `python -m jobs.materialize_rewards --day {job.day}` first"
        )
    fingerprint = job.inputs_fingerprint(
        {
            "start": [start.version, start.fingerprint],
            "rewards": [reward_version, published],
            "policy": settings.model_dump(),
            # On fresh groups the judge and the fusion work here, so their settings count.
            "fresh": None if settings.mode == "stored" else _fresh_settings(job),
        }
    )
    made_before = registry.find(GENERATOR, fingerprint)
    if made_before is not None and not job.force:
        _nominate(job, registry, made_before)
        job.keep_facts()
        return

    use_threads(job.settings.threads)
    model, catalogue = generator_of_day(job.lake, registry, start, job.day)
    config = PolicyConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        clip=settings.clip,
        beta=settings.kl_weight,
        seed=settings.seed,
    )
    groups = _stored_groups(job, catalogue, reward_version, start)
    network = model.without_memory()
    used = 0
    if settings.mode == "stored":
        used = len(groups.with_signal().items)
        with job.progress_bar(config.epochs * used, "training groups") as advance:
            log = train_stored(network, catalogue.trie, groups, config, progress=lambda count, _: advance(count))
    else:
        log = _train_on_policy(job, registry, network, catalogue, groups, config)
    statistics = means_of_last_epoch(log, settings.epochs)
    if settings.mode == "on_policy" and log:
        statistics |= _of_all_groups(log[settings.updates - 1 :: settings.updates])
        used = int(statistics["groups_with_advantage"])

    version = register_generator(
        registry,
        GENERATOR,
        model,
        catalogue,
        day=job.day,
        fingerprint=fingerprint,
        metrics=statistics,
        parameters={**settings.model_dump(), "objective": job.settings.fusion.objective, "groups": used},
        tables=table_versions(job.lake, job.stage.reads),
        tags={"sgrec.reward_version": reward_version, "sgrec.policy_version": start.version},
    )
    _nominate(job, registry, version)
    job.fact("challenger_version", version.version)
    job.fact("started_from", str(start))
    job.fact("groups", len(groups.items))
    job.fact("groups_with_advantage", used)
    job.fact("steps", len(log))
    for name in ("loss", "kl_reference", "clip_fraction", "entropy", "agreement_rate", "mean_gate", "covered_groups"):
        if name in statistics:
            job.fact(name, statistics[name])
    if not used:
        job.note("no candidate has any advantage: the challenger equals the night's starting policy")


DO_NOT_MOVE_SCORES = {
    "concurrency",
    "timeout",
    "retries",
    "workers",
    "tokens_per_second",
    "max_failed_share",
    "shard_size",
}
"""Settings of the judge with which it gives the same scores; `server_url` is not among them."""


def _fresh_settings(job: Job) -> list[object]:
    settings = job.settings
    judge = settings.judge.model_dump(mode="json", exclude=DO_NOT_MOVE_SCORES)
    return [settings.fusion.model_dump(), judge, settings.rollout.model_dump()]


def _train_on_policy(
    job: Job,
    registry: Registry,
    model: Generator,
    catalogue: Catalogue,
    groups: StoredGroups,
    config: PolicyConfig,
) -> list[dict[str, float]]:
    """Train on fresh groups of the decisions that the stored ones belong to."""
    settings, fusion = job.settings.policy, job.settings.fusion
    business = of_night(registry, BUSINESS_REWARD, job.day, stage="fit_business_reward")
    columns = ["decision_id", "state_id", "user_id", "as_of", "history", "profile", "context", "target_item"]
    states = decisions(job.lake, [job.day], "train", columns).sort_by("decision_id")
    chosen = job.lake.read("candidates", where={"day": job.day}, columns=["decision_id"])["decision_id"].unique()
    states = states.filter(pc.is_in(states["decision_id"], value_set=chosen))
    state_ids = states["state_id"].to_pylist()
    weights = job.lake.read("user_weights", where={"day": job.day})
    judge = None
    if weights.num_rows:
        check_accepted(job.settings)
        judge = CachedJudge(job.settings, job.lake, job.day, state_ids)
    weight_of = {
        state: np.array(values)
        for state, aspects, values in zip(
            *(weights[name].to_pylist() for name in ("state_id", "aspects", "weights")), strict=True
        )
        if judge is not None and aspects == judge.aspects
    }

    def semantic(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        assert judge is not None, "without user weights nothing is judged"
        names = [state_ids[row] for row in rows]
        scores = judge.scores([(state, catalogue.ids(group)) for state, group in zip(names, items, strict=True)])
        unknown = np.full(len(judge.aspects), np.nan)
        return np.einsum("bga,ba->bg", scores, np.stack([weight_of.get(state, unknown) for state in names]))

    rollout = RolloutConfig(
        group_size=job.settings.rollout.group_size,
        method=settings.rollout,
        updates=settings.updates,
        objective=fusion.objective,
        epsilon=fusion.epsilon,
    )
    _, business_config = registry.load(business)
    # The same share of the decisions as score_aspects judges.
    shares = hash_share(states["decision_id"].to_pylist(), f"judge-groups-{job.settings.judge.seed}")
    try:
        with job.progress_bar(config.epochs * len(groups.items), "training on fresh groups") as advance:
            log = train_on_policy(
                model,
                catalogue.trie,
                groups.histories,
                business_reward(business_config, job.lake, job.day, job.settings, states, catalogue),
                semantic if judge is not None else None,
                config,
                rollout,
                may_judge=shares < job.settings.judge.sampling_ratio,
                progress=lambda count, _: advance(count),
            )
    finally:
        # What was paid is kept, whatever happened.
        if judge is not None:
            judge.publish()
    job.fact("on_policy_judge_paid", judge.paid if judge is not None else 0)
    return log


def _of_all_groups(log: list[dict[str, float]]) -> dict[str, float]:
    """What on-policy training says of its groups, a step of ``log`` each: counts are sums, rates means over groups."""
    counts = ("groups", "groups_with_business_variance", "covered_groups", "groups_with_advantage")
    sums = {name: sum(step[name] for step in log) for name in counts}
    covered = max(sums["covered_groups"], 1)
    rates = {
        name: sum(step[name] * step["covered_groups"] for step in log) / covered
        for name in ("agreement_rate", "mean_gate")
    }
    return sums | rates


def _nominate(job: Job, registry: Registry, version: ModelVersion) -> None:
    """Make ``version`` the night's generator and the challenger, unless a later night has promoted already."""
    mark_of_night(registry, version)
    newest = registry.newest_promotion()
    if newest is None or newest.tags["sgrec.promoted_day"] <= job.day:
        registry.set_alias(version, CHALLENGER)
    else:
        job.note(f"alias challenger stays: night {newest.tags['sgrec.promoted_day']} has promoted {newest} since")


def _stored_groups(job: Job, catalogue: Catalogue, reward_version: str, start: ModelVersion) -> StoredGroups:
    """The night's rollout groups with their advantages.

    Raises:
        SgrecError: candidates are those of another policy, or do not fit the rewards.
    """
    candidates = job.lake.read("candidates", where={"day": job.day}).sort_by(
        [("decision_id", "ascending"), ("rank", "ascending")]
    )
    rewards = job.lake.read(
        "rewards",
        where={"day": job.day, "reward_version": reward_version},
        columns=["decision_id", "rank", "item_id", "advantage"],
    ).sort_by([("decision_id", "ascending"), ("rank", "ascending")])
    policies = candidates["policy_version"].unique().to_pylist()
    if policies != [start.version]:
        raise SgrecError(
            f"candidates of {job.day} were rolled out by {SUPERVISED} version {', '.join(policies)}, the night's is"
            f" {start.version}; run `python -m jobs.generate_candidates --day {job.day}` and the stages behind it"
        )
    same = ["decision_id", "rank", "item_id"]
    if candidates.select(same) != rewards.select(same):
        raise SgrecError(
            f"rewards of {job.day} are not about the day's candidates;"
            f" run `python -m jobs.materialize_rewards --day {job.day}` first"
        )
    states = decisions(job.lake, [job.day], "train", ["decision_id", "history"])
    wanted = np.unique(candidates["decision_id"].to_numpy())
    row = pc.index_in(pa.array(wanted, pa.string()), states["decision_id"].combine_chunks())
    groups = len(wanted)
    log_probs = candidates["log_probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return StoredGroups(
        histories=history_matrix(states["history"].take(row), catalogue, job.settings.states.max_history),
        items=catalogue.index(candidates["item_id"]).reshape(groups, -1),
        log_probs=log_probs.reshape(groups, -1, catalogue.codes.shape[1]),
        advantages=rewards["advantage"].to_numpy().reshape(groups, -1),
    )


main = stage_command("train_generator", run)

if __name__ == "__main__":
    main()
