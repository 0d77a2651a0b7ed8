"""Write the Data Docs, the on-call page and the summary of the night, whether it succeeded or stopped."""

from sgrec_core.night.changes import remember_night
from sgrec_core.quality.report import below, write_report
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.runs import compact_day


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
    if summary["status"] == "succeeded":
        # Last: a backfill looks again at what a night that did not get here has read.
        remember_night(job.settings, job.day)


main = stage_command("report_quality", run)

if __name__ == "__main__":
    main()
