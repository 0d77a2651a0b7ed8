"""Commands to paste: they run in a fresh shell, from any folder, with the settings that the night ran with."""

import shlex
import sys
from collections.abc import Container, Mapping
from pathlib import Path

from sgrec_core.files import read_json
from sgrec_core.settings import RAN_WITH, Settings

SECRET = "holds a secret, which no page keeps: export it first"
"""What a shell says, and runs nothing, where a variable is left to whoever pastes."""


def sgrec(settings: Settings, arguments: str) -> str:
    """``sgrec <arguments>`` with these settings."""
    return _line(settings, settings.assignments(), f"{_neighbour('sgrec')} {arguments}")


def sgrec_of_night(settings: Settings, day: str, arguments: str, *, without: Container[str] = ()) -> str:
    """``sgrec <arguments>`` with the settings that the night of ``day`` ran with, less the variables ``without``."""
    told = ran_with(settings, day)
    kept = {name: value for name, value in told.items() if name not in without}
    return _line(settings, kept, f"{_neighbour('sgrec')} {arguments}")


def job_of_night(settings: Settings, day: str, stage: str, arguments: str) -> str:
    """``python -m jobs.<stage> <arguments>``, where the stage alone is to run, of whatever day."""
    return _line(settings, ran_with(settings, day), f"{shlex.quote(sys.executable)} -m jobs.{stage} {arguments}")


def ran_with(settings: Settings, day: str) -> Mapping[str, str | None]:
    """The variables of the night's settings: those that its last stage ran with, else those of ``settings``."""
    path = settings.reports(day) / RAN_WITH
    told = read_json(path, otherwise="commands have the settings of this shell")
    return told or settings.assignments()


def _line(settings: Settings, variables: Mapping[str, str | None], command: str) -> str:
    # The home is the one that is looked at: that of a copy is another.
    first = {"SGREC_HOME": str(settings.home.resolve()), "SGREC_INPUT": settings.input}
    words = [_assignment(name, value) for name, value in {**first, **variables}.items()]
    return " ".join([*words, command])


def _assignment(name: str, value: str | None) -> str:
    return f'{name}="${{{name}:?{SECRET}}}"' if value is None else f"{name}={shlex.quote(value)}"


def _neighbour(command: str) -> str:
    """A command of the environment that runs."""
    return shlex.quote(str(Path(sys.prefix) / "bin" / command))
