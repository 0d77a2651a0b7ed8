"""A whole night on a leave-one-out set without text, made on the spot in the format of Amazon Beauty."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgrec_core.lake import Lake
from sgrec_core.settings import PROJECT_ROOT

pytestmark = [pytest.mark.night, pytest.mark.airflow, pytest.mark.spark]

DAY = "2026-01-05"
USERS, ITEMS = 150, 60


def sgrec(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from sgrec_core.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The home of the night, and what the command said. Users walk through the items in steps of one to three."""
    folder = tmp_path_factory.mktemp("public")
    draws = random.Random(5)
    walks = {}
    for user in range(USERS):
        item, walk = draws.randrange(ITEMS), []
        for _ in range(draws.randint(5, 12)):
            walk.append(item)
            item = (item + draws.randint(1, 3)) % ITEMS
        walks[str(user)] = walk
    (folder / "inter.json").write_text(json.dumps(walks))
    codes = {str(item): [f"<a_{item // 8}>", f"<b_{item % 8}>", "<c_0>", "<d_0>"] for item in range(ITEMS)}
    (folder / "sid_index.json").write_text(json.dumps(codes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGREC_HOME", str(folder / "home"))
        patch.setenv("COLUMNS", "200")
        patch.setenv("SGREC_SPARK_MEMORY", "1g")
        patch.setenv("SGREC_SUPERVISED__WIDTH", "32")
        patch.setenv("SGREC_SUPERVISED__EPOCHS", "60")
        patch.setenv("SGREC_SUPERVISED__BATCH_SIZE", "16")
        patch.setenv("SGREC_SUPERVISED__LEARNING_RATE", "0.003")
        patch.setenv("SGREC_ROLLOUT__MAX_GROUPS", "64")
        yield folder / "home", sgrec("nightly", "--input", f"beauty:{folder}")


Night = tuple[Path, subprocess.CompletedProcess[str]]


def test_the_night_runs_on_the_business_reward_alone_and_says_so(night: Night) -> None:
    home, done = night
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((home / "reports" / DAY / "summary.json").read_text())
    assert summary["status"] == "succeeded"
    assert summary["judge"]["paid"] == 0
    notes = " ".join(note["text"] for note in summary["notes"])
    for words in ("no item text: business reward only", "leave-one-out", "next-item ranking reward"):
        assert words in notes
    page = (home / "reports" / DAY / "index.html").read_text()
    assert "no item text: business reward only" in page
    lake = Lake(home / "lake")
    rewards = lake.read("rewards", where={"day": DAY})
    assert rewards.num_rows > 0
    assert not any(rewards["judged"].to_pylist())
    assert rewards["advantage"].equals(rewards["business_advantage"])


def test_the_night_never_reads_test_labels(night: Night) -> None:
    home, _ = night
    lake = Lake(home / "lake")
    labels = lake.read("events", where={"day": DAY, "role": "test"}, columns=["user_id", "item_id"])
    assert labels.num_rows == USERS
    states = lake.read("user_states", where={"day": DAY})
    assert states.filter([split == "validation" for split in states["split"].to_pylist()]).num_rows == USERS
    last = dict(zip(labels["user_id"].to_pylist(), labels["item_id"].to_pylist(), strict=True))
    logged = lake.read("events", where={"day": DAY, "role": "logged"}, columns=["user_id", "item_id"])
    bought = {(row["user_id"], row["item_id"]) for row in logged.to_pylist()}
    for state in states.to_pylist():
        if (state["user_id"], last[state["user_id"]]) not in bought:
            assert last[state["user_id"]] not in [*state["history"], state["target_item"]]


def test_the_generator_learns_the_walk_and_the_test_split_is_scored_by_one_command(night: Night) -> None:
    """Each step has three equally likely successors: what knows the walk has HR@10 near 1, popularity near 10/60."""
    done = sgrec("evaluate", "--split", "test", "--version", "challenger")
    assert done.returncode == 0, done.stderr
    found = re.search(r"HR@10\s+all\s+(\d\.\d+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 0.5
