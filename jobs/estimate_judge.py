"""Say what judging a day would cost, before it is paid for. Nothing is asked, nothing is written."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sgrec_core.judge.calls.plan import estimate, plan_day
from sgrec_core.runtime.job import Job, errors_in_words, load_settings, valid_day
from sgrec_core.wording import number, words


def estimate_judge(
    day: Annotated[str, typer.Option(help="Day of the logs, YYYY-MM-DD (UTC).", show_default=False)],
) -> None:
    """Calls, tokens and GPU hours that the stage score_aspects would take; reads the tables, asks nobody.

    Exit codes: 0 done, 2 an input or a setting is wrong.
    """
    with errors_in_words():
        print_estimate(Job("score_aspects", valid_day(day), load_settings(), looks_only=True))


def print_estimate(job: Job) -> None:
    """The table."""
    plan = plan_day(job)
    table = Table(title=f"judging {job.day} would take", title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    if plan is None:
        table.add_row("calls", "none: no item has text")
    else:
        table.add_row("judge", f"{job.settings.judge.engine} {plan.version}")
        facts = plan.facts()
        for name in ("asked", "cached", "skipped", "without_text", "unaffordable"):
            table.add_row(f"calls {words(name)}", number(facts[f"judge_{name}"]))
        table.add_row("calls to pay", number(len(plan.new)))
        for name, value in (estimate(job, plan) or {}).items():
            unknown = "unknown: this model has not run yet (SGREC_JUDGE__TOKENS_PER_SECOND)"
            table.add_row(name, unknown if value is None else number(value))
    Console(highlight=False).print(table)


def main() -> None:
    typer.run(estimate_judge)


if __name__ == "__main__":
    main()
