"""Where raw logs come from; public data sets become raw logs here, so that every source takes the same way.

The public sets know only the order of events. Days, times and roles are invented here, by rules that `declared_rules`
tells in words and the report repeats. A set becomes ``conversion`` events of role ``logged`` (the training sequence),
and label events of role ``validation`` and ``test``, which are never history of anything that is trained.
"""

import ast
import csv
import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sgrec_core.errors import InputError
from sgrec_core.hashing import digest
from sgrec_core.logs import landing
from sgrec_core.runtime.code import code_digest

KINDS = ("simulator", "scientific", "beauty", "minionerec", "logs")
FILES: dict[str, tuple[str, ...]] = {
    "scientific": ("inter.json", "item.json"),
    "beauty": ("inter.json", "sid_index.json"),
    "minionerec": ("valid.csv", "test.csv", "item.json"),
}
"""What is read of each public set; supplied semantic ids only where there is no text."""
Role = Literal["logged", "validation", "test"]

HOUR = 3_600_000
# Milliseconds of a day that each role's events are spread over: labels follow all logged events of the day.
TIMES: dict[Role, tuple[int, int]] = {
    "logged": (0, 22 * HOUR),
    "validation": (22 * HOUR, 23 * HOUR),
    "test": (23 * HOUR, 24 * HOUR),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the raw logs come from: the parsed form of ``--input`` / ``SGREC_INPUT``."""

    kind: str
    path: Path | None

    @property
    def is_leave_one_out(self) -> bool:
        """Whether held-out labels come with the data (role validation) instead of held-out users."""
        return self.kind in FILES

    @property
    def has_impressions(self) -> bool:
        return self.kind not in FILES


def parse_source(text: str) -> Source:
    """``simulator``, ``scientific:PATH``, ``beauty:PATH``, ``minionerec:PATH`` or ``logs:PATH``.

    Raises:
        InputError: unknown kind, path missing, superfluous or not a folder.
    """
    kind, _, path = text.partition(":")
    valid = "valid are simulator, scientific:PATH, beauty:PATH, minionerec:PATH and logs:PATH"
    if kind not in KINDS:
        raise InputError(f"unknown input {text!r}; {valid}")
    if kind == "simulator":
        if path:
            raise InputError(f"input {text!r}: the simulator takes no path; {valid}")
        return Source(kind=kind, path=None)
    if not path:
        raise InputError(f"input {text!r} names no path; {valid}")
    if not Path(path).is_dir():
        raise InputError(f"input {text!r}: no folder {Path(path).resolve()}")
    return Source(kind=kind, path=Path(path).resolve())


def declared_rules(source: Source, days: int) -> list[str]:
    """What an adaptor invented about the data, in words for the report. Empty for sources that bring their own time."""
    if not source.is_leave_one_out:
        return []
    spread = "one declared day" if days == 1 else f"{days} declared days"
    rules = [
        f"{source.kind}: the set has order but no time: each user's training sequence is spread evenly by position "
        f"over {spread}, 00:00 to 22:00 UTC.",
        f"{source.kind}: every interaction is one event of type conversion and its own request; there are no "
        "impressions, clicks, dislikes, prices, bids or placements, and no user profiles.",
        f"{source.kind}: validation labels stand after all logged events of a day (22:00 to 23:00 UTC), test labels "
        "after those; both are repeated on each declared day and are never history of anything that is trained.",
    ]
    if source.kind == "minionerec":
        rules.append(
            "minionerec: the training file is missing; logged events are the history of each user's first row of "
            "valid.csv, the last 10 items before the user's first target in either file. Targets of valid.csv are "
            "validation labels, those of test.csv test labels; test rows of users without a row in valid.csv are left "
            "out, because their histories may hold test targets. Results compare only with each other."
        )
    else:
        rules.append(
            f"{source.kind}: leave-one-out: a user's last item is the test label, the one before it the validation "
            "label."
        )
    if source.kind == "beauty":
        rules.append("beauty: items have no text; the supplied semantic ids take the place of text embeddings.")
    return rules


@dataclass(frozen=True, kw_only=True)
class PublicSet:
    """A public set in one form, whatever its files look like. Users and items are in the order of the files."""

    sequences: dict[str, dict[Role, list[str]]]
    """User -> role -> item ids in order of time."""
    items: list[dict[str, Any]]
    """Catalogue rows."""


def write_day(source: Source, *, day: str, first_day: str, days: int, landing_root: Path) -> bool:
    """Write the share of a public set that is declared to have happened on ``day``.

    Args:
        source: a public set.
        day: YYYY-MM-DD, one of the ``days`` days from ``first_day`` on.
        landing_root: the landing to write to.

    Returns whether anything was written: a day made from the same files before is left as it is.

    Raises:
        InputError: a file is missing or malformed, or ``day`` is not a declared day.
    """
    number = landing.day_number(day, first_day)
    if not 0 <= number < days:
        last = date.fromisoformat(first_day) + timedelta(days=days - 1)
        raise InputError(
            f"the {source.kind} set is spread over the days {first_day} to {last} (setting adaptor.days={days}); "
            f"it has no logs of {day}"
        )
    fingerprint = fingerprint_of_day(source, day=day, first_day=first_day, days=days)

    def write(folder: Path) -> None:
        public_set = read_public_set(source)
        events = folder / landing.FOLDERS["event"]
        for role in TIMES:
            rows = list(event_rows(public_set, role, day=day, number=number, days=days))
            if rows:
                landing.write_jsonl(events / f"{role}.jsonl.gz", rows)
        landing.write_jsonl(folder / landing.FOLDERS["item"] / "items.jsonl.gz", public_set.items)

    return landing.write_day(landing_root, day, fingerprint, write)


def fingerprint_of_day(source: Source, *, day: str, first_day: str, days: int) -> str:
    """Digest of what `write_day` makes a day from: the files, the days, and the code that reads and spreads them."""
    assert source.path is not None, "a public set has a path"
    contents = [f"{name}={digest(_read_bytes(source.path / name), length=32)}" for name in FILES[source.kind]]
    return digest(source.kind, code_of_logs(), first_day, days, day, *contents, length=32)


def code_of_logs() -> str:
    """Digest of the code that makes raw logs of a public set."""
    return code_digest(f"{__name__}:read_public_set", f"{__name__}:event_rows", f"{landing.__name__}:write_jsonl")


def event_rows(public_set: PublicSet, role: Role, *, day: str, number: int, days: int) -> Iterator[dict[str, Any]]:
    """Raw events of one role on the ``number``-th of ``days`` declared days.

    Position p of n falls on day floor(p * days / n); within the day a user's events lie evenly apart.
    """
    start = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    begin, end = TIMES[role]
    for user_id, by_role in public_set.sequences.items():
        sequence = by_role.get(role, [])
        positions = range(len(sequence))
        if role == "logged":
            positions = range(-(-number * len(sequence) // days), -(-(number + 1) * len(sequence) // days))
        for index, position in enumerate(positions):
            event_id = f"{user_id}-{role}-{position}"
            time = start + begin + (end - begin) * (2 * index + 1) // (2 * len(positions))
            yield {
                "event_id": event_id,
                "event_time": landing.iso_time(time),
                "event_type": "conversion",
                "user_id": user_id,
                "item_id": sequence[position],
                "request_id": event_id,
                "role": role,
            }


def read_public_set(source: Source) -> PublicSet:
    """The files of a public set, checked.

    Raises:
        InputError: a file is missing or malformed; names the file, the place in it and what is expected.
    """
    assert source.path is not None, "a public set has a path"
    public_set = _read_minionerec(source.path) if source.kind == "minionerec" else _read_leave_one_out(source)
    known = {item["item_id"] for item in public_set.items}
    for user_id, by_role in public_set.sequences.items():
        for item_id in (item for sequence in by_role.values() for item in sequence):
            if item_id not in known:
                names = " and ".join(FILES[source.kind])
                raise InputError(
                    f"{source.path}: user {user_id} has item {item_id}, unknown to the catalogue ({names})"
                )
    return public_set


def _read_leave_one_out(source: Source) -> PublicSet:
    assert source.path is not None
    path = source.path / "inter.json"
    sequences: dict[str, dict[Role, list[str]]] = {}
    for user_id, items in _read_object(path, "user -> list of item ids in order of time").items():
        if not isinstance(items, list) or not all(isinstance(item, (int, str)) for item in items):
            raise InputError(f"{path}: user {user_id}: {_short(items)} is not a list of item ids")
        ids = [str(item) for item in items]
        if len(ids) < 3:
            # Too short to hold two labels and a history: all of it is logged.
            sequences[user_id] = {"logged": ids}
        else:
            sequences[user_id] = {"logged": ids[:-2], "validation": ids[-2:-1], "test": ids[-1:]}
    if source.kind == "scientific":
        return PublicSet(sequences=sequences, items=_read_items(source.path / "item.json"))
    codes = read_codes(source.path / "sid_index.json")
    return PublicSet(sequences=sequences, items=[{"item_id": i, "supplied_codes": c} for i, c in codes.items()])


def _read_minionerec(folder: Path) -> PublicSet:
    """MiniOneRec's split is global in time: a user may have several targets in either file, or in one only.

    A row's history is the last 10 items before its target, so a user's first row of valid.csv holds items before the
    first target in either file; histories of later rows hold targets and are not read.
    """
    valid, test = (_read_targets(folder / name) for name in ("valid.csv", "test.csv"))
    sequences: dict[str, dict[Role, list[str]]] = {}
    for user_id, history, target in valid:
        user = sequences.setdefault(user_id, {"logged": history, "validation": [], "test": []})
        user["validation"].append(target)
    for user_id, _, target in test:
        if user_id in sequences:
            sequences[user_id]["test"].append(target)
    return PublicSet(sequences=sequences, items=_read_items(folder / "item.json"))


def _read_targets(path: Path) -> list[tuple[str, list[str], str]]:
    """User, history and target of each row, in the order of the file."""
    csv.field_size_limit(1 << 24)
    try:
        text = _read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error}") from error
    reader = csv.DictReader(text.splitlines(keepends=True))
    expected = ("user_id", "history_item_id", "item_id")
    missing = [name for name in expected if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; the columns are {', '.join(reader.fieldnames or ())}"
        )
    rows = []
    for row in reader:
        try:
            history = ast.literal_eval(row["history_item_id"])
            if not isinstance(history, list) or not row["user_id"] or not row["item_id"]:
                raise ValueError("empty")
        except (ValueError, SyntaxError, TypeError, RecursionError) as error:
            values = {name: _short(row[name]) for name in expected}
            raise InputError(
                f"{path}, line {reader.line_num}: {values}; expected are a user, a list of item ids and an item id"
            ) from error
        rows.append((row["user_id"], [str(item) for item in history], row["item_id"]))
    return rows


def _read_items(path: Path) -> list[dict[str, Any]]:
    """Catalogue rows from ``item.json``: item -> title, description, brand, categories."""
    rows = []
    for item_id, item in _read_object(path, "item -> {title, description, brand, categories}").items():
        if not isinstance(item, dict) or not isinstance(item.get("title"), str):
            raise InputError(f"{path}: item {item_id}: {_short(item)} has no title")
        text = {name: _plain_text(item.get(name)) for name in ("title", "description", "brand", "categories")}
        rows.append({"item_id": item_id, "category": text.pop("categories"), **text})
    return rows


def _plain_text(value: object) -> str | None:
    """Text as a reader sees it: lists joined, markup and entities resolved; None where nothing is left.

    MiniOneRec ships descriptions as the printed form of a Python list, with the shop's HTML in it.
    """
    if value is None:
        return None
    text = str(value)
    if text.startswith("["):
        try:
            parts = ast.literal_eval(text)
            text = " ".join(str(part) for part in parts) if isinstance(parts, list) else text
        except (ValueError, SyntaxError, RecursionError):
            pass
    text = re.sub(r"<!--.*?-->|<(style|script)\b.*?</\1>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    text = html.unescape(re.sub(r"<[a-zA-Z/][^<>]*>", " ", text))
    return " ".join(text.split()) or None


def read_codes(path: Path) -> dict[str, list[int]]:
    """Semantic ids from ``sid_index.json``: item -> ["<a_105>", "<b_30>", ...]."""
    codes: dict[str, list[int]] = {}
    for item_id, tokens in _read_object(path, 'item -> ["<a_105>", "<b_30>", ...]').items():
        matches = [re.fullmatch(r"<[a-z]_(\d+)>", str(token)) for token in tokens] if isinstance(tokens, list) else []
        if not matches or not all(matches):
            raise InputError(f'{path}: item {item_id}: {_short(tokens)}; expected is a list like ["<a_105>", "<b_30>"]')
        codes[item_id] = [int(match.group(1)) for match in matches if match]
    return codes


def _read_object(path: Path, expected: str) -> dict[str, Any]:
    try:
        value = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); expected is an object {expected}") from error
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: {_short(value)}; expected is an object {expected}")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        expected = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in FILES.items())
        raise InputError(f"{path}: cannot be read ({error.strerror}); files of each set: {expected}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
