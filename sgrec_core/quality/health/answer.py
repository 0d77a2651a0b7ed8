"""What checks answer with, and the words that they share."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sgrec_core.settings import PROJECT_ROOT

State = Literal["ok", "warning", "failed"]
SECONDS = 8.0
"""How long a check may take; imports and a start of Java are the longest."""
SERVER_SECONDS = 3.0
"""How long a server may take to answer."""
SLACK_SECONDS = 300.0
"""By how much clocks of two machines may differ."""
SHOWN = 3
"""Things of a kind that are named."""


@dataclass(frozen=True)
class Answer:
    """What a check says."""

    state: State
    what: str
    mend: str | None = None
    """A command or a sentence; None where all is well."""


def make(target: str) -> str:
    """The same of a target of the Makefile."""
    return f"make -C {shlex.quote(str(PROJECT_ROOT))} {target}"


def folder_there(path: Path) -> Path:
    """The path, or what of it exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def few(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
