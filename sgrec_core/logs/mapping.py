"""A mapping tells how the rows of another system's logs become sgrec's: renaming, units, sessions, impression lists.

It is a YAML file (docs/input.md) and says for each folder of the landing what its files hold. One evaluator serves
ingest, ``sgrec land`` and ``sgrec check-input``. Expressions are evaluated by simpleeval: names, operators and a few
functions, no attribute of anything of ours and no import.
"""

import ast
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

import simpleeval
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from sgrec_core.errors import InputError
from sgrec_core.logs.landing import FOLDERS, RawFile, Record
from sgrec_core.logs.rows import Layout, Problem, Unreadable

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
FUNCTIONS = {
    "int": int,
    "float": float,
    "str": str,
    "len": len,
    "round": round,
    "lower": lambda text: str(text).lower(),
    "upper": lambda text: str(text).upper(),
    "strip": lambda text, characters=None: str(text).strip(characters),
    "replace": lambda text, old, new: str(text).replace(old, new),
    "split": lambda text, by, place: str(text).split(by)[place],
    "coalesce": lambda *values: next((value for value in values if value not in (None, "")), None),
}
"""What an expression may call."""
TARGETS: dict[Record, tuple[str, ...]] = {
    "event": ("event_id", "event_time", "user_id", "item_id", "event_type", "request_id", "placement", "position",
              "price", "bid", "propensity"),
    "item": ("item_id", "title", "description", "brand", "category", "price", "supplied_codes"),
}  # fmt: skip
"""Columns that a mapping may fill; a profile's are its own."""
UPDATED = "\0updated"
"""Of a mapped row with one property: when it got its value. No raw column is called so."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Part):
    """Where the values of one column come from: one of ``from``, ``const``, ``expr``, ``hash``; then what is done."""

    source: str | None = Field(None, alias="from", description="name of a raw column")
    const: str | int | float | None = Field(None, description="the same value in every row")
    expr: str | None = Field(None, description=f"an expression over raw columns; functions: {', '.join(FUNCTIONS)}")
    hash: tuple[str, ...] | None = Field(None, description="names whose values make an id together")
    values: dict[str, str] | None = Field(None, description="raw value to value; '*' for all others")
    unit: Literal["s", "ms", "us", "ns"] | None = Field(None, description="of a time that is a number since 1970")
    format: str | None = Field(None, description="of a time that is text, as Python's strptime takes it")
    zone: str = Field("UTC", description="of a time that says none, e.g. Europe/Berlin")

    @model_validator(mode="after")
    def _one_source(self) -> "Column":
        given = [name for name in ("source", "const", "expr", "hash") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("exactly one of from, const, expr and hash is needed")
        return self

    @field_validator("expr")
    @classmethod
    def _parses(cls, expr: str | None) -> str | None:
        if expr is not None:
            _parsed(expr)
        return expr

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
            return _names(self.expr)
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

    when: str | None = None
    columns: dict[str, ColumnLike] = Field(default_factory=dict)

    @field_validator("when")
    @classmethod
    def _parses(cls, when: str | None) -> str | None:
        if when is not None:
            _parsed(when)
        return when


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
    header: tuple[str, ...] | None = Field(None, description="names of the columns of files that have no header")
    columns: dict[str, ColumnLike] = Field(default_factory=dict, description="sgrec's columns")
    where: str | None = Field(None, description="an expression: rows for which it is false are left out, and counted")
    explode: Explode | None = None
    rows: tuple[MadeRow, ...] = Field((MadeRow(),), min_length=1, description="the events that a raw row makes")
    session_minutes: float | None = Field(
        None, gt=0, description="a user's events without request_id are one request until so long nothing comes"
    )
    long: Long | None = None

    @field_validator("where")
    @classmethod
    def _parses(cls, where: str | None) -> str | None:
        if where is not None:
            _parsed(where)
        return where


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

    def of(self, file: RawFile) -> "Mapper | None":
        """What maps the rows of ``file``; None where they are sgrec's own.

        Raises:
            LookupError: the mapping knows its folder and not the file.
        """
        folder = FOLDERS[file.record]
        known: tuple[Files, ...] | None = getattr(self, folder)
        if self.catalogue_from_events and file.record == "item":
            raise LookupError("the mapping takes the catalogue from the events")
        if known is None:
            return None
        name = PurePosixPath(file.name).relative_to(folder).as_posix()
        for files in known:
            if fnmatch.fnmatch(name, files.files):
                return Mapper(files, file.record)
        raise LookupError(f"the mapping names {', '.join(files.files for files in known)}; this file is none of them")


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
    if record != "event" and (files.session_minutes or files.explode or files.rows != (MadeRow(),)):
        raise ValueError(f"{place}: session_minutes, explode and rows are for events")
    if files.long is not None and record != "item":
        raise ValueError(f"{place}: long is for the catalogue")
    for column in [*files.columns.values(), *(column for made in files.rows for column in made.columns.values())]:
        if record == "event" and (column.unit or column.format) and column.values:
            raise ValueError(f"{place}: a time has no values")


def _is_filled(files: Files, name: str) -> bool:
    return name in files.columns or all(name in made.columns for made in files.rows)


class MappingError(Exception):
    """A raw row that the mapping cannot read."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


@dataclass(frozen=True)
class Mapper:
    """Makes rows with sgrec's columns of a file's raw ones."""

    files: Files
    record: Record

    @cached_property
    def layout(self) -> Layout:
        """Raw columns that are needed. Those of one property a row are values, not names of columns."""
        files, made_up, certain = self.files, set(), set()
        columns = [files.columns, *(made.columns for made in files.rows)]
        names = [name for group in columns for column in group.values() for name in column.names]
        names += [name for text in (files.where, *(made.when for made in files.rows)) if text for name in _names(text)]
        if files.explode is not None:
            names.append(files.explode.column)
            groups = re.compile(files.explode.pattern).groupindex if files.explode.pattern else ()
            made_up = {"place", "element", *groups}
        for group in columns:
            for target, column in group.items():
                certain |= {column.source, *({target} & set(column.names))}
        targets = {target for group in columns for target in group} - certain
        if files.long is not None:
            item = files.columns["item_id"].names
            time = files.long.time.names if files.long.time else ()
            names = [*item, files.long.property, files.long.value, *time]
        known = tuple(dict.fromkeys(name for name in names if name not in made_up))
        # A name that the mapping fills itself may be raw as well, or not.
        required = tuple(name for name in known if name not in targets)
        if files.explode is not None and files.explode.separator is None:
            # Elements may be objects with any names.
            required = (files.explode.column,)
        is_all = self.record == "user" and not files.columns.keys() - {"user_id"}
        known_or_all = None if is_all else known
        return Layout(required=required, known=known_or_all, delimiter=files.delimiter, header=files.header)

    def rows(self, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The rows that a raw row makes, which may be none.

        Raises:
            MappingError: a value cannot be read.
        """
        files, known = self.files, dict(fields)
        for name, value in known.items():
            if isinstance(value, bytes):
                known[name] = value.decode("utf-8", "backslashreplace")
        if files.long is not None:
            known[str(known.get(files.long.property))] = known.get(files.long.value)
        if files.where is not None and not _evaluate(files.where, known, "where"):
            return
        for extra in self._elements(known):
            for made in files.rows:
                names = {**known, **extra}
                if made.when is not None and not _evaluate(made.when, names, "when"):
                    continue
                row = self._row(names, {**made.columns, **files.columns, **made.columns})
                told = (value for name, value in row.items() if name not in ("item_id", UPDATED))
                if files.long is None or any(value is not None for value in told):
                    yield row

    def _row(self, names: dict[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
        lenient = self.files.long is not None
        row: dict[str, Any] = {}
        if self.layout.known is None:
            row |= names
        for name, column in columns.items():
            row[name] = _value(name, column, names, lenient)
            names.setdefault(name, row[name])
        if lenient and self.files.long is not None and self.files.long.time is not None:
            row[UPDATED] = _value("time", self.files.long.time, names, False)
        return row

    def _elements(self, names: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
        explode = self.files.explode
        if explode is None:
            return [{}]
        value = names.get(explode.column)
        if isinstance(value, str) and explode.separator is not None:
            elements: Any = [element for element in value.split(explode.separator) if element]
        elif isinstance(value, str) and value:
            try:
                elements = json.loads(value)
            except ValueError as error:
                raise MappingError(Problem("invalid_value", f"column {explode.column}: no JSON list")) from error
        else:
            elements = [] if value in (None, "") else value
        if not isinstance(elements, list):
            raise MappingError(Problem("wrong_type", f"column {explode.column}: {elements!r:.80} is no list"))
        found = []
        for place, element in enumerate(elements):
            groups: dict[str, Any] = {"element": element, "place": place}
            if explode.pattern is not None:
                match = re.fullmatch(explode.pattern, str(element))
                if match is None:
                    detail = f"column {explode.column}: {str(element)[:80]!r} is not of the pattern {explode.pattern}"
                    raise MappingError(Problem("invalid_value", detail))
                groups |= match.groupdict()
            elif isinstance(element, dict):
                groups |= element
            found.append(groups)
        return found


def _value(name: str, column: Column, names: Mapping[str, Any], lenient: bool) -> Any:
    value: Any
    if column.const is not None:
        value = column.const
    elif column.hash is not None:
        parts = [str(_known(part, names, lenient)) for part in column.hash]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
    elif column.expr is not None:
        value = _evaluate(column.expr, names, name, lenient)
    else:
        assert column.source is not None
        value = _known(column.source, names, lenient)
    if column.values is not None and value is not None:
        found = column.values.get(str(value), column.values.get("*"))
        if found is None:
            reason = "unknown_event_type" if name == "event_type" else "invalid_value"
            detail = (
                f"column {column.source or name}: {str(value)[:80]!r}; the mapping knows {', '.join(column.values)}"
            )
            raise MappingError(Problem(reason, detail))
        value = found
    if column.unit or column.format or column.zone != "UTC":
        value = _time(name, column, value)
    return value


def _known(name: str, names: Mapping[str, Any], lenient: bool) -> Any:
    value = names.get(name)
    if isinstance(value, Unreadable):
        raise MappingError(Problem(value.problem.reason, f"column {name}: {value.problem.detail}"))
    return value


def _time(name: str, column: Column, value: Any) -> Any:
    """A moment in UTC; null and "" stay, so that whoever reads the row says what is missing."""
    if value is None or value == "" or (isinstance(value, datetime) and value.tzinfo is not None):
        return value
    try:
        if column.unit is not None:
            return _EPOCH + timedelta(seconds=float(value) * UNITS[column.unit])
        moment = value if isinstance(value, datetime) else _read_time(str(value), column.format)
    except (ValueError, OverflowError) as error:
        wanted = f"a number of {column.unit} since 1970" if column.unit else column.format or "ISO 8601"
        detail = f"column {column.source or name}: {str(value)[:80]!r} is no time; the mapping says {wanted}"
        raise MappingError(Problem("invalid_value", detail)) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(column.zone))).astimezone(UTC)


def _read_time(text: str, form: str | None) -> datetime:
    return datetime.strptime(text, form) if form else datetime.fromisoformat(text)


def _parsed(expr: str) -> ast.AST:
    try:
        parsed = simpleeval.SimpleEval.parse(expr)
        _names(expr)
    except (simpleeval.InvalidExpression, SyntaxError, ValueError) as error:
        raise ValueError(f"{expr!r} is no expression: {error}") from error
    return parsed


def _names(expr: str) -> tuple[str, ...]:
    """Names that an expression reads.

    Raises:
        ValueError: it calls what is no function of ours.
    """
    tree = ast.parse(expr.strip(), mode="eval")
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    if unknown := sorted(called - FUNCTIONS.keys()):
        raise ValueError(f"no function {unknown[0]}; valid are {', '.join(FUNCTIONS)}")
    names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return tuple(dict.fromkeys(name for name in names if name not in called and name not in ("None", "True", "False")))


def _evaluate(expr: str, names: Mapping[str, Any], place: str, lenient: bool = False) -> Any:
    evaluator, parsed = _EVALUATORS.get(expr, (None, None))
    if evaluator is None:
        evaluator, parsed = simpleeval.EvalWithCompoundTypes(functions=FUNCTIONS), _parsed(expr)
        _EVALUATORS[expr] = evaluator, parsed
    missing = {"None": None, "True": True, "False": False} | (dict.fromkeys(_names(expr)) if lenient else {})
    evaluator.names = {**missing, **names}
    try:
        return evaluator.eval(expr, previously_parsed=parsed)
    except Exception as error:
        if lenient and any(names.get(name) is None for name in _names(expr)):
            return None
        raise MappingError(Problem("invalid_value", f"{place}: {expr}: {str(error)[:200]}")) from error


_EVALUATORS: dict[str, tuple[Any, Any]] = {}
"""By expression; one process evaluates a row at a time."""
assert set(get_args(Literal["s", "ms", "us", "ns"])) == set(UNITS)
