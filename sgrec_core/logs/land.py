"""Raw files that hold many days become a landing of UTC days: what ``sgrec land`` does.

Rows are not changed: each goes as it stands to a file of its day, so that the mapping that found its time reads it
again in the night. Memory is bounded by a row and some open files. What is landed twice is the same files again; what
comes late is added to its days, which are named, because their nights are to be run again.
"""

import gzip
import hashlib
import json
import re
import shutil
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from sgrec_core.errors import InputError
from sgrec_core.files import write_json
from sgrec_core.logs.fields import Fields, InvalidRowError
from sgrec_core.logs.landing import DANGLING, DELTA_LOG, FOLDERS, MANIFEST, RawFile, Record, day_folder, walk
from sgrec_core.logs.mapper import Mapper, MappingError, mapper_of
from sgrec_core.logs.parsing import LAYOUTS, Options
from sgrec_core.logs.readers import kind_of, read_rows
from sgrec_core.logs.rows import Layout, Limits, Problem, RawRow, Reading, UnreadableFileError
from sgrec_core.logs.streams import COMPRESSIONS
from sgrec_core.logs.table_rows import of_database, of_delta
from sgrec_core.logs.text import row_json

OPEN_FILES = 64
UNPLACED = "unplaced"
"""Folder beside the days, for rows of which no day is known."""
GUESSES: dict[Record, tuple[str, ...]] = {"item": ("catalog", "item", "product"), "user": ("profile", "user")}
"""Parts of names by which files are known where no mapping names them; all others are events."""
DEEDS = ("event", "click", "view", "impression", "action", "log", "rating", "transaction", "order", "buy", "purchase")
"""Parts of names that say what was done, whatever else they say: user_clicks, item_views."""


@dataclass
class LandedFiles:
    """What became of the raw files."""

    rows: Counter[str] = field(default_factory=Counter)
    """By day."""
    unplaced: Counter[str] = field(default_factory=Counter)
    """By reason, with an example."""
    whole: list[str] = field(default_factory=list)
    """Catalogues and profiles, which each day has got."""
    left_out: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Files that could not be read to their end, with the reason."""
    again: list[str] = field(default_factory=list)
    """Days that were there before and have got rows."""
    beside: list[str] = field(default_factory=list)
    """Landed files of the same names with other content: perhaps these are to take their place."""


@dataclass(frozen=True)
class Raw:
    """One source of raw rows."""

    name: str
    """As patterns of a mapping see it."""
    record: Record
    path: Path | None
    """A file, or None where rows come from a table."""
    rows: Callable[[], Iterator[dict[str, Any]]] | None = None
    place: str = ""
    """Of a table: which it is among those of its name."""


def land(sources: Iterable[str], options: Options, to: Path, progress: Callable[[str], None]) -> LandedFiles:
    """Split ``sources`` (files, folders, Delta tables, SQLAlchemy URLs with ``#table``) into days below ``to``.

    Raises:
        InputError: a source cannot be found, or holds no event.
    """
    raws: list[Raw] = []
    found = LandedFiles()
    for source in sources:
        raws += _raws(source, options, found)
    events = [raw for raw in raws if raw.record == "event"]
    if not events:
        raise InputError("no source holds events; name files of events, or a mapping whose patterns find them")
    before = {folder.name.removeprefix("day="): _listed(folder) for folder in to.glob("day=*")}
    written: dict[str, set[str]] = {}
    changed: set[str] = set()
    taken: dict[str, Raw] = {}
    for raw in events:
        progress(raw.name)
        name = _landed_name(raw)
        if name in taken:
            found.left_out.append(f"{raw.path or raw.name}: the same as {taken[name].path or raw.name}, landed once")
            continue
        taken[name] = raw
        for day, is_new in _split(raw, name, options, to, found):
            written.setdefault(day, set()).add(f"{FOLDERS['event']}/{name}")
            changed |= {day} if is_new else set()
            found.beside += _beside(raw, name, day_folder(to, day))
    for raw in raws:
        if raw.record != "event":
            progress(raw.name)
            name = _whole_name(raw, taken)
            found.whole.append(f"{FOLDERS[raw.record]}/{name}")
            _check_name(options, raw, name)
            taken[f"{FOLDERS[raw.record]}/{name}"] = raw
            for day in written:
                written[day].add(_whole(raw, name, day_folder(to, day)))
    landed_now = {f"{day}/{name}" for day, names in written.items() for name in names}
    found.beside = [one for one in found.beside if one.removeprefix("day=") not in landed_now]
    for day, names in written.items():
        known = before.get(day, set())
        if known and (day in changed or not names <= known):
            found.again.append(day)
        write_json(day_folder(to, day) / MANIFEST, {"files": sorted(known | names)})
    return found


def _listed(folder: Path) -> set[str]:
    try:
        return set(json.loads((folder / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _raws(source: str, options: Options, found: LandedFiles) -> Iterator[Raw]:
    if "://" in source:
        yield _of_database(source)
        return
    path = Path(source)
    if (path / DELTA_LOG).is_dir():
        yield Raw(path.name, _record(path.name, options) or "event", None, lambda: of_delta(path), str(path.resolve()))
        return
    if not path.exists():
        raise InputError(f"{source}: no such file or folder")
    for file, why in sorted(walk(path, path, {})) if path.is_dir() else [(path, None)]:
        if why is not None:
            if file.name == DELTA_LOG:
                found.broken.append(f"{file.parent}: a Delta table; land it by its own name")
            elif why.startswith(DANGLING):
                found.broken.append(f"{file}: {why}")
            else:
                found.left_out.append(f"{file}: {why}")
            continue
        if (file.parent / DELTA_LOG).is_dir():
            continue
        record = _record(file.name, options, file.parent.name)
        if record is None:
            found.left_out.append(f"{file}: the mapping names no such file")
        else:
            yield Raw(file.name, record, file)


def _has(name: str, parts: Iterable[str]) -> bool:
    return any(part in name.lower() for part in parts)


def _record(name: str, options: Options, folder: str = "") -> Record | None:
    """What the rows of a file of this name are, by the mapping, and where that says nothing by folder and name."""
    mapping = options.mapping
    mapped = [record for record in FOLDERS if mapping is not None and getattr(mapping, FOLDERS[record]) is not None]
    for record in mapped:
        try:
            mapper_of(mapping, RawFile(record=record, name=f"{FOLDERS[record]}/{name}", path=Path(name)))
            return record
        except LookupError:
            continue
    for record, parts in GUESSES.items():
        if record in mapped:
            continue
        if folder == FOLDERS[record] or _has(name.replace("catalog", ""), DEEDS) < _has(name, parts):
            return record
    return None if "event" in mapped else "event"


def _of_database(source: str) -> Raw:
    url, _, table = source.partition("#")
    if not table:
        raise InputError(f"{source}: name the table, as in sqlite:///shop.db#events")
    table = table.strip()
    return Raw(table, "event", None, lambda: of_database(url, table), re.sub("//[^/]*@", "//", url))


def _landed_name(raw: Raw) -> str:
    """What a source of events is called below its days: equal content, or the same table, has the same name."""
    if raw.path is None:
        return f"{raw.name}-{_short(raw.place)}.jsonl.gz"
    ending = PurePosixPath(raw.path.name)
    ending = ending.with_suffix("") if ending.suffix in COMPRESSIONS else ending
    suffix = ".jsonl" if ending.suffix in (".parquet", ".json") else ending.suffix
    return f"{ending.stem}-{_digest(raw.path)}{suffix}.gz"


def _beside(raw: Raw, name: str, day: Path) -> list[str]:
    """Files of ``day`` that are called as this one is, but for the digest of what they hold."""
    if raw.path is None:
        return []
    # As `_landed_name` makes it.
    of_name = re.fullmatch(r"(.*-)[0-9a-f]{10}(\..*)", name)
    assert of_name is not None, name
    same = re.compile(f"{re.escape(of_name[1])}[0-9a-f]{{10}}{re.escape(of_name[2])}")
    others = sorted(path.name for path in (day / FOLDERS["event"]).iterdir() if path.name != name)
    return [f"{day.name}/{FOLDERS['event']}/{other}" for other in others if same.fullmatch(other)]


def _whole_name(raw: Raw, taken: Iterable[str]) -> str:
    """What a catalogue or profiles are called below a day; files of one name in two folders are two files."""
    name = raw.name if raw.path is not None else raw.name + ".jsonl.gz"
    if f"{FOLDERS[raw.record]}/{name}" not in taken:
        return name
    stem, dot, endings = name.partition(".")
    return f"{stem}-{_short(str(raw.path.resolve()) if raw.path is not None else raw.place)}{dot}{endings}"


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape")).hexdigest()[:10]


def _split(raw: Raw, name: str, options: Options, to: Path, found: LandedFiles) -> list[tuple[str, bool]]:
    """Write each row of a source to its day; the days, and whether they hold other rows of it than before."""
    reading = Reading()
    mapper = _mapper(options, raw)
    _check_name(options, raw, name)
    files = _DayFiles(to, f"{FOLDERS['event']}/{name}")
    with files:
        for row in _rows(raw, options, mapper, reading):
            problem: Problem | None = row.problem
            days: set[str] = set()
            if row.fields is not None:
                problem, days = _days(row, mapper, options)
            if row.line == 0:
                continue
            for day in days:
                files.write(day, _text(row, reading), reading.header)
                found.rows[day] += 1
            if not days and problem is not None:
                cut = "; only its beginning is kept" if problem.reason == "too_long" else ""
                found.unplaced[f"{problem.reason}: {problem.detail}{cut}"] += 1
                files.write(None, _text(row, reading), reading.header)
    if reading.ended not in ("complete", "left_out"):
        found.broken.append(f"{raw.name}: {reading.detail}")
    return files.done()


def _mapper(options: Options, raw: Raw) -> Mapper | None:
    name = f"{FOLDERS[raw.record]}/{raw.name}"
    try:
        return mapper_of(options.mapping, RawFile(record=raw.record, name=name, path=Path(name)))
    except LookupError:
        return None


def _check_name(options: Options, raw: Raw, name: str) -> None:
    """The mapping must find the landed file by its name as it finds the raw one."""
    mapper = _mapper(options, raw)
    if mapper is not None and _mapper(options, Raw(name, raw.record, None)) != mapper:
        raise InputError(
            f"{raw.name} will be landed as {name}, which the mapping would not read the same way; let its pattern"
            f" end in *, as in {PurePosixPath(raw.name).stem}*"
        )


def _rows(raw: Raw, options: Options, mapper: Mapper | None, reading: Reading) -> Iterator[RawRow]:
    if raw.path is not None:
        # The whole text of a row goes on, however long it may be.
        limits = Limits(line_bytes=options.limits.line_bytes, raw_text=options.limits.line_bytes)
        yield from read_rows(raw.path, raw.name, limits, _layout(raw.path, raw.name, mapper), reading)
        return
    assert raw.rows is not None
    reading.format = "jsonl"
    for number, fields in enumerate(raw.rows(), start=1):
        yield RawRow(number, fields, row_json(fields))


def _layout(path: Path, name: str, mapper: Mapper | None) -> Layout:
    layout = mapper.layout if mapper is not None else LAYOUTS["event"]
    try:
        is_parquet = kind_of(path, name)[0] == "parquet"
    except (UnreadableFileError, OSError):  # whoever reads it will tell
        is_parquet = False
    # Of text the whole row goes on; of Parquet only those columns that are read.
    return replace(layout, known=None) if is_parquet else layout


def _days(row: RawRow, mapper: Mapper | None, options: Options) -> tuple[Problem | None, set[str]]:
    """The UTC days of the events that a row makes."""
    assert row.fields is not None
    try:
        made = [row.fields] if mapper is None else list(mapper.rows(row.fields))
        times = [Fields(fields, row.loose, options.nulls).time("event_time") for fields in made]
    except MappingError as error:
        return error.problem, set()
    except InvalidRowError as error:
        return error.problem, set()
    return Problem("empty", "the mapping makes no event of it"), {time.date().isoformat() for time in times}


def _text(row: RawRow, reading: Reading) -> str:
    text = row.raw_text or ""
    # Elements of an array may be spread over lines; a quoted value of delimited text may as well, and stays so.
    return re.sub(r"\s*[\r\n]\s*", " ", text) if reading.format == "json" else text


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:10]


def _whole(raw: Raw, name: str, folder: Path) -> str:
    """Put a catalogue or profiles below a day, as they are; the name below the day."""
    name = f"{FOLDERS[raw.record]}/{name}"
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".inprogress")
    part.unlink(missing_ok=True)
    if raw.path is not None:
        try:
            part.hardlink_to(raw.path.resolve())
        except OSError:  # another disk
            shutil.copyfile(raw.path, part)
    else:
        assert raw.rows is not None
        with gzip.open(part, "wt", encoding="utf-8") as stream:
            for fields in raw.rows():
                stream.write(row_json(fields) + "\n")
    part.replace(target)
    return name


class _DayFiles:
    """A file of one name below each day, written at once and there under its name only when all is done."""

    def __init__(self, to: Path, name: str) -> None:
        self._to, self._name = to, name
        self._open: OrderedDict[str | None, _Gzip] = OrderedDict()
        self._paths: dict[str | None, Path] = {}

    def __enter__(self) -> "_DayFiles":
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def write(self, day: str | None, text: str, header: str | None) -> None:
        """Add a row to the file of ``day``, or to that of rows without a day."""
        if day not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            is_new = day not in self._paths
            path = self._paths.setdefault(day, self._place(day))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[day] = _Gzip(path, is_new)
            if is_new and header is not None:
                self._open[day].write(header.encode() + b"\n")
        self._open.move_to_end(day)
        self._open[day].write(text.encode("utf-8", "backslashreplace") + b"\n")

    def done(self) -> list[tuple[str, bool]]:
        """Give the files their names; days, and whether their file is another than before."""
        days = []
        for day, path in self._paths.items():
            target = path.with_name(path.name.removesuffix(".inprogress"))
            is_new = not target.is_file() or _digest(target) != _digest(path)
            path.replace(target)
            if day is not None:
                days.append((day, is_new))
        return days

    def _place(self, day: str | None) -> Path:
        folder = self._to / UNPLACED if day is None else day_folder(self._to, day)
        return folder / f"{self._name}.inprogress"


class _Gzip(gzip.GzipFile):
    """A file, or a further member of one; no name and no time in the header, so that equal rows give equal files."""

    def __init__(self, path: Path, is_new: bool) -> None:
        self._raw = path.open("wb" if is_new else "ab")
        super().__init__(filename="", mode="wb", fileobj=self._raw, mtime=0, compresslevel=5)

    def close(self) -> None:
        super().close()
        self._raw.close()
