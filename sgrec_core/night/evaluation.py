"""What generators recommend for held-out decisions of a day."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_core.evaluation import metrics, sequential
from sgrec_core.evaluation.gate import DEEP, Comparison, Evidence, Margins, against, compare
from sgrec_core.evaluation.ranking import MEASURES, Ranking, Resampling, evaluation_rows
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, POPULARITY, SUPERVISED
from sgrec_core.evaluation.score import SIGNS, OfUsers, Weights, score_differences
from sgrec_core.evaluation.value import OUTCOMES
from sgrec_core.generator.dataset import Catalogue, history_matrix, whole_histories
from sgrec_core.generator.decoding import rank_items
from sgrec_core.generator.device import use_threads
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import days_until, decisions
from sgrec_core.night.generators import generator_of_day
from sgrec_core.night.held_out import held_out_decisions, smallest_share
from sgrec_core.night.recipes import is_of_another_recipe, is_optimised
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.night.value import Appraiser
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import EvaluationSettings, Settings

RECENT = 7
"""Nights that tell whether a recipe has turned."""


@dataclass(frozen=True)
class HeldOut:
    """A night's held-out decisions, and its requests where the source logs impressions; what candidates answer."""

    lake: Lake
    registry: Registry
    settings: Settings
    day: str
    states: pa.Table
    """Decisions: columns user_id, history, target_item."""
    appraiser: Appraiser | None
    share: float
    """Of users, that none of the generators has read, where that is less than the day's split; 1 elsewhere."""

    @classmethod
    def of_day(
        cls, settings: Settings, registry: Registry, day: str, split: str, versions: Iterable[ModelVersion]
    ) -> "HeldOut":
        """What ``versions`` can be compared on: nothing of a user that one of them was trained on.

        Requests come with the split ``validation`` alone, whose users they are of.

        Raises:
            InputError: there are no such decisions.
        """
        lake, share = Lake(settings.lake_root), smallest_share(versions)
        if share >= settings.states.validation_share:
            share = 1.0  # the day's own split says it
        states = held_out_decisions(lake, day, split, share)
        appraiser = Appraiser.of_night(lake, registry, day, settings, share) if split == "validation" else None
        return cls(lake, registry, settings, day, states, appraiser, share)

    @property
    def asked(self) -> pa.Table:
        """Columns user_id and history of decisions, then of requests."""
        if self.appraiser is None:
            return self.states.select(["user_id", "history"])
        requests = self.appraiser.requests.states
        return pa.table(
            {
                name: pa.chunked_array([*self.states[name].chunks, *requests[name].chunks], self.states[name].type)
                for name in ("user_id", "history")
            }
        )

    def ranked_by(
        self, version: ModelVersion, leave_out: Sequence[bool], progress: Callable[[int], None] | None = None
    ) -> list[Ranking]:
        """What a version of the generator ranks of the day's whole catalogue, by beam search.

        A ranking for each of ``leave_out``: without or with what a user has in the history.
        """
        model, catalogue = generator_of_day(self.lake, self.registry, version, self.day)
        asked, settings = self.asked, self.settings.evaluation
        histories = history_matrix(asked["history"], catalogue, model.config.max_items)
        whole = whole_histories(asked["history"], catalogue) if any(leave_out) else None
        found = []
        for without in leave_out:
            beams = rank_items(
                model,
                catalogue.trie,
                histories,
                width=settings.beam,
                count=max(metrics.CUTOFFS),
                batch_size=settings.batch_size,
                excluded=whole if without else None,
                progress=progress,
            )
            ranking = self._ranking(version.name, version.version, beams.items.numpy(), histories, catalogue)
            found.append(replace(ranking, optimised=is_optimised(version)))
        return found

    def ranked_by_popularity(self, catalogue: Catalogue, leave_out: bool) -> Ranking:
        """The items that training decisions of the last days chose most often, alike for all but what is left out."""
        days = days_until(self.day, self.settings.states.history_days)
        chosen = decisions(self.lake, days, "train", ["target_item"])["target_item"]
        index = catalogue.index(chosen)
        counts = np.bincount(index[index >= 0], minlength=len(catalogue))
        asked = self.asked
        count, excluded = max(metrics.CUTOFFS), whole_histories(asked["history"], catalogue)
        best = np.argsort(-counts, kind="stable")[: count + excluded.shape[1]]
        items = np.tile(best, (asked.num_rows, 1))
        if leave_out:
            banned = (items[:, :, None] == excluded[:, None, :]).any(axis=2)
            last = np.argsort(banned, axis=1, kind="stable")
            items = np.take_along_axis(np.where(banned, -1, items), last, axis=1)
        histories = history_matrix(asked["history"], catalogue, self.settings.states.max_history)
        return self._ranking(POPULARITY, self.day, items[:, :count], histories, catalogue)

    def _ranking(
        self, model: str, version: str, items: np.ndarray, histories: np.ndarray, catalogue: Catalogue
    ) -> Ranking:
        """Lists [N + R, K] of decisions and requests, taken apart."""
        decided = self.states.num_rows
        targets = catalogue.index(self.states["target_item"])
        # -1 pads short rankings, so it must not stand for a target too.
        targets = np.where(targets < 0, -2, targets)
        return Ranking(
            model,
            version,
            items[:decided],
            targets,
            histories[:decided],
            catalogue,
            self.states["user_id"].to_numpy(),
            worth=None if self.appraiser is None else self.appraiser.values(items[decided:], catalogue),
        )


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
    of = ranking.of_users()
    deciding, decisions = np.unique(ranking.users, return_counts=True)
    rows = np.searchsorted(of.users, deciding)

    def of_deciding(values: np.ndarray) -> pa.Array:
        every = np.full(len(of.users), np.nan)
        every[rows] = values
        return pa.array(every, from_pandas=True)

    counts = np.zeros(len(of.users), dtype=np.int32)
    counts[rows] = decisions
    return pa.table(
        {
            "role": pa.repeat(role, len(of.users)),
            "model": pa.repeat(ranking.model, len(of.users)),
            "model_version": pa.repeat(ranking.version, len(of.users)),
            "recipe": pa.repeat(recipe, len(of.users)),
            "user_id": pa.array(of.users.tolist(), pa.string()),
            "decisions": pa.array(counts),
            "ndcg": of_deciding(ranking.per_user("ndcg")),
            "hit_rate": of_deciding(ranking.per_user("hit_rate")),
            "deep_hit_rate": of_deciding(ranking.per_user("hit_rate", DEEP)),
            **{
                outcome: pa.array(of.figures[outcome], from_pandas=True)
                if outcome in of.figures
                else pa.nulls(len(of.users), pa.float64())
                for outcome in OUTCOMES
            },
        }
    )


def evidence_of_recipes(
    lake: Lake, day: str, recipes: Mapping[str, str], tonight: Mapping[str, Ranking], settings: EvaluationSettings
) -> dict[tuple[str, str], Evidence]:
    """(candidate, other) -> what nights up to ``day`` say of their recipes, by the scores of those that had both.

    For the optimised policy against the supervised one, and for both against a champion of another recipe. Nothing
    where the night lacks one of the two, or it is not known what made it. A champion was trained on earlier days than
    what it is compared with: that counts as part of what is new.
    """
    pairs = [(OPTIMISED, SUPERVISED), (OPTIMISED, CHAMPION), (SUPERVISED, CHAMPION)]
    pairs = [
        pair
        for pair in pairs
        if all(recipes.get(role) and role in tonight for role in pair) and recipes[pair[0]] != recipes[pair[1]]
    ]
    earlier = [one["day"] for one in lake.partitions("candidate_results") if one["day"] < day] if pairs else []
    columns = ["day", "role", "recipe", "user_id", *SIGNS]
    rows = lake.read("candidate_results", where={"day": earlier}, columns=columns)
    weights, found = weights_of(settings), {}
    for pair in pairs:
        nights = []
        for one in earlier:
            of_day = rows.filter(pc.equal(rows["day"].cast(pa.string()), one))
            ours, theirs = (
                of_day.filter(pc.and_(pc.equal(of_day["role"], role), pc.equal(of_day["recipe"], recipes[role])))
                for role in pair
            )
            # In the order of the key: by user.
            if ours.num_rows and ours["user_id"].equals(theirs["user_id"]):
                nights.append(score_differences(_of_users(ours), _of_users(theirs), weights))
        nights.append(score_differences(tonight[pair[0]].of_users(), tonight[pair[1]].of_users(), weights))
        found[pair] = evidence_by_night(nights, settings.alpha)[-1]
    return found


def evidence_by_night(nights: Sequence[sequential.Differences], alpha: float) -> list[Evidence]:
    """What each night, with those before it, says of one recipe against another, by the users' scores.

    Against it speak all nights or the last `RECENT`, whichever say more: what was better for long and has turned stays
    better on average for as long again. A further reason to refuse promotes nobody by chance.

    A user's score leaves [-1, 1] only by a value many times the mean; then it counts as the bound. That spares who
    loses much with few, so the mean of the scores as they are has a say too.
    """
    inside = [(users, np.clip(scores, -1, 1)) for users, scores in nights]
    negated = [(users, -scores) for users, scores in inside]
    values, worse = sequential.evidence(inside), sequential.evidence(negated)
    ids, place = np.unique(np.concatenate([users for users, _ in nights]), return_inverse=True)
    sums, counts, rows = np.zeros(len(ids)), np.zeros(len(ids), dtype=np.int64), 0
    found = []
    for number, (users, scores) in enumerate(nights, start=1):
        present = place[rows : rows + len(users)]
        rows += len(users)
        sums[present] += scores
        counts[present] += 1
        seen = counts > 0
        lately = float(sequential.evidence(negated[max(number - RECENT, 0) : number])[-1])
        found.append(
            Evidence(
                nights=number,
                users=int(seen.sum()),
                mean=float((sums[seen] / counts[seen]).mean()) if seen.any() else 0.0,
                value=float(values[number - 1]),
                against=max(float(worse[number - 1]), lately),
                needed=1 / alpha,
            )
        )
    return found


def _of_users(rows: pa.Table) -> OfUsers:
    """Rows of ``candidate_results`` of one candidate."""
    figures = {name: rows[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in SIGNS}
    return OfUsers(
        rows["user_id"].to_numpy(), {name: values for name, values in figures.items() if np.isfinite(values).any()}
    )


def resampling(settings: EvaluationSettings) -> Resampling:
    """How intervals of evaluations are found."""
    return Resampling(seed=settings.seed, resamples=settings.bootstrap_samples)


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
    use_threads(settings.threads)
    registry = Registry(settings)
    chosen = registry.get(GENERATOR, version)
    held_out = HeldOut.of_day(settings, registry, day or chosen.day, split, [chosen])
    leave_out = leaves_out_history(held_out.lake, held_out.day, settings)
    (ranking,) = held_out.ranked_by(chosen, [leave_out], progress)
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
) -> tuple[Comparison, list[str], list[str], str]:
    """What the gate would see of two versions of the generator, on validation decisions; nothing is published.

    Args:
        day: whose decisions; by default the newer night's of those that made the two.

    Returns:
        First minus second; what this night says against promoting the first over the second, popularity included;
        what a night would ask of nights before it; and the day.

    Raises:
        InputError: there are no such decisions.
        SgrecError: there is no such version.
    """
    use_threads(settings.threads)
    registry = Registry(settings)
    versions = [registry.get(GENERATOR, name) for name in (first, second)]
    day = day or max(version.day for version in versions)
    held_out = HeldOut.of_day(settings, registry, day, "validation", versions)
    leave_out = leaves_out_history(held_out.lake, day, settings)
    ours, theirs = (held_out.ranked_by(version, [leave_out], progress)[0] for version in versions)
    popularity = held_out.ranked_by_popularity(ours.catalogue, leave_out)
    draws, weights = resampling(settings.evaluation), weights_of(settings.evaluation)
    margins = margins_of(settings.evaluation)
    found = compare(ours, theirs, draws, weights)
    why_not = against(found, margins) or against(compare(ours, popularity, draws, weights), margins)
    asked = ["than its start"] if is_optimised(versions[0]) else []
    if is_of_another_recipe(*versions):
        asked.append(f"than that of {versions[1]}")
    return found, why_not, asked, day


def margins_of(settings: EvaluationSettings) -> Margins:
    """How far below another a candidate may be."""
    return Margins(
        baseline=settings.tolerance,
        start=settings.start_tolerance,
        coverage=settings.least_coverage,
        value=settings.value_tolerance,
        users=settings.least_users,
    )


def weights_of(settings: EvaluationSettings) -> Weights:
    """What decides, and how much."""
    return Weights(**{name: getattr(settings, f"{name}_weight") for name in SIGNS})
