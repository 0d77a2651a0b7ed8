"""One raw row, and one raw file, before anyone asked whether they make sense."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from sgrec_core.logs.columnar import GoodEvents


class Problem(NamedTuple):
    """Why a row or a file is not accepted: a reason of the contract of ``events_rejected``, and details in words."""

    reason: str
    detail: str


@dataclass
class Reading:
    """How far a file has been read, filled in by whoever reads it; a row of ``ingest_files``."""

    bytes: int = 0
    bytes_consumed: int = 0
    """Of the file as it lies on disk, up to where rows were lost: 0 of an unreadable file and of a compressed array
    that breaks off, of other compressed files what stands before the stream that does."""
    format: str | None = None
    compression: str | None = None
    header: str | None = None
    """The line that names the columns, of delimited text that has one."""
    rows: int = 0
    """Given out one by one, good or bad."""
    rows_empty: int = 0
    """Of them, those that a mapping makes nothing of."""
    rows_unread: int = 0
    """That the file holds besides, of a kind that no row could be read from."""
    ended: str = "complete"
    """See the contract."""
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one row may cost."""

    line_bytes: int = 1_000_000
    raw_text: int = 2000
    """Characters of a bad row's text that are kept."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is known of a file before it is read."""

    required: tuple[str, ...] = ()
    """Columns without which no row can be accepted."""
    known: tuple[str, ...] | None = None
    """Columns that are read, None for all."""
    delimiter: str | None = None
    """None: what the first line looks like."""
    quoted: bool | None = None
    """Whether values of delimited text may stand in quotes; None: what the delimiter and the header look like."""
    header: tuple[str, ...] | None = None
    """Names of the columns where the file itself has none."""
    good: GoodEvents | None = None
    """Takes out of a batch what needs no look at each row."""

    def problem(self, names: list[str]) -> Problem | None:
        """Why no row can be read under a header of these names, in words."""
        told = ", ".join(names)[:300]
        repeated = sorted({name for name in names if names.count(name) > 1 and self.wants(name)})
        if repeated:
            detail = f"the header names {', '.join(repeated)} more than once: {told}; which one counts is not known"
            return Problem("repeated_field", detail)
        missing = [name for name in self.required if name not in names]
        if not missing:
            return None
        none = " none of" if len(missing) == len(self.required) else ""
        detail = f"the header has {told};{none or ' missing is'} {', '.join(missing)}"
        if none:
            detail += ": is it another format, or is there no header? A mapping tells (docs/input.md)"
        return Problem("missing_field", detail)

    def wants(self, name: str) -> bool:
        return self.known is None or name in self.known


class RawRow(NamedTuple):
    """One row as read, before anyone asked whether it makes sense."""

    line: int
    """Physical line where the row begins, or which element of a JSON array or row of a Parquet file it is, from 1; 0:
    the file as a whole. No two rows of a file have the same."""
    fields: dict[str, Any] | None
    raw_text: str | None
    problem: Problem | None = None
    loose: bool = False
    """Whether values are untyped text (CSV): numbers come as digits and nothing tells empty from absent."""


class GoodRows(NamedTuple):
    """Rows that were accepted together."""

    lines: pa.Array
    table: pa.Table
    texts: pa.Array | None = None
    """Of lines of text, each row's."""


class Unreadable(NamedTuple):
    """A value that its file holds and Python cannot; costs the row where the row needs it."""

    problem: Problem


class UnreadableFileError(Exception):
    """No row of the file can be read; ``rows`` is how many it has."""

    def __init__(self, problem: Problem, rows: int = 0) -> None:
        super().__init__(problem.detail)
        self.problem, self.rows = problem, rows


class BrokenOffError(Exception):
    """The bytes of a file end early or are damaged; ``tail`` is the unfinished last line."""

    def __init__(self, problem: Problem, tail: bytes = b"") -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.tail = tail


def clipped(text: str | bytes, characters: int) -> str:
    """At most ``characters`` characters of ``text`` that any UTF-8 table can hold, with the full length told."""
    unit = "characters" if isinstance(text, str) else "bytes"
    head = text[: 4 * characters] if isinstance(text, bytes) else text[:characters]
    decoded = (head if isinstance(head, bytes) else head.encode("utf-8", "backslashreplace")).decode(
        "utf-8", "backslashreplace"
    )
    if len(decoded) <= characters and len(head) == len(text):
        return decoded
    return f"{decoded[:characters]}... [{len(text):,} {unit} in all]"


def too_long(number: int, data: bytes, length: int, limits: Limits) -> RawRow:
    raw_text = f"{clipped(data, limits.raw_text)[: limits.raw_text]}... [{length:,} bytes in all]"
    detail = f"the row has {length:,} bytes; valid is at most {limits.line_bytes:,} (setting ingest.max_line_bytes)"
    return RawRow(number, None, raw_text, Problem("too_long", detail))


def not_utf8(error: UnicodeDecodeError) -> Problem:
    return Problem("invalid_encoding", f"byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8")
