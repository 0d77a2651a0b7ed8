"""A mapping tells how the rows of another system's logs become sgrec's: renaming, units, sessions, impression lists.

It is a YAML file (docs/input.md) and says for each folder of the landing what its files hold. One evaluator
(`sgrec_core.logs.mapper`) serves ingest, ``sgrec land`` and ``sgrec check-input``.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from sgrec_core.errors import InputError
from sgrec_core.logs.expressions import FUNCTIONS, names_of, parsed
from sgrec_core.logs.landing import FOLDERS, Record

TARGETS: dict[Record, tuple[str, ...]] = {
    "event": ("event_id", "event_time", "user_id", "item_id", "event_type", "request_id", "placement", "position",
              "price", "bid", "propensity"),
    "item": ("item_id", "title", "description", "brand", "category", "price", "supplied_codes"),
}  # fmt: skip
"""Columns that a mapping may fill; a profile's are its own."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_word(value: Any) -> Any:
    """YAML reads 1 and true as no text."""
    return str(value).lower() if isinstance(value, (bool, int)) else value


RawValue = Annotated[str, BeforeValidator(_as_word)]


def _that_parses(expr: str) -> str:
    parsed(expr)
    return expr


Expression = Annotated[str, AfterValidator(_that_parses)]


class Column(_Part):
    """Where the values of one column come from: one of ``from``, ``const``, ``expr``, ``hash``; then what is done."""

    source: str | None = Field(None, alias="from", description="name of a raw column")
    const: str | int | float | None = Field(None, description="the same value in every row")
    expr: Expression | None = Field(
        None, description=f"an expression over raw columns; functions: {', '.join(FUNCTIONS)}"
    )
    hash: tuple[str, ...] | None = Field(None, description="names whose values make an id together")
    values: dict[RawValue, str] | None = Field(None, description="raw value to value; '*' for all others")
    unit: Literal["s", "ms", "us", "ns"] | None = Field(None, description="of a time that is a number since 1970")
    format: str | None = Field(None, description="of a time that is text, as Python's strptime takes it")
    zone: str = Field("UTC", description="of a time that says none, e.g. Europe/Berlin")

    @model_validator(mode="after")
    def _one_source(self) -> "Column":
        given = [name for name in ("source", "const", "expr", "hash") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("exactly one of from, const, expr and hash is needed")
        return self

    @field_validator("zone")
    @classmethod
    def _is_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{zone!r} is no time zone; valid are names like UTC and Europe/Berlin") from error
        return zone

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Raw columns, or columns of the mapping, that it reads."""
        if self.expr is not None:
            return names_of(self.expr)
        return self.hash or ((self.source,) if self.source is not None else ())


ColumnLike = Annotated[Column, BeforeValidator(lambda value: {"from": value} if isinstance(value, str) else value)]


class Explode(_Part):
    """A column that holds a list: a row for each element, numbered from 0 by the name ``place``."""

    column: str
    separator: str | None = Field(" ", description="between elements; null: the value is a JSON list")
    pattern: str | None = Field(
        None, description="of an element, as a regular expression; its named groups are columns"
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and not re.compile(pattern).groupindex:
                raise ValueError("it names no group; write (?P<item>...)")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern


class MadeRow(_Part):
    """One of the events that a raw row makes: where ``when`` holds, with ``columns`` in the place of the others."""

    when: Expression | None = None
    columns: dict[str, ColumnLike] = Field(default_factory=dict)


class Long(_Part):
    """A catalogue of one property a row: what ``property`` names is a column with the value ``value``. The last counts
    of each.
    """

    property: str
    value: str
    time: ColumnLike | None = Field(None, description="which value is the last; without it the order of the files")


class Files(_Part):
    """How the files of one folder, or some of them, are read."""

    files: str = Field("*", description="pattern of the names below the folder")
    delimiter: str | None = Field(None, description="of delimited text; by default what the first line looks like")
    quoted: bool | None = Field(None, description="whether values may stand in quotes; by default beside , ; and |")
    header: tuple[str, ...] | None = Field(None, description="names of the columns of files that have no header")
    columns: dict[str, ColumnLike] = Field(default_factory=dict, description="sgrec's columns")
    where: Expression | None = Field(
        None, description="an expression: rows for which it is false are left out, and counted"
    )
    explode: Explode | None = None
    rows: tuple[MadeRow, ...] = Field((MadeRow(),), min_length=1, description="the events that a raw row makes")
    session_minutes: float | None = Field(
        None, gt=0, description="what a user did with one item is one request until so long nothing comes"
    )
    long: Long | None = None


class LogMapping(_Part):
    """What the folders of a landing hold; a folder that is not named holds sgrec's own columns."""

    events: tuple[Files, ...] | None = None
    catalogue: tuple[Files, ...] | None = None
    profiles: tuple[Files, ...] | None = None
    catalogue_from_events: bool = Field(False, description="there is no catalogue: items are those of the events")

    @field_validator("events", "catalogue", "profiles", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> "LogMapping":
        for record, folder in FOLDERS.items():
            for number, files in enumerate(getattr(self, folder) or ()):
                _check(files, record, f"{folder}[{number}]" if len(getattr(self, folder)) > 1 else folder)
        if self.catalogue_from_events and self.catalogue:
            raise ValueError("catalogue_from_events and catalogue exclude each other")
        return self

    @classmethod
    def read(cls, path: Path) -> "LogMapping":
        """
        Raises:
            InputError: it cannot be read, or says what makes no sense; the message names place and value.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in first["loc"])
            said = "" if isinstance(first["input"], dict | list) else f" (found {str(first['input'])[:80]!r})"
            raise InputError(f"mapping {path}: {place or 'the file'}: {first['msg']}{said}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"mapping {path} cannot be read: {' '.join(str(error).split())}") from error


def _check(files: Files, record: Record, place: str) -> None:
    """Raises ValueError where something stands in a folder that it makes no sense for."""
    columns = {*files.columns, *(name for made in files.rows for name in made.columns)}
    if record in TARGETS and (unknown := sorted(columns - set(TARGETS[record]))):
        raise ValueError(f"{place}: {unknown[0]} is no column of it; valid are {', '.join(TARGETS[record])}")
    needed = {"event": ("event_time", "user_id", "item_id", "event_type"), "item": ("item_id",), "user": ("user_id",)}
    needed_here = [*needed[record], *(["request_id"] if record == "event" and not files.session_minutes else [])]
    if missing := [name for name in needed_here if not _is_filled(files, name)]:
        hint = " (or session_minutes)" if missing == ["request_id"] else ""
        raise ValueError(f"{place}: nothing says where {', '.join(missing)} comes from{hint}")
    if files.quoted and files.delimiter is not None and len(files.delimiter) > 1:
        raise ValueError(f"{place}: values may stand in quotes only where the delimiter is one character")
    if record != "event" and (files.session_minutes or files.explode or files.rows != (MadeRow(),)):
        raise ValueError(f"{place}: session_minutes, explode and rows are for events")
    if files.long is not None and record != "item":
        raise ValueError(f"{place}: long is for the catalogue")
    for column in [*files.columns.values(), *(column for made in files.rows for column in made.columns.values())]:
        if record == "event" and (column.unit or column.format) and column.values:
            raise ValueError(f"{place}: a time has no values")


def _is_filled(files: Files, name: str) -> bool:
    return name in files.columns or all(name in made.columns for made in files.rows)
