"""The landing layout: the folder in which a day of raw logs waits for the night.

    <landing>/day=2026-01-05/events/*      what users saw and did
                            /catalogue/*   every item that could be shown
                            /profiles/*    what is known of users (optional)
                            /_MANIFEST.json  optional: {"files": [...]}, the files that must be there

Files are JSONL (``.jsonl``, ``.ndjson``), CSV with a header (``.csv``) or Parquet (``.parquet``), the text formats
plain or compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``). Names that begin with ``_`` or ``.`` are not data.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from sgrec_core.errors import InputError
from sgrec_core.hashing import digest

Record = Literal["event", "item", "user"]
RECORDS: tuple[Record, ...] = get_args(Record)
FOLDERS: dict[Record, str] = {"event": "events", "item": "catalogue", "user": "profiles"}
MANIFEST = "_MANIFEST.json"
LAYOUT = (
    "<landing>/day=YYYY-MM-DD/{events,catalogue,profiles}/*.{jsonl,csv,parquet}, "
    "text plain or compressed (.gz, .bz2, .xz, .zst)"
)


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """One raw file of a day."""

    record: Record
    name: str
    """Relative to the day's folder, with forward slashes."""
    path: Path


def day_folder(landing: Path, day: str) -> Path:
    """Where ``day`` (YYYY-MM-DD) lies under ``landing``."""
    return landing / f"day={day}"


def raw_files(landing: Path, day: str) -> list[RawFile]:
    """The raw files of ``day``, sorted by name within each record type.

    Raises:
        InputError: the day has no event file or no catalogue file at all.
    """
    folder = day_folder(landing, day)
    files = [
        RawFile(record=record, name=path.relative_to(folder).as_posix(), path=path)
        for record in RECORDS
        for path in sorted((folder / FOLDERS[record]).rglob("*"))
        if path.is_file() and not path.name.startswith(("_", "."))
    ]
    for record in ("event", "item"):
        if not any(file.record == record for file in files):
            raise InputError(
                f"no {FOLDERS[record]} files of {day} in {folder / FOLDERS[record]}; expected layout: {LAYOUT}"
            )
    return files


def content_fingerprint(landing: Path, day: str) -> str:
    """Digest of the names and contents of the day's raw files and manifest; modification times do not matter.

    Raises:
        InputError: as `raw_files`.
    """
    manifest = day_folder(landing, day) / MANIFEST
    paths = {file.name: file.path for file in raw_files(landing, day)}
    return digest(*file_digests({**paths, **({MANIFEST: manifest} if manifest.is_file() else {})}), length=32)


def file_digests(paths: Mapping[str, Path]) -> list[str]:
    """``name=digest`` of the content of each file, in their order."""
    digests = []
    for name, path in paths.items():
        with path.open("rb") as stream:
            digests.append(f"{name}={hashlib.file_digest(stream, 'blake2b').hexdigest()}")
    return digests


def write_day(landing: Path, day: str, fingerprint: str, write: Callable[[Path], None]) -> bool:
    """Make the folder of ``day`` by ``write(folder)``, unless one made from the same ``fingerprint`` is there already.

    The folder appears whole or not at all: it is written beside its place and then renamed. Its manifest lists the
    files and carries the fingerprint. Returns whether anything was written.
    """
    target = day_folder(landing, day)
    if _made_from(target) == fingerprint:
        return False
    work = landing / f".{target.name}.{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        write(work)
        names = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
        (work / MANIFEST).write_text(json.dumps({"files": names, "made_from": fingerprint}, indent=1) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _made_from(folder: Path) -> str | None:
    try:
        return json.loads((folder / MANIFEST).read_text()).get("made_from")
    except (OSError, ValueError, AttributeError):
        return None


def write_lines(path: Path, lines: Iterable[str | bytes]) -> None:
    """Write lines as UTF-8 (bytes as they are), gzipped if the name ends in ``.gz``; equal lines give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    if path.suffix == ".gz":
        # No file name and no time in the header: the content alone decides the fingerprint.
        body = gzip.compress(body, compresslevel=5, mtime=0)
    path.write_bytes(body)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line; keys whose value is None are left out."""
    write_lines(path, (json_line(row) for row in rows))


def json_line(row: Mapping[str, object]) -> str:
    """The row as one line of JSON without its None values."""
    present = {key: value for key, value in row.items() if value is not None}
    return json.dumps(present, ensure_ascii=False, separators=(",", ":"))


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV with a header from the first row's keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def day_number(day: str, first_day: str) -> int:
    """Days from ``first_day`` to ``day``."""
    return (date.fromisoformat(day) - date.fromisoformat(first_day)).days


def iso_time(milliseconds: int) -> str:
    """Milliseconds since 1970 as ISO 8601 in UTC."""
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds") + "Z"
