"""Small state files: whole or as before, and survived where they are torn."""

import json
import logging
from pathlib import Path

import pytest

from sgrec_core.files import append_json_line, json_lines, read_json, write_json, write_json_once

TORN = (b"", b"{", b'{"input": "simu', b"\x00\xff\xfe\x80", b"[1, 2]", b"null", b'"text"')


@pytest.mark.parametrize("content", TORN)
def test_a_torn_file_is_empty_and_a_warning_names_it(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    for _ in range(2):
        assert read_json(path, otherwise="it is made again") == {}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert "it is made again" in record.getMessage()


def test_a_whole_file_and_none_at_all_cost_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(tmp_path / "state.json", {"a": "ü"})
    assert read_json(tmp_path / "state.json") == {"a": "ü"}
    assert read_json(tmp_path / "none.json") == {}
    assert not caplog.records


def test_writing_leaves_nothing_beside_the_file_and_the_first_writer_counts(tmp_path: Path) -> None:
    for number in range(2):
        write_json(tmp_path / "last.json", number)
        write_json_once(tmp_path / "first.json", number)
    contents = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert contents == {"last.json": 1, "first.json": 0}


@pytest.mark.parametrize("torn", [b'{"n": 1, "te', b"\x00\xff\x80", b"7\n", b"\n\n"])
def test_a_torn_line_takes_none_with_it(tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "progress.jsonl"
    append_json_line(path, {"n": 0})
    with path.open("ab") as file:
        file.write(torn)
    append_json_line(path, {"n": 2})
    assert list(json_lines(path, path.read_bytes())) == [{"n": 0}, {"n": 2}]
    assert all(str(path) in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == (0 if not torn.strip() else 1)
