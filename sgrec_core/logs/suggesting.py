"""A first mapping for raw files that nobody has described, guessed from names and values of columns."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from sgrec_core.logs.checking import SAMPLED, likely, raw_rows
from sgrec_core.logs.csv_reader import first_values, is_header
from sgrec_core.logs.landing import FOLDERS, RawFile
from sgrec_core.logs.parsing import Options
from sgrec_core.logs.readers import kind_of
from sgrec_core.logs.rows import Reading

FORMS = ("%m/%d/%Y %I:%M:%S %p", "%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M", "%Y%m%d")
UNITS = {"s": 1e9, "ms": 1e12, "us": 1e15, "ns": 1e18}
SHOWN = re.compile(r"(\S+-[01])( \S+-[01])*")
"""A list of what was shown, and whether it was clicked: N1-0 N2-1."""
FLAGS = {
    "dislike": ("hate", "dislike"),
    "conversion": ("buy", "purchase", "order", "longview"),
    "click": ("click", "tap"),
}
"""Event types, and parts of names of columns that say by 1 that there was one."""
TYPES = {
    "conversion": ("buy", "purchase", "order", "transaction", "checkout", "conversion", "pay"),
    "dislike": ("dislike", "hate", "hide"),
    "click": ("click", "tap", "cart", "like", "fav", "play", "open", "detail"),
    "impression": ("impression", "show", "view", "exposure", "pv"),
}


def suggest(files: Sequence[RawFile], options: Options) -> dict[str, Any]:
    """A mapping of the day's files, as `LogMapping` reads it; parts that it cannot guess are left out."""
    tables = {file: _table(file, options) for file in files}
    ids = {value for file, rows in tables.items() if file.record == "item" for row in rows for value in row.values()}
    found: dict[str, Any] = {}
    for file, rows in tables.items():
        if not rows or file.record == "user":
            continue
        part = _events(rows, ids, file.name) if file.record == "event" else _catalogue(rows, tables)
        header = {"header": list(rows[0])} if _is_made_up(rows) else {}
        name = file.name.removeprefix(FOLDERS[file.record] + "/")
        found.setdefault(FOLDERS[file.record], []).append({"files": _pattern(name), **header, **part})
    if not any(file.record == "item" for file in files):
        found["catalogue_from_events"] = True
    return {name: part[0] if isinstance(part, list) and len(part) == 1 else part for name, part in found.items()}


def _table(file: RawFile, options: Options) -> list[dict[str, Any]]:
    """The first rows; of delimited text whose first line is no header under the names c1, c2, ..."""
    names, reading = None, Reading()
    reading.format, reading.compression = kind_of(file.path, file.name)
    if reading.format == "csv":
        first = first_values(file.path, options.limits, reading)
        names = None if is_header(first) else tuple(f"c{place}" for place in range(1, len(first) + 1))
    return [row.fields for row in islice(raw_rows(file, options, names), SAMPLED) if row.fields]


def _is_made_up(rows: list[dict[str, Any]]) -> bool:
    return list(rows[0]) == [f"c{place}" for place in range(1, len(rows[0]) + 1)]


def _pattern(name: str) -> str:
    """A name, and others that differ in numbers, or in what landing has added to them."""
    return re.sub(r"(-[0-9a-f]{10}(?=\.)|\d+)", "*", name).removesuffix(".gz") + "*"


def _events(rows: list[dict[str, Any]], ids: set[Any], file: str) -> dict[str, Any]:
    columns = list(rows[0])
    left = list(columns)

    def take(name: str | None) -> str | None:
        if name in left:
            left.remove(name)
        return name

    part: dict[str, Any] = {}
    shown = take(next((name for name in columns if _all(rows, name, lambda v: bool(SHOWN.fullmatch(str(v))))), None))
    time, how = _time(rows, columns)
    take(time)
    kind = take(_named("event_type", left, rows, lambda values: len(values) <= 12))
    flags = {event: name for event, parts in FLAGS.items() if (name := _flag(rows, left, parts)) is not None}
    for name in flags.values():
        take(name)
    item = shown and "item"
    item = item or take(likely("item_id", left) or _by_values(rows, left, ids))
    user = take(likely("user_id", left)) or take(_an_id(rows, left, lambda share: share < 1))
    item = item or take(_an_id(rows, left, lambda share: True))
    # Without lists each item that a user turns to is a decision of its own, whatever session it was in.
    request = take(likely("request_id", left) or _an_id(rows, left, lambda share: share == 1)) if shown else None
    target: dict[str, Any] = {"event_time": {"from": time, **how} if how else time, "user_id": user, "item_id": item}
    if request is not None:
        target["request_id"] = request
    else:
        part["session_minutes"] = 30
    if shown:
        part["explode"] = {"column": shown, "pattern": "(?P<item>.+)-(?P<clicked>[01])"}
        target["position"] = "place"
        part["rows"] = [
            {"columns": {"event_type": {"const": "impression"}}},
            {"when": "clicked == '1'", "columns": {"event_type": {"const": "click"}}},
        ]
    elif flags:
        part["rows"] = [
            {"columns": {"event_type": {"const": "impression"}}},
            *(
                {"when": f"str({name}) == '1'", "columns": {"event_type": {"const": event}}}
                for event, name in flags.items()
            ),
        ]
    elif kind is not None:
        target["event_type"] = {"from": kind, "values": _types({str(row.get(kind)) for row in rows})}
    else:
        # No column says what was done; the name of the file may.
        bought = any(part in file.lower() for part in TYPES["conversion"])
        target["event_type"] = {"const": "conversion" if bought else "click"}
    if "price" in left:
        target["price"] = "price"
    return {"columns": {name: column for name, column in target.items() if column is not None}, **part}


def _catalogue(rows: list[dict[str, Any]], tables: Mapping[RawFile, list[dict[str, Any]]]) -> dict[str, Any]:
    columns = list(rows[0])
    asked = {
        value for file, events in tables.items() if file.record == "event" for row in events for value in row.values()
    }
    asked |= {element.rpartition("-")[0] for value in asked for element in str(value).split() if "-" in element}
    item = likely("item_id", columns) or _by_values(rows, columns, asked) or columns[0]
    if {"property", "value"} <= set(columns):
        properties = {str(row["property"]) for row in rows}
        named = {name: found for name in ("title", "category", "brand") if (found := likely(name, sorted(properties)))}
        time, how = _time(rows, columns)
        long = {"property": "property", "value": "value", **({"time": {"from": time, **how}} if time else {})}
        return {"columns": {"item_id": item, **named}, "long": long}
    left = [name for name in columns if name != item]
    target = {"item_id": item}
    for name in ("title", "description", "category", "brand", "price"):
        found = likely(name, left)
        if found is not None:
            target[name] = found
            left.remove(found)
    if "title" not in target:
        texts = {name: sum(len(str(row.get(name) or "")) for row in rows) for name in left
                 if not _all(rows, name, lambda value: str(value).startswith(("http", "[", "{")))}  # fmt: skip
        if texts and (longest := max(texts, key=lambda name: texts[name])) and texts[longest] > 15 * len(rows):
            target["title"] = longest
    return {"columns": target}


def _types(values: set[str]) -> dict[str, str]:
    """Raw words to event types. Where nothing else is a click, a view is one: a visit, not a list that was shown."""
    found = {}
    for value in sorted(values):
        plain = "".join(filter(str.isalnum, value.lower()))
        found[value] = next((name for name, parts in TYPES.items() if any(part in plain for part in parts)), "click")
    words = {"".join(filter(str.isalnum, value.lower())) for value in values}
    if not any("click" in word or "tap" in word for word in words):
        found = {value: "click" if kind == "impression" else kind for value, kind in found.items()}
    return found


def _time(rows: list[dict[str, Any]], columns: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The column that holds times, and how they are told."""
    named = likely("event_time", columns)
    for name in [*([named] if named else []), *columns]:
        for unit, about in UNITS.items():
            if _all(rows, name, lambda value, about=about: 0.3 * about <= float(value) <= 6 * about):
                return name, {"unit": unit} if unit != "ms" else {"unit": "ms"}
        if _all(rows, name, lambda value: bool(datetime.fromisoformat(str(value))) and not str(value).isdigit()):
            return name, {}
        for form in FORMS:
            if _all(rows, name, lambda value, form=form: bool(datetime.strptime(str(value), form))):
                return name, {"format": form}
    return named, {}


def _all(rows: list[dict[str, Any]], name: str, holds: Callable[..., bool]) -> bool:
    """Whether it holds for nearly all values of a column, of which there are some."""
    values = [row.get(name) for row in rows if row.get(name) not in (None, "")]

    def safe(value: Any) -> bool:
        try:
            return holds(value)
        except (ValueError, TypeError, OverflowError):
            return False

    return bool(values) and sum(map(safe, values)) >= 0.95 * len(values)


def _named(
    name: str, columns: Sequence[str], rows: list[dict[str, Any]], fits: Callable[[set[str]], bool]
) -> str | None:
    column = likely(name, columns)
    if column is None or not fits({str(row.get(column)) for row in rows}):
        return None
    return column


def _flag(rows: list[dict[str, Any]], columns: Sequence[str], parts: Sequence[str]) -> str | None:
    for name in columns:
        plain = "".join(filter(str.isalnum, name.lower()))
        if any(part in plain for part in parts) and _all(rows, name, lambda value: str(value) in ("0", "1")):
            return name
    return None


def _by_values(rows: list[dict[str, Any]], columns: Sequence[str], ids: set[Any]) -> str | None:
    """The column of whose values most are among ``ids``."""
    known = {str(value) for value in ids}
    shares = {name: sum(str(row.get(name)) in known for row in rows) / len(rows) for name in columns}
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] > 0.5 else None


def _an_id(rows: list[dict[str, Any]], columns: Sequence[str], fits: Callable[[float], bool]) -> str | None:
    """The first column that holds short words or numbers, of which so large a share is distinct."""
    for name in columns:
        values = [str(row.get(name)) for row in rows if row.get(name) not in (None, "")]
        distinct = len(set(values))
        are_ids = distinct > 1 and all(re.fullmatch(r"[\w-]{1,40}", value) for value in values)
        if are_ids and fits(distinct / len(values)):
            return name
    return None
