"""Commands about incidents: what is wrong with the nights, who knows, and what is over."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from sgrec_core.cli.app import app, console
from sgrec_core.cli.homes import existing_home
from sgrec_core.errors import InputError

if TYPE_CHECKING:
    from sgrec_core.quality.incidents import Incident, Incidents

Number = Annotated[int, typer.Argument(help="Number of the incident.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Kept with it, for those who ask later.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Those that are over, too.")]

commands = typer.Typer(help="Why nights were not green: what is open, who knows, what is over.")
app.add_typer(commands, name="incidents")


@commands.callback(invoke_without_command=True)
def incidents(context: typer.Context) -> None:
    """Why nights were not green: what is open, who knows, what is over."""
    if context.invoked_subcommand is None:
        show()


@commands.command("list")
def show(everything: All = False) -> None:
    """Incidents that are open, the newest last; `--all`: those that are over, too."""
    found = [one for one in _table().read() if everything or one.is_open]
    if not found:
        console.print("no incident" if everything else "no incident is open")
        return
    for one in found:
        for line in lines_of(one):
            console.print(line, soft_wrap=True, markup=False)


def lines_of(one: "Incident") -> list[str]:
    """What is known of an incident."""
    nights = one.first_night if one.nights == 1 else f"{one.first_night} to {one.last_night} ({one.nights} nights)"
    lines = [
        f"{one.incident}: {one.severity}, {one.owner}, {nights}; last good night: {one.last_good or 'none'}",
        f"   {one.kind}: {one.cause}",
    ]
    if one.acknowledged_at:
        lines.append(f"   {one.acknowledged_by} knows: {one.acknowledged_why}")
    if not one.is_open:
        return [*lines, f"   over by {one.resolved_by}: {one.resolved_why}"]
    return [*lines, *(f"   could not be told: {problem}" for problem in one.problems), f"   {one.command}"]


@commands.command("ack")
def acknowledge(number: Number, reason: Reason) -> None:
    """Say that you know: nothing more is told of the incident until a night is well again."""
    from sgrec_core.quality.incidents import acknowledge
    from sgrec_core.registry.promotions import login

    _change(reason, lambda before: acknowledge(before, number, login(), reason))
    console.print(f"incident {number} is acknowledged; no more is told until it is over", soft_wrap=True)


@commands.command("resolve")
def resolve(number: Number, reason: Reason) -> None:
    """Say that it is over: the same cause in a later night is another incident."""
    from sgrec_core.quality.incidents import resolve
    from sgrec_core.registry.promotions import login

    _change(reason, lambda before: resolve(before, number, login(), reason))
    console.print(f"incident {number} is over; the same cause in a later night opens another", soft_wrap=True)


def _change(reason: str, choose: "Callable[[list[Incident]], list[Incident]]") -> None:
    if not reason.strip():
        raise InputError("--reason is empty; say why: those who ask later read it")
    _table().change(choose)


def _table() -> "Incidents":
    from sgrec_core.lake import Lake
    from sgrec_core.quality.incidents import Incidents

    return Incidents(Lake(existing_home().lake_root))
