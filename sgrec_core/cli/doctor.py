"""The command that looks whether a night can run here."""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sgrec_core.cli.app import app, console
from sgrec_core.cli.homes import named_home, source_of, with_judge_interpreter
from sgrec_core.errors import SgrecError
from sgrec_core.settings import Settings

if TYPE_CHECKING:
    from sgrec_core.quality.health import Finding


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; docs/on-call.md has its keys.")] = False,
) -> None:
    """Look whether a night can run here: Java, libraries, lake, judge, landing, champion; each failure with its mend.

    Exit codes: 0 nothing failed, 1 something did.
    """
    found = _findings()
    code = int(any(one.state == "failed" for one in found))
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(one) for one in found], "exit_code": code}, indent=1))
    else:
        table = Table(box=None)
        for name in ("check", "state", "what"):
            table.add_column(name, no_wrap=name != "what", overflow="fold")
        colours = {"ok": "green", "warning": "yellow", "failed": "red"}
        for one in found:
            what = escape(one.what) + (f"\n[bold]mend:[/] {escape(one.mend)}" if one.mend else "")
            table.add_row(one.name, f"[{colours[one.state]}]{one.state}[/]", what)
        console.print(table)
    raise typer.Exit(code)


def _findings() -> "list[Finding]":
    from sgrec_core.quality.health import Finding, examine

    try:
        settings = _settings()
    except SgrecError as error:
        mend = "set it to what is valid, or unset it"
        return [Finding(name="settings", state="failed", what=str(error), mend=mend)]
    return list(examine(settings))


def _settings() -> Settings:
    """Of a home of any version, also where there is none yet."""
    from deltalake.exceptions import DeltaError

    from sgrec_core.runtime.job import read_settings

    home, source = named_home(), os.environ.get("SGREC_INPUT")
    if not source:
        with suppress(OSError, ValueError, DeltaError):  # what is lost or damaged is told by its check
            source = source_of(home)
    settings = read_settings(home=home, **({"input": source} if source else {}))
    return with_judge_interpreter(settings) if settings.judge.engine == "vllm" else settings
