"""Rows with sgrec's columns out of raw ones, as a mapping (`sgrec_core.logs.mapping`) wants it."""

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

from sgrec_core.logs.expressions import ExpressionError, evaluate, names_of
from sgrec_core.logs.landing import FOLDERS, RawFile, Record
from sgrec_core.logs.mapping import Column, Files, LogMapping
from sgrec_core.logs.rows import Layout, Problem, Unreadable, not_utf8

UPDATED = "\0updated"
"""Of a mapped row with one property: when it got its value. No raw column is called so."""
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)
"""What a number says of earlier years, it says in another unit."""


def mapper_of(mapping: LogMapping | None, file: RawFile) -> "Mapper | None":
    """What maps the rows of ``file``; None where they are sgrec's own, as all are without a mapping.

    Raises:
        LookupError: the mapping knows its folder and not the file.
    """
    if mapping is None:
        return None
    if mapping.catalogue_from_events and file.record == "item":
        raise LookupError("the mapping takes the catalogue from the events")
    folder = FOLDERS[file.record]
    known: tuple[Files, ...] | None = getattr(mapping, folder)
    if known is None:
        return None
    name = PurePosixPath(file.name).relative_to(folder).as_posix()
    for files in known:
        if fnmatch.fnmatch(name, files.files):
            return Mapper(files, file.record)
    raise LookupError(f"the mapping names {', '.join(files.files for files in known)}; this file is none of them")


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
        names += [
            name for text in (files.where, *(made.when for made in files.rows)) if text for name in names_of(text)
        ]
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
        return Layout(
            required=required,
            known=known_or_all,
            delimiter=files.delimiter,
            quoted=files.quoted,
            header=files.header,
        )

    def rows(self, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The rows that a raw row makes, which may be none.

        Raises:
            MappingError: a value cannot be read.
        """
        files, known = self.files, dict(fields)
        for name, value in known.items():
            if isinstance(value, bytes):
                try:
                    known[name] = value.decode("utf-8")
                except UnicodeDecodeError as error:
                    known[name] = Unreadable(not_utf8(error))
        if files.long is not None:
            known[str(known.get(files.long.property))] = known.get(files.long.value)
        if files.where is not None and not _evaluated("where", files.where, known):
            return
        for extra in self._elements(known):
            for made in files.rows:
                names = {**known, **extra}
                if made.when is not None and not _evaluated("when", made.when, names):
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
        parts = [_known(part, names, lenient) for part in column.hash]
        if all(part is None or part == "" for part in parts):
            return None  # an id of nothing would be the same for all such rows
        return hashlib.blake2b(json.dumps([str(part) for part in parts]).encode(), digest_size=12).hexdigest()
    elif column.expr is not None:
        value = _evaluated(name, column.expr, names, lenient)
    else:
        assert column.source is not None
        value = _known(column.source, names, lenient)
    if column.values is not None and value is not None:
        found = column.values.get(_word(value), column.values.get("*"))
        if found is None:
            reason = "unknown_event_type" if name == "event_type" else "invalid_value"
            detail = (
                f"column {column.source or name}: {_word(value)[:80]!r}; the mapping knows {', '.join(column.values)}"
            )
            raise MappingError(Problem(reason, detail))
        value = found
    if column.unit or column.format or column.zone != "UTC":
        value = _time(name, column, value)
    return value


def _word(value: Any) -> str:
    """A raw value as a mapping spells it: JSON's true is true."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _evaluated(place: str, expr: str, names: Mapping[str, Any], lenient: bool = False) -> Any:
    for read in names_of(expr):
        _known(read, names, lenient)
    try:
        return evaluate(expr, names, lenient)
    except ExpressionError as error:
        raise MappingError(Problem("invalid_value", f"{place}: {error}")) from error


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
            moment = _EPOCH + timedelta(seconds=float(value) * UNITS[column.unit])
            if name == "event_time" and moment < _EARLIEST:
                detail = f"column {column.source or name}: {str(value)[:80]} is {moment:%Y-%m-%d} as {column.unit}"
                raise MappingError(Problem("invalid_value", f"{detail} since 1970: is it of another unit?"))
            return moment
        moment = value if isinstance(value, datetime) else _read_time(str(value), column.format)
        return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(column.zone))).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = f"a number of {column.unit} since 1970" if column.unit else column.format or "ISO 8601"
        detail = f"column {column.source or name}: {str(value)[:80]!r} is no time; the mapping says {wanted}"
        raise MappingError(Problem("invalid_value", detail)) from error


def _read_time(text: str, form: str | None) -> datetime:
    if form is None:
        return datetime.fromisoformat(text)
    moment = datetime.strptime(text, form)
    if "%Z" in form and moment.tzinfo is None:
        # Python reads the name of a zone and forgets it.
        if not re.search(r"\b(UTC|GMT)\b", text, re.IGNORECASE):
            raise ValueError("a zone that is not UTC")
        return moment.replace(tzinfo=UTC)
    return moment
