"""Commands about generators."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sgrec_core.cli.app import METRICS, OUTCOME_NAMES, app, console
from sgrec_core.cli.homes import existing_home, valid_day
from sgrec_core.errors import InputError
from sgrec_core.wording import metric, number, words

if TYPE_CHECKING:
    from sgrec_core.registry.promotions import Promotions


@contextmanager
def _ranking() -> Iterator[Callable[[int], None]]:
    """A bar that counts ranked decisions, by what it gives."""
    with Progress(
        SpinnerColumn(), TextColumn("ranking"), BarColumn(), TextColumn("{task.completed:,} decisions"),
        TimeElapsedColumn(), console=console, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("ranking", total=None)
        yield lambda decisions: progress.advance(task, decisions)


@app.command()
def evaluate(
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="Which held-out labels to score.", show_default=False)
    ],
    version: Annotated[str, typer.Option(help="Version number or alias of sgrec-generator.")] = "champion",
    day: Annotated[
        str | None,
        typer.Option(help="Whose labels. Default: of the night that made the version.", show_default=False),
    ] = None,
) -> None:
    """Score a registered generator on held-out labels. Nights never read the test split; this command alone does."""
    from sgrec_core.night.evaluation import evaluate_version

    settings = existing_home()
    with _ranking() as advance:
        chosen, rows = evaluate_version(
            settings,
            version,
            split,
            day=day and valid_day(day),
            progress=advance,
        )
    table = Table(title=f"{chosen} on the {split} labels of {day or chosen.day}", title_justify="left", box=None)
    for name in ("metric", "bucket", "value", "95% interval", "users"):
        table.add_column(name, justify="left" if name in ("metric", "bucket") else "right", no_wrap=True)
    for row in rows:
        interval = "" if row["lower"] is None else f"{metric(row['lower'])} to {metric(row['upper'])}"
        name = f"{METRICS.get(row['metric'], row['metric'])}@{row['cutoff']}"
        table.add_row(name, words(row["bucket"]), metric(row["value"]), interval, number(row["users"]))
    console.print(table)


@app.command("compare")
def compare_generators(
    first: Annotated[str, typer.Argument(help="Version number or alias of sgrec-generator.", show_default=False)],
    second: Annotated[str, typer.Argument(help="The one that it is compared with.")] = "champion",
    day: Annotated[
        str | None,
        typer.Option(help="Whose decisions. Default: of the newer night that made one of them.", show_default=False),
    ] = None,
) -> None:
    """What the gate would see if FIRST were to take SECOND's place, on a night's validation decisions."""
    from sgrec_core.night.evaluation import compare_versions

    with _ranking() as advance:
        found, why_not, asked, of_day = compare_versions(
            existing_home(),
            first,
            second,
            day=day and valid_day(day),
            progress=advance,
        )
    title = f"version {found.ours.version} minus version {found.theirs.version}, night {of_day}"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("metric", "bucket", "difference", "95% interval"):
        table.add_column(name, justify="left" if name in ("metric", "bucket") else "right", no_wrap=True)
    for (kind, cutoff, bucket), difference in found.differences.items():
        interval = f"{difference.lower:+.4f} to {difference.upper:+.4f}"
        name = f"{METRICS.get(kind, kind)}@{cutoff}"
        table.add_row(name, words(bucket), f"{difference.value:+.4f}", interval)
    for outcome, difference in found.values.items():
        # Of other sizes than shares of users: an eCPM of 150, a dislike rate of .01.
        interval = f"{difference.lower:+.4g} to {difference.upper:+.4g}"
        table.add_row(OUTCOME_NAMES[outcome], words(found.estimator), f"{difference.value:+.4g}", interval)
    console.print(table)
    verdict = f"would refuse it: {', '.join(why_not)}" if why_not else f"would pass it: {found.figures()}"
    if asked and not why_not:
        verdict += f"; but only once nights have shown that its recipe is better {' and '.join(asked)}"
    console.print(escape(f"the gate {verdict}"), soft_wrap=True)


Reason = Annotated[str, typer.Option(help="Kept with it, for those who ask later.")]


@app.command()
def promote(
    version: Annotated[int, typer.Option(help="Version of sgrec-generator.", show_default=False)],
    reason: Reason = "by hand",
) -> None:
    """Make a version of the generator the champion: it serves now, and later nights start from it."""
    from sgrec_core.registry import Registry
    from sgrec_core.runtime.stages import GENERATOR

    registry = Registry(existing_home())
    chosen = registry.get(GENERATOR, str(version))
    day = registry.promote(chosen, reason)
    console.print(f"champion: {chosen}, made by night {chosen.day}, serves as of night {day}", soft_wrap=True)
    _say_whether_held(registry.promotions)


@app.command()
def rollback(reason: Reason = "by hand") -> None:
    """Take the last promotion back: the champion before it serves again."""
    from sgrec_core.registry import Registry

    registry = Registry(existing_home())
    demoted, champion = registry.rollback(reason)
    serves = (
        f"{champion}, made by night {champion.day}" if champion else "none; the next challenger must beat popularity"
    )
    console.print(f"rolled back: {demoted}, made by night {demoted.day}\nchampion: {serves}")
    _say_whether_held(registry.promotions)


@app.command()
def hold(
    reason: Annotated[str, typer.Option(help="Told by nights, status and page while it stands.", show_default=False)],
) -> None:
    """Freeze promotion: nights do all else, but make no generator the champion until `sgrec release`."""
    from sgrec_core.registry.promotions import hold

    if not reason.strip():
        raise InputError("--reason is empty; say why nobody may be promoted: those who meet the hold read it")
    decided = _promotions().decide(lambda decisions: hold(decisions, reason))
    console.print(f"promotion is {decided}", soft_wrap=True, markup=False)


@app.command()
def release(reason: Reason = "by hand") -> None:
    """Lift the hold: the next nights promote again. What was held back is promoted by hand."""
    from sgrec_core.registry.promotions import release

    decided = _promotions().decide(lambda decisions: release(decisions, reason))
    console.print(f"nights promote again: {decided}", soft_wrap=True, markup=False)


@app.command("accept-night")
def accept_night(
    day: Annotated[str, typer.Option(help="Night that is amber, YYYY-MM-DD.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Kept with it, for those who ask later.", show_default=False)],
) -> None:
    """Say that what a night measured is right, though out of its bands: it is amber no more, later nights go by it.

    These figures are accepted, not the day for ever: where other content of the day has others, it is amber again.
    """
    from sgrec_core.lake import Lake
    from sgrec_core.quality.alarms import alarms, inherited_alarms, inherited_in_words
    from sgrec_core.registry.promotions import Promotions, accept
    from sgrec_core.runtime.stages import BY_NAME

    if not reason.strip():
        raise InputError("--reason is empty; say why the figures are right: those who ask later read it")
    settings = existing_home()
    lake = Lake(settings.lake_root)
    out = alarms(lake, valid_day(day), stages=BY_NAME)
    if not out:
        learns = inherited_in_words(inherited_alarms(lake, settings, day))
        instead = f"; it {learns}" if learns else "; see `sgrec status`"
        raise InputError(f"night {day} has no metric out of its band that is not accepted{instead}")
    figures = [alarm.figure for alarm in out]
    decided = Promotions(lake).decide(lambda decisions: accept(decisions, day, figures, reason))
    console.print(f"{decided}; `sgrec nightly --day {day}` may promote now", soft_wrap=True, markup=False)
    for alarm in out:
        console.print(f"accepted: {alarm}", soft_wrap=True, markup=False)


def _promotions() -> "Promotions":
    from sgrec_core.lake import Lake
    from sgrec_core.registry.promotions import Promotions

    return Promotions(Lake(existing_home().lake_root))


def _say_whether_held(promotions: "Promotions") -> None:
    from sgrec_core.registry.promotions import held

    hold = held(promotions.read())
    if hold is not None:
        console.print(f"the hold stands on: {hold}", soft_wrap=True, markup=False)


@app.command()
def promotions() -> None:
    """Who was made champion or taken back, holds, and which champion each night worked against; the newest last."""
    table = Table(box=None)
    for name in ("day", "decision", "version", "who", "when (UTC)", "reason"):
        table.add_column(name, no_wrap=name != "reason")
    for row in _promotions().rows().to_pylist():
        when = row["decided_at"].strftime("%m-%d %H:%M")
        # A night may have no champion to work against; a hold is of no version.
        version = row["version"] or ("none" if row["action"] == "pin" else "")
        table.add_row(str(row["day"]), row["action"], version, escape(row["who"]), when, escape(row["reason"]))
    console.print(table)


@app.command()
def recommend(
    history: Annotated[str, typer.Option(help="Item ids, oldest first, separated by commas.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="How many items to recommend.")] = 10,
    version: Annotated[str, typer.Option(help="Version number or alias of sgrec-generator.")] = "champion",
    exclude_history: Annotated[
        bool | None,
        typer.Option(
            "--exclude-history/--keep-history",
            help="Whether to leave out the items of the history; by default where users of the source repeat none.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Recommend items that go on from a history. No judge is asked: the generator's weights are all that it takes."""
    from sgrec_core.generator.recommend import Recommender
    from sgrec_core.lake import Lake
    from sgrec_core.registry import Registry
    from sgrec_core.runtime.stages import GENERATOR

    settings = existing_home()
    registry = Registry(settings)
    chosen = registry.get(GENERATOR, version)
    items = [item.strip() for item in history.split(",") if item.strip()]
    if not items:
        raise InputError(f"--history {history!r} names no item; valid is, for example, --history item1,item2")
    (ranked,) = Recommender(*registry.load(chosen)).recommend([items], count=count, exclude_history=exclude_history)
    known = Lake(settings.lake_root).read("items", where={"day": chosen.day}, columns=["item_id", "title"])
    titles = dict(zip(known["item_id"].to_pylist(), known["title"].to_pylist(), strict=True))
    table = Table(title=str(chosen), title_justify="left", box=None)
    for name in ("rank", "item", "title", "log-probability"):
        table.add_column(name, justify="right" if name in ("rank", "log-probability") else "left", overflow="fold")
    for rank, (item, score) in enumerate(ranked, start=1):
        table.add_row(str(rank), escape(item), escape(titles.get(item) or ""), f"{score:.3f}")
    console.print(table)
