"""Commands that look at raw logs, and land them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sgrec_core.cli.app import Map, app, complain, console
from sgrec_core.cli.homes import landed_days, mapping_file, valid_day
from sgrec_core.errors import InputError

if TYPE_CHECKING:
    from sgrec_core.logs.checking import DayReport, FileReport
    from sgrec_core.logs.parsing import Options


@app.command("check-input")
def check_input(
    source: Annotated[str, typer.Option("--input", help="logs:PATH", show_default=False)],
    mapping: Map = None,
    day: Annotated[
        str | None, typer.Option(help="Day to look at. Default: the newest that has landed.", show_default=False)
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each file that are read.")] = 100_000,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Write a first mapping to stdout, and nothing else.")
    ] = False,
) -> None:
    """What a night would make of raw logs, in seconds and without Spark: columns, rejects, the likely fix."""
    from sgrec_core.logs.adaptors import parse_source
    from sgrec_core.logs.checking import check_day

    parsed = parse_source(source)
    if parsed.kind != "logs" or parsed.path is None:
        raise InputError(f"--input {source}: only raw logs can be checked; valid is logs:PATH")
    day = valid_day(day) if day is not None else landed_days(str(parsed.path))[-1]
    options = _options(mapping)
    if suggest:
        _suggest(parsed.path, day, options)
        return
    report = check_day(parsed.path, day, options, rows)
    _show(report, day)
    if not report.is_usable:
        complain(f"a night of {day} would stop here; `sgrec check-input --suggest` writes a first mapping")
        raise typer.Exit(1)


@app.command()
def land(
    raw: Annotated[
        list[str],
        typer.Argument(help="Files or folders of any days, a Delta table, or a SQLAlchemy URL with #table."),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder that gets the days.", show_default=False)],
    mapping: Map = None,
) -> None:
    """Split raw files into UTC days with manifests, as logs:PATH wants them; rows stay as they are."""
    from sgrec_core.logs.land import UNPLACED
    from sgrec_core.logs.land import land as land_files

    with console.status("") as status:
        found = land_files(raw, _options(mapping), to, lambda name: status.update(f"landing {name}"))
    console.print(f"landed in {to}", markup=False, soft_wrap=True)
    table = Table(box=None)
    for name in ("day", "rows"):
        table.add_column(name, justify="left" if name == "day" else "right")
    for day, count in sorted(found.rows.items()):
        table.add_row(day, f"{count:,}")
    console.print(table)
    for line in found.whole:
        console.print(f"in each day: {line}", markup=False, soft_wrap=True)
    for line in found.left_out:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    if found.again:
        days = ", ".join(sorted(found.again))
        console.print(f"run again, they have got rows since: {days}", markup=False, soft_wrap=True)
    unplaced = found.unplaced.total()
    for why, count in found.unplaced.most_common(3):
        console.print(f"no day is known of {count:,} rows ({to / UNPLACED}): {why}", markup=False, soft_wrap=True)
    for line in found.beside:
        console.print(f"another {line} is there: remove it if what was landed now takes its place", soft_wrap=True)
    for line in found.broken:
        complain(f"not read to its end: {line}")
    share = unplaced / max(unplaced + found.rows.total(), 1)
    if found.broken or share > 0.05:
        if share > 0.05:
            complain(f"no day is known of {share:.1%} of the rows; is the mapping the right one?")
        raise typer.Exit(1)


@app.command("map-schema")
def map_schema() -> None:
    """Print the JSON schema of mappings, for editors and checks of your own."""
    import json

    from sgrec_core.logs.mapping import LogMapping

    typer.echo(json.dumps(LogMapping.model_json_schema(by_alias=True), indent=2))


def _options(mapping: Path | None) -> "Options":
    from sgrec_core.logs.mapping import LogMapping
    from sgrec_core.logs.parsing import Options
    from sgrec_core.settings import IngestSettings

    return Options(
        nulls=frozenset(IngestSettings().null_words),
        mapping=LogMapping.read(mapping_file(mapping)) if mapping is not None else None,
    )


def _suggest(root: Path, day: str, options: "Options") -> None:
    import yaml

    from sgrec_core.logs.landing import landed
    from sgrec_core.logs.suggesting import suggest

    found = suggest(landed(root, day, needs_catalogue=False).files, options)
    typer.echo(f"# A guess from the names and values of {day}: look at it before you use it (docs/input.md).")
    typer.echo(yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=110), nl=False)


def _show(report: "DayReport", day: str) -> None:
    for one in report.files:
        _show_file(one)
    for left in report.left_out:
        console.print(f"[bold]{escape(left.name)}[/]  not read: {escape(left.why)}", soft_wrap=True)
    for absent in report.missing:
        console.print(f"[bold]{escape(absent.file)}[/]  missing: {escape(absent.detail)}", soft_wrap=True)
    events = sum(one.accepted for one in report.files if one.file.record == "event")
    console.print(f"\n{day}: {events:,} events would be accepted, {report.items:,} items", soft_wrap=True)
    if report.repeated:
        console.print(f"{report.repeated:,} of them repeat the id of an event: rejected", soft_wrap=True)
    if report.unknown_items:
        share = report.unknown_items / max(events, 1)
        console.print(
            f"{report.unknown_items:,} of them ({share:.1%}) are of items that are not in the catalogue: rejected",
            soft_wrap=True,
        )


def _show_file(one: "FileReport") -> None:
    reading = one.reading
    rows = reading.rows + reading.rows_unread
    kind = " ".join(filter(None, (reading.format, reading.compression)))
    cut = f" (the first {one.cut_at:,} were read)" if one.cut_at else ""
    console.print(f"[bold]{escape(one.file.name)}[/]  {kind}, {reading.bytes:,} bytes", soft_wrap=True)
    hint = f": {one.hint}" if one.hint else ""
    console.print(f"  {one.accepted:,} accepted of {rows:,} rows{cut}{hint}", soft_wrap=True, markup=False)
    if reading.ended != "complete" and not one.hint:
        console.print(f"  {reading.ended.replace('_', ' ')}: {reading.detail}", soft_wrap=True, markup=False)
    for reason, count in sorted(one.reasons.items(), key=lambda item: -item[1]):
        if count and not one.hint:
            console.print(f"  {reason} {count:,}: {one.examples[reason]}", soft_wrap=True, markup=False)
    samples = ", ".join(f"{name}={value}" for name, value in list(one.columns.items())[:12])
    if reading.rows_empty:
        said = f"  {reading.rows_empty:,} rows of which the mapping makes nothing"
        if not one.accepted and not one.reasons:
            said += "; are where and when right? Values of delimited text are text: flag == '1'"
        console.print(said, soft_wrap=True, markup=False)
    if one.never:
        said = f"  no row becomes {', '.join(one.never)}, which the mapping makes"
        console.print(said, soft_wrap=True, markup=False)
    console.print(f"  [dim]columns: {escape(samples)}[/]", soft_wrap=True)
    if one.unknown:
        console.print(f"  [dim]not read: {escape(', '.join(one.unknown[:20]))}[/]", soft_wrap=True)
