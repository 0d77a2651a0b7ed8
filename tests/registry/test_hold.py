"""Promotion frozen and unfrozen by hand: what nights and people may do meanwhile, and what stays as it was."""

import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from old_tables import promotions_of_before
from registered_models import register
from typer.testing import CliRunner

from sgrec_core.cli import app
from sgrec_core.cli.app import console
from sgrec_core.errors import SgrecError
from sgrec_core.lake import Lake
from sgrec_core.registry import CHAMPION, GENERATOR, Registry
from sgrec_core.registry import promotions as p
from sgrec_core.settings import PROJECT_ROOT, Settings

DAYS = [f"2026-01-0{number}" for number in range(5, 10)]


@pytest.fixture
def registry(registry_home: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Of a home with three nights' generators, whose first was promoted."""
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setenv("COLUMNS", "200")
    (registry_home / "source.json").write_text('{"input": "simulator"}')
    registry = Registry(Settings(home=registry_home))
    for day in DAYS[:3]:
        register(registry, day)
    assert registry.promote_by_night(registry.get(GENERATOR, "1"), DAYS[0], "better") is None
    registry.pin_champion(DAYS[1], registry.get(GENERATOR, "1"))
    return registry


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no row of a table is folded, however wide the terminal of these tests is."""
    monkeypatch.setattr(console, "width", 200)


def sgrec(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments: str) -> str:
    """The one line that a command in a process of its own ends with."""
    command = [sys.executable, "-c", "from sgrec_core.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
    assert done.returncode == SgrecError.exit_code == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def actions(registry: Registry) -> list[tuple[str, str, str]]:
    return [(row["action"], row["who"], row["reason"]) for row in registry.promotions.rows().to_pylist()]


def pins(registry: Registry) -> list[str | None]:
    pinned = (registry.pinned_champion(day) for day in DAYS)
    return [version and version.version for version in pinned]


def test_a_hold_says_why(registry: Registry) -> None:
    assert "--reason is empty" in refused("hold", "--reason", " ")


def test_while_a_hold_stands_people_promote_and_nights_do_not(registry: Registry) -> None:
    first, second, third = (registry.get(GENERATOR, number) for number in "123")
    before = pins(registry)
    assert "held" not in sgrec("status")
    words = f"held by ann since {today()}: sale [until Monday]; `sgrec release` lifts it"
    assert sgrec("hold", "--reason", "sale [until Monday]") == f"promotion is {words}\n"
    (row,) = registry.promotions.rows().slice(2).to_pylist()
    assert (row["sequence"], row["action"], row["version"], row["fingerprint"]) == (3, "hold", None, None)
    assert (str(row["day"]), row["who"], row["reason"]) == (today(), "ann", "sale [until Monday]")
    assert f"promotion is {words}" in sgrec("status")
    assert pins(registry) == before == [None, "1", "1", "1", "1"]

    # Of any day, also where MLflow has lost who is champion; what a night had promoted before stays promoted.
    assert registry.promote_by_night(second, DAYS[1], "better") == words
    registry.set_alias_or_none(GENERATOR, CHAMPION, None)
    assert registry.promote_by_night(third, DAYS[4], "better") == words
    assert registry.promote_by_night(second, "2025-12-31", "better") == words
    assert registry.promote_by_night(first, DAYS[0], "better") is None
    assert len(registry.promotions.rows()) == 3
    assert registry.champion() == first

    shown = sgrec("promote", "--version", "2", "--reason", "looks good").splitlines()
    # As of the newest night, not of the day on which somebody held.
    assert shown[0].endswith(f"serves as of night {DAYS[1]}")
    assert shown[1:] == [f"the hold stands on: {words}"]
    assert registry.champion() == second
    assert sgrec("rollback").splitlines()[-1] == f"the hold stands on: {words}"
    assert registry.champion() == first
    assert registry.promote_by_night(third, DAYS[2], "better") == words

    assert sgrec("release", "--reason", "sale is over") == (
        f"nights promote again: released by ann on {today()}: sale is over\n"
    )
    assert "held" not in sgrec("status")
    assert pins(registry) == before
    assert registry.promote_by_night(third, DAYS[2], "better") is None
    assert registry.champion() == third
    assert "hold" not in sgrec("rollback")
    assert actions(registry) == [
        ("promote", f"night {DAYS[0]}", "better"),
        ("pin", f"night {DAYS[1]}", "champion of the nights before"),
        ("hold", "ann", "sale [until Monday]"),
        ("promote", "ann", "looks good"),
        ("rollback", "ann", "by hand"),
        ("release", "ann", "sale is over"),
        ("promote", f"night {DAYS[2]}", "better"),
        ("rollback", "ann", "by hand"),
    ]
    history = [line.split() for line in sgrec("promotions").splitlines()]
    assert [line[1] for line in history[1:]] == [action for action, *_ in actions(registry)]
    assert history[3][:3] == [today(), "hold", "ann"]
    assert history[3][-3:] == ["sale", "[until", "Monday]"]


def test_hold_and_release_change_no_champion(registry: Registry) -> None:
    """What `train_generator` asks before it names the challenger."""
    last = p.last_change(registry.promotions.read())
    sgrec("hold", "--reason", "sale")
    assert p.last_change(registry.promotions.read()) == last
    sgrec("release")
    assert p.last_change(registry.promotions.read()) == last


def test_holding_twice_and_releasing_nothing_is_refused_in_a_line(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused("release") == "promotion is not held: nobody ever held it"
    # Needs nothing of MLflow.
    shutil.rmtree(Settings().home / "mlflow")
    sgrec("hold", "--reason", "sale\nuntil Monday")
    monkeypatch.setenv("LOGNAME", "bob")
    assert refused("hold", "--reason", "mine") == (
        f"promotion is held by ann since {today()}: sale until Monday; `sgrec release` lifts it"
    )
    sgrec("release")
    assert refused("release", "--reason", "again") == f"promotion is not held: released by bob on {today()}: by hand"
    assert [action for action, *_ in actions(registry)] == ["promote", "pin", "hold", "release"]
    assert CliRunner().invoke(app, ["hold"]).exit_code == 2, "without a reason"


def test_a_home_of_before_takes_a_hold(registry: Registry) -> None:
    """Its table knows no action but those of its time."""
    rows = registry.promotions.rows()
    lake = Lake(Settings().lake_root)
    shutil.rmtree(lake.uri(p.TABLE))
    promotions_of_before(lake.uri(p.TABLE), "promote", "rollback", "pin")
    lake.append(p.TABLE, rows)
    sgrec("hold", "--reason", "sale")
    assert registry.promote_by_night(registry.get(GENERATOR, "2"), DAYS[1], "better") is not None
    sgrec("release")
    assert [action for action, *_ in actions(registry)] == ["promote", "pin", "hold", "release"]


AT_ONCE = """
import sys
from sgrec_core.cli import main
import sgrec_core.registry
print("ready", flush=True)
input()
main()
"""


@pytest.mark.parametrize("of_before", [False, True])
def test_of_two_who_hold_at_the_same_time_one_does(home: Path, of_before: bool) -> None:
    home.mkdir()
    (home / "source.json").write_text('{"input": "simulator"}')
    lake = Lake(Settings().lake_root)
    if of_before:
        promotions_of_before(lake.uri(p.TABLE), "promote", "rollback", "pin")
    people = {
        who: subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, "hold", "--reason", f"{who} wants it"],
            env={**os.environ, "LOGNAME": who},
            cwd=PROJECT_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who in ("ann", "bob")
    }
    for process in people.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in people.values():
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = {who: process.communicate()[1] for who, process in people.items()}
    (row,) = p.Promotions(lake).rows().to_pylist()
    loser = {"ann": "bob", "bob": "ann"}[row["who"]]
    assert {who: process.returncode for who, process in people.items()} == {row["who"]: 0, loser: 2}, errors
    assert errors[loser].startswith(f"promotion is held by {row['who']} since {today()}: {row['who']} wants it")
    assert row["action"] == "hold"


KILLED = """
import os, signal
from sgrec_core.cli import app
from sgrec_core.lake import Lake

commit = Lake.write_after
def kill(*arguments):
    if {after}:
        commit(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
Lake.write_after = kill
app({command})
"""


@pytest.mark.parametrize("command", ["hold", "release"])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_leaves_the_row_or_nothing(registry: Registry, command: str, after: bool) -> None:
    if command == "release":
        sgrec("hold", "--reason", "sale")
    script = KILLED.format(after=after, command=[command, "--reason", "killed"])
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (actions(registry)[-1] == (command, "ann", "killed")) == after
    if not after:
        sgrec(command, "--reason", "again")
        assert actions(registry)[-1] == (command, "ann", "again")
    against = registry.promote_by_night(registry.get(GENERATOR, "2"), DAYS[1], "better")
    assert (against is not None) == (command == "hold")
