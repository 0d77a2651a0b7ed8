"""Small files that other processes read while they are written."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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
