"""A glance at the lake: one state of its tables, whatever is published meanwhile."""

from pathlib import Path

from small_night import DAY, table_of

from sgrec_core.lake import Lake
from sgrec_core.lake.glance import Glance


def test_a_glance_shows_one_state_and_is_read_like_the_lake(tmp_path: Path) -> None:
    lake, glance = Lake(tmp_path), Glance(str(tmp_path))
    users = table_of("users")
    first = lake.publish("users", users, partition={"day": DAY}, fingerprint="0" * 32)
    assert glance.count("users", where={"day": DAY}) == users.num_rows
    assert glance.version("items") is None
    second = lake.publish("users", users.slice(0, 3), partition={"day": DAY}, fingerprint="1" * 32)
    lake.publish("items", table_of("items"), partition={"day": DAY}, fingerprint="0" * 32)
    assert (glance.version("users"), lake.version("users")) == (first, second)
    assert glance.read("users", where={"day": DAY}).num_rows == users.num_rows
    assert glance.read("users", where={"day": DAY}, version=second).num_rows == 3
    assert glance.version("items") is None
    assert Glance(str(tmp_path)).version("users") == second
