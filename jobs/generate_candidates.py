"""Roll out groups of candidates, and reward them with the business reward.

At most ``rollout.max_groups`` training decisions of the day, chosen by seeded hash. A group holds the best
``rollout.group_size`` different items of a constrained beam search, with the log-probability of each code; none of
the history on a source whose users never repeat an item.

Who rolls out was trained on none of the decisions (`sgrec_core.night.rollouts`). It shows in how many groups hold the
chosen item: as many as of held-out decisions, which are rolled out for this figure alone.
"""

import numpy as np
import pyarrow as pa

from sgrec_core.errors import SgrecError
from sgrec_core.evaluation.significance import two_proportions
from sgrec_core.generator.dataset import whole_histories
from sgrec_core.generator.device import use_threads
from sgrec_core.night.groups import Rollout, candidate_rows, chosen_states, with_target
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.rewards import business_reward
from sgrec_core.night.rollouts import days_of_training, rollout_policies
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.rewards.semantic import has_variance
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import BUSINESS_REWARD, GENERATOR, SUPERVISED

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
    states = chosen_states(job, "train", catalogue, champion)
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
    rows = candidate_rows(states, catalogue, beams, rewards)
    rows = rows.append_column("policy_version", names.take(pa.array(by.repeat(group_size))))
    rows = rows.append_column("tokenizer_version", pa.repeat(catalogue.tokenizer_version, items.size))
    rows = rows.append_column("business_version", pa.repeat(business.version, items.size))
    held_out = chosen_states(job, "validation", catalogue)
    others = rollout.groups(held_out, group_size, "rolling out held-out groups")[0].items.numpy()
    job.lake.publish("candidates", rows, partition={"day": job.day}, fingerprint=fingerprint)

    with_variance = int(has_variance(rewards).sum())
    job.fact("groups", len(items))
    job.fact("candidates", items.size)
    _tell_target_rates(job, with_target(items, states, catalogue), with_target(others, held_out, catalogue))
    job.fact("groups_with_business_variance", with_variance)
    job.fact("mean_business_reward", float(rewards.mean()))
    job.fact("business_reward", "next-item ranking" if business_config["kind"] == "ranking" else "eCPM")
    job.fact("history", "left out of groups" if leave_out else "kept in groups")
    job.fact("rolled_out_by", ", ".join(str(policy) for policy in policies))
    if not with_variance:
        job.note("no group has business variance: nothing can be learnt from these candidates")


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


main = stage_command("generate_candidates", run)

if __name__ == "__main__":
    main()
