"""Compare the candidate with the active judge on held-out labels and pairs, and let nights use it if it is better.

The candidate is what the day's training made, or the judge that the settings name (``judge_training.candidate``). All
figures are rows of ``judge_evaluations``, and a page for people is written to
``reports/<day>/judge_training/<version>.html``; ``index.html`` there is the newest. Nights after the day that have
``judge.adapter=active`` use an adapter that was activated; a candidate that is not accepted is no failure.
"""

from dataclasses import asdict
from datetime import date

import pyarrow as pa

from sgrec_core.errors import InputError
from sgrec_core.judge.versions.adapters import newest, resolve_adapter
from sgrec_core.judge.versions.comparison import (
    Row,
    against,
    answers,
    decide,
    held_out,
    measures,
    settings_of_roles,
)
from sgrec_core.judge.versions.decision import carry_out
from sgrec_core.lake import load_contract
from sgrec_core.quality.judge_report import write_judge_report
from sgrec_core.registry import Registry
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import JUDGE

ACTIVE = "active"


def run(job: Job) -> None:
    resolve_adapter(job)
    settings = job.settings
    held = held_out(job.lake, settings, job.day)
    roles = settings_of_roles(settings, job.day)
    of_role = {role: answers(job.lake, chosen, job.day, held) for role, chosen in roles.items()}
    candidate, active = of_role["candidate"], of_role["active"]
    for judge in (candidate, active):
        if judge.missing:
            raise InputError(
                f"judge {judge.version} was not asked about {judge.missing} of {len(held.calls)} held-out labels and"
                f" pairs of {job.day}; run `python -m jobs.score_labels --day {job.day}` first"
            )
    how = {"seed": settings.evaluation.seed, "resamples": settings.evaluation.bootstrap_samples}
    rows: dict[str, list[Row]] = {
        "candidate": [*measures(held, candidate, **how), *against(held, candidate, active, **how)],
        "active": list(measures(held, active, **how)),
    }
    found = decide(rows, settings, active.version)

    adapter = carry_out(found, job.lake, settings, job.day, candidate=roles["candidate"], version=candidate.version)
    registry, serving = Registry(settings), newest(settings)
    registry.set_alias_or_none(JUDGE, ACTIVE, serving.version if serving else None)

    fingerprint = job.inputs_fingerprint(
        {"rows": [[role, of_role[role].version, *map(asdict, of)] for role, of in rows.items()], "verdict": vars(found)}
    )
    partition = {"day": job.day, "candidate_version": candidate.version}
    its = {"day": date.fromisoformat(job.day), "candidate_version": candidate.version}
    columns = [
        {**its, "judge_version": of_role[role].version, "role": role, **asdict(row)}
        for role, of in rows.items()
        for row in of
    ]
    table = pa.Table.from_pylist(columns, schema=load_contract("judge_evaluations").arrow_schema)
    if not job.skip_if_published({"judge_evaluations": partition}, fingerprint):
        job.lake.publish("judge_evaluations", table, partition=partition, fingerprint=fingerprint)
    for role, of in rows.items():
        for row in of:
            if row.metric in ("point_acc", "pair_auc", "calibration_error") and row.aspect == row.bucket == "all":
                job.fact(f"{row.metric}_{role}", round(row.value, 4))
    job.fact("activated", found.passed)
    job.fact("reason", found.reason)
    page = write_judge_report(job, roles, of_role, rows, found, was_trained=adapter is not None)
    job.fact("report", str(page.relative_to(job.settings.home.resolve())))
    name = f"judge {candidate.version}" + (f" ({JUDGE} version {adapter.version})" if adapter else "")
    job.note(f"{name} {'activated' if found.passed else 'not activated'}: {found.reason}")


main = stage_command("evaluate_judge", run)

if __name__ == "__main__":
    main()
