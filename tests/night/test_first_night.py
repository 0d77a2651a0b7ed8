"""`docs/input.md`, "Your first night in 15 minutes", done as it says, on RetailRocket's layout."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from public_formats import DAY, FORMATS, retailrocket

from sgrec_core.lake import Lake
from sgrec_core.settings import PROJECT_ROOT

TINY = {
    "SGREC_SUPERVISED__WIDTH": "16", "SGREC_SUPERVISED__HEADS": "2", "SGREC_SUPERVISED__EPOCHS": "2",
    "SGREC_ROLLOUT__GROUP_SIZE": "4", "SGREC_ROLLOUT__MAX_GROUPS": "32", "SGREC_EVALUATION__BOOTSTRAP_SAMPLES": "100",
    "SGREC_ITEMS__CODEBOOK_SIZE": "8",
}  # fmt: skip


def with_sgrec(folder: Path) -> dict[str, str]:
    """An environment with `sgrec` on the PATH and settings of a tiny night."""
    command = folder / "bin" / "sgrec"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom sgrec_core.cli import main\nmain()\n")
    command.chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SGREC_")},
        **TINY, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT_ROOT), "COLUMNS": "200",
    }  # fmt: skip


@pytest.mark.night
def test_the_first_night_on_your_own_logs_is_as_the_how_to_says(tmp_path: Path) -> None:
    text = (PROJECT_ROOT / "docs" / "input.md").read_text()
    how_to = text[text.index("## Your first night") : text.index("## The layout")]
    commands = re.findall(r"```sh\n(.*?)```", how_to, re.DOTALL)
    assert len(commands) == 4
    counts = retailrocket(tmp_path / "raw")
    environment = with_sgrec(tmp_path)
    said = ""
    for each in commands:
        done = subprocess.run(["bash", "-ec", each], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout
    assert f"{DAY}: {sum(counts.values())} events would be accepted, 20 items" in said
    assert f"night {DAY}: succeeded" in said
    lake = Lake(tmp_path / "shop" / "lake")
    assert lake.count("events", where={"day": DAY}) == sum(counts.values())
    assert {row["ended"] for row in lake.read("ingest_files").to_pylist()} == {"complete"}
    assert lake.count("rewards", where={"day": DAY}) > 0


@pytest.mark.night
@pytest.mark.skipif(os.environ.get("SGREC_PUBLIC_FORMATS") != "all", reason="`make public-formats` runs these nights")
@pytest.mark.parametrize("name", FORMATS)
def test_a_night_on_each_public_format(tmp_path: Path, name: str) -> None:
    counts = FORMATS[name](tmp_path / "raw")
    night = f"SGREC_HOME=home sgrec nightly --input logs:landed --map {name}"
    environment = with_sgrec(tmp_path)
    for each in (f"sgrec land raw --map {name} --to landed", night):
        done = subprocess.run(["bash", "-ec", each], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert f"night {DAY}: succeeded" in done.stdout
    lake = Lake(tmp_path / "home" / "lake")
    assert lake.count("events", where={"day": DAY}) == sum(counts.values())
