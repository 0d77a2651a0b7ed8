"""Roll out groups of candidates, and reward them with the business reward.

At most ``rollout.max_groups`` training decisions of the day, chosen by seeded hash. A group holds the best
``rollout.group_size`` different items of a constrained beam search, with the log-probability of each code; none of
the history on a source whose users never repeat an item.

Who rolls out was trained on none of the decisions (`sgrec_core.night.rollouts`). It shows in how many groups hold the
chosen item: as many as of held-out decisions, which are rolled out for this figure alone.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from sgrec_core.errors import SgrecError
from sgrec_core.evaluation.significance import two_proportions
from sgrec_core.generator import Beams, Generator, rank_items
from sgrec_core.generator.dataset import Catalogue, history_matrix, whole_histories
from sgrec_core.generator.device import use_threads
from sgrec_core.hashing import hash_share
from sgrec_core.lake.queries import decisions
from sgrec_core.night.generators import generator_of_day
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.rewards import business_reward
from sgrec_core.night.rollouts import days_of_training, met_before, place_of_policy, rollout_policies
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.rewards.semantic import has_variance
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import BUSINESS_REWARD, GENERATOR, SUPERVISED

COLUMNS = ["decision_id", "state_id", "user_id", "request_id", "as_of", "history", "profile", "context", "target_item"]
SURELY = 3.0
"""Standard errors by which the shares of training and of held-out decisions differ by more than chance."""


def run(job: Job) -> None:
    settings = job.settings.rollout
    registry = Registry(job.settings)
    policies = rollout_policies(registry, of_night(registry, SUPERVISED, job.day, stage="train_supervised"))
    champion = policies[0] if policies[0].name == GENERATOR else None
    business = of_night(registry, BUSINESS_REWARD, job.day, stage="fit_business_reward")
    leave_out = leaves_out_history(job.lake, job.day, job.settings)
    learnt = days_of_training(champion, job.settings) if champion else []
    fingerprint = job.inputs_fingerprint(
        {
            "policies": [[policy.name, policy.version, policy.fingerprint] for policy in policies],
            "learnt": {day: job.lake.fingerprint("user_states", {"day": day}) for day in learnt},
            "business": [business.version, business.fingerprint],
            "rollout": settings.model_dump(),
            "leave_out_history": leave_out,
        }
    )
    if job.skip_if_published({"candidates": {"day": job.day}}, fingerprint):
        return

    use_threads(job.settings.threads)
    rollout = Rollout.of(job, registry, policies, leave_out)
    catalogue = rollout.catalogue
    states = _chosen_states(job, "train", catalogue, champion)
    if not states.num_rows:
        raise SgrecError(
            f"{job.day} has no training decision for an item with codes that the policy was not trained on; nothing to"
            " roll out"
        )
    longest = whole_histories(states["history"], catalogue).shape[1] if leave_out else 0
    group_size = min(settings.group_size, len(catalogue) - longest)
    if group_size < 1:
        raise SgrecError(f"{job.day} has {len(catalogue)} items with codes, no more than the longest history holds")
    if group_size < settings.group_size:
        job.note(f"groups hold {group_size} candidates: the day has no more items")
    beams, by = rollout.groups(states, group_size, "rolling out groups")
    items = beams.items.numpy()
    _, business_config = registry.load(business)
    reward = business_reward(business_config, job.lake, job.day, job.settings, states, catalogue)
    rewards = reward(np.arange(len(items)), items)
    names = pa.array([str(policy) for policy in policies])
    rows = _rows(states, catalogue, beams, rewards)
    rows = rows.append_column("policy_version", names.take(pa.array(by.repeat(group_size))))
    rows = rows.append_column("tokenizer_version", pa.repeat(catalogue.tokenizer_version, items.size))
    rows = rows.append_column("business_version", pa.repeat(business.version, items.size))
    held_out = _chosen_states(job, "validation", catalogue)
    others = rollout.groups(held_out, group_size, "rolling out held-out groups")[0].items.numpy()
    job.lake.publish("candidates", rows, partition={"day": job.day}, fingerprint=fingerprint)

    with_variance = int(has_variance(rewards).sum())
    job.fact("groups", len(items))
    job.fact("candidates", items.size)
    _tell_target_rates(job, _with_target(items, states, catalogue), _with_target(others, held_out, catalogue))
    job.fact("groups_with_business_variance", with_variance)
    job.fact("mean_business_reward", float(rewards.mean()))
    job.fact("business_reward", "next-item ranking" if business_config["kind"] == "ranking" else "eCPM")
    job.fact("history", "left out of groups" if leave_out else "kept in groups")
    job.fact("rolled_out_by", ", ".join(str(policy) for policy in policies))
    if not with_variance:
        job.note("no group has business variance: nothing can be learnt from these candidates")


@dataclass(frozen=True)
class Rollout:
    """The night's rollout policies at work."""

    job: Job
    policies: list[ModelVersion]
    models: list[Generator]
    """Without their memories, as what learns from the groups is: they found no surely better ones (lab notes)."""
    catalogue: Catalogue
    leave_out: bool
    """Whether no candidate is an item of the history."""

    @classmethod
    def of(cls, job: Job, registry: Registry, policies: list[ModelVersion], leave_out: bool) -> "Rollout":
        loaded = [generator_of_day(job.lake, registry, policy, job.day) for policy in policies]
        return cls(job, policies, [model.without_memory() for model, _ in loaded], loaded[0][1], leave_out)

    def groups(self, states: pa.Table, size: int, description: str) -> tuple[Beams, np.ndarray]:
        """Groups of ``size`` candidates for decisions (columns user_id, history), and the place [N] of whose each is.

        Held-out users go to the policies as training users do.
        """
        settings = self.job.settings.rollout
        by = place_of_policy(self.policies, states["user_id"].to_pylist())
        items = torch.full((states.num_rows, size), -1)
        log_probs = torch.zeros(states.num_rows, size, self.catalogue.codes.shape[1])
        with self.job.progress_bar(states.num_rows, description) as advance:
            for place, model in enumerate(self.models):
                rows = np.flatnonzero(by == place)
                if not len(rows):
                    continue
                histories = states["history"].take(pa.array(rows))
                beams = rank_items(
                    model,
                    self.catalogue.trie,
                    history_matrix(histories, self.catalogue, model.config.max_items),
                    width=size,
                    batch_size=settings.batch_size,
                    excluded=whole_histories(histories, self.catalogue) if self.leave_out else None,
                    progress=advance,
                )
                items[rows], log_probs[rows] = beams.items, beams.log_probs
        return Beams(items, log_probs), by


def _chosen_states(job: Job, split: str, catalogue: Catalogue, champion: ModelVersion | None = None) -> pa.Table:
    """At most ``max_groups`` decisions of the day for known items, by seeded hash, in the order of their ids.

    Those that ``champion``, where that rolls out, may have been trained on are passed over.
    """
    settings = job.settings.rollout
    states = decisions(job.lake, [job.day], split, COLUMNS).sort_by("decision_id")
    states = states.filter(pa.array(catalogue.index(states["target_item"]) >= 0))
    if champion is not None:
        states = states.filter(pa.array(~met_before(job.lake, champion, job.settings, states)))
    order = np.argsort(hash_share(states["decision_id"].to_pylist(), f"rollout-{settings.seed}"), kind="stable")
    return states.take(pa.array(np.sort(order[: settings.max_groups])))


def _with_target(items: np.ndarray, states: pa.Table, catalogue: Catalogue) -> tuple[int, int]:
    """How many groups [N, G] hold the chosen item, and N."""
    return int((items == catalogue.index(states["target_item"])[:, None]).any(axis=1).sum()), len(items)


def _tell_target_rates(job: Job, training: tuple[int, int], held_out: tuple[int, int]) -> None:
    """How often groups hold the chosen item, (with it, in all): of decisions that nobody learnt from about as often."""
    job.fact("groups_with_target", training[0])
    job.fact("target_rate", training[0] / training[1])
    job.fact("held_out_groups", held_out[1])
    job.fact("held_out_target_rate", held_out[0] / held_out[1] if held_out[1] else None)
    if abs(two_proportions((training[0], held_out[0]), (training[1], held_out[1]))) > SURELY:
        job.note(
            f"groups hold the chosen item in {training[0] / training[1]:.1%} of training decisions and in"
            f" {held_out[0] / held_out[1]:.1%} of held-out ones: more apart than chance allows, so that held-out"
            " decisions are of another kind, or who rolled out knew the others"
        )


def _rows(states: pa.Table, catalogue: Catalogue, beams: Beams, rewards: np.ndarray) -> pa.Table:
    """One row per candidate, without the columns that are the same for all."""
    groups, size = beams.items.shape
    levels = beams.log_probs.shape[-1]
    row = np.repeat(np.arange(groups), size)
    log_probs = beams.log_probs.numpy().astype(np.float32).reshape(-1)
    offsets = np.arange(0, len(log_probs) + 1, levels, dtype=np.int32)
    return pa.table(
        {
            "decision_id": states["decision_id"].take(row),
            "state_id": states["state_id"].take(row),
            "rank": pa.array(np.tile(np.arange(size, dtype=np.int32), groups)),
            "item_id": pa.array(catalogue.ids(beams.items.numpy().reshape(-1)), pa.string()),
            "log_probs": pa.ListArray.from_arrays(pa.array(offsets), pa.array(log_probs)),
            "business_reward": pa.array(rewards.reshape(-1)),
        }
    )


main = stage_command("generate_candidates", run)

if __name__ == "__main__":
    main()
