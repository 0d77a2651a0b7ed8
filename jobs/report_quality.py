"""Write the Data Docs, the on-call page and the summary of the night, whether it succeeded or stopped."""

from dataclasses import replace
from typing import Any

from sgrec_core.night.changes import remember_night
from sgrec_core.quality.alarms import GREEN
from sgrec_core.quality.incidents import Incidents, after_night, met_by
from sgrec_core.quality.report import below, write_report
from sgrec_core.quality.status import UNREADABLE, last_good
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.runs import compact_day, days_with_runs


def run(job: Job) -> None:
    # First without Data Docs: a night that stopped must have its page, whatever becomes of them.
    home = job.settings.home.resolve()
    summary, page = write_report(job.settings, job.day)
    try:
        from sgrec_core.quality.data_docs import build_data_docs

        data_docs = build_data_docs(job.settings)
    except Exception as error:  # not worth failing the report for, whatever it is; the page says so
        problem = f"Data Docs were not built: {type(error).__name__}: {error}"
        job.note(problem)
        summary, page = write_report(job.settings, job.day, problem=problem)
    else:
        summary, page = write_report(job.settings, job.day, data_docs=data_docs)
        job.fact("data_docs", below(home, data_docs))
    job.fact("night", summary["status"] if summary["status"] == "succeeded" else f"stopped at {summary['stopped_at']}")
    job.fact("checks", summary["checks"])
    job.fact("report", below(home, page))
    compact_day(job.lake, job.day)
    note_incidents(job, summary)
    if summary["status"] == "succeeded":
        # Last: a backfill looks again at what a night that did not get here has read.
        remember_night(job.settings, job.day)


def note_incidents(job: Job, summary: dict[str, Any]) -> None:
    """What the night makes of the incidents; whom they are told is a task's of its own."""
    try:
        met = met_by(summary)
        if met.verdict != GREEN:
            earlier = [day for day in days_with_runs(job.lake) if day < job.day]
            met = replace(met, last_good=last_good(job.settings, job.lake, earlier))
        incidents = Incidents(job.lake).change(lambda before: after_night(before, met))
    except UNREADABLE as error:  # a night is what it is without them; no message is due of what is not written down
        job.note(f"incidents were not written: {type(error).__name__}: {error}")
        return
    for one in incidents:
        if one.problems:
            job.note(f"{one}: it could not be told: {'; '.join(one.problems)}; each night tries again")
    job.fact("incidents_open", sum(one.is_open for one in incidents))


main = stage_command("report_quality", run)

if __name__ == "__main__":
    main()
