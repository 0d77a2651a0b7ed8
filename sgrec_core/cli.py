"""The console command ``sgrec``: run nights, see how they went, and decide about generators.

Only what every command needs is imported here; torch, MLflow and Arrow are imported by the commands that use them, so
that ``sgrec --help`` answers at once.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sgrec_core.errors import InputError, SettingsError, SgrecError
from sgrec_core.settings import PROJECT_ROOT, Settings

if TYPE_CHECKING:
    from sgrec_core.orchestration import Night

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

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="simulator, scientific:PATH, beauty:PATH, minionerec:PATH or logs:PATH. "
        "Default: SGREC_INPUT, else what this home was made from, else simulator.",
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


def main() -> None:
    """Entry point: errors written for users become one line."""
    try:
        app(prog_name="sgrec")
    except SgrecError as error:
        complain(str(error))
        sys.exit(error.exit_code)


class InterruptedNightError(SgrecError):
    """Ctrl-C or SIGTERM; the exit code is the one that shells give for it."""

    exit_code = 130


@app.command()
def nightly(
    day: Annotated[
        str | None,
        typer.Option(
            help="Day of the logs, YYYY-MM-DD (UTC). Default: the newest landed day of logs:PATH, else the first day.",
            show_default=False,
        ),
    ] = None,
    source: Input = None,
    judge: Judge = None,
) -> None:
    """Run the night of one day: logs in, a challenger registered, a report out. Unchanged stages are not run again."""
    choose_judge(judge)
    settings = settle_home(source, starts_anew=True)
    day = valid_day(day) if day else default_day(settings)
    night = show_night(settings, day)
    written = settings.reports(day) / "summary.json"
    # One that is older than this run would tell of another.
    if written.exists() and written.stat().st_mtime >= time.time() - night.seconds:
        show_summary(settings, day)
    if night.exit_code:
        complain(f"night {day} stopped at {night.reason}")
        raise typer.Exit(1)


@app.command("judge")
def judge_day(
    day: Annotated[str, typer.Option(help="Day of the logs, YYYY-MM-DD (UTC).", show_default=False)],
    judge: Judge = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what it would cost: calls, tokens, GPU hours.")
    ] = False,
) -> None:
    """Judge what a day's candidates still need, or say first what that would cost."""
    from sgrec_core.orchestration import only_night

    choose_judge(judge)
    settings = existing_home()
    module = "estimate_judge" if estimate else "score_aspects"
    command = [settings.interpreters.judge, "-m", f"jobs.{module}", "--day", valid_day(day)]
    environment = {**os.environ, "SGREC_HOME": str(settings.home.resolve())}
    with nullcontext() if estimate else only_night(settings, day):
        raise typer.Exit(subprocess.run(command, cwd=PROJECT_ROOT, env=environment).returncode)


@app.command("train-judge")
def train_judge(day: LabelledDay) -> None:
    """Train an adapter of the judge's model on labels, and activate it if it is better. Airflow does it weekly."""
    from sgrec_core.orchestration import JUDGE_TRAINING_DAG_ID

    choose_judge("vllm")
    weigh_judge(day, "judge training", JUDGE_TRAINING_DAG_ID)


@app.command("compare-judge")
def compare_judge(day: LabelledDay, judge: Judge = None) -> None:
    """Compare the judge of the settings with the one that nights use, on labels; nights may use it if it is better."""
    from sgrec_core.orchestration import JUDGE_COMPARISON_DAG_ID

    choose_judge(judge)
    if (PROJECT_ROOT / JUDGE_INTERPRETER).exists():
        # The other of the two may be of any engine; this environment has them all.
        os.environ.setdefault("SGREC_INTERPRETERS__JUDGE", JUDGE_INTERPRETER)
    weigh_judge(day, "judge comparison", JUDGE_COMPARISON_DAG_ID)


@app.command("accept-judge")
def accept_judge(
    judge: Judge = None,
    reason: Annotated[str, typer.Option(help="Kept with it, for those who ask later.")] = "accepted by hand",
) -> None:
    """Let nights use the judge of the settings without a comparison: where there are no labels, or better is not the aim."""
    from sgrec_core.active_judge import newest, with_adapter
    from sgrec_core.judge.accepted import accept

    choose_judge(judge)
    settings = existing_home()
    if settings.judge.adapter == "active":
        settings = with_adapter(settings, newest(settings))
    accepted = accept(settings, datetime.now(UTC).date().isoformat(), "hand", reason)
    console.print(f"nights may use judge {accepted}", soft_wrap=True, markup=False)


def weigh_judge(day: str, what: str, dag_id: str) -> None:
    """Run a DAG that ends with the judge's gate, and say what came out."""
    from sgrec_core.orchestration import run_night
    from sgrec_core.stages import JUDGE_TRAINING_FOLDER

    settings, day = existing_home(), valid_day(day)
    console.print(
        f"{what} {day} · {settings.judge.engine} {settings.judge.model} · home {settings.home}", soft_wrap=True
    )
    with interruptible(f"the {what} of {day}"):
        ended = run_night(settings, day, console, dag_id=dag_id, folder=JUDGE_TRAINING_FOLDER)
    if ended.exit_code:
        complain(f"the {what} of {day} stopped at {ended.reason}")
        raise typer.Exit(1)
    written = settings.reports(day, JUDGE_TRAINING_FOLDER) / "stages" / "evaluate_judge.json"
    facts = json.loads(written.read_text())["facts"]
    console.print(f"{'activated' if facts['activated'] else 'not activated'}: {facts['reason']}", soft_wrap=True)
    console.print(f"report: {facts['report']}", soft_wrap=True)


@app.command()
def backfill(
    first: Annotated[str, typer.Option("--from", help="First day, YYYY-MM-DD.", show_default=False)],
    last: Annotated[str, typer.Option("--to", help="Last day, inclusive.", show_default=False)],
    source: Input = None,
    judge: Judge = None,
    force: Annotated[
        bool, typer.Option("--force", help="Look at every stage, also of days that have not changed.")
    ] = False,
) -> None:
    """Run the nights of past days, in order; only what is missing or changed is computed."""
    from sgrec_core.orchestration import night_is_unchanged, remember_night

    choose_judge(judge)
    settings = settle_home(source, starts_anew=False)
    days = list(days_between(valid_day(first), valid_day(last)))
    table = Table(title=f"backfill {first} to {last}", title_justify="left", box=None)
    for name in (
        "day",
        "night",
        "seconds",
        "computed",
        "up to date",
        "champion NDCG@10",
        "challenger NDCG@10",
        "promoted",
    ):
        table.add_column(name, justify="left" if name in ("day", "night", "promoted") else "right")
    stopped = None
    for day in days:
        if not force and night_is_unchanged(settings, day):
            console.print(f"[dim]·[/] night {day} unchanged")
            table.add_row(day, "unchanged", "", "0", "all", *evaluation_cells(settings, day))
            continue
        night = show_night(settings, day)
        states = [stage["state"] for stage in read_summary(settings, day).get("stages", [])]
        table.add_row(
            day,
            "[red]stopped[/]" if night.exit_code else "succeeded",
            f"{night.seconds:,.0f}",
            str(states.count("finished")),
            str(states.count("skipped")),
            *evaluation_cells(settings, day),
        )
        if night.exit_code:
            # Later nights would start from a champion and a history that this one should have made.
            stopped = f"night {day} stopped at {night.reason}; the days after it were not run"
            break
        remember_night(settings, day)
    console.print(table)
    if stopped:
        complain(stopped)
        raise typer.Exit(1)


@app.command()
def status(
    day: Annotated[str | None, typer.Option(help="Show every stage of this night.", show_default=False)] = None,
    nights: Annotated[int, typer.Option(min=1, help="How many of the latest nights to list.")] = 7,
) -> None:
    """Which stage recent nights are at, and which generators are champion and challenger."""
    from sgrec_core.judge.accepted import accepted_judges
    from sgrec_core.registry import CHALLENGER, CHAMPION, GENERATOR, Registry

    settings = existing_home()
    console.print(f"{settings.home} · {settings.input}", soft_wrap=True)
    console.print(stages_table(settings, valid_day(day)) if day else nights_table(settings, nights))
    registry = Registry(settings)
    aliases = registry.aliases(GENERATOR)
    for alias in (CHAMPION, CHALLENGER):
        version = aliases.get(alias)
        made = f"version {version}, made by night {registry.get(GENERATOR, version).day}" if version else "none yet"
        console.print(f"{alias}: {made}")
    for judge in accepted_judges(settings)[-1:]:
        console.print(f"judge accepted last ({judge.how}, {judge.day}): {judge}", soft_wrap=True, markup=False)


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
    from sgrec_core.offline import evaluate_version

    settings = existing_home()
    with Progress(
        SpinnerColumn(), TextColumn("ranking"), BarColumn(), TextColumn("{task.completed:,} decisions"),
        TimeElapsedColumn(), console=console, transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("ranking", total=None)
        chosen, rows = evaluate_version(
            settings,
            version,
            split,
            day=day and valid_day(day),
            progress=lambda decisions: progress.advance(task, decisions),
        )
    table = Table(title=f"{chosen} on the {split} labels of {day or chosen.day}", title_justify="left", box=None)
    for name in ("metric", "bucket", "value", "95% interval", "users"):
        table.add_column(name, justify="left" if name in ("metric", "bucket") else "right", no_wrap=True)
    for row in rows:
        interval = "" if row["lower"] is None else f"{row['lower']:.4f} to {row['upper']:.4f}"
        metric = f"{METRICS.get(row['metric'], row['metric'])}@{row['cutoff']}"
        table.add_row(metric, row["bucket"].replace("_", " "), f"{row['value']:.4f}", interval, f"{row['users']:,}")
    console.print(table)


@app.command()
def promote(version: Annotated[int, typer.Option(help="Version of sgrec-generator.", show_default=False)]) -> None:
    """Make a version of the generator the champion: it serves now, and later nights start from it."""
    from sgrec_core.registry import GENERATOR, Registry

    registry = Registry(existing_home())
    chosen, newest = registry.get(GENERATOR, str(version)), registry.newest_promotion()
    # As of the newest night that promoted: an earlier day would leave that night's champion in place.
    day = max(chosen.day, newest.tags["sgrec.promoted_day"]) if newest else chosen.day
    registry.promote(chosen, day=day)
    console.print(f"champion: {chosen}, made by night {chosen.day}, serves as of night {day}")


@app.command()
def rollback() -> None:
    """Take the last promotion back: the champion before it serves again."""
    from sgrec_core.registry import Registry

    demoted, champion = Registry(existing_home()).rollback()
    serves = (
        f"{champion}, made by night {champion.day}" if champion else "none; the next challenger must beat popularity"
    )
    console.print(f"rolled back: {demoted}, made by night {demoted.day}\nchampion: {serves}")


@app.command()
def recommend(
    history: Annotated[str, typer.Option(help="Item ids, oldest first, separated by commas.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="How many items to recommend.")] = 10,
    version: Annotated[str, typer.Option(help="Version number or alias of sgrec-generator.")] = "champion",
    exclude_history: Annotated[bool, typer.Option(help="Leave out the items of the history.")] = False,
) -> None:
    """Recommend items that go on from a history. No judge is asked: the generator's weights are all that it takes."""
    from sgrec_core.generator.recommend import Recommender
    from sgrec_core.lake import Lake
    from sgrec_core.registry import GENERATOR, Registry

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


# The home and its source


def settle_home(source: str | None, *, starts_anew: bool) -> Settings:
    """Settings whose home belongs to the source that is asked for; marks a new home as belonging to it.

    A home holds the tables and models of one source. Asked for another one, the default home gives way to
    ``.sgrec-<source>``; a home that was named explicitly is not second-guessed.

    Args:
        source: ``--input``, or None.
        starts_anew: without any source named, the default home is asked for the simulator rather than for its own.

    Raises:
        SettingsError: the home named by SGREC_HOME belongs to another source.
        InputError: the source cannot be used.
    """
    from sgrec_core.logs.adaptors import parse_source

    explicit = "SGREC_HOME" in os.environ
    home = Path(os.environ.get("SGREC_HOME", DEFAULT_HOME)).resolve()
    wanted = source or os.environ.get("SGREC_INPUT")
    if not wanted:
        wanted = Settings.model_fields["input"].default
        if explicit or not starts_anew:
            wanted = source_of(home) or wanted
    parsed = parse_source(wanted)
    wanted = f"{parsed.kind}:{parsed.path}" if parsed.path else parsed.kind
    if source_of(home) not in (None, wanted):
        if explicit:
            raise SettingsError(_belongs_to_another(home, wanted))
        first, home = home, home.with_name(f"{DEFAULT_HOME}-{parsed.kind}")
        if source_of(home) not in (None, wanted):
            raise SettingsError(_belongs_to_another(home, wanted))
        console.print(
            f"{first.name} belongs to {source_of(first)}; this night uses {home.name} (SGREC_HOME={home})",
            soft_wrap=True,
        )
    # The jobs, in processes of their own, read the environment.
    os.environ["SGREC_HOME"], os.environ["SGREC_INPUT"] = str(home), wanted
    settings = checked_settings()
    if source_of(home) is None:
        home.mkdir(parents=True, exist_ok=True)
        (home / "source.json").write_text(json.dumps({"input": wanted}) + "\n")
    return settings


def existing_home() -> Settings:
    """Settings of a home in which a night was started, with its source.

    Raises:
        SettingsError: there is none; the message names homes that are there.
    """
    home = Path(os.environ.get("SGREC_HOME", DEFAULT_HOME)).resolve()
    source = source_of(home)
    if source is None:
        others = [path.parent.name for path in sorted(home.parent.glob(f"{DEFAULT_HOME}*/source.json"))]
        hint = f"; set SGREC_HOME to one of {', '.join(others)}" if others else "; run `sgrec nightly` first"
        raise SettingsError(f"no night was run in {home}{hint}")
    os.environ["SGREC_HOME"] = str(home)
    os.environ.setdefault("SGREC_INPUT", source)
    return checked_settings()


def source_of(home: Path) -> str | None:
    """The source that a home belongs to, or None for a home in which no night was started."""
    try:
        return json.loads((home / "source.json").read_text())["input"]
    except FileNotFoundError:
        return None


def _belongs_to_another(home: Path, wanted: str) -> str:
    return (
        f"home {home} belongs to the source {source_of(home)}, not to {wanted}; set SGREC_HOME to another folder, "
        f"or, if the same data only moved, write its new place into {home / 'source.json'}"
    )


def choose_judge(engine: str | None) -> None:
    """Put the judge's engine, and the environment that it needs, into the settings of the jobs."""
    if engine:
        os.environ["SGREC_JUDGE__ENGINE"] = engine
    if os.environ.get("SGREC_JUDGE__ENGINE") == "vllm":
        os.environ.setdefault("SGREC_INTERPRETERS__JUDGE", JUDGE_INTERPRETER)


def checked_settings() -> Settings:
    from sgrec_core.job import load_settings

    return load_settings()


def valid_day(day: str) -> str:
    from sgrec_core import job

    return job.valid_day(day)


def default_day(settings: Settings) -> str:
    """The newest day that has landed for ``logs:PATH``; for all other sources the first day."""
    kind, _, path = settings.input.partition(":")
    if kind != "logs":
        return settings.first_day
    days = sorted(folder.name.removeprefix("day=") for folder in Path(path).glob("day=*") if folder.is_dir())
    if not days:
        from sgrec_core.logs.landing import LAYOUT

        raise InputError(f"no day has landed in {path}; expected layout: {LAYOUT}")
    return valid_day(days[-1])


def days_between(first: str, last: str) -> Iterator[str]:
    """All days from ``first`` to ``last``, both included.

    Raises:
        SettingsError: ``last`` lies before ``first``.
    """
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    if end < start:
        raise SettingsError(f"--to {last} lies before --from {first}")
    for offset in range((end - start).days + 1):
        yield (start + timedelta(days=offset)).isoformat()


# What people see


def complain(message: str) -> None:
    """One red line on stderr."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message, style="bold red")


def show_night(settings: Settings, day: str) -> "Night":
    """Run the night of ``day`` before the user's eyes.

    Raises:
        InterruptedNightError: by Ctrl-C or SIGTERM, after everything that the night had started has ended.
    """
    from sgrec_core.orchestration import run_night

    console.print(f"night {day} · {settings.input} · home {settings.home}", soft_wrap=True)
    with interruptible(f"night {day}"):
        return run_night(settings, day, console)


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM become an error in words.

    Raises:
        InterruptedNightError: it was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedNightError(
            f"{what} interrupted; tables are at their last commit, the same command goes on from there"
        ) from None


def read_summary(settings: Settings, day: str) -> dict[str, Any]:
    """What report_quality wrote about the night, or nothing if it never ran."""
    try:
        return json.loads((settings.reports(day) / "summary.json").read_text())
    except FileNotFoundError:
        return {}


def show_summary(settings: Settings, day: str) -> None:
    """The night in one table."""
    summary = read_summary(settings, day)
    table = Table(title=f"night {day}: {summary['status']}", title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows, judge, reward, paths = summary["rows"], summary["judge"], summary["reward"], summary["paths"]
    table.add_row("rows", words(rows, "in", "accepted", "rejected"))
    if rows.get("rejected_by_reason"):
        table.add_row("rejects", words(rows["rejected_by_reason"], *rows["rejected_by_reason"]))
    label = f"judge calls ({judge['engine']}, scores meaningless)" if judge.get("meaningless") else "judge calls"
    table.add_row(label, words(judge, "asked", "cached", "skipped", "paid"))
    table.add_row("fusion", words(reward, "agreement_rate", "mean_gate", "covered_groups", "groups"))
    for role in ("champion", "challenger", "popularity"):
        table.add_row(role, model_in_words(summary["evaluation"].get(role)))
    if summary["evaluation"].get("reason"):
        table.add_row("decision", escape(summary["evaluation"]["reason"]))
    for note in summary["notes"]:
        table.add_row("note", escape(f"{note['stage']}: {note['text']}"))
    table.add_row("report", paths["report"])
    table.add_row("models", paths["models"])
    console.print(table)


def words(values: Mapping[str, Any], *names: str) -> str:
    """``accepted 1,234, rejected 5``; what a night did not get to is left out."""
    shown = [f"{name.replace('_', ' ')} {number(values[name])}" for name in names if values.get(name) is not None]
    return ", ".join(shown) or "not reached"


def number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def model_in_words(model: Mapping[str, Any] | None) -> str:
    if not model:
        return "none"
    # Popularity has the night's day for a version, which the title says already.
    name = "" if model["model"] == "popularity" else f"version {model['version']}: "
    return f"{name}HR@10 {number(model['hr@10'])}, NDCG@10 {number(model['ndcg@10'])}"


def evaluation_cells(settings: Settings, day: str) -> list[str]:
    """NDCG@10 of champion and challenger, and whether the challenger was promoted."""
    evaluation = read_summary(settings, day).get("evaluation") or {}
    figures = [(evaluation.get(role) or {}).get("ndcg@10") for role in ("champion", "challenger")]
    promoted = {True: "yes", False: "no", None: ""}[evaluation.get("promoted")]
    return [*("" if figure is None else number(figure) for figure in figures), promoted]


def nights_table(settings: Settings, count: int) -> Table:
    """The newest nights: how they ended, or which stage they are at."""
    from sgrec_core.orchestration import Tail, running_night, state_of_night

    table = Table(box=None)
    for name in ("day", "night", "stage", "time (UTC)", "message"):
        table.add_column(name, no_wrap=name != "message")
    running = running_night(settings)
    files = sorted(settings.home.glob("reports/*/progress.jsonl"), reverse=True)
    for path in files[:count]:
        state, event = state_of_night(Tail(path, from_start=True).read())
        night = path.parent.name
        if night == running:
            state = "running"
        message = event.get("message") or event.get("description") or ""
        if event.get("total"):
            message += f" {event['done']:,}/{event['total']:,}"
        mark = {"succeeded": "green", "stopped": "red"}.get(state, "yellow")
        table.add_row(
            night, f"[{mark}]{state}[/]", event["stage"], event["time"][5:16].replace("T", " "), escape(message)
        )
    return table


def stages_table(settings: Settings, day: str) -> Table:
    """Every stage and gate of a night."""
    from sgrec_core.quality.night import gather_night

    table = Table(box=None)
    for name in ("stage", "state", "seconds", "message"):
        table.add_column(name, justify="right" if name == "seconds" else "left", no_wrap=name != "message")
    for step in gather_night(settings, day).steps:
        seconds = "" if step.seconds is None or step.stale else f"{step.seconds:,.1f}"
        table.add_row(step.name, step.state, seconds, escape(step.message or ""))
    return table
