"""What is wrong with the raw input of a night, in the order in which data flows: pure rules over its evidence.

Rows of all files count together. A little of everything is rejected every day, so that only what makes up a good part
of the day's rejects tells something.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sgrec_core.lake import load_contract
from sgrec_core.logs.landing import FOLDERS
from sgrec_core.quality.evidence import Evidence, RawFileRead, Rejects
from sgrec_core.wording import number

TABLE_OF_RECORD: Mapping[str, str] = {"event": "events", "item": "items", "user": "users"}
FOLDER_OF: Mapping[str, str] = {str(record): folder for record, folder in FOLDERS.items()}
TELLING = 0.2
"""Share of the rejected rows from which on one kind of them is more than what every day has."""
SHRUNKEN = 0.9
"""A catalogue with less than this share of the day before's items has lost some."""
POSITIVE = ("click", "conversion")
"""What makes decision points."""
BAD_ROWS = (
    ("invalid_encoding", "are not UTF-8"),
    ("invalid_json", "are not JSON"),
    ("too_long", "are too long"),
    ("repeated_field", "name a field twice"),
    ("wrong_type", "hold values of the wrong type"),
    ("invalid_value", "hold values that are not valid"),
    ("other_day", "are of another day"),
    ("future_time", "are later than the night"),
)
"""Reasons of ``events_rejected`` of rows that are wrong by themselves, in the order in which a row is read."""


@dataclass(frozen=True, kw_only=True)
class Mend:
    """What makes the night whole once the cause is mended; by default the night runs again."""

    force_from: str | None = None
    """A stage of the night that is to be computed again, though it is up to date."""
    before: tuple[tuple[str, str], ...] = ()
    """Stages of earlier days that come first, each as (day, stage)."""
    without: tuple[str, ...] = ()
    """Settings that are left out."""
    instead: str | None = None
    """A command of `sgrec` that comes first."""
    backfill_from: str | None = None
    """An earlier day from which on all nights are looked at again."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    sentence: str
    table: str | None
    """Whose contract names owner and runbook."""
    owner: str | None = None
    runbook: str | None = None
    """Where no contract has one that fits."""
    file: str | None = None
    column: str | None = None
    value: str | None = None
    day: str | None = None
    version: int | None = None
    mend: Mend = Mend()


def raw_findings(evidence: Evidence) -> Iterator[Finding]:
    """From the files to the events that were accepted."""
    yield from lost_files(evidence.files)
    yield from missing_fields(evidence)
    yield from bad_rows(evidence)
    yield from unknown_types(evidence)
    yield from unknown_items(evidence)
    yield from repeated_rows(evidence)
    yield from nothing_chosen(evidence)


# Files


def lost_files(files: Sequence[RawFileRead]) -> Iterator[Finding]:
    """Files that are not there, or were not read to their end; of those without a field `missing_fields` tells."""
    lost = [one for one in files if one.ended in ("broken_off", "unreadable", "missing") and not _lacks_field(one)]
    # The catalogue first: events are of its items.
    for record in ("item", "event", "user"):
        of_record = sorted((one for one in lost if one.record == record), key=lambda one: -_unread(one))
        if of_record:
            worst, total = of_record[0], sum(one.record == record for one in files)
            kind = {"broken_off": "truncated_file", "missing": "missing_file"}.get(worst.ended, "unreadable_file")
            said = {"missing": "is missing", "unreadable": "was not read"}.get(worst.ended, "was not read to its end")
            beside = f"; so {'are' if len(of_record) > 2 else 'is'} {_few(of_record[1:])}" if of_record[1:] else ""
            sentence = (
                f"{worst.path} {said}: {worst.detail} ({len(of_record)} of {total} {FOLDER_OF[record]} files){beside}"
            )
            yield Finding(
                kind=kind, sentence=sentence, table="items" if record == "item" else "ingest_files", file=worst.path
            )
    empty = [one for one in files if one.ended == "complete" and not one.rows_seen]
    for record in ("item", "event"):
        of_record = [one for one in files if one.record == record]
        if any(one in empty for one in of_record) and not sum(one.rows_seen for one in of_record):
            names = _few([one for one in of_record if one in empty])
            sentence = f"{names} {'are' if len(of_record) > 1 else 'is'} empty: there is no row of {FOLDER_OF[record]}"
            table = "items" if record == "item" else "ingest_files"
            yield Finding(kind="empty_file", sentence=sentence, table=table, file=of_record[0].path)


def _unread(file: RawFileRead) -> int:
    return file.bytes - file.bytes_consumed + file.rows_unread


def _few(files: Sequence[RawFileRead], most: int = 3) -> str:
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(one.path for one in files[:most]) + more


# Fields


def _lacks_field(file: RawFileRead) -> bool:
    return file.ended == "unreadable" and bool(_named_in(file.detail or ""))


def _named_in(detail: str) -> list[str]:
    """Fields that a file as a whole lacks, by what its reader says."""
    found = re.match(r"no row has ([a-z_, ]+)$", detail)
    found = found or re.match(r"the header has .*; (?:missing is|none of) ([a-z_]+(?:, [a-z_]+)*)", detail)
    return found[1].split(", ") if found else []


def missing_fields(evidence: Evidence) -> Iterator[Finding]:
    """Fields that rows or whole files lack, or that hold nothing: the most rows first."""
    rows, empty = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    where: dict[tuple[str, str], Counter[str]] = {}
    for file in evidence.files:
        if _lacks_field(file):
            for column in _named_in(file.detail or ""):
                _count(rows, where, (file.record, column), file.path, max(file.rows_unread, file.rows_seen, 1))
    whole = {
        (file.path, column) for file in evidence.files if _lacks_field(file) for column in _named_in(file.detail or "")
    }
    for one in evidence.rejects:
        if one.reason not in ("missing_field", "anonymous") or not one.column or (one.file, one.column) in whole:
            continue
        if _tells(evidence, one.reason, one.column):
            _count(rows if one.absent else empty, where, (one.record, one.column), one.file, one.rows)
    for (record, column), count in (rows + empty).most_common():
        files = where[record, column]
        yield _missing(evidence, record, column, count, list(files), is_empty=not rows[record, column])


def _count(
    rows: Counter[tuple[str, str]],
    where: dict[tuple[str, str], Counter[str]],
    name: tuple[str, str],
    file: str,
    count: int,
) -> None:
    rows[name] += count
    where.setdefault(name, Counter())[file] += count


def _tells(evidence: Evidence, reason: str, column: str | None = None) -> bool:
    """Whether rejects of one reason, and column, make up a good part; rows without a user are weighed by themselves."""
    of_reason = sum(one.rows for one in evidence.rejects if one.reason == reason and column in (None, one.column))
    if reason == "anonymous":
        events = sum(one.rows_accepted + one.rows_rejected for one in evidence.files if one.record == "event")
        return of_reason > TELLING * max(events, 1)
    every = sum(one.rows for one in evidence.rejects if one.reason != "anonymous")
    seen = sum(one.rows_seen for one in evidence.files)
    return of_reason > TELLING * every and of_reason > 0.01 * seen


def _missing(
    evidence: Evidence, record: str, column: str, rows: int, files: Sequence[str], *, is_empty: bool
) -> Finding:
    told = _names(files) if files else FOLDER_OF[record]
    name = None if is_empty else likely_name(evidence, record, column, files)
    hint = f"; it is called {name} now, most likely" if name else ""
    what = "holds nothing" if is_empty else "is missing"
    return Finding(
        kind="empty_field" if is_empty else "renamed_field" if name else "missing_field",
        sentence=f"field {column} {what} in {number(rows)} rows of {told}{hint}",
        table=TABLE_OF_RECORD[record],
        file=files[0] if files else None,
        column=column,
        value=name,
    )


def likely_name(evidence: Evidence, record: str, column: str, files: Sequence[str]) -> str | None:
    """What a field is called now: of columns that nobody reads the one most like it, or the only new one."""
    from sgrec_core.logs.checking import likely, renamed

    names = files or [one.path for one in evidence.files if one.record == record]
    columns = evidence.unknown_columns(names)
    if alike := renamed([column], columns).get(column):
        return alike
    within = [name for name in columns if column in name.lower() or (len(name) > 2 and name.lower() in column)]
    new = evidence.new_columns(names)
    return next(iter(within), None) or likely(column, columns, cutoff=0.6) or (new[0] if len(new) == 1 else None)


# Values


def bad_rows(evidence: Evidence) -> Iterator[Finding]:
    """Rows that are wrong by themselves, by reason and column."""
    for reason, what in BAD_ROWS:
        of_reason = [one for one in evidence.rejects if one.reason == reason]
        for column, rows in _by_column(of_reason).most_common():
            if not _tells(evidence, reason, column):
                continue
            of_column = [one for one in of_reason if one.column == column]
            first = of_column[0]
            sentence = f"{number(rows)} rows of {_files_of(of_column)} {what}, e.g. {first.detail}"
            kind = "wrong_time" if column == "event_time" or reason in ("other_day", "future_time") else "bad_rows"
            table = TABLE_OF_RECORD[first.record]
            yield Finding(kind=kind, sentence=sentence, table=table, file=first.file, column=column)


def _by_column(rejects: Sequence[Rejects]) -> Counter[str | None]:
    rows = Counter[str | None]()
    for one in rejects:
        rows[one.column] += one.rows
    return rows


def _files_of(rejects: Sequence[Rejects]) -> str:
    return _names(list(dict.fromkeys(one.file for one in rejects)))


def _names(files: Sequence[str]) -> str:
    more = len(files) - 1
    return files[0] + (f" and {more} more file{'s' if more > 1 else ''}" if more else "")


def unknown_types(evidence: Evidence) -> Iterator[Finding]:
    """A type of event that has got another name: many rows of it, or none of one that there should be."""
    import difflib

    of_type = [one for one in evidence.rejects if one.reason == "unknown_event_type"]
    values = Counter[str]()
    for one in of_type:
        if found := re.match(r"column event_type: '(.*)'; valid are ", one.detail):
            values[found[1]] += one.rows
    events = evidence.events or {}
    nothing_chosen = bool(events) and not any(events.get(name) for name in POSITIVE)
    absent = {one.dimension for one in evidence.alarms if one.metric == "events" and one.value < one.low}
    if not values or not (_tells(evidence, "unknown_event_type") or nothing_chosen or absent):
        return
    allowed = load_contract("events").column("event_type").allowed or ()
    wanted = [name for name in allowed if not events.get(name) or name in absent]
    value, rows = values.most_common(1)[0]
    if not _tells(evidence, "unknown_event_type") and not nothing_chosen:
        lacking = sum(one.low - one.value for one in evidence.alarms if one.metric == "events" and one.value < one.low)
        if rows < lacking / 2:
            return
    alike = difflib.get_close_matches(value.lower(), wanted or allowed, n=1, cutoff=0.5)
    name = alike[0] if alike else wanted[0] if len(wanted) == 1 else None
    hint = f"; it stands for {name}, most likely" if name else ""
    sentence = (
        f"{number(rows)} rows of {_files_of(of_type)} have the event_type {value!r}, which is none of"
        f" {', '.join(allowed)}{hint}"
    )
    yield Finding(
        kind="unknown_value", sentence=sentence, table="events", file=of_type[0].file, column="event_type", value=value
    )


# The catalogue


def unknown_items(evidence: Evidence) -> Iterator[Finding]:
    """Events of items that are not in the catalogue: it has lost them, unless it holds all that it held before."""
    rejected = [one for one in evidence.rejects if one.reason == "unknown_item"]
    rows = sum(one.rows for one in rejected)
    if not _tells(evidence, "unknown_item"):
        return
    now, before, shared = evidence.items or 0, evidence.items_before, evidence.items_shared
    of_catalogue = [one for one in evidence.files if one.record == "item"]
    refused = sum(one.rows_rejected + one.rows_unread for one in of_catalogue)
    file = of_catalogue[0].path if of_catalogue else None
    what = f"{number(rows)} events of {_files_of(rejected)} are of items that are not in the catalogue"
    if before and shared is not None and shared >= SHRUNKEN * before and not refused:
        # All that was there is there: events name something else.
        sentence = f"{what}, which holds {number(now)} items and all but {number(before - shared)} of the day before's"
        first = rejected[0]
        yield Finding(
            kind="unknown_items", sentence=f"{sentence}, e.g. {first.detail}", table="events", file=first.file,
            column="item_id",
        )  # fmt: skip
        return
    if before and now < SHRUNKEN * before:
        sentence = f"the catalogue has shrunk to {number(now)} items, from {number(before)} the day before: {what}"
        yield Finding(kind="shrunken_catalogue", sentence=sentence, table="items", file=file)
    elif before and shared is not None and shared < SHRUNKEN * before:
        sentence = f"the catalogue has {number(now)} items, but {number(before - shared)} of the day before's are gone"
        yield Finding(
            kind="changed_catalogue", sentence=f"{sentence}, or have other ids: {what}", table="items", file=file,
            column="item_id",
        )  # fmt: skip
    else:
        refusal = f" and {number(refused)} of its rows were not accepted" if refused else ""
        sentence = f"the catalogue lacks items: it holds {number(now)}{refusal}, and {what}"
        yield Finding(kind="shrunken_catalogue", sentence=sentence, table="items", file=file)


# Rows that come again, and what users chose


def repeated_rows(evidence: Evidence) -> Iterator[Finding]:
    """The same ids again: a file that was delivered twice, most of the time."""
    for reason, column in (("duplicate_event_id", "event_id"), ("duplicate_key", None)):
        of_reason = [one for one in evidence.rejects if one.reason == reason]
        if not _tells(evidence, reason):
            continue
        worst, rows = max(_by_file(of_reason).items(), key=lambda item: item[1])
        seen = next((one.rows_seen for one in evidence.files if one.path == worst), 0)
        of_file = f", {number(rows)} of the {number(seen)} of {worst}" if seen else ""
        total = sum(one.rows for one in of_reason)
        sentence = f"{number(total)} rows repeat an id of the same day{of_file}: was something delivered twice?"
        table = TABLE_OF_RECORD[of_reason[0].record]
        yield Finding(kind="repeated_rows", sentence=sentence, table=table, file=worst, column=column)


def _by_file(rejects: Sequence[Rejects]) -> Mapping[str, int]:
    rows = Counter[str]()
    for one in rejects:
        rows[one.file] += one.rows
    return rows


def nothing_chosen(evidence: Evidence) -> Iterator[Finding]:
    """No click and no conversion among all events: no decision can be made of them."""
    events = evidence.events
    if events is None or not evidence.files or any(events.get(name) for name in POSITIVE):
        return
    of_events = [one for one in evidence.files if one.record == "event"]
    if not events and any(one.rows_accepted for one in of_events):
        return  # the table has lost them since
    seen, files = sum(one.rows_seen for one in of_events), [one.path for one in of_events]
    kinds = ", ".join(f"{number(count)} {kind}s" for kind, count in sorted(events.items()))
    sentence = f"there is no click and no conversion among the day's {number(seen)} raw events: accepted are {kinds}"
    yield Finding(
        kind="no_clicks" if events else "no_events",
        sentence=sentence if events else f"none of the day's {number(seen)} raw events was accepted",
        table="events",
        file=files[0] if files else None,
        column="event_type" if events else None,
    )
