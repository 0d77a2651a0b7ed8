"""``sgrec check-input`` says what a night would make of rows that look fine one by one."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from sgrec_core.cli import app
from sgrec_core.logs.landing import write_jsonl

COLUMNS = {
    "event_time": {"from": "at", "unit": "s"},
    "user_id": "who",
    "item_id": "what",
    "event_type": {"const": "impression"},
}
CLICK = {"columns": {"event_type": {"const": "click"}}}


def told(tmp_path: Path, text: str, **events: object) -> str:
    folder = tmp_path / "logs" / "day=2026-01-05" / "events"
    folder.mkdir(parents=True)
    (folder / "e[red].csv").write_text(text)
    mapping = {"events": {"columns": COLUMNS, "session_minutes": 30, **events}, "catalogue_from_events": True}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(mapping))
    arguments = ["check-input", "--input", f"logs:{tmp_path / 'logs'}", "--map", str(tmp_path / "map.yaml")]
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


OWN = {"event_id": "e1", "event_time": "2026-01-05T10:00:00Z", "user_id": "u1", "item_id": "i1", "event_type": "click",
       "request_id": "r1"}  # fmt: skip


def checked(tmp_path: Path, rows: list[dict]) -> Result:
    """What the command says of a day of sgrec's own columns."""
    day = tmp_path / "logs" / "day=2026-01-05"
    write_jsonl(day / "events" / "a.jsonl", rows)
    write_jsonl(day / "catalogue" / "c.jsonl", [{"item_id": "i1"}])
    result = CliRunner(charset="utf-8").invoke(app, ["check-input", "--input", f"logs:{tmp_path / 'logs'}"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_what_the_manifest_lists_and_the_folder_lacks_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "logs" / "day=2026-01-05" / "_MANIFEST.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"files": ["events/a.jsonl", "events/gone[1].jsonl"]}))
    found = checked(tmp_path, [OWN])
    assert "events/gone[1].jsonl  missing: listed in the manifest but not in the folder" in found.output
    assert "a.jsonl  missing" not in found.output
    assert found.exit_code == 1
    manifest.write_text("{}")
    assert "_MANIFEST.json  missing: not a manifest like" in checked(tmp_path, [OWN]).output
    manifest.write_text(json.dumps({"files": ["events/a.jsonl", "catalogue/c.jsonl"]}))
    assert checked(tmp_path, [OWN]).exit_code == 0


def test_half_a_surrogate_pair_is_shown_written_out(tmp_path: Path) -> None:
    odd = tmp_path / "logs" / "day=2026-01-05" / "events" / "b.jsonl"
    odd.parent.mkdir(parents=True)
    odd.write_text(json.dumps({**OWN, "event_id": "e2", "note\udc00": "\ud83d", "placement": "\ud800"}) + "\n")
    found = checked(tmp_path, [OWN])
    assert "note\\udc00=\\ud83d" in found.output
    assert "placement=\\ud800" in found.output
    assert found.exit_code == 0


ROW = "at,who,what,flag\n1767607200,u1,i1,1\n"


@pytest.mark.parametrize(
    ("text", "events", "words"),
    [
        (ROW, {"where": "flag == 1"}, "1 rows of which the mapping makes nothing; are where and when right?"),
        (ROW, {"rows": [{}, {"when": "flag == 1", **CLICK}]}, "no row becomes click, which the mapping makes"),
        (ROW + "1767607200,u1,i1,1\n", {}, "1 of them repeat the id of an event: rejected"),
        (ROW.replace("i1", "[/x]"), {}, "e[red].csv  csv"),
        (ROW.replace("i1", "[/x]"), {}, "what=[/x], flag=1"),
    ],
)
def test_rows_that_are_lost_without_a_reject_are_told(tmp_path: Path, text: str, events: dict, words: str) -> None:
    assert words in told(tmp_path, text, **events)
