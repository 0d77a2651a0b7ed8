"""What a night needs of its machine and its home, looked at before the night does: each check with its mend.

A check answers in seconds, changes nothing (a probe file is removed), and never fails for what another one says.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sgrec_core.errors import SgrecError
from sgrec_core.quality.commands import sgrec
from sgrec_core.quality.health.answer import SECONDS, Answer, State, line
from sgrec_core.quality.health.machine import MACHINE, home_of_this_version
from sgrec_core.quality.health.stores import STORES
from sgrec_core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found."""

    name: str
    state: State
    what: str
    mend: str | None


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, one after another. Those of tables and models wait for a home of this version."""
    home = _found("home", home_of_this_version, settings)
    yield home
    for name, check in (MACHINE | STORES if home.state == "ok" else MACHINE).items():
        yield _found(name, check, settings)


def _found(name: str, check: Callable[[Settings], Answer], settings: Settings) -> Finding:
    answers: list[Answer] = []

    def run() -> None:
        again = f"put right what it says, then {sgrec(settings, 'doctor')}"
        try:
            answers.append(check(settings))
        except (SgrecError, OSError) as error:
            answers.append(Answer("failed", line(error), again))
        except Exception as error:  # one thing that is broken in a way of its own must not hide the others
            answers.append(Answer("failed", f"{type(error).__name__}: {line(error)}", again))

    # A thread, because a file system or a server that hangs cannot be told to stop.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    answer = answers[0] if answers else Answer("failed", f"no answer within {SECONDS:g} s", "look why it hangs")
    return Finding(name=name, state=answer.state, what=answer.what, mend=answer.mend)
