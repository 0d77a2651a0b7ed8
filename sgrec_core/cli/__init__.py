"""The console command ``sgrec``: run nights, see how they went, and decide about generators.

Only what every command needs is imported here; torch, MLflow and Arrow are imported by the commands that use them, so
that ``sgrec --help`` answers at once.
"""

import errno
import sys

from sgrec_core.cli import (  # noqa: F401 - each adds its commands
    doctor,
    incidents,
    inputs,
    judges,
    migration,
    models,
    nights,
    status,
    tables,
)
from sgrec_core.cli.app import app, complain
from sgrec_core.errors import SgrecError
from sgrec_core.runtime.zygote import run_main

__all__ = ["app", "main"]


def main() -> None:
    """Entry point.

    Ends without taking the interpreter down: now and then a thread of a native library aborts that, and a command that
    has done its work would exit with 134.
    """
    run_main(_command)


def _command() -> None:
    """Errors written for users become one line."""
    try:
        app(prog_name="sgrec")
    except SgrecError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        complain(f"{error.filename}: {error.strerror}; is the home, or the folder of logs, one that you may write to?")
        sys.exit(SgrecError.exit_code)
