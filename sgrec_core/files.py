"""Small files that other processes read while they are written, and that a crash of the machine may tear."""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` atomically, indented, with a final newline."""
    write_text(path, _as_json(content))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically."""
    with _beside(path, text) as part:
        part.replace(path)


def write_json_once(path: Path, content: Any) -> None:
    """Like `write_json` where the file is not there yet; of several writers the first one counts."""
    write_text_once(path, _as_json(content))


def write_text_once(path: Path, text: str) -> None:
    """Write ``text`` atomically where the file is not there yet; of several writers the first one counts."""
    with _beside(path, text) as part, contextlib.suppress(FileExistsError):
        os.link(part, path)


def read_json(path: Path, *, otherwise: str = "it is taken for empty") -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, and where it is damaged.

    Of damage a warning tells, with ``otherwise``: what is done instead.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        warn_of_damage(path, str(error), otherwise)
        return {}
    if isinstance(content, dict):
        return content
    warn_of_damage(path, f"it holds no object but {content!r:.40}", otherwise)
    return {}


def append_json_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add one line of JSON; two processes may do so at once, and a line that was torn takes none with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write of one line in append mode is atomic.
    with path.open("ab+", buffering=0) as file:
        torn = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(content).encode() + b"\n")


def json_lines(path: Path, data: bytes) -> Iterable[dict[str, Any]]:
    """The objects in complete lines of JSON from ``path``, without those that are damaged, of which a warning tells."""
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            warn_of_damage(path, f"{line!r:.40}: {error}", "such lines are passed over")
            continue
        if isinstance(content, dict):
            yield content
        else:
            warn_of_damage(path, f"{line!r:.40}: no object", "such lines are passed over")


@cache
def warn_of_damage(path: Path, damage: str, otherwise: str) -> None:
    """A line on stderr, once in a process."""
    logging.getLogger(__name__).warning("%s is damaged (%s): %s", path, damage, otherwise)


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


@contextmanager
def _beside(path: Path, text: str) -> Iterator[Path]:
    """A whole file next to ``path``, under a name that no other thread or machine uses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.write_text(text, encoding="utf-8")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
