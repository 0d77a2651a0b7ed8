"""The landing layout: the folder in which a day of raw logs waits for the night.

    <landing>/day=2026-01-05/events/*      what users saw and did
                            /catalogue/*   every item that could be shown
                            /profiles/*    what is known of users (optional)
                            /_MANIFEST.json  optional: {"files": [...]}, the files that must be there

Files are JSON Lines or arrays, delimited text with a header, or Parquet, the text formats plain or compressed (``.gz``,
``.bz2``, ``.xz``, ``.zst``); `sgrec_core.logs.readers` knows which by ending or content. Files and folders whose names
begin with ``_`` or ``.``, and files that are still being written by their ending, are not data.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from sgrec_core.errors import InputError, NotReadyError
from sgrec_core.hashing import digest

Record = Literal["event", "item", "user"]
RECORDS: tuple[Record, ...] = get_args(Record)
FOLDERS: dict[Record, str] = {"event": "events", "item": "catalogue", "user": "profiles"}
MANIFEST, SUCCESS = "_MANIFEST.json", "_SUCCESS"
DANGLING = "a link to what is not there"
DELTA = "a Delta table, of whose files only some count"
DELTA_LOG = "_delta_log"
LAYOUT = (
    "<landing>/day=YYYY-MM-DD/{events,catalogue,profiles}/*.{jsonl,json,csv,tsv,parquet}, "
    "text plain or compressed (.gz, .bz2, .xz, .zst)"
)
UNFINISHED = (".tmp", "._copying_", ".inprogress")
"""Endings of files that somebody is still writing."""


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """One raw file of a day."""

    record: Record
    name: str
    """Relative to the day's folder, with forward slashes; bytes that are no UTF-8 are written out."""
    path: Path


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something in the folders of a day that is not read."""

    record: Record
    name: str
    why: str
    is_lost: bool
    """Whether it should have been data."""


@dataclass(frozen=True, kw_only=True)
class Landed:
    """What lies in the folders of a day, each part sorted by name within each record type."""

    files: list[RawFile]
    left_out: list[LeftOut]


def day_folder(landing: Path, day: str) -> Path:
    """Where ``day`` (YYYY-MM-DD) lies under ``landing``."""
    return landing / f"day={day}"


def landed(landing: Path, day: str, *, needs_catalogue: bool = True) -> Landed:
    """The raw files of ``day``, and what lies beside them. Linked folders are followed, each folder once.

    Raises:
        InputError: the day has no event file, or no catalogue file where it needs one.
    """
    folder = day_folder(landing, day)
    files: list[RawFile] = []
    left_out: list[LeftOut] = []
    for record in RECORDS:
        for path, why in sorted(walk(folder / FOLDERS[record], folder, {})):
            name = _name(path, folder)
            if why is None:
                files.append(RawFile(record=record, name=name, path=path))
            else:
                left_out.append(LeftOut(record=record, name=name, why=why, is_lost=why.startswith((DANGLING, DELTA))))
    needed: tuple[Record, ...] = ("event", "item") if needs_catalogue else ("event",)
    for record in needed:
        if not any(file.record == record for file in files):
            raise InputError(
                f"no {FOLDERS[record]} files of {day} in {folder / FOLDERS[record]}; expected layout: {LAYOUT}"
            )
    return Landed(files=files, left_out=left_out)


def raw_files(landing: Path, day: str) -> list[RawFile]:
    """The raw files of ``day``; see `landed`."""
    return landed(landing, day).files


def walk(folder: Path, day: Path, seen: dict[Path, str]) -> Iterator[tuple[Path, str | None]]:
    """What lies below ``folder``: files, and with a reason what is left out. ``seen``: folders, by their own place."""
    if not folder.is_dir():
        return
    place = folder.resolve()
    if place in seen:
        yield folder, f"the folder was read already, as {seen[place]}"
        return
    seen[place] = _name(folder, day)
    for path in sorted(folder.iterdir()):
        if path.name == DELTA_LOG and path.is_dir():
            yield path, f"{DELTA}: sgrec land {_shown(str(folder))} --to FOLDER reads what it holds now"
        elif path.name.startswith(("_", ".")):
            yield path, "names that begin with _ or . are not data"
        elif path.is_dir():
            yield from walk(path, day, seen)
        elif path.name.lower().endswith(UNFINISHED):
            yield path, f"still being written, by its ending: {', '.join(UNFINISHED)}"
        elif path.is_file():
            yield path, None
        elif path.is_symlink():
            yield path, f"{DANGLING}: {_shown(os.readlink(path))}"
        else:
            yield path, "neither file nor folder"


def _name(path: Path, folder: Path) -> str:
    return _shown(path.relative_to(folder).as_posix())


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def check_settled(landed: Landed, landing: Path, day: str, seconds: float) -> None:
    """Refuse a day that may still grow: nothing says that it is whole, and a file has changed of late.

    Whole is what has a manifest, or a ``_SUCCESS`` beside its files or above them.

    Raises:
        NotReadyError: a file changed within the last ``seconds``.
    """
    folder = day_folder(landing, day)
    if seconds <= 0 or (folder / MANIFEST).is_file() or (folder / SUCCESS).is_file():
        return
    for file in landed.files:
        is_whole = any((parent / SUCCESS).is_file() for parent in file.path.parents if folder in parent.parents)
        age = time.time() - file.path.stat().st_mtime
        if not is_whole and age < seconds:
            raise NotReadyError(
                f"{day} may still be growing: {file.name} changed {max(age, 0):.0f} s ago, and there is neither"
                f" {MANIFEST} nor {SUCCESS}; write one of them when the day is whole, or wait {seconds:.0f} s"
                " (SGREC_INGEST__SETTLE_SECONDS)"
            )


def content_fingerprint(landed: Landed, landing: Path, day: str) -> str:
    """Digest of the names and contents of the day's raw files and manifest; modification times do not matter."""
    manifest = day_folder(landing, day) / MANIFEST
    paths = {file.name: file.path for file in landed.files}
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
