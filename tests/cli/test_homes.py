"""Homes and folders of logs that cannot be used: one line, exit code 2, and nothing is bound to what was wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgrec_core.cli import homes
from sgrec_core.logs import landing
from sgrec_core.settings import PROJECT_ROOT, Settings


def sgrec(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", "from sgrec_core.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(PROJECT_ROOT), **environment},
    )
    return done.returncode, done.stderr.strip().splitlines()


def landed(root: Path, day: str = "2026-01-05") -> Path:
    landing.write_jsonl(landing.day_folder(root, day) / "events" / "a.jsonl", [{"event_id": "e1"}])
    landing.write_jsonl(landing.day_folder(root, day) / "catalogue" / "a.jsonl", [{"item_id": "i1"}])
    return root


@pytest.mark.parametrize(
    "command", [("nightly",), ("status",), ("backfill", "--from", "2026-01-05", "--to", "2026-01-05")]
)
@pytest.mark.parametrize(
    ("home", "says"),
    [
        ("s3://bucket/home", "SGREC_HOME='s3://bucket/home': Value error, the home is a folder on this machine"),
        ("FILE", "Value error, a file is there; valid is a folder"),
    ],
)
def test_a_home_that_is_no_folder(tmp_path: Path, command: tuple[str, ...], home: str, says: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    code, (line,) = sgrec(*command, SGREC_HOME=home.replace("FILE", str(file)))
    assert code == 2
    assert says in line
    assert not Path("s3:").exists()


def test_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    code, (line,) = sgrec("nightly", SGREC_HOME="/proc/sgrec/home")
    assert code == 2
    assert "home /proc/sgrec/home cannot be written to" in line


def test_a_wrong_folder_of_logs_does_not_bind_the_home(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    home = tmp_path / "home"
    code, (line,) = sgrec("nightly", "--input", f"logs:{tmp_path / 'empty'}", SGREC_HOME=str(home))
    assert code == 2
    assert "no day has landed" in line
    assert homes.source_of(home) is None
    right = landed(tmp_path / "logs")
    os.environ["SGREC_HOME"], before = str(home), os.environ.get("SGREC_HOME")
    try:
        settings = homes.settle_home(f"logs:{right}", starts_anew=True)
    finally:
        if before is None:
            del os.environ["SGREC_HOME"]
        else:
            os.environ["SGREC_HOME"] = before
    assert settings.input == f"logs:{right}"
    assert json.loads((home / "source.json").read_text()) == {"input": f"logs:{right}"}


@pytest.mark.parametrize("day", ["", "yesterday", "2026-1-5"])
def test_a_day_that_is_none(tmp_path: Path, day: str) -> None:
    home = tmp_path / "home"
    code, (line,) = sgrec("nightly", "--day", day, SGREC_HOME=str(home))
    assert (code, line) == (2, f"day {day!r} is not a date; valid is YYYY-MM-DD, for example 2026-01-05")
    assert not home.exists()


def test_a_stray_folder_beside_the_days_is_told_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = landed(landed(tmp_path / "logs"), "2026-01-06")
    (root / "day=2026-01-06_old").mkdir()
    assert homes.default_day(Settings(home=tmp_path, input=f"logs:{root}")) == "2026-01-06"
    assert "day=2026-01-06_old is no day and left alone" in capsys.readouterr().out.replace("\n", "")


def test_a_mapping_is_kept_by_the_home_and_a_wrong_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, root = tmp_path / "home", landed(tmp_path / "logs")
    monkeypatch.setenv("SGREC_HOME", str(home))
    settings = homes.settle_home(f"logs:{root}", None, Path("retailrocket"), starts_anew=True)
    assert settings.mapping == home / "map.yaml"
    assert "visitorid" in settings.mapping.read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("events: {columns: {}}")
    code, (line,) = sgrec("nightly", "--map", str(wrong))
    assert code == 2
    assert line.startswith(f"mapping {wrong}: ")
    code, (line,) = sgrec("nightly", "--map", "mindd")
    assert code == 2
    assert "mapping mindd cannot be read" in line
    assert "visitorid" in (home / "map.yaml").read_text()
    assert homes.existing_home().mapping == home / "map.yaml"
