"""Compare the night's challenger with the pinned champion on held-out decisions, and promote it if it is better.

Challenger, champion and popularity rank the whole catalogue for the day's validation decisions. The baseline is the
champion, or popularity where there is none. The challenger is promoted when the gate passes; one that is not is a
successful night.
"""

from datetime import date

import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.evaluation.gate import Verdict, compare, difference_rows, differences
from sgrec_core.evaluation.ranking import Ranking, evaluation_rows, figures
from sgrec_core.generator.device import use_threads
from sgrec_core.lake import load_contract
from sgrec_core.lake.queries import days_until
from sgrec_core.night.evaluation import held_out_decisions, rank_by_popularity, rank_with_generator, resampling
from sgrec_core.night.generators import day_catalogue
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import GENERATOR


def run(job: Job) -> None:
    settings = job.settings.evaluation
    registry = Registry(job.settings)
    challenger = of_night(registry, GENERATOR, job.day, stage="train_generator")
    champion = registry.pinned_champion(job.day)
    registry.pin_champion(job.day, champion)
    days = days_until(job.day, job.settings.states.history_days)
    fingerprint = job.inputs_fingerprint(
        {
            "challenger": [challenger.version, challenger.fingerprint],
            "champion": champion and [champion.version, champion.fingerprint],
            "states": {day: job.lake.fingerprint("user_states", {"day": day}) for day in days},
            "evaluation": settings.model_dump(),
        }
    )
    if job.skip_if_published({"evaluations": {"day": job.day}}, fingerprint):
        return

    use_threads(job.settings.threads)
    try:
        states = held_out_decisions(job.lake, job.day, "validation")
    except InputError as error:
        states = None
        job.note(f"nothing to compare on: {error}")
    rankings = {} if states is None else _rankings(job, registry, challenger, champion, states)
    draws = resampling(settings)
    rows = [row for role, ranking in rankings.items() for row in evaluation_rows(ranking, role, "validation", draws)]
    verdict = None
    if rankings:
        baseline = rankings.get("champion", rankings["popularity"])
        found = differences(rankings["challenger"], baseline, draws)
        verdict = compare(rankings["challenger"], baseline, found, tolerance=settings.tolerance)
        rows += difference_rows(rankings["challenger"], found, "validation")
    promoted, reason = _promote(job, registry, challenger, verdict)
    # Only now: a job that is killed before it publishes does all of this again, with the same result.
    schema = load_contract("evaluations").arrow_schema
    table = pa.Table.from_pylist([{**row, "day": date.fromisoformat(job.day)} for row in rows], schema=schema)
    job.lake.publish("evaluations", table, partition={"day": job.day}, fingerprint=fingerprint)

    for role in rankings:
        for name, value in figures([row for row in rows if row["role"] == role]).items():
            if name in ("hr@10", "ndcg@10"):
                job.fact(f"{name}_{role}", value)
    job.fact("challenger_version", challenger.version)
    job.fact("champion_version", champion.version if champion else None)
    job.fact("decisions", 0 if states is None else states.num_rows)
    job.fact("promoted", promoted)
    job.fact("reason", reason)
    job.note(f"challenger {challenger} {'promoted' if promoted else 'not promoted'}: {reason}")


def _rankings(
    job: Job, registry: Registry, challenger: ModelVersion, champion: ModelVersion | None, states: pa.Table
) -> dict[str, Ranking]:
    """What challenger, champion (if there is one) and popularity recommend for the held-out decisions."""
    rankings = {}
    for role, version in (("challenger", challenger), ("champion", champion)):
        if version is not None:
            with job.progress_bar(states.num_rows, f"ranking with the {role}") as advance:
                rankings[role] = rank_with_generator(
                    job.lake, registry, version, job.day, states, job.settings.evaluation, advance
                )
    of_challenger = rankings["challenger"].catalogue
    catalogue = day_catalogue(job.lake, job.day, of_challenger.tokenizer_version, of_challenger.codebook_size)
    rankings["popularity"] = rank_by_popularity(job.lake, job.day, catalogue, states, job.settings.states)
    return rankings


def _promote(job: Job, registry: Registry, challenger: ModelVersion, verdict: Verdict | None) -> tuple[bool, str]:
    """Promote the challenger when the gate passed and nothing stands against it; whether it was, and why, in words."""
    if verdict is None:
        return False, "no held-out decisions to compare on"
    if not verdict.passed:
        return False, verdict.reason
    against = registry.promote_by_night(challenger, job.day, verdict.reason)
    return against is None, against or verdict.reason


main = stage_command("evaluate_generator", run)

if __name__ == "__main__":
    main()
