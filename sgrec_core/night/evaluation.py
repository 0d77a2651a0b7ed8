"""What generators recommend for held-out decisions of a day."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.errors import InputError
from sgrec_core.evaluation import metrics, sequential
from sgrec_core.evaluation.gate import DEEP, Comparison, Evidence, Margins, against, compare
from sgrec_core.evaluation.ranking import MEASURES, Ranking, Resampling, evaluation_rows
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, SUPERVISED
from sgrec_core.generator.dataset import Catalogue, history_matrix, whole_histories
from sgrec_core.generator.decoding import rank_items
from sgrec_core.generator.device import use_threads
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import days_until, decisions
from sgrec_core.night.generators import generator_of_day
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import EvaluationSettings, Settings, StateSettings

SPLITS = ("validation", "test")


def held_out_decisions(lake: Lake, day: str, split: str) -> pa.Table:
    """Columns user_id, history, target_item of the held-out decisions of ``day``.

    ``validation``: the day's user states of that split. ``test``: the test labels of a leave-one-out set, each with all
    that its user did before, the validation label included.

    Raises:
        InputError: the split is unknown, or the day has no such decisions.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; valid are {' and '.join(SPLITS)}")
    states = decisions(lake, [day], "validation", ["user_id", "history", "target_item"])
    if split == "test":
        labels = lake.read("events", where={"day": day, "role": "test"})
        if not labels.num_rows:
            raise InputError(
                f"{day} has no test labels: only leave-one-out sets have; valid here is --split validation"
            )
        states = _test_decisions(lake, day, labels)
    if not states.num_rows:
        raise InputError(f"{day} has no held-out decisions of split {split}")
    return states


def _test_decisions(lake: Lake, day: str, labels: pa.Table) -> pa.Table:
    """The test labels with the history before them: logged events up to ``day``, then the day's validation labels."""
    order = [("user_id", "ascending"), ("event_time", "ascending"), ("event_id", "ascending")]
    days = [partition["day"] for partition in lake.partitions("events") if partition["day"] <= day]
    columns = ["user_id", "event_time", "event_id", "item_id", "event_type"]
    chosen = pa.array(["click", "conversion"])
    logged = lake.read("events", where={"day": sorted(set(days)), "role": "logged"}, columns=columns)
    validation = lake.read("events", where={"day": day, "role": "validation"}, columns=columns)
    before: dict[str, list[str]] = {}
    for events in (logged, validation):
        events = events.filter(pc.is_in(events["event_type"], value_set=chosen)).sort_by(order)
        for user, item in zip(events["user_id"].to_pylist(), events["item_id"].to_pylist(), strict=True):
            before.setdefault(user, []).append(item)
    labels = labels.sort_by(order)
    return pa.table(
        {
            "user_id": labels["user_id"],
            "history": pa.array(
                [before.get(user, []) for user in labels["user_id"].to_pylist()], pa.list_(pa.string())
            ),
            "target_item": labels["item_id"],
        }
    )


def rank_with_generator(
    lake: Lake,
    registry: Registry,
    version: ModelVersion,
    day: str,
    states: pa.Table,
    settings: EvaluationSettings,
    progress: Callable[[int], None] | None = None,
    *,
    leave_out_history: bool = False,
) -> Ranking:
    """Beam search over the day's whole catalogue, with or without what a user has in the history.

    Eight parameters, because a version of a day is named by four of them.
    """
    model, catalogue = generator_of_day(lake, registry, version, day)
    histories = history_matrix(states["history"], catalogue, model.config.max_items)
    beams = rank_items(
        model,
        catalogue.trie,
        histories,
        width=settings.beam,
        count=max(metrics.CUTOFFS),
        batch_size=settings.batch_size,
        excluded=whole_histories(states["history"], catalogue) if leave_out_history else None,
        progress=progress,
    )
    return _ranking(version.name, version.version, beams.items.numpy(), histories, catalogue, states)


def rank_by_popularity(
    lake: Lake,
    day: str,
    catalogue: Catalogue,
    states: pa.Table,
    settings: StateSettings,
    *,
    leave_out_history: bool = False,
) -> Ranking:
    """The items that training decisions of the last days chose most often, alike for all but what is left out."""
    chosen = decisions(lake, days_until(day, settings.history_days), "train", ["target_item"])["target_item"]
    index = catalogue.index(chosen)
    counts = np.bincount(index[index >= 0], minlength=len(catalogue))
    count, excluded = max(metrics.CUTOFFS), whole_histories(states["history"], catalogue)
    best = np.argsort(-counts, kind="stable")[: count + excluded.shape[1]]
    items = np.tile(best, (states.num_rows, 1))
    if leave_out_history:
        banned = (items[:, :, None] == excluded[:, None, :]).any(axis=2)
        last = np.argsort(banned, axis=1, kind="stable")
        items = np.take_along_axis(np.where(banned, -1, items), last, axis=1)
    items = items[:, :count]
    histories = history_matrix(states["history"], catalogue, settings.max_history)
    return _ranking("popularity", day, items, histories, catalogue, states)


def unmasked_rows(rankings: Mapping[str, Ranking], draws: Resampling) -> list[dict[str, Any]]:
    """Rows of ``evaluations`` of lists that hold the history, where the night's own leave it out."""
    return [
        {**row, "metric": f"unmasked_{row['metric']}"}
        for role, ranking in rankings.items()
        for row in evaluation_rows(ranking, role, "validation", draws)
        if row["bucket"] == "all" and row["metric"] in MEASURES
    ]


def user_results(ranking: Ranking, role: str, recipe: str) -> pa.Table:
    """Rows of ``candidate_results``, without the day."""
    users, decisions = np.unique(ranking.users, return_counts=True)
    return pa.table(
        {
            "role": pa.repeat(role, len(users)),
            "model": pa.repeat(ranking.model, len(users)),
            "model_version": pa.repeat(ranking.version, len(users)),
            "recipe": pa.repeat(recipe, len(users)),
            "user_id": pa.array(users.tolist(), pa.string()),
            "decisions": pa.array(decisions.astype(np.int32)),
            "ndcg": ranking.per_user("ndcg"),
            "hit_rate": ranking.per_user("hit_rate"),
            "deep_hit_rate": ranking.per_user("hit_rate", DEEP),
        }
    )


def evidence_of_recipes(
    lake: Lake, day: str, recipes: Mapping[str, str], tonight: Mapping[str, Ranking], settings: EvaluationSettings
) -> Evidence | None:
    """For the optimised recipe against the supervised one: NDCG@10 of all nights up to ``day`` that had both.

    None where the night lacks one of them, or it is not known what made it.
    """
    roles = (OPTIMISED, SUPERVISED)
    if not all(recipes.get(role) and role in tonight for role in roles):
        return None
    earlier = [one["day"] for one in lake.partitions("candidate_results") if one["day"] < day]
    columns = ["day", "role", "recipe", "user_id", "ndcg"]
    rows = lake.read("candidate_results", where={"day": earlier, "role": list(roles)}, columns=columns)
    nights = []
    for one in earlier:
        of_day = rows.filter(pc.equal(rows["day"].cast(pa.string()), one))
        ours, theirs = (
            of_day.filter(pc.and_(pc.equal(of_day["role"], role), pc.equal(of_day["recipe"], recipes[role])))
            for role in roles
        )
        # In the order of the key: by user.
        if ours.num_rows and ours["user_id"].equals(theirs["user_id"]):
            difference = ours["ndcg"].to_numpy() - theirs["ndcg"].to_numpy()
            nights.append((ours["user_id"].to_numpy(), difference))
    ours, theirs = (tonight[role].per_user("ndcg") for role in roles)
    nights.append((np.unique(tonight[OPTIMISED].users), ours - theirs))
    against = [(users, -differences) for users, differences in nights]
    value, worse = (float(sequential.evidence(found)[-1]) for found in (nights, against))
    return Evidence(nights=len(nights), users=len(nights[-1][0]), value=value, against=worse, needed=1 / settings.alpha)


def resampling(settings: EvaluationSettings) -> Resampling:
    """How intervals of evaluations are found."""
    return Resampling(seed=settings.seed, resamples=settings.bootstrap_samples)


def _ranking(
    model: str, version: str, items: np.ndarray, histories: np.ndarray, catalogue: Catalogue, states: pa.Table
) -> Ranking:
    targets = catalogue.index(states["target_item"])
    # -1 pads short rankings, so it must not stand for a target too.
    targets = np.where(targets < 0, -2, targets)
    return Ranking(model, version, items, targets, histories, catalogue, states["user_id"].to_numpy())


def evaluate_version(
    settings: Settings,
    version: str,
    split: str,
    *,
    day: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[ModelVersion, list[dict[str, Any]]]:
    """Evaluate a version (number or alias) of the generator on held-out decisions; nothing is published.

    Args:
        split: ``validation`` or ``test``.
        day: whose held-out decisions; by default those of the night that made the version.

    Returns:
        The version and rows as in table ``evaluations``.

    Raises:
        InputError: there are no such decisions.
        SgrecError: there is no such version.
    """
    registry = Registry(settings)
    chosen = registry.get(GENERATOR, version)
    (ranking,) = _ranked(settings, registry, [chosen], split, day or chosen.day, progress)
    champion = registry.champion()
    role = CHAMPION if champion and champion.version == chosen.version else OPTIMISED
    return chosen, evaluation_rows(ranking, role, split, resampling(settings.evaluation))


def compare_versions(
    settings: Settings,
    first: str,
    second: str,
    *,
    day: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Comparison, list[str], str]:
    """What the gate would see of two versions of the generator, on validation decisions; nothing is published.

    Args:
        day: whose decisions; by default the newer night's of those that made the two.

    Returns:
        First minus second, what speaks against promoting the first over the second, and the day.

    Raises:
        InputError: there are no such decisions.
        SgrecError: there is no such version.
    """
    registry = Registry(settings)
    versions = [registry.get(GENERATOR, name) for name in (first, second)]
    day = day or max(version.day for version in versions)
    ours, theirs = _ranked(settings, registry, versions, "validation", day, progress)
    found = compare(ours, theirs, resampling(settings.evaluation))
    return found, against(found, margins_of(settings.evaluation)), day


def _ranked(
    settings: Settings,
    registry: Registry,
    versions: Sequence[ModelVersion],
    split: str,
    day: str,
    progress: Callable[[int], None] | None,
) -> list[Ranking]:
    use_threads(settings.threads)
    lake = Lake(settings.lake_root)
    states, leave_out = held_out_decisions(lake, day, split), leaves_out_history(lake, day, settings)
    return [
        rank_with_generator(
            lake, registry, version, day, states, settings.evaluation, progress, leave_out_history=leave_out
        )
        for version in versions
    ]


def margins_of(settings: EvaluationSettings) -> Margins:
    return Margins(baseline=settings.tolerance, start=settings.start_tolerance, coverage=settings.least_coverage)
