"""``sgrec check-input`` says what a night would make of rows that look fine one by one."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sgrec_core.cli import app

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
