"""Check what a stage published for a day against contracts and earlier nights; stop the night on a critical failure."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sgrec_core.errors import SgrecError
from sgrec_core.quality.gates import Gate, check_stage, stop_on_critical
from sgrec_core.runtime.job import load_settings, report_progress, valid_day
from sgrec_core.runtime.stages import ALL_STAGES, BY_NAME

GATED = [stage.name for stage in ALL_STAGES if stage.publishes]


def check_quality(
    day: Annotated[str, typer.Option(help="Day of the logs, YYYY-MM-DD (UTC).", show_default=False)],
    stage: Annotated[str, typer.Option(help=f"One of {', '.join(GATED)}.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Validate again even if nothing changed.")] = False,
) -> None:
    """Check the tables that a stage published for a day against their contracts in schemas/.

    Results lie under SGREC_HOME/reports/<day>/quality/. Rows and contracts that passed before are not validated again.
    The day is also measured, beside the nights before (table night_metrics): that stops no night.

    Exit codes: 0 passed (warnings do not stop a night), 2 cannot run, 3 a critical check failed.
    """
    try:
        settings = load_settings()
        valid_day(day)
        if stage not in GATED:
            raise SgrecError(f"stage {stage!r} publishes no table to check; valid are {', '.join(GATED)}")
        reports = settings.reports(day, BY_NAME[stage].folder)
        report_progress(reports, f"check_{stage}", "started")
        try:
            gate = check_stage(settings, stage, day, force=force)
        except Exception as error:
            report_progress(reports, f"check_{stage}", "failed", message=f"{type(error).__name__}: {error}")
            raise
        Console(highlight=False).print(closing_table(gate, day))
        for alarm in gate.alarms:
            Console(highlight=False, markup=False, soft_wrap=True).print(f"{alarm.severity}: {alarm}")
        message = gate.message or f"{sum(len(result.checks) for result in gate.results)} checks"
        if gate.alarms:
            message += f"; {len(gate.alarms)} metrics out of their bands, first {gate.alarms[0]}"
        report_progress(reports, f"check_{stage}", gate.state, message=message, seconds=gate.seconds)
        stop_on_critical(gate)
    except SgrecError as error:
        Console(stderr=True).print(f"[bold red]check_{stage}[/] {day}: ", end="", soft_wrap=True)
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(str(error))
        raise typer.Exit(error.exit_code) from None


def closing_table(gate: Gate, day: str) -> Table:
    """What was checked and what failed."""
    table = Table(title=f"check_{gate.stage} {day}: {gate.state}", title_justify="left")
    for name in ("table", "rows", "checks", "failed", "warnings", "seconds"):
        table.add_column(name, justify="left" if name == "table" else "right")
    for result in gate.results:
        critical = sum(check.severity == "critical" for check in result.failures)
        table.add_row(
            result.table,
            f"{result.rows:,}",
            str(len(result.checks)),
            f"[bold red]{critical}[/]" if critical else "0",
            str(len(result.failures) - critical),
            f"{result.seconds:.1f}",
        )
    return table


def main() -> None:
    typer.run(check_quality)


if __name__ == "__main__":
    main()
