"""Who is champion: the history of decisions, writers at the same time, and a process that is killed in between."""

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registered_models import register
from typer.testing import CliRunner

from sgrec_core.cli import app
from sgrec_core.errors import SgrecError
from sgrec_core.lake import Lake
from sgrec_core.registry import CHAMPION, GENERATOR, Registry
from sgrec_core.registry import promotions as p
from sgrec_core.settings import PROJECT_ROOT, Settings

DAYS = [f"2026-01-0{number}" for number in range(1, 8)]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("night"),
            st.sampled_from(DAYS),
            st.sampled_from(["promotes", "keeps", "is killed", "is rolled over"]),
        ),
        st.tuples(st.just("promote"), st.integers(0, 20)),
        st.tuples(st.just("rollback")),
        st.tuples(st.just("hold_or_release")),
    ),
    max_size=25,
)


class World:
    """Decisions beside what plain book-keeping expects of them."""

    def __init__(self) -> None:
        self.decisions: list[p.Decision] = []
        self.stack: list[str] = []
        """Promotions that stand."""
        self.champions: list[tuple[str, str | None]] = []
        """Day of each change, and what served after it."""
        self.changed_by = ""
        """Who made the last change."""
        self.met: dict[str, str | None] = {}
        """Night to the champion that it worked against."""
        self.made: list[tuple[str, str]] = []
        """Version and the night that made it."""
        self.held = False

    def commit(self, decision: p.Decision | None) -> None:
        if decision is not None:
            self.decisions.append(decision)
        if decision is not None and decision.action in ("promote", "rollback"):
            self.champions.append((decision.day, self.stack[-1] if self.stack else None))
            self.changed_by = decision.who

    def night(self, day: str, how: str) -> None:
        before = [version for changed, version in self.champions if changed < day]
        expected = self.met.get(day, before[-1] if before else None)
        champion = p.pinned(self.decisions, day)
        assert champion == expected
        if how == "is killed":  # before it has made anything
            return
        self.met[day] = champion
        self.commit(p.pin(self.decisions, day, champion, "f"))
        version = str(len(self.made) + 1)
        self.made.append((version, day))
        if how == "is rolled over":  # somebody decides while it runs
            self.rollback()
        if how == "keeps":
            return
        serving = self.stack[-1] if self.stack else None
        compared = serving == champion or self.changed_by == f"night {day}"
        allowed = not self.held and compared and all(changed <= day for changed, _ in self.champions)
        against = p.why_not(self.decisions, version, day)
        assert (against is None) == allowed
        if allowed:
            self.stack.append(version)
            self.commit(p.promotion_by_night(self.decisions, day, version, "f", "better"))
            # Killed before its table, it comes here again.
            assert p.why_not(self.decisions, version, day) is None
            assert p.promotion_by_night(self.decisions, day, version, "f", "better") is None

    def promote(self, choice: int) -> None:
        if not self.made:
            return
        version, day = self.made[choice % len(self.made)]
        decision = p.promotion_by_hand(self.decisions, day, version, "f", "by hand")
        assert (decision is None) == (self.stack[-1:] == [version])
        if decision is not None:
            self.stack.append(version)
        self.commit(decision)

    def rollback(self) -> None:
        if not self.stack:
            with pytest.raises(SgrecError, match="no champion to roll back"):
                p.roll_back(self.decisions, "bad")
            return
        version = self.stack.pop()
        decision = p.roll_back(self.decisions, "bad")
        self.commit(decision)
        assert decision.version == version
        assert ("held" if self.held else "rolled back") in (p.why_not(self.decisions, version, DAYS[-1]) or "")

    def hold_or_release(self) -> None:
        refused, done = (p.hold, p.release) if self.held else (p.release, p.hold)
        with pytest.raises(SgrecError, match="promotion is"):
            refused(self.decisions, "sale")
        last = p.last_change(self.decisions)
        self.commit(done(self.decisions, "sale"))
        assert p.last_change(self.decisions) == last
        self.held = not self.held


@given(STEPS)
def test_whatever_is_decided_nights_keep_what_they_met_and_later_ones_meet_what_serves(steps: list[Any]) -> None:
    world = World()
    for name, *arguments in steps:
        getattr(world, name)(*arguments)
        decisions = world.decisions
        assert p.champion(decisions) == (world.stack[-1] if world.stack else None)
        assert {day: p.pinned(decisions, day) for day in world.met} == world.met
        assert p.pinned(decisions, "2026-01-09") == p.champion(decisions), "a night after all of them"
        changes = [decision.day for decision in decisions if decision.action in ("promote", "rollback")]
        assert changes == sorted(changes)


def test_a_promotion_is_one_row_and_stays(registry_home: Path) -> None:
    registry = Registry(Settings(home=registry_home))
    first, second = register(registry, "2026-01-05"), register(registry, "2026-01-06")
    assert registry.promote_by_night(first, "2026-01-05", "better than popularity") is None
    registry.pin_champion("2026-01-06", first)
    registry.pin_champion("2026-01-07", first)
    registry.promote(second, "looks good")
    registry.rollback("does not")
    rows = registry.promotions.rows().to_pylist()
    assert [(row["sequence"], str(row["day"]), row["action"], row["version"]) for row in rows] == [
        (1, "2026-01-05", "promote", "1"),
        (2, "2026-01-06", "pin", "1"),
        (3, "2026-01-07", "pin", "1"),
        (4, "2026-01-07", "promote", "2"),
        (5, "2026-01-07", "rollback", "2"),
    ]
    assert [row["reason"] for row in rows[3:]] == ["looks good", "does not"]
    assert [row["who"] for row in rows] == [
        "night 2026-01-05",
        "night 2026-01-06",
        "night 2026-01-07",
        *[p.login()] * 2,
    ]
    assert {row["fingerprint"] for row in rows} == {first.fingerprint, second.fingerprint}
    assert registry.promote_by_night(second, "2026-01-08", "") == (
        f"{second} was rolled back by {p.login()} as of 2026-01-07; promote it with `sgrec promote --version 2`"
    )
    assert "older night" in (registry.promote_by_night(first, "2026-01-06", "") or "")
    before = len(rows)
    assert registry.promote_by_night(first, "2026-01-05", "") is None, "it had promoted it"
    registry.promote(first)
    assert len(registry.promotions.rows()) == before, "it serves already"


def _promote_many(root: str, who: str, start: "multiprocessing.synchronize.Barrier") -> None:
    table = p.Promotions(Lake(root))
    start.wait()
    for number in range(3):

        def choose(decisions: list[p.Decision], version: str = f"{who}{number}") -> p.Decision:
            reason = f"after {p.champion(decisions)}"
            return p.Decision(
                day="2026-01-05",
                action="promote",
                model=GENERATOR,
                version=version,
                fingerprint="f",
                who=who,
                reason=reason,
            )

        table.decide(choose)


def test_writers_at_the_same_time_decide_one_after_the_other(tmp_path: Path) -> None:
    """From no table on: also making it is something that both do."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [context.Process(target=_promote_many, args=(str(tmp_path), who, start)) for who in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    rows = p.Promotions(Lake(tmp_path)).rows().to_pylist()
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4, 5, 6]
    versions = [row["version"] for row in rows]
    assert sorted(versions) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert [row["reason"] for row in rows] == [f"after {version}" for version in [None, *versions[:-1]]]


KILLED = """
import os, signal
from sgrec_core.registry import Registry
from sgrec_core.settings import Settings

registry = Registry(Settings())
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
registry.{step} = kill
{command}
"""
"""``step`` is where the process is killed: before the commit, or between it and MLflow's alias."""
COMMANDS = {
    "promote": "registry.promote(registry.get('sgrec-generator', '2'))",
    "night": "registry.promote_by_night(registry.get('sgrec-generator', '2'), '2026-01-06', 'better')",
    "rollback": "registry.rollback()",
}


BEFORE, BETWEEN = "promotions._lake.write_after", "set_alias_or_none"


@pytest.mark.parametrize(
    ("command", "step"), [("promote", BEFORE), ("promote", BETWEEN), ("night", BETWEEN), ("rollback", BETWEEN)]
)
def test_a_kill_leaves_the_champion_of_before_or_after(registry_home: Path, command: str, step: str) -> None:
    registry = Registry(Settings(home=registry_home))
    first, second = register(registry, "2026-01-05"), register(registry, "2026-01-06")
    registry.promote_by_night(first, "2026-01-05", "better")
    if command == "rollback":
        registry.promote(second)
    old, new = (second, first) if command == "rollback" else (first, second)
    script = KILLED.format(step=step, command=COMMANDS[command])
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert registry.aliases(GENERATOR)[CHAMPION] == old.version, "the mirror was not reached"

    serves = new if step == BETWEEN else old
    assert registry.pinned_champion("2026-01-07") == serves
    (registry_home / "source.json").write_text('{"input": "simulator"}')
    shown = CliRunner().invoke(app, ["status"])
    assert shown.exit_code == 0, shown.output
    assert f"champion: version {serves.version}, made by night {serves.day}" in shown.output
    assert registry.aliases(GENERATOR)[CHAMPION] == serves.version, "put right by the next command"
    assert registry.get(GENERATOR, CHAMPION) == serves
    for again in (["promotions"], ["promote", "--version", "2"], ["rollback"], ["rollback"]):
        result = CliRunner().invoke(app, again)
        assert result.exit_code == 0, result.output
        if again == ["promotions"]:
            assert result.output.count("promote") >= 1
        serving = registry.champion()
        assert registry.aliases(GENERATOR).get(CHAMPION) == (serving and serving.version)
    assert registry.champion() is None


def test_a_night_promotes_nothing_over_a_version_that_it_never_met() -> None:
    decisions: list[p.Decision] = []
    for decision in (
        p.promotion_by_night(decisions, "2026-01-01", "1", "f", "better"),
        p.pin(decisions, "2026-01-02", "1", "f"),
    ):
        assert decision is not None
        decisions.append(decision)
    by_hand = p.promotion_by_hand(decisions, "2026-01-01", "7", "f", "while the night runs")
    assert by_hand is not None
    assert by_hand.day == "2026-01-02"
    decisions.append(by_hand)
    against = p.why_not(decisions, "2", "2026-01-02")
    assert against is not None
    assert "version 7 was promoted by" in against
    assert "night 2026-01-02 was not compared with" in against
    pinned = p.pin(decisions, "2026-01-03", "7", "f")
    assert pinned is not None
    assert p.why_not([*decisions, pinned], "3", "2026-01-03") is None
