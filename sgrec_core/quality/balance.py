"""Whether the raw logs of a day came in: nothing lost, every file read to its end, not too much that cannot be used."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sgrec_core.errors import GateError
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import ask
from sgrec_core.quality.validation import Check, TableResult, owner_and_runbook
from sgrec_core.runtime.runs import last_done
from sgrec_core.settings import IngestSettings, Settings

if TYPE_CHECKING:
    import pandas as pd

RAW_LOGS = "raw_logs"
"""Name of the result that balances rows in against rows accepted and rejected; no table."""
TABLES = {"event": "events", "item": "items", "user": "users"}
SHRUNK = 20
"""How many bytes of text one byte of a compressed file may hold: what rejected rows weigh is never put too high."""
# A row that was too long to keep says how long it was (`sgrec_core.logs.rows.clipped`).
_REJECTED = """
SELECT record, file, reason, count(*) AS rows, sum(length) AS length FROM (
    SELECT record, file, reason, coalesce(
        CAST(replace(regexp_match(raw_text, '[.]{{3}} \\[([0-9,]+) [a-z]+ in all\\]$')[1], ',', '') AS BIGINT),
        octet_length(raw_text), 0
    ) AS length
    FROM rows WHERE day = '{day}' AND line > 0
) AS kept GROUP BY record, file, reason
"""


def balance_of_rows(settings: Settings, lake: Lake, day: str) -> TableResult:
    """Nothing is lost, in any file; every file was read to its end; not too much is rejected or without a user.

    What was seen comes from ``ingest_files``, accepted and rejected rows are counted in the lake.

    Raises:
        GateError: the day was not ingested.
    """
    owner, runbook = owner_and_runbook("ingest_files", day)
    read = lake.read("ingest_files", where={"day": day}).to_pandas()
    if not len(read):
        raise GateError(f"no count of raw rows for {day}: run `python -m jobs.ingest_events --day {day}` first")
    rejected = rejected_rows(lake, day)
    ingested = last_done(lake, day, "ingest_events")
    tables = dict(TABLES)
    if ingested is not None and ingested.facts.get("items_merged"):
        del tables["item"]  # rows of properties, or of events, make them
    accepted = sum(lake.count(table, where={"day": day}) for table in tables.values())
    told_accepted = int(read.loc[read["record"].isin(list(tables)), "rows_accepted"].sum())
    rows_in, in_rejected = int(read["rows_seen"].sum()), int(rejected["rows"].sum())

    in_lake = rejected.groupby(["record", "file"])["rows"].sum()
    of_files = read.set_index(["record", "path"])
    counted = in_lake.reindex(of_files.index, fill_value=0)
    told = of_files["rows_used"] + of_files["rows_empty"] + of_files["rows_unread"]
    wrong = of_files[(of_files["rows_seen"] != told) | (of_files["rows_rejected"] != counted)]
    strangers = in_lake.index.difference(of_files.index)

    broken = read[_is_broken(read)]
    unread_share = max(
        int(_unread(read).sum()) / max(int(read["bytes"].sum()), 1), int(read["rows_unread"].sum()) / max(rows_in, 1)
    )
    anonymous = int(rejected.loc[rejected["reason"] == "anonymous", "rows"].sum())
    of_events = read[read["record"] == "event"]
    events = int(of_events["rows_accepted"].sum() + of_events["rows_rejected"].sum())
    worst = broken.sort_values("bytes", ascending=False).iloc[0] if len(broken) else None
    checks = [
        Check(
            name="rows in",
            column=None,
            severity="critical",
            success=rows_in > 0,
            observed=f"{rows_in:,} raw rows",
            expected="at least one raw row",
        ),
        Check(
            name="nothing lost",
            column=None,
            severity="critical",
            success=(accepted, in_rejected) == (told_accepted, int(read["rows_rejected"].sum())),
            observed=f"{accepted:,} rows in {', '.join(tables.values())}, {in_rejected:,} in events_rejected",
            expected=f"{told_accepted:,} accepted and {read['rows_rejected'].sum():,} rejected, as ingest_files has it",
        ),
        Check(
            name="nothing lost in a file",
            column=None,
            severity="critical",
            success=not len(wrong) and not len(strangers),
            observed=f"{wrong.index[0][1]}: {_counts(wrong.iloc[0])}, {counted[wrong.index[0]]:,} in events_rejected"
            if len(wrong)
            else f"rejected rows of {strangers[0][1]}, which is no file of the day"
            if len(strangers)
            else f"{len(read):,} files",
            expected="rows seen = rows used + rows empty + rows unread",
        ),
        Check(
            name="files read to their end",
            column=None,
            severity="critical",
            success=worst is None or unread_share <= settings.ingest.max_unread_share > 0,
            observed=f"{len(broken):,} of {len(read):,} files, e.g. {worst['path']}: {worst['detail']}"
            if worst is not None
            else f"{len(read):,} files",
            expected="every file is read to its end; at most"
            f" {settings.ingest.max_unread_share:.2%} of the bytes unread (SGREC_INGEST__MAX_UNREAD_SHARE)",
        ),
        *rejected_shares(read, rejected, settings.ingest),
        Check(
            name="events without a user",
            column="user_id",
            severity="critical",
            success=anonymous <= settings.ingest.max_anonymous_share * max(events, 1),
            observed=f"{anonymous:,} of {events:,} events have no user_id",
            expected=f"at most {settings.ingest.max_anonymous_share:.0%} (SGREC_INGEST__MAX_ANONYMOUS_SHARE)",
            unexpected_count=anonymous,
            unexpected_share=anonymous / max(events, 1),
        ),
    ]
    return TableResult(table=RAW_LOGS, day=day, rows=rows_in, owner=owner, runbook=runbook, checks=checks)


def rejected_rows(lake: Lake, day: str) -> "pd.DataFrame":
    """Rejected rows of the day's files (record, file, reason): ``rows``, and ``length``, the bytes of their text."""
    import pandas as pd

    names = ["record", "file", "reason", "rows", "length"]
    found = pd.DataFrame(ask(lake, "events_rejected", _REJECTED.format(day=day)), columns=names)
    return found.astype({"rows": "int64", "length": "int64"})  # where there are none, too


def rejected_shares(read: "pd.DataFrame", rejected: "pd.DataFrame", ingest: IngestSettings) -> Iterator[Check]:
    """Not too much of the rows, or of the bytes, cannot be used: of all, and of items and users by themselves.

    Beside many events a whole folder of profiles is nothing. Events without a user are looked at elsewhere, and what
    says of an item or user again what was said before loses none.

    Args:
        read: rows of ``ingest_files``.
        rejected: as `rejected_rows` gives it.
    """
    counts = rejected[rejected["reason"] != "anonymous"]
    limit = ingest.max_rejected_share
    for kind in (None, "item", "user"):
        of_kind, bad = read, counts
        if kind is not None:
            of_kind = read[read["record"] == kind]
            bad = counts[(counts["record"] == kind) & (counts["reason"] != "duplicate_key")]
        made = of_kind["rows_accepted"].sum() + of_kind["rows_rejected"].sum() + of_kind["rows_unread"].sum()
        lost = int(bad["rows"].sum() + of_kind["rows_unread"].sum())
        lost_bytes = _lost_bytes(of_kind, bad)
        by_rows, by_bytes = lost / max(int(made), 1), float(lost_bytes.sum()) / max(int(of_kind["bytes"].sum()), 1)
        # Rows say more of what is wrong.
        is_by_bytes = by_bytes > limit >= by_rows
        share = by_bytes if is_by_bytes else by_rows
        why = _most_bytes(bad, of_kind, lost_bytes) if is_by_bytes else _most_frequent_reason(bad, of_kind)
        what = f"{share:.2%} of the {'bytes' if is_by_bytes else 'rows'}, mostly"
        of_rows = kind is None and not is_by_bytes
        yield Check(
            name="rejected share" if kind is None else f"rejected share of {TABLES[kind]}",
            column=None,
            severity="critical",
            success=share <= limit,
            observed=f"{share:.2%} rejected" if share <= limit else f"{'mostly' if of_rows else what} {why}",
            expected=f"at most {limit:.2%} rejected (SGREC_INGEST__MAX_REJECTED_SHARE)",
            # By bytes, and of one kind, it is another share than that of the day's rows.
            unexpected_count=lost if of_rows else 0,
            unexpected_share=share,
        )


def _is_broken(read: "pd.DataFrame") -> "pd.Series":
    return ~read["ended"].isin(["complete", "left_out"])


def _unread(read: "pd.DataFrame") -> "pd.Series":
    """[files] bytes that were not read."""
    return (read["bytes"] - read["bytes_consumed"]).where(_is_broken(read), 0)


def _lost_bytes(read: "pd.DataFrame", bad: "pd.DataFrame") -> "pd.Series":
    """[files] bytes that were not read or whose rows were rejected.

    Of plain text a row weighs what it is long, of other files its share of the rows, or more where its text alone is.
    """
    of_file = bad.groupby(["record", "file"])[["rows", "length"]].sum()
    of_file = of_file.reindex(read.set_index(["record", "path"]).index, fill_value=0).set_axis(read.index)
    made = (read["rows_accepted"] + read["rows_rejected"]).clip(lower=1)
    # Of a line that a mapping makes several rows of, each has its part.
    length = of_file["length"] * (read["rows_used"] / made).clip(upper=1)
    is_plain = read["compression"].isna() & (read["format"] != "parquet")
    others = (read["bytes"] * of_file["rows"] / made).combine(length / SHRUNK, max)
    return (_unread(read) + length.where(is_plain, others)).clip(upper=read["bytes"])


def _most_bytes(bad: "pd.DataFrame", read: "pd.DataFrame", lost_bytes: "pd.Series") -> str:
    """The file that has lost most bytes, and why."""
    of_file = read.loc[lost_bytes.idxmax()]
    within = bad[(bad["file"] == of_file["path"]) & (bad["record"] == of_file["record"])]
    reason = "unread" if not len(within) else within.loc[within["length"].idxmax(), "reason"]
    return f"{reason} ({int(lost_bytes.max()):,} of the {of_file['bytes']:,} bytes of {of_file['path']})"


def _counts(of_file: "pd.Series") -> str:
    """The counts of a row of ``ingest_files``."""
    return ", ".join(f"{of_file[name]:,} {name[5:]}" for name in of_file.index if name.startswith("rows_"))


def _most_frequent_reason(bad: "pd.DataFrame", read: "pd.DataFrame") -> str:
    """The reason of most rejected or unread rows with its file, for the one line that on-call sees first."""
    found = [(int(row.rows), str(row.reason), str(row.file)) for row in bad.itertuples()]
    found += [(row.rows_unread, str(row.detail), row.path) for row in read.itertuples() if row.rows_unread]
    if not found:
        return "in files that could not be read"
    rows, reason, file = max(found)
    return f"{reason} ({rows:,} rows in {file})"
