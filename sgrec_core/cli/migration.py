"""The command that brings homes of older versions of sgrec to this one."""

from typing import Annotated

import typer

from sgrec_core.cli.app import app, console
from sgrec_core.cli.homes import home_to_migrate


@app.command()
def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Bring a home of an older version of sgrec to the layout and tables of this one; nothing is paid or fitted again.

    There is no way back: copy the home before (`cp -r`) if the older version is to work with it again. Killed, it goes
    on when it is run again. Nights of before are then stale: `sgrec backfill` computes them anew, if you ask it to.
    """
    from sgrec_core.night.migration import migrate as steps

    settings = home_to_migrate()
    if dry_run:
        console.print("nothing is written; it would be:")
    done = 0
    for done, line in enumerate(steps(settings, dry_run=dry_run), start=1):  # noqa: B007 - counted
        console.print(line, soft_wrap=True, markup=False)
    if not done:
        console.print(f"{settings.home} has the layout and tables of this version: nothing to do", soft_wrap=True)
