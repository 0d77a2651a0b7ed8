"""Roll out groups of candidates with the night's starting policy, and reward them with the business reward.

At most ``rollout.max_groups`` training decisions of the day, chosen by seeded hash. A group holds the best
``rollout.group_size`` different items of a constrained beam search, with the log-probability of each code; none of
the history on a source whose users never repeat an item.
"""

import numpy as np
import pyarrow as pa

from sgrec_core.errors import SgrecError
from sgrec_core.generator import Beams, rank_items
from sgrec_core.generator.dataset import Catalogue, history_matrix, whole_histories
from sgrec_core.generator.device import use_threads
from sgrec_core.hashing import hash_share
from sgrec_core.lake.queries import decisions
from sgrec_core.night.generators import generator_of_day
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.rewards import business_reward
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.rewards.semantic import has_variance
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import BUSINESS_REWARD, SUPERVISED


def run(job: Job) -> None:
    settings = job.settings.rollout
    registry = Registry(job.settings)
    policy = of_night(registry, SUPERVISED, job.day, stage="train_supervised")
    business = of_night(registry, BUSINESS_REWARD, job.day, stage="fit_business_reward")
    leave_out = leaves_out_history(job.lake, job.day, job.settings)
    fingerprint = job.inputs_fingerprint(
        {
            "policy": [policy.version, policy.fingerprint],
            "business": [business.version, business.fingerprint],
            "rollout": settings.model_dump(),
            "leave_out_history": leave_out,
        }
    )
    if job.skip_if_published({"candidates": {"day": job.day}}, fingerprint):
        return

    use_threads(job.settings.threads)
    model, catalogue = generator_of_day(job.lake, registry, policy, job.day)
    model = model.without_memory()
    states = _chosen_states(job, catalogue)
    excluded = whole_histories(states["history"], catalogue) if leave_out else None
    left = len(catalogue) - (excluded.shape[1] if excluded is not None else 0)
    group_size = min(settings.group_size, left)
    if group_size < 1:
        raise SgrecError(f"{job.day} has {len(catalogue)} items with codes, no more than the longest history holds")
    if group_size < settings.group_size:
        job.note(f"groups hold {group_size} candidates: the day has no more items")
    histories = history_matrix(states["history"], catalogue, model.config.max_items)
    with job.progress_bar(states.num_rows, "rolling out groups") as advance:
        beams = rank_items(
            model,
            catalogue.trie,
            histories,
            width=group_size,
            batch_size=settings.batch_size,
            excluded=excluded,
            progress=advance,
        )
    items = beams.items.numpy()
    targets = catalogue.index(states["target_item"])
    _, business_config = registry.load(business)
    reward = business_reward(business_config, job.lake, job.day, job.settings, states, catalogue)
    rewards = reward(np.arange(len(items)), items)
    rows = _rows(states, catalogue, beams, rewards).append_column(
        "policy_version", pa.repeat(policy.version, items.size)
    )
    rows = rows.append_column("tokenizer_version", pa.repeat(catalogue.tokenizer_version, items.size))
    rows = rows.append_column("business_version", pa.repeat(business.version, items.size))
    job.lake.publish("candidates", rows, partition={"day": job.day}, fingerprint=fingerprint)

    with_variance = int(has_variance(rewards).sum())
    job.fact("groups", len(items))
    job.fact("candidates", items.size)
    job.fact("groups_with_target", int((items == targets[:, None]).any(axis=1).sum()))
    job.fact("groups_with_business_variance", with_variance)
    job.fact("mean_business_reward", float(rewards.mean()))
    job.fact("business_reward", "next-item ranking" if business_config["kind"] == "ranking" else "eCPM")
    job.fact("history", "left out of groups" if leave_out else "kept in groups")
    job.fact("policy_version", policy.version)
    if not with_variance:
        job.note("no group has business variance: nothing can be learnt from these candidates")


def _chosen_states(job: Job, catalogue: Catalogue) -> pa.Table:
    """At most ``max_groups`` training decisions of the day for known items, by seeded hash, in the order of their ids.

    Raises:
        SgrecError: there is none.
    """
    columns = ["decision_id", "state_id", "user_id", "as_of", "history", "profile", "context", "target_item"]
    states = decisions(job.lake, [job.day], "train", columns).sort_by("decision_id")
    states = states.filter(pa.array(catalogue.index(states["target_item"]) >= 0))
    if not states.num_rows:
        raise SgrecError(f"{job.day} has no training decision for an item with codes; nothing to roll out")
    order = np.argsort(
        hash_share(states["decision_id"].to_pylist(), f"rollout-{job.settings.rollout.seed}"), kind="stable"
    )
    return states.take(np.sort(order[: job.settings.rollout.max_groups]))


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
