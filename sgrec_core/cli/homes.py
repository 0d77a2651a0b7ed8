"""Which home and source a command works on."""

import os
import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sgrec_core.cli.app import DEFAULT_HOME, JUDGE_INTERPRETER, console
from sgrec_core.errors import InputError, SettingsError, SgrecError
from sgrec_core.files import read_json, write_json, write_text
from sgrec_core.runtime.layout import LAYOUT, note_layout
from sgrec_core.settings import MAPPING, Settings

# The home and its source


def settle_home(
    source: str | None, judge: str | None = None, mapping: Path | None = None, *, starts_anew: bool
) -> Settings:
    """Settings whose home belongs to the source that is asked for; marks a new home as belonging to it.

    A home holds the tables and models of one source. Asked for another one, the default home gives way to
    ``.sgrec-<source>``; a home that was named explicitly is not second-guessed.

    Args:
        source: ``--input``, or None.
        judge: ``--judge``, or None.
        mapping: ``--map``, or None; the home gets a copy.
        starts_anew: without any source named, the default home is asked for the simulator rather than for its own.

    Raises:
        SettingsError: the home named by SGREC_HOME belongs to another source, or cannot be written to.
        InputError: source or mapping cannot be used.
    """
    from sgrec_core.logs.adaptors import parse_source

    explicit = "SGREC_HOME" in os.environ
    home = named_home()
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
    settings = checked_settings(judge, home=home, input=wanted)
    if parsed.kind == "logs":
        landed_days(str(parsed.path))  # a wrong folder must not bind the home to it
    rules = read_mapping(mapping) if mapping is not None else None
    try:
        home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=home).close()
    except OSError as error:
        raise SettingsError(
            f"home {home} cannot be written to: {error.strerror}; set SGREC_HOME to a folder that can"
        ) from error
    if rules is not None:
        write_text(home / MAPPING, rules)
    if _written_source(home) is None:
        note_layout(home, LAYOUT)
        write_json(home / "source.json", {"input": wanted})
    return settings


def named_home() -> Path:
    """The home that SGREC_HOME names, or the default one.

    Raises:
        SgrecError: it can be none.
    """
    from sgrec_core.runtime.job import read_settings

    return read_settings().home.resolve() if "SGREC_HOME" in os.environ else Path(DEFAULT_HOME).resolve()


def existing_home(judge: str | None = None) -> Settings:
    """Settings of a home in which a night was started, with its source; ``judge`` is what ``--judge`` says.

    Raises:
        SettingsError: there is none; the message names homes that are there.
    """
    home, source = _home_and_source()
    return checked_settings(judge, home=home, input=os.environ.get("SGREC_INPUT", source))


def home_to_migrate() -> Settings:
    """Like `existing_home`, whatever version of sgrec made it.

    Raises:
        SettingsError: there is none.
    """
    from sgrec_core.runtime.job import read_settings

    home, source = _home_and_source()
    return read_settings(home=home, input=os.environ.get("SGREC_INPUT", source))


def _home_and_source() -> tuple[Path, str]:
    home = named_home()
    source = source_of(home)
    if source is None:
        others = [path.parent.name for path in sorted(home.parent.glob(f"{DEFAULT_HOME}*/source.json"))]
        hint = f"; set SGREC_HOME to one of {', '.join(others)}" if others else "; run `sgrec nightly` first"
        raise SettingsError(f"no night was run in {home}{hint}")
    return home, source


def source_of(home: Path) -> str | None:
    """The source that a home belongs to, or None for a home in which no night was started."""
    return _written_source(home) or (_source_of_runs(home) if (home / "source.json").exists() else None)


def _written_source(home: Path) -> str | None:
    source = read_json(
        home / "source.json",
        otherwise="the home belongs to the source of its newest run; the next night, or --input, writes the file again",
    ).get("input")
    return source if isinstance(source, str) else None


def _source_of_runs(home: Path) -> str | None:
    from sgrec_core.lake import Lake
    from sgrec_core.runtime.runs import days_with_runs, runs_of_day

    lake = Lake(Settings(home=home).lake_root)
    runs = (run for day in days_with_runs(lake) for run in reversed(runs_of_day(lake, day)))
    return next((run.input for run in runs), None)


def _belongs_to_another(home: Path, wanted: str) -> str:
    return (
        f"home {home} belongs to the source {source_of(home)}, not to {wanted}; set SGREC_HOME to another folder, "
        f"or, if the same data only moved, write its new place into {home / 'source.json'}"
    )


def checked_settings(judge: str | None, **given: Any) -> Settings:
    """What is given before what the environment says; a judge's engine comes with the interpreter that it needs."""
    from sgrec_core.runtime.job import load_settings

    settings = load_settings(**given, **({"judge": {"engine": judge}} if judge else {}))
    return with_judge_interpreter(settings) if settings.judge.engine == "vllm" else settings


def with_judge_interpreter(settings: Settings) -> Settings:
    """Judge in the environment that `make judge-env` makes, unless the settings name another."""
    if "judge" in settings.interpreters.model_fields_set:
        return settings
    interpreters = settings.interpreters.model_copy(update={"judge": JUDGE_INTERPRETER})
    return settings.model_copy(update={"interpreters": interpreters})


def valid_day(day: str) -> str:
    from sgrec_core.runtime import job

    return job.valid_day(day)


def default_day(settings: Settings) -> str:
    """The newest day that has landed for ``logs:PATH``; for all other sources the first day."""
    kind, _, path = settings.input.partition(":")
    if kind != "logs":
        return settings.first_day
    return landed_days(path)[-1]


def landed_days(path: str) -> list[str]:
    """Days whose folders lie in ``path``, oldest first; a folder that is named otherwise is told and left alone.

    Raises:
        InputError: there are none.
    """
    from sgrec_core.logs import landing

    days = []
    for folder in sorted(Path(path).glob("day=*")):
        try:
            days.append(valid_day(folder.name.removeprefix("day=")))
        except SgrecError:
            console.print(f"{folder} is no day and left alone; valid is day=YYYY-MM-DD", soft_wrap=True, markup=False)
    if not days:
        raise InputError(f"no day has landed in {path}; expected layout: {landing.LAYOUT}")
    return days


def mapping_file(path: Path) -> Path:
    """A file, or one of those in ``schemas/maps`` by its name."""
    from sgrec_core.lake.contracts import SCHEMAS

    shipped = SCHEMAS / "maps" / f"{path}.yaml"
    return shipped if not path.exists() and shipped.exists() else path


def read_mapping(path: Path) -> str:
    """The text of a mapping that makes sense.

    Raises:
        InputError: it does not.
    """
    from sgrec_core.logs.mapping import LogMapping

    chosen = mapping_file(path)
    LogMapping.read(chosen)
    return chosen.read_text(encoding="utf-8")


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
