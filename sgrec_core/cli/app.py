"""The typer app, and what all commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from sgrec_core.errors import SgrecError

if TYPE_CHECKING:
    pass


app = typer.Typer(
    help="Turn a day of recommendation logs into a better generator, night by night.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)

DEFAULT_HOME = ".sgrec"
JUDGE_INTERPRETER = ".venv-judge/bin/python"
"""What `make judge-env` makes; the judge's engine vllm does not share the main environment."""

METRICS = {"hit_rate": "HR", "ndcg": "NDCG", "id_hit_rate": "HR, id-level ", "id_ndcg": "NDCG, id-level "}
"""How people call what the table ``evaluations`` names."""
OUTCOME_NAMES = {"ecpm": "eCPM", "gmv": "GMV per thousand", "dislikes": "dislikes"}

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="simulator, scientific:PATH, beauty:PATH, minionerec:PATH or logs:PATH. "
        "Default: SGREC_INPUT, else what this home was made from, else simulator.",
        show_default=False,
    ),
]
Map = Annotated[
    Path | None,
    typer.Option(
        "--map",
        help="YAML file that tells how the rows of logs:PATH become sgrec's (docs/input.md), or one that is shipped:"
        " retailrocket, mind, kuairand, yoochoose. The home keeps a copy.",
        show_default=False,
    ),
]
Judge = Annotated[
    Literal["embedding", "vllm", "server"] | None,
    typer.Option(
        "--judge", help="Engine of the judge. Default: SGREC_JUDGE__ENGINE, else embedding.", show_default=False
    ),
]

LabelledDay = Annotated[
    str,
    typer.Option("--day", help="Day whose night has run: its labels and pairs, YYYY-MM-DD (UTC).", show_default=False),
]


class InterruptedNightError(SgrecError):
    """Ctrl-C or SIGTERM; the exit code is the one that shells give for it."""

    exit_code = 130


# What people see


def complain(message: str) -> None:
    """One red line on stderr."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message, style="bold red")
