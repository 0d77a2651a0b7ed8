"""The marketplace: seeded, day by day, with text that tells the truth and bad rows that are known."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sgrec_core import simulator
from sgrec_core.errors import InputError
from sgrec_core.logs import landing
from sgrec_core.logs.parsing import Accepted, Options, Rejected, parse_file
from sgrec_core.logs.rows import Reading
from sgrec_core.settings import SimulatorSettings
from sgrec_core.simulator.vocabulary import CATEGORIES, NEXT_CATEGORY, OCCASIONS, STYLES

FIRST_DAY = "2026-01-05"
TINY = SimulatorSettings(users=60, items=60, new_items_per_day=3, requests_per_user=3, bad_share=0.02)


def write(root: Path, day: str, settings: SimulatorSettings = TINY) -> Path:
    simulator.write_day(
        settings, day=day, first_day=FIRST_DAY, landing_root=root / "landing", truth_root=root / "truth"
    )
    return landing.day_folder(root / "landing", day)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_day_is_the_same_whether_or_not_earlier_days_were_written(tmp_path: Path) -> None:
    write(tmp_path / "a", "2026-01-05")
    after = write(tmp_path / "a", "2026-01-06")
    alone = write(tmp_path / "b", "2026-01-06")
    assert contents(after) == contents(alone)
    assert contents(after) != contents(write(tmp_path / "b", "2026-01-05"))
    truth = landing.day_folder(tmp_path / "a" / "truth", "2026-01-06")
    assert contents(truth) == contents(landing.day_folder(tmp_path / "b" / "truth", "2026-01-06"))


def test_a_written_day_is_left_alone_until_the_settings_change(tmp_path: Path) -> None:
    folder = write(tmp_path, FIRST_DAY)
    marker = folder / "_touched"
    marker.touch()
    write(tmp_path, FIRST_DAY)
    assert marker.exists()
    write(tmp_path, FIRST_DAY, TINY.model_copy(update={"seed": 8}))
    assert not marker.exists()


def test_every_row_is_valid_except_the_bad_ones_that_were_counted(tmp_path: Path) -> None:
    write(tmp_path, FIRST_DAY)
    root = tmp_path / "landing"
    rows = [
        row for file in landing.raw_files(root, FIRST_DAY) for row in parse_file(file, FIRST_DAY, Options(), Reading())
    ]
    rejected = [row.reason for row in rows if isinstance(row, Rejected)]
    accepted = [row.values for row in rows if isinstance(row, Accepted)]
    truth = json.loads((landing.day_folder(tmp_path / "truth", FIRST_DAY) / "truth.json").read_text())
    # Copies and unknown items are valid by themselves; they are found where the whole day is known.
    expected = {k: v for k, v in truth["bad_rows"].items() if k not in ("duplicate_event_id", "unknown_item")}
    assert {reason: rejected.count(reason) for reason in set(rejected)} == expected
    events = [values for values in accepted if "event_id" in values]
    items = {values["item_id"] for values in accepted if "item_hash" in values}
    ids = [event["event_id"] for event in events if event["item_id"] in items]
    assert len(ids) - len(set(ids)) == truth["bad_rows"]["duplicate_event_id"]
    assert len(set(ids)) == sum(truth["events"].values())
    bad = sum(truth["bad_rows"].values())
    assert bad / (bad + len(set(ids))) == pytest.approx(TINY.bad_share, abs=0.002)


def test_the_truth_stays_outside_the_landing(tmp_path: Path) -> None:
    folder = write(tmp_path, FIRST_DAY)
    names = {path.name for path in (tmp_path / "landing").rglob("*")}
    assert not names & {"truth.json", "users.parquet", "impressions.parquet"}
    text = b"".join(gzip.decompress(path.read_bytes()) for path in folder.rglob("*.gz"))
    assert b"utility" not in text
    assert b"weights" not in text


def test_text_tells_every_latent_attribute() -> None:
    items = simulator.draw_items(TINY, 0)
    for index, row in enumerate(simulator.catalogue_rows(items)):
        path, products = list(CATEGORIES.items())[items.category[index]]
        assert row["category"] == path
        assert products[items.product[index]].title() in row["title"]
        assert list(STYLES.values())[items.style[index]][1] in row["description"]
        assert list(OCCASIONS.values())[items.occasion[index]][0] in row["title"]


def test_new_items_appear_every_day_and_old_ones_stay() -> None:
    first, third = simulator.draw_items(TINY, 0), simulator.draw_items(TINY, 2)
    assert len(third.ids) == len(first.ids) + 2 * TINY.new_items_per_day
    assert simulator.catalogue_rows(third)[: len(first.ids)] == simulator.catalogue_rows(first)
    assert set(third.born[len(first.ids) :]) == {1, 2}


def test_clicks_follow_the_true_preferences() -> None:
    settings = SimulatorSettings(users=400, items=200)
    day = simulator.simulate_day(settings, FIRST_DAY, FIRST_DAY)
    assert day.utility[day.clicked].mean() > day.utility[~day.clicked].mean() + 0.1
    assert day.utility[day.converted].mean() > day.utility[day.clicked].mean()
    assert day.utility[day.disliked].mean() < day.utility[~day.clicked].mean()
    assert not (day.disliked & day.clicked).any()
    assert 0.05 < day.clicked.mean() < 0.3
    # Who weighs novelty most clicks more of it than who weighs it least.
    heavy = day.users.weights[day.user, 2] > 0.4
    light = day.users.weights[day.user, 2] < 0.1
    novelty = day.aspects[..., 2]
    assert novelty[heavy][day.clicked[heavy]].mean() > novelty[light][day.clicked[light]].mean() + 0.1


def test_a_click_leads_to_the_next_category() -> None:
    settings = SimulatorSettings(users=50, items=100)
    items, users = simulator.draw_items(settings, 0), simulator.draw_users(settings)
    count = settings.users
    state = simulator.State(
        familiarity=np.zeros((count, len(CATEGORIES))),
        interest=np.zeros(count, int),
        last_category=np.full(count, -1),
        last_occasion=np.full(count, -1),
        clicked=np.zeros((count, len(items.category)), bool),
    )
    request = {"hour": np.full(count, 9), "placement": np.zeros(count, int), "weekend": False}
    before = simulator.true_aspects(users, items, state, **request)
    state.last_category[:] = 3
    after = simulator.true_aspects(users, items, state, **request)
    follows = items.category == NEXT_CATEGORY[3]
    assert np.allclose((after - before)[1][:, follows], 0.3, atol=1e-6)
    assert np.allclose((after - before)[1][:, ~follows], 0)
    assert before.min() >= 0
    assert before.max() <= 1


def test_events_of_a_request_stay_in_the_day_and_follow_it(tmp_path: Path) -> None:
    rows = simulator.event_rows(simulator.simulate_day(TINY, FIRST_DAY, FIRST_DAY), FIRST_DAY)
    shown = {(r["request_id"], r["item_id"]): r["event_time"] for r in rows if r["event_type"] == "impression"}
    start = 1767571200000
    for row in rows:
        assert start <= row["event_time"] < start + simulator.DAY_MILLISECONDS
        if row["event_type"] != "impression":
            assert row["event_time"] > shown[row["request_id"], row["item_id"]]
    folder = write(tmp_path, FIRST_DAY)
    assert len(rows) == sum(
        json.loads((tmp_path / "truth" / folder.name / "truth.json").read_text())["events"].values()
    )
    impressions = pq.read_table(tmp_path / "truth" / folder.name / "impressions.parquet")
    assert impressions.num_rows == len(shown)


def test_a_day_before_the_first_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"opened on 2026-01-05; it has no logs of 2026-01-04"):
        write(tmp_path, "2026-01-04")


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (FIRST_DAY, "fcb8cecb0c1f3ef23aeb8fbc8a60ad138d1f7196dc24b6df7b8784933d8e9bb7"),
        ("2026-01-10", "1ed5706ae7daffb567ad85018f0eaf614a06484ff9e8f20190b8b7ee4a2b6bdc"),
    ],
)
def test_the_same_settings_make_the_same_logs(day: str, expected: str) -> None:
    rows = simulator.event_rows(simulator.simulate_day(TINY, day, FIRST_DAY), day)
    # What is said of the policy came later, and is no part of what happens.
    rows = [{name: value for name, value in row.items() if name != "propensity"} for row in rows]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == expected


def test_another_policy_fills_the_slates_of_the_same_requests() -> None:
    def cheapest(requests: simulator.Requests) -> np.ndarray:
        best = np.argsort(requests.items.price, kind="stable")[: requests.slate]
        return np.tile(best, (len(requests.user), 1))

    logged = simulator.simulate_day(TINY, FIRST_DAY, FIRST_DAY)
    other = simulator.simulate_day(TINY, FIRST_DAY, FIRST_DAY, policy=cheapest)
    assert set(np.unique(other.shown)) == set(np.argsort(other.items.price, kind="stable")[: TINY.slate])
    np.testing.assert_array_equal(np.bincount(other.user), np.bincount(logged.user))
    np.testing.assert_array_equal(other.time, logged.time)
