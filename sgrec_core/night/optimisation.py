"""Optimising the night's policy: on the stored groups of its reward table, or on fresh ones judged on the spot."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import SgrecError
from sgrec_core.generator import Generator
from sgrec_core.generator.dataset import Catalogue, history_matrix
from sgrec_core.judge.calls.cached import CachedJudge
from sgrec_core.judge.engines import day_has_context, make_engine
from sgrec_core.judge.versions.accepted import check_accepted, versions_of
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import decisions
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.rewards import business_reward
from sgrec_core.policy import (
    PolicyConfig,
    Prompts,
    RolloutConfig,
    StoredGroups,
    means_of_last_epoch,
    train_on_policy,
    train_stored,
)
from sgrec_core.policy.trainer import SemanticReward
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.rewards.advantages import method_of
from sgrec_core.rewards.semantic import holistic, queue_places
from sgrec_core.rewards.table import advantages_of
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import BUSINESS_REWARD
from sgrec_core.settings import Settings


@dataclass(frozen=True)
class Optimised:
    """What became of a policy."""

    steps: int
    groups_with_advantage: int
    statistics: dict[str, float]
    """Means over the steps of the last epoch, and of the groups of all epochs: signal_share, those that tell candidates
    apart; of fresh ones also what they looked like, and idle_steps, the share of steps in which no group did."""
    judge_paid: int | None = None
    """Calls paid for fresh groups; None on stored ones."""


def fresh_settings(settings: Settings) -> list[object]:
    """For fingerprints: the settings that work while training on fresh groups."""
    which_groups = settings.judge.model_dump(include={"sampling_ratio", "seed", "max_calls"})
    return [settings.fusion.model_dump(), versions_of(settings), which_groups, settings.rollout.model_dump()]


def stored_groups(
    lake: Lake,
    day: str,
    settings: Settings,
    catalogue: Catalogue,
    reward_version: str,
    policies: Sequence[ModelVersion],
) -> StoredGroups:
    """The night's rollout groups with their advantages, in the order of their decisions.

    ``policies``: what rolls out the night's groups.

    Raises:
        SgrecError: candidates are those of other policies, or do not fit the rewards.
    """
    candidates = lake.read("candidates", where={"day": day}).sort_by(
        [("decision_id", "ascending"), ("rank", "ascending")]
    )
    rewards = lake.read(
        "rewards",
        where={"day": day, "reward_version": reward_version},
        columns=["decision_id", "rank", "item_id", "advantage", "code_advantages"],
    ).sort_by([("decision_id", "ascending"), ("rank", "ascending")])
    wanted_policies = [str(policy) for policy in policies]
    rolled_out_by = sorted(candidates["policy_version"].unique().to_pylist())
    if not set(rolled_out_by) <= set(wanted_policies):
        raise SgrecError(
            f"candidates of {day} were rolled out by {', '.join(rolled_out_by)}, the night's come from"
            f" {', '.join(wanted_policies)}; run `python -m jobs.generate_candidates --day {day}` and the stages behind"
            " it"
        )
    same = ["decision_id", "rank", "item_id"]
    if candidates.select(same) != rewards.select(same):
        raise SgrecError(
            f"rewards of {day} are not about the day's candidates;"
            f" run `python -m jobs.materialize_rewards --day {day}` first"
        )
    states = decisions(lake, [day], "train", ["decision_id", "history"])
    wanted = np.unique(candidates["decision_id"].to_numpy())
    row = pc.index_in(pa.array(wanted, pa.string()), states["decision_id"].combine_chunks())
    groups = len(wanted)
    log_probs = candidates["log_probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return StoredGroups(
        histories=history_matrix(states["history"].take(row), catalogue, settings.states.max_history),
        items=catalogue.index(candidates["item_id"]).reshape(groups, -1),
        log_probs=log_probs.reshape(groups, -1, catalogue.codes.shape[1]),
        advantages=advantages_of(rewards, groups),
    )


def optimise(job: Job, registry: Registry, model: Generator, catalogue: Catalogue, groups: StoredGroups) -> Optimised:
    """Improve ``model`` in place, by ``policy.mode`` on ``groups`` or on fresh groups of the same decisions.

    Fresh ones are those of ``model``, which therefore must not have learnt from these decisions.
    """
    settings = job.settings.policy
    config = PolicyConfig(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        clip=settings.clip,
        beta=settings.kl_weight,
        seed=settings.seed,
        loss=settings.loss,
        weight_limit=settings.weight_limit,
    )
    if settings.mode == "on_policy":
        return _on_fresh_groups(job, registry, model, catalogue, groups, config)
    used = len(groups.with_signal().items)
    with job.progress_bar(config.epochs * used, "training groups") as advance:
        log = train_stored(model, catalogue.trie, groups, config, progress=lambda count, _: advance(count))
    signal = {"signal_share": used / max(len(groups.items), 1)}
    return Optimised(len(log), used, means_of_last_epoch(log, config.epochs) | signal)


def _on_fresh_groups(
    job: Job,
    registry: Registry,
    model: Generator,
    catalogue: Catalogue,
    groups: StoredGroups,
    config: PolicyConfig,
) -> Optimised:
    settings, fusion = job.settings, job.settings.fusion
    columns = ["decision_id", "state_id", "user_id", "as_of", "history", "profile", "context", "target_item"]
    states = decisions(job.lake, [job.day], "train", columns).sort_by("decision_id")
    stored = job.lake.read("candidates", where={"day": job.day}, columns=["decision_id"])["decision_id"].unique()
    states = states.filter(pc.is_in(states["decision_id"], value_set=stored))
    _, business = registry.load(of_night(registry, BUSINESS_REWARD, job.day, stage="fit_business_reward"))
    weights = job.lake.read("user_weights", where={"day": job.day})
    judge = None
    if weights.num_rows:
        check_accepted(settings)
        judge = CachedJudge(settings, job.lake, job.day, states["state_id"].to_pylist())
    places = queue_places(
        method_of(fusion.objective),
        states["decision_id"].to_pylist(),
        ratio=settings.judge.sampling_ratio,
        seed=settings.judge.seed,
    )
    prompts = Prompts(
        groups.histories,
        business_reward(business, job.lake, job.day, settings, states, catalogue),
        _semantic_reward(judge, weights, states["state_id"].to_pylist(), catalogue) if judge is not None else None,
        targets=catalogue.index(states["target_item"]),
        sampled=np.isfinite(places),
    )
    rollout = RolloutConfig(
        group_size=settings.rollout.group_size,
        method=settings.policy.rollout,
        updates=settings.policy.updates,
        objective=fusion.objective,
        epsilon=fusion.epsilon,
        resolution=make_engine(settings, day_has_context(job.lake, job.day)).resolution,
        leave_out_history=leaves_out_history(job.lake, job.day, settings),
    )
    try:
        with job.progress_bar(config.epochs * len(groups.items), "training on fresh groups") as advance:
            log = train_on_policy(
                model, catalogue.trie, prompts, config, rollout, progress=lambda count, _: advance(count)
            )
    finally:
        # What was paid is kept, whatever happened.
        if judge is not None:
            judge.publish()
    statistics = means_of_last_epoch(log, config.epochs)
    if log:
        statistics |= _of_all_groups(log[rollout.updates - 1 :: rollout.updates])
    used = int(statistics.get("groups_with_advantage", 0))
    return Optimised(len(log), used, statistics, judge.paid if judge is not None else 0)


def _semantic_reward(
    judge: CachedJudge, weights: pa.Table, state_ids: list[str], catalogue: Catalogue
) -> SemanticReward:
    """The judge's scores weighed by ``user_weights``; NaN for states without weights for the judge's aspects."""
    columns = (weights[name].to_pylist() for name in ("state_id", "aspects", "weights"))
    weight_of = {
        state: np.array(values) for state, aspects, values in zip(*columns, strict=True) if aspects == judge.aspects
    }
    unknown = np.full(len(judge.aspects), np.nan)

    def semantic(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        names = [state_ids[row] for row in rows]
        scores = judge.scores([(state, catalogue.ids(group)) for state, group in zip(names, items, strict=True)])
        return holistic(scores, np.stack([weight_of.get(state, unknown) for state in names])[:, None])

    return semantic


def _of_all_groups(log: list[dict[str, float]]) -> dict[str, float]:
    """What on-policy training says of its groups, a step of ``log`` each: counts are sums, rates means over groups."""
    counts = ("groups", "groups_with_business_variance", "covered_groups", "groups_with_advantage")
    sums = {name: sum(step[name] for step in log) for name in counts}
    covered = max(sums["covered_groups"], 1)
    rates = {
        name: sum(step[name] * step["covered_groups"] for step in log) / covered
        for name in ("agreement_rate", "mean_gate")
    }
    learning = {
        "signal_share": sums["groups_with_advantage"] / max(sums["groups"], 1),
        "idle_steps": sum(not step["groups_with_advantage"] for step in log) / max(len(log), 1),
    }
    return sums | rates | learning
