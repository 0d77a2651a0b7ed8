"""Decision points against a slow, plain computation of the same thing; nothing of the future may leak into a state."""

import json
import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from stage_runs import last_run

from jobs import build_states
from sgrec_core.hashing import is_validation_user
from sgrec_core.lake import Lake, load_contract
from sgrec_core.night.held_out import held_out_requests
from sgrec_core.runtime.job import Job
from sgrec_core.settings import Settings

DAY, DAY_BEFORE, TOO_OLD = "2026-01-05", "2026-01-04", "2026-01-03"
ITEMS = [f"i{number}" for number in range(30)]
POSITIVE = ("click", "conversion")

pytestmark = pytest.mark.spark


def publish(lake: Lake, table: str, rows: list[dict], day: str) -> None:
    schema = load_contract(table).arrow_schema
    columns = [field for field in schema if field.name != "day"]
    data = pa.Table.from_pylist(rows, pa.schema([field.with_nullable(True) for field in columns]))
    lake.publish(table, data, partition={"day": day}, fingerprint="ab" * 16)


def publish_catalogue(lake: Lake, **hashes: str) -> None:
    """``hashes``: of items that say something else than by default."""
    publish(lake, "items", [{"item_id": item, "item_hash": hashes.get(item, item)} for item in ITEMS], DAY)


def slates(day: str, seed: int) -> list[dict]:
    """A day of overlapping requests, with late clicks, purchases, dislikes, repeats and items shown twice."""
    noise = random.Random(seed)
    start = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
    rows: list[dict] = []

    def add(time: datetime, **values: object) -> None:
        rows.append(
            {
                "event_id": f"{day}-{len(rows)}",
                "role": "logged",
                "event_time": min(time, start + timedelta(hours=23)),
                **values,
            }
        )

    for user in range(60):
        for request in range(noise.randrange(8)):
            # A coarse grid of times makes ties between requests and clicks common.
            time = start + timedelta(minutes=10 * noise.randrange(100))
            common = {
                "user_id": f"u{user}",
                "request_id": f"{day}-{user}-{request}",
                "placement": noise.choice(["home", "search"]),
            }
            for position in range(6):
                item = noise.choice(ITEMS)
                event = {**common, "item_id": item, "position": position, "bid": 0.1}
                add(time, event_type="impression", **event)
                later = time + timedelta(minutes=10 * noise.randrange(4))
                if noise.random() < 0.3:
                    add(later, event_type="click", **event)
                    if noise.random() < 0.3:
                        add(later + timedelta(minutes=10), event_type="conversion", **event)
                elif noise.random() < 0.1:
                    add(later, event_type="dislike", **event)
    return rows


def expected_states(events: dict[str, list[dict]], max_history: int) -> dict[tuple, tuple]:
    """(user, request, target) -> (as_of, history, type), the slow way."""
    first: dict[tuple, datetime] = {}
    chosen: dict[tuple, datetime] = {}
    types: dict[tuple, set] = defaultdict(set)
    for rows in events.values():
        for row in rows:
            request = (row["user_id"], row["request_id"])
            first[request] = min(first.get(request, row["event_time"]), row["event_time"])
            if row["event_type"] in POSITIVE:
                key = (*request, row["item_id"])
                chosen[key] = min(chosen.get(key, row["event_time"]), row["event_time"])
                types[key].add(row["event_type"])
    by_user: dict[str, list] = defaultdict(list)
    for (user, request, item), time in chosen.items():
        by_user[user].append((time, request, item))
    states = {}
    for user, request, item in chosen:
        as_of = first[user, request]
        if as_of.date().isoformat() == DAY:
            history = [item for time, _, item in sorted(by_user[user]) if time < as_of][-max_history:]
            kind = "conversion" if "conversion" in types[user, request, item] else "click"
            states[user, request, item] = (as_of, history, kind)
    return states


def build(settings: Settings, *, force: bool = False) -> dict:
    code = Job("build_states", DAY, settings, force=force).execute(build_states.run, Console(quiet=True))
    assert code == 0
    return last_run(settings, DAY, "build_states")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, list[dict]], dict]:
    settings = Settings(
        home=tmp_path_factory.mktemp("states"),
        states={"history_days": 2, "max_history": 5, "max_pairs_per_decision": 3, "validation_share": 0.3},
    )
    lake = Lake(settings.lake_root)
    events = {day: slates(day, seed) for seed, day in enumerate((DAY, DAY_BEFORE, TOO_OLD))}
    for day, rows in events.items():
        publish(lake, "events", rows, day)
    publish_catalogue(lake)
    publish(lake, "users", [{"user_id": f"u{n}", "profile": json.dumps({"n": n})} for n in range(30)], DAY)
    return settings, events, build(settings)


def read_states(settings: Settings) -> dict[tuple, dict]:
    rows = Lake(settings.lake_root).read("user_states").to_pylist()
    return {(row["user_id"], row["request_id"], row["target_item"]): row for row in rows}


def test_states_are_what_was_known_strictly_before(logs) -> None:
    settings, events, report = logs
    within = {day: rows for day, rows in events.items() if day != TOO_OLD}
    expected = expected_states(within, max_history=5)
    with_history = {key: value for key, value in expected.items() if value[1]}
    states = read_states(settings)
    assert {key: (row["as_of"], row["history"], row["target_type"]) for key, row in states.items()} == with_history
    assert len(with_history) > 100
    assert report["facts"]["states"] == len(with_history)
    assert report["facts"]["decisions_without_history"] == len(expected) - len(with_history)
    assert max(len(row["history"]) for row in states.values()) == 5


def test_profile_context_and_position(logs) -> None:
    settings, _, _ = logs
    days: dict[str, list] = defaultdict(list)
    for (user, request, _), row in read_states(settings).items():
        number = int(user[1:])
        assert row["profile"] == (json.dumps({"n": number}) if number < 30 else None)
        context = json.loads(row["context"])
        assert context["weekday"] == "Monday"
        assert context["placement"] in ("home", "search")
        assert (
            context["daypart"]
            == ("night", "morning", "midday", "afternoon", "evening")[
                sum(row["as_of"].hour >= hour for hour in (6, 11, 14, 18))
            ]
        )
        days[user].append((row["as_of"], request, row["position"]))
    for decisions in days.values():
        positions = [position for *_, position in sorted(decisions)]
        assert sorted(positions) == sorted(set(positions))
        assert [time for time, *_ in sorted(decisions)] == [
            time for time, *_ in sorted(decisions, key=lambda decision: decision[2])
        ]


def test_state_id_hashes_history_profile_and_context_alone(logs) -> None:
    contents = defaultdict(set)
    for row in read_states(logs[0]).values():
        contents[row["state_id"]].add((tuple(row["history"]), row["profile"], row["context"]))
    assert all(len(content) == 1 for content in contents.values())
    assert len({next(iter(content)) for content in contents.values()}) == len(contents)
    assert len(contents) < len(read_states(logs[0])), "several targets of one request share their state"


def test_a_history_item_with_a_new_text_makes_another_state(logs, tmp_path) -> None:
    settings, events, _ = logs
    other = settings.model_copy(update={"home": tmp_path})
    lake = Lake(other.lake_root)
    for day, rows in events.items():
        publish(lake, "events", rows, day)
    publish_catalogue(lake, i3="new title")
    publish(lake, "users", [{"user_id": f"u{n}", "profile": json.dumps({"n": n})} for n in range(30)], DAY)
    build(other)
    before, after = read_states(settings), read_states(other)
    assert before.keys() == after.keys()
    for key, row in before.items():
        assert (after[key]["state_id"] != row["state_id"]) == ("i3" in row["history"])


def test_a_hashed_share_of_users_is_held_out(logs) -> None:
    settings, _, report = logs
    states = read_states(settings)
    users = sorted({row["user_id"] for row in states.values()})
    held_out = dict(zip(users, is_validation_user(users, 0.3), strict=True))
    assert {row["user_id"]: row["split"] for row in states.values()} == {
        user: "validation" if held_out[user] else "train" for user in users
    }
    facts = report["facts"]
    assert facts["states_validation"] > 0
    assert facts["states_train"] + facts["states_validation"] == facts["states"]


def test_requests_of_held_out_users_have_the_histories_of_states_clicked_or_not(logs) -> None:
    settings, events, _ = logs
    requests = held_out_requests(Lake(settings.lake_root), DAY, settings)
    assert requests is not None
    asked = requests.states.select(["user_id", "as_of", "history"]).to_pylist()
    known = {(row["user_id"], row["as_of"]): row["history"] for row in asked}
    clicked = {
        (row["user_id"], row["as_of"]): row["history"]
        for row in read_states(settings).values()
        if row["split"] == "validation"
    }
    assert clicked.items() <= known.items()
    assert len(clicked) < len(known), "some requests were not clicked"
    # The impressions are those of the log, in their places, with what came of them.
    shown = [row for row in events[DAY] if row["event_type"] == "impression"]
    answers = {(row["request_id"], row["item_id"]) for row in events[DAY] if row["event_type"] in POSITIVE}
    bought = {(row["request_id"], row["item_id"]) for row in events[DAY] if row["event_type"] == "conversion"}
    place_of = {(row["request_id"], row["position"]): row["item_id"] for row in shown}
    request_of = {(row["user_id"], row["event_time"]): set() for row in shown}
    for row in shown:
        request_of[row["user_id"], row["event_time"]].add(row["request_id"])
    found = zip(
        requests.row, requests.position, requests.item, *(requests.answered[n] for n in ("ecpm", "gmv")), strict=True
    )
    for row, position, item, was_clicked, was_bought in found:
        state = asked[row]
        names = {
            name for name in request_of[state["user_id"], state["as_of"]] if place_of.get((name, position)) == item
        }
        assert any((name, item) in answers for name in names) >= was_clicked
        assert any((name, item) in bought for name in names) >= was_bought
    assert len(requests.item) == 6 * len(asked)
    assert 0.2 < requests.answered["ecpm"].mean() < 0.5
    assert np.isnan(requests.propensity).all()
    # Of held-out users alone, and of those alone that a smaller share holds out too.
    users = {state["user_id"] for state in asked}
    assert is_validation_user(sorted(users), 0.3).all()
    fewer = held_out_requests(Lake(settings.lake_root), DAY, settings, share=0.15)
    assert fewer is not None
    of_fewer = set(fewer.states["user_id"].to_pylist())
    assert of_fewer == {user for user in users if is_validation_user([user], 0.15)[0]} < users


def test_pairs_come_from_the_same_slate(logs) -> None:
    settings, events, report = logs
    states = {row["decision_id"]: row for row in read_states(settings).values()}
    seen: dict[tuple, set] = defaultdict(set)
    for row in events[DAY]:
        seen[row["user_id"], row["request_id"], row["event_type"]].add(row["item_id"])
    pairs = Lake(settings.lake_root).read("preference_pairs").to_pylist()
    by_decision = defaultdict(set)
    for pair in pairs:
        state = states[pair["decision_id"]]
        assert (pair["state_id"], pair["preferred_item"]) == (state["state_id"], state["target_item"])
        request = (state["user_id"], state["request_id"])
        positive = seen[*request, "click"] | seen[*request, "conversion"]
        disliked = seen[*request, "dislike"] - positive
        assert pair["other_item"] in seen[*request, "impression"] - positive
        assert (pair["source"] == "dislike") == (pair["other_item"] in disliked)
        by_decision[pair["decision_id"]].add(pair["other_item"])
    for decision_id, state in states.items():
        request = (state["user_id"], state["request_id"])
        passed = seen[*request, "impression"] - seen[*request, "click"] - seen[*request, "conversion"]
        expected = min(3, len(passed))
        assert len(by_decision[decision_id]) == expected
        if expected:
            assert len(by_decision[decision_id] & seen[*request, "dislike"]) == min(
                3, len(passed & seen[*request, "dislike"])
            )
    assert report["facts"]["preference_pairs"] == len(pairs)


def test_a_rerun_does_nothing_and_a_forced_one_gives_the_same_rows(logs) -> None:
    settings, _, report = logs
    lake = Lake(settings.lake_root)
    before = {table: lake.read(table) for table in ("user_states", "preference_pairs")}
    versions = {table: lake.version(table) for table in before}
    assert build(settings)["state"] == "skipped"
    assert {table: lake.version(table) for table in before} == versions
    assert build(settings, force=True)["facts"] == report["facts"]
    assert all(lake.read(table).equals(rows) for table, rows in before.items())


def test_leave_one_out_labels_are_evaluated_and_never_history(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, states={"max_history": 4})
    lake = Lake(settings.lake_root)
    noise = random.Random(1)
    sequences = {f"u{n}": [noise.choice(ITEMS[:10]) for _ in range(noise.randrange(2, 9))] for n in range(40)}
    start = datetime(2026, 1, 5, tzinfo=UTC)
    rows = []
    for user, sequence in sequences.items():
        roles = ["logged"] * len(sequence) + ["validation", "test"]
        for position, (item, role) in enumerate(zip([*sequence, "i20", "i21"], roles, strict=True)):
            key = f"{user}-{position}"
            rows.append(
                {"event_id": key, "request_id": key, "user_id": user, "item_id": item, "role": role,
                 "event_type": "conversion", "event_time": start + timedelta(hours=position)}
            )  # fmt: skip
    publish(lake, "events", rows, DAY)
    # The labels of another declared day are the same items: they must not become history either.
    yesterday = [
        {**row, "event_time": row["event_time"] - timedelta(days=1)} for row in rows if row["role"] != "logged"
    ]
    publish(lake, "events", yesterday, DAY_BEFORE)
    publish_catalogue(lake)
    report = build(settings)
    states = read_states(settings)
    expected = {}
    for user, sequence in sequences.items():
        for position in range(1, len(sequence)):
            expected[user, f"{user}-{position}", sequence[position]] = ("train", sequence[:position][-4:])
        expected[user, f"{user}-{len(sequence)}", "i20"] = ("validation", sequence[-4:])
    assert {key: (row["split"], row["history"]) for key, row in states.items()} == expected
    assert all(row["context"] is None and row["profile"] is None for row in states.values())

    by_decision = {row["decision_id"]: row for row in states.values()}
    pairs = lake.read("preference_pairs").to_pylist()
    assert {pair["source"] for pair in pairs} == {"sampled"}
    assert len({pair["decision_id"] for pair in pairs}) == len(pairs)
    for pair in pairs:
        state = by_decision[pair["decision_id"]]
        position = int(state["request_id"].rpartition("-")[2])
        assert state["split"] == "train"
        assert pair["other_item"] not in [*sequences[state["user_id"]][:position], state["target_item"]]
    assert len(pairs) == sum(split == "train" for split, _ in expected.values())
    assert len({pair["other_item"] for pair in pairs}) > 15
    assert any("no impressions" in note for note in report["notes"])
