"""Groups of candidates: which decisions a night rolls out, by whom, and the rows that the groups make."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from sgrec_core.generator import Beams, Generator, rank_items
from sgrec_core.generator.dataset import Catalogue, history_matrix, whole_histories
from sgrec_core.hashing import hash_share
from sgrec_core.lake.queries import decisions
from sgrec_core.night.generators import generator_of_day
from sgrec_core.night.rollouts import met_before, place_of_policy
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.runtime.job import Job

COLUMNS = ["decision_id", "state_id", "user_id", "request_id", "as_of", "history", "profile", "context", "target_item"]


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


def chosen_states(job: Job, split: str, catalogue: Catalogue, champion: ModelVersion | None = None) -> pa.Table:
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


def with_target(items: np.ndarray, states: pa.Table, catalogue: Catalogue) -> tuple[int, int]:
    """How many groups [N, G] hold the chosen item, and N."""
    return int((items == catalogue.index(states["target_item"])[:, None]).any(axis=1).sum()), len(items)


def candidate_rows(states: pa.Table, catalogue: Catalogue, beams: Beams, rewards: np.ndarray) -> pa.Table:
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
