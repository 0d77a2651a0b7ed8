"""What ingest would make of raw files, told before a night and without Spark: what ``sgrec check-input`` shows."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sgrec_core.logs.csv_reader import is_header
from sgrec_core.logs.landing import LeftOut, RawFile, landed
from sgrec_core.logs.mapper import mapper_of
from sgrec_core.logs.parsing import LAYOUTS, Accepted, Options, Rejected, missing_files, parse_file
from sgrec_core.logs.readers import read_rows
from sgrec_core.logs.rows import Layout, RawRow, Reading
from sgrec_core.logs.text import storable

SAMPLED = 200
"""Rows of a file by which its columns are told."""
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "event_id": ("id", "eventid", "uuid", "rowid", "logid"),
    "event_time": ("timestamp", "time", "ts", "datetime", "timems", "eventtimestamp", "createdat", "date", "datems"),
    "user_id": ("visitorid", "userid", "user", "uid", "customerid", "memberid", "clientid", "sessionid", "session"),
    "item_id": ("itemid", "item", "videoid", "productid", "product", "sku", "asin", "newsid", "articleid", "movieid",
                "iid", "contentid"),
    "event_type": ("event", "type", "action", "behavior", "behaviour", "eventname", "interaction"),
    "request_id": ("impressionid", "requestid", "request", "sessionid", "session", "pageviewid", "queryid"),
    "title": ("name", "headline", "itemname", "productname", "newstitle"),
    "description": ("abstract", "text", "body", "content", "summary"),
    "category": ("categoryid", "genre", "genres", "tag", "tags", "department", "topic"),
    "brand": ("maker", "manufacturer", "authorid", "author", "seller", "shop"),
    "price": ("listprice", "cost", "amount"),
}  # fmt: skip
"""What other systems call a column, in lower case and without signs, the likeliest first."""


@dataclass(frozen=True)
class FileReport:
    """What ingest would make of one file."""

    file: RawFile
    reading: Reading
    accepted: int
    reasons: Mapping[str, int]
    """Rejected rows by reason."""
    examples: Mapping[str, str]
    """Reason -> the first row's detail."""
    columns: Mapping[str, str]
    """Column -> a value, of the raw rows."""
    missing: Sequence[str]
    """Columns that are needed and not there."""
    unknown: Sequence[str]
    """Columns that are not read."""
    cut_at: int | None
    """Rows after which reading was given up, None where all were read."""
    hint: str | None
    never: Sequence[str] = ()
    """Types of events that the mapping makes and no row became."""


@dataclass
class DayReport:
    """What ingest would make of a day."""

    files: list[FileReport] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    missing: list[Rejected] = field(default_factory=list)
    """What the day's manifest lists and the folder lacks, or the manifest where it cannot be read."""
    unknown_items: int = 0
    """Accepted events of items that are not in the catalogue."""
    items: int = 0
    repeated: int = 0
    """Accepted events whose id was there before."""

    @property
    def is_usable(self) -> bool:
        """Whether some event of a known item would be accepted, and every file is there and read to its end."""
        events = sum(one.accepted for one in self.files if one.file.record == "event")
        whole = all(one.reading.ended in ("complete", "left_out") for one in self.files)
        whole = whole and not self.missing and not any(one.is_lost for one in self.left_out)
        return whole and events > self.unknown_items


def check_day(root: Path, day: str, options: Options, most_rows: int) -> DayReport:
    """Read the files of a day as ingest would, ``most_rows`` of each.

    Raises:
        InputError: the day has no event file.
    """
    from_events = options.mapping is not None and options.mapping.catalogue_from_events
    found = landed(root, day, needs_catalogue=False)
    lost = {one.name for one in found.left_out if one.is_lost}
    missing = [one for one in missing_files(found, root, day) if one.file not in lost]
    report, catalogue, asked = DayReport(left_out=found.left_out, missing=missing), set(), Counter[str]()
    ids: set[str] = set()
    for file in found.files:
        one, values = check_file(file, day, options, most_rows)
        report.files.append(one)
        if file.record == "item":
            catalogue |= {row["item_id"] for row in values}
        elif file.record == "event":
            asked.update(row["item_id"] for row in values)
            ids.update(row["event_id"] for row in values)
    report.repeated = asked.total() - len(ids)
    report.items = len(asked) if from_events else len(catalogue)
    if not from_events:
        report.unknown_items = sum(count for item, count in asked.items() if item not in catalogue)
    return report


def check_file(file: RawFile, day: str, options: Options, most_rows: int) -> tuple[FileReport, list[dict[str, Any]]]:
    """What ingest would make of one file, and the values of its accepted rows."""
    reading, reasons, values = Reading(), Counter[str](), []
    examples: dict[str, str] = {}
    rows = parse_file(file, day, options, reading)
    for row in rows:
        if isinstance(row, Accepted):
            values.append(row.values)
        else:
            reasons[row.reason] += row.line > 0
            examples.setdefault(row.reason, row.detail)
        if reading.rows >= most_rows:
            break
    cut = reading.rows if reading.rows >= most_rows and next(rows, None) is not None else None
    samples = list(islice(raw_rows(file, options), SAMPLED))
    columns: dict[str, str] = {}
    for sample in samples:
        for name, value in (sample.fields or {}).items():
            if value not in (None, ""):
                columns.setdefault(storable(str(name)), storable(str(value)[:60]))
    layout = layout_of(file, options)
    known = {*layout.required, *(layout.known or columns)}
    missing = [name for name in layout.required if samples and name not in columns and columns]
    one = FileReport(
        file=file,
        reading=reading,
        accepted=len(values),
        reasons=dict(reasons),
        examples=examples,
        columns=columns,
        missing=missing,
        unknown=sorted(columns.keys() - known),
        cut_at=cut,
        hint=_hint(missing, list(columns)) if missing else None,
        never=_never(file, options, values) if values else (),
    )
    return one, values


def _never(file: RawFile, options: Options, values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Types of events that the mapping makes and none of ``values`` is."""
    mapper = mapper_of(options.mapping, file)
    if mapper is None or file.record != "event":
        return []
    columns = [{**mapper.files.columns, **made.columns}.get("event_type") for made in mapper.files.rows]
    made = {str(column.const) for column in columns if column is not None and column.const is not None}
    made |= {value for column in columns if column is not None for value in (column.values or {}).values()}
    return sorted(made - {row["event_type"] for row in values})


def layout_of(file: RawFile, options: Options) -> Layout:
    """What is needed of a file, by the mapping where it has it."""
    try:
        mapper = mapper_of(options.mapping, file)
    except LookupError:
        return Layout()
    return LAYOUTS[file.record] if mapper is None else mapper.layout


def raw_rows(file: RawFile, options: Options, header: tuple[str, ...] | None = None) -> Iterator[RawRow]:
    """The rows of a file with all their columns, whatever is needed of them."""
    layout = layout_of(file, options)
    everything = Layout(delimiter=layout.delimiter, quoted=layout.quoted, header=header or layout.header)
    return read_rows(file.path, file.name, options.limits, everything, Reading())


def likely(name: str, columns: Sequence[str], *, cutoff: float = 0.75) -> str | None:
    """The column that is most likely ``name``, by what other systems call it."""
    plain = {"".join(filter(str.isalnum, column.lower())): column for column in reversed(columns)}
    for synonym in (name.replace("_", ""), *SYNONYMS.get(name, ())):
        if synonym in plain:
            return plain[synonym]
    close = difflib.get_close_matches(name.replace("_", ""), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def renamed(missing: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """Which of ``columns`` is most likely which of ``missing``, each once."""
    found: dict[str, str] = {}
    for cutoff in (1.0, 0.75):  # what is called so elsewhere, before what merely looks alike
        for name in missing:
            column = likely(name, [column for column in columns if column not in found.values()], cutoff=cutoff)
            # Where there is no id of events a mapping makes one.
            if column is not None and name not in found and name != "event_id":
                found[name] = column
    return found


def _hint(missing: Sequence[str], columns: Sequence[str]) -> str:
    found = renamed(missing, columns)
    if not is_header(list(columns)):
        return f"there is no header, the first line is {', '.join(columns[:12])}; a mapping names the columns"
    told = f"the header has {', '.join(columns[:12])}"
    if not found:
        return f"{told}; missing are {', '.join(missing)}"
    return f"{told}; did you mean {', '.join(found)} by {', '.join(found.values())}?"


def unknown_columns(file: RawFile, options: Options) -> list[str]:
    """Columns of the first rows of a file that are not read."""
    layout = layout_of(file, options)
    known = {*layout.required, *(layout.known or ())}
    if layout.known is None:
        return []
    found: dict[str, None] = {}
    for row in islice(raw_rows(file, options), SAMPLED):
        found |= dict.fromkeys(storable(str(name)) for name in row.fields or {} if name not in known)
    return list(found)
