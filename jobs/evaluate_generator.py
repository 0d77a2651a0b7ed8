"""Compare the night's candidates with each other and with the pinned champion, and promote one that is better.

Candidates are the night's supervised policy and its optimised one. They, the champion and popularity rank the whole
catalogue for the day's validation decisions. Where the source logs impressions with bids, it is also estimated what the
lists would earn with held-out users' requests (`sgrec_core.night.value`). The gate (`sgrec_core.evaluation.gate`) says
which candidate serves; a night whose candidates do not pass is a successful night. Nothing is promoted while a critical
metric of the night, or of a day that it learns from, is out of the band of its past (`sgrec_core.quality.alarms`). On a
source whose users never repeat an item, lists leave out the history, and the figures with it stand beside.
"""

from datetime import date

import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.evaluation.gate import Choice, Comparison, compare, decide
from sgrec_core.evaluation.ranking import Ranking, evaluation_rows, figures
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, POPULARITY, ROLES, SUPERVISED
from sgrec_core.evaluation.value import common_estimator
from sgrec_core.generator.device import use_threads
from sgrec_core.lake import load_contract
from sgrec_core.lake.queries import days_until
from sgrec_core.night.evaluation import (
    HeldOut,
    evidence_of_recipes,
    margins_of,
    resampling,
    unmasked_rows,
    user_results,
    weights_of,
)
from sgrec_core.night.generators import as_generator, day_catalogue
from sgrec_core.night.recipes import RECIPE_TAG, is_of_another_recipe
from sgrec_core.night.repeats import leaves_out_history
from sgrec_core.quality.alarms import alarms, held_in_words, inherited_alarms
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import BUSINESS_REWARD, BY_NAME, GENERATOR, STAGES
from sgrec_core.runtime.stages import SUPERVISED as SUPERVISED_MODEL

STAGES_BEFORE = tuple(stage.name for stage in STAGES[: STAGES.index(BY_NAME["evaluate_generator"])])
"""Whose metrics hold promotion: those of this one are measured behind it."""
Versions = dict[str, ModelVersion]
"""By role."""


def run(job: Job) -> None:
    settings = job.settings.evaluation
    registry = Registry(job.settings)
    versions = {
        SUPERVISED: of_night(registry, SUPERVISED_MODEL, job.day, stage="train_supervised"),
        OPTIMISED: of_night(registry, GENERATOR, job.day, stage="train_generator"),
    }
    champion = registry.pinned_champion(job.day)
    registry.pin_champion(job.day, champion)
    if champion is not None:
        versions[CHAMPION] = champion
    leave_out = leaves_out_history(job.lake, job.day, job.settings)
    days = days_until(job.day, job.settings.states.history_days)
    own = alarms(job.lake, job.day, stages=STAGES_BEFORE)
    held_by = held_in_words(own, inherited_alarms(job.lake, job.settings, job.day))
    fingerprint = job.inputs_fingerprint(
        {
            "versions": {role: [version.version, version.fingerprint] for role, version in versions.items()},
            "states": {day: job.lake.fingerprint("user_states", {"day": day}) for day in days},
            "responses": of_night(registry, BUSINESS_REWARD, job.day, stage="fit_business_reward").fingerprint,
            "evaluation": settings.model_dump(),
            "leave_out_history": leave_out,
            "held_by": held_by,
            # What evidence over nights is made of.
            "results": [line for line in job.lake.published_until("candidate_results", job.day) if job.day not in line],
        }
    )
    partition = {"day": job.day}
    if job.skip_if_published({"evaluations": partition, "candidate_results": partition}, fingerprint):
        return

    use_threads(job.settings.threads)
    rankings: dict[str, Ranking] = {}
    unmasked: dict[str, Ranking] = {}
    try:
        held_out = HeldOut.of_day(job.settings, registry, job.day, "validation", versions.values())
    except InputError as error:
        job.note(f"nothing to compare on: {error}")
    else:
        rankings, unmasked = _rankings(job, held_out, versions, leave_out)
        if held_out.share < job.settings.states.validation_share:
            job.note(
                f"compared on {held_out.share:g} of the users, not on states.validation_share="
                f"{job.settings.states.validation_share:g}: models that went into this night were trained on the others"
            )
    draws = resampling(settings)
    rows = [row for role in rankings for row in evaluation_rows(rankings[role], role, "validation", draws)]
    rows += unmasked_rows(unmasked, draws)
    recipes = {role: version.tags.get(RECIPE_TAG, "") for role, version in versions.items()}
    serves, reason = None, "no held-out decisions to compare on"
    if rankings:
        comparisons = _comparisons(rankings, job)
        rows += _difference_rows(comparisons)
        evidence = evidence_of_recipes(job.lake, job.day, recipes, rankings, settings)
        choice = decide(comparisons, margins_of(settings), evidence)
        serves, reason = _promote(job, registry, versions, choice, held_by)
        of_optimised = evidence.get((OPTIMISED, SUPERVISED))
        if of_optimised is not None:
            job.fact("recipe_evidence", of_optimised.value)
            job.fact("recipe_nights", of_optimised.nights)
    # Only now: a job that is killed before it publishes does all of this again, with the same result.
    nobody = load_contract("candidate_results").arrow_schema.empty_table()
    results = [user_results(rankings[role], role, recipes.get(role, "")) for role in rankings]
    job.lake.publish(
        "candidate_results",
        pa.concat_tables(results) if results else nobody,
        partition=partition,
        fingerprint=fingerprint,
    )
    schema = load_contract("evaluations").arrow_schema
    table = pa.Table.from_pylist([{**row, "day": date.fromisoformat(job.day)} for row in rows], schema=schema)
    job.lake.publish("evaluations", table, partition=partition, fingerprint=fingerprint)

    for role in rankings:
        for name, value in figures([row for row in rows if row["role"] == role]).items():
            if name in ("hr@10", "ndcg@10"):
                job.fact(f"{name}_{role}", value)
    for role in ROLES[:3]:
        job.fact(f"{role}_version", versions[role].version if role in versions else None)
    models = [ranking.worth for role, ranking in rankings.items() if role != POPULARITY and ranking.worth is not None]
    if models:
        job.fact("values_by", common_estimator(models))
        job.fact("logged_answers_worth", min(worth.effective for worth in models))
    job.fact("decisions", len(rankings[SUPERVISED].targets) if rankings else 0)
    job.fact("history", "left out of lists" if leave_out else "kept in lists")
    job.fact("promoted", serves is not None)
    job.fact("serves", serves)
    job.fact("reason", reason)


def _rankings(
    job: Job, held_out: HeldOut, versions: Versions, leave_out: bool
) -> tuple[dict[str, Ranking], dict[str, Ranking]]:
    """By role, what candidates, champion (if there is one) and popularity recommend to held-out users.

    Where histories are left out, beside it what they would recommend with them; empty elsewhere.
    """
    ways = [True, False] if leave_out else [False]
    found: dict[str, list[Ranking]] = {}
    for role, version in versions.items():
        with job.progress_bar(len(ways) * held_out.asked.num_rows, f"ranking with {role}") as advance:
            found[role] = held_out.ranked_by(version, ways, advance)
    of_night = found[SUPERVISED][0].catalogue
    catalogue = day_catalogue(job.lake, job.day, of_night.tokenizer_version, of_night.codebook_size)
    found[POPULARITY] = [held_out.ranked_by_popularity(catalogue, way) for way in ways]
    first, *others = ({role: of_role[place] for role, of_role in found.items()} for place in range(len(ways)))
    return first, others[0] if others else {}


def _comparisons(rankings: dict[str, Ranking], job: Job) -> dict[tuple[str, str], Comparison]:
    draws, weights = resampling(job.settings.evaluation), weights_of(job.settings.evaluation)
    pairs = [(OPTIMISED, SUPERVISED)]
    pairs += [(one, other) for one in (OPTIMISED, SUPERVISED) for other in (CHAMPION, POPULARITY) if other in rankings]
    with job.progress_bar(len(pairs), "comparing") as advance:
        found = {}
        for one, other in pairs:
            found[one, other] = compare(rankings[one], rankings[other], draws, weights)
            advance(1)
    return found


def _difference_rows(comparisons: dict[tuple[str, str], Comparison]) -> list[dict[str, object]]:
    """Rows of ``evaluations``: minus the baseline, minus the start, minus popularity where that is not the baseline."""
    rows: list[dict[str, object]] = []
    has_champion = any(other == CHAMPION for _, other in comparisons)
    for (one, other), comparison in comparisons.items():
        prefix = {SUPERVISED: "start_difference", CHAMPION: "difference"}.get(other, "popularity_difference")
        if other == POPULARITY and not has_champion:
            prefix = "difference"
        rows += comparison.rows(one, "validation", prefix)
    return rows


def _promote(
    job: Job, registry: Registry, versions: Versions, choice: Choice, held_by: str | None
) -> tuple[str | None, str]:
    """Promote what passed the gate, if nothing stands against it; the role that was promoted, and why, in words."""
    if choice.serves is None:
        return None, choice.reason
    if held_by is not None:
        return None, f"held, because a critical metric is out of the band of its past: {held_by} ({choice.reason})"
    version = as_generator(registry, versions[choice.serves])
    serving = registry.champion()
    if serving is not None and serving.day == job.day and is_of_another_recipe(version, serving):
        # The night's comparison is with whom it began with, not with whom it has made serve since.
        return None, f"{serving}, which this night has made serve, is of another recipe and stays ({choice.reason})"
    against = registry.promote_by_night(version, job.day, choice.reason)
    return (None, f"{against} ({choice.reason})") if against else (choice.serves, choice.reason)


main = stage_command("evaluate_generator", run)

if __name__ == "__main__":
    main()
