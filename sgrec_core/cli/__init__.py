"""The console command ``sgrec``: run nights, see how they went, and decide about generators.

Only what every command needs is imported here; torch, MLflow and Arrow are imported by the commands that use them, so
that ``sgrec --help`` answers at once.
"""

import sys

from sgrec_core.cli import judges, migration, models, nights, tables  # noqa: F401 - each adds its commands
from sgrec_core.cli.app import app, complain
from sgrec_core.errors import SgrecError

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: errors written for users become one line."""
    try:
        app(prog_name="sgrec")
    except SgrecError as error:
        complain(str(error))
        sys.exit(error.exit_code)
