"""Commands about the tables of the lake."""

import subprocess
import sys
from typing import Annotated

import typer

from sgrec_core.cli.app import app
from sgrec_core.cli.homes import existing_home
from sgrec_core.errors import SettingsError
from sgrec_core.settings import PROJECT_ROOT


@app.command("maintain")
def maintain(
    keep_days: Annotated[
        int, typer.Option(min=1, help="Days for which old versions of the tables can still be read.")
    ] = 30,
) -> None:
    """Compact, checkpoint and vacuum all tables, so that nights stay as fast as the first. No row is deleted."""
    from sgrec_core.night.airflow import running_night

    settings = existing_home()
    day = running_night(settings)
    if day is not None:
        raise SettingsError(f"the night of {day} runs in {settings.home}; wait for it")
    command = [sys.executable, "-m", "jobs.maintain_lake", "--keep-days", str(keep_days)]
    raise typer.Exit(subprocess.run(command, cwd=PROJECT_ROOT, env=settings.environment()).returncode)
