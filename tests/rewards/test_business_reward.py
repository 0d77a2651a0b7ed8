"""The click model behind eCPM: nothing from the future, honest probabilities, right bids."""

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from sgrec_core.errors import InputError
from sgrec_core.rewards.business import EcpmModel, auc, expected_calibration_error
from sgrec_core.rewards.business_context import BusinessContext

START = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp() * 1e6)
ITEMS, USERS, CATEGORIES = 24, 240, 4


def events_table(rows: list[dict]) -> pa.Table:
    schema = pa.schema(
        [
            ("event_id", pa.string()),
            ("event_time", pa.timestamp("us", "UTC")),
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("event_type", pa.string()),
            ("request_id", pa.string()),
            ("placement", pa.string()),
            ("position", pa.int32()),
            ("price", pa.float64()),
            ("bid", pa.float64()),
            ("role", pa.string()),
        ]
    )
    filled = [{"event_id": f"e{number}", "role": "logged", **row} for number, row in enumerate(rows)]
    return pa.Table.from_pylist(filled, schema=schema)


def items_table() -> pa.Table:
    return pa.table(
        {
            "item_id": [f"i{item}" for item in range(ITEMS)],
            "price": [float(item + 1) for item in range(ITEMS)],
            "category": [f"all, category {item % CATEGORIES}" for item in range(ITEMS)],
            "brand": [None if item % 3 == 0 else f"brand {item % 3}" for item in range(ITEMS)],
        }
    )


def users_table() -> pa.Table:
    profiles = [
        json.dumps({"age": 20 + user % 50, "favourite": f"category {user % CATEGORIES}"}) for user in range(USERS)
    ]
    return pa.table({"user_id": [f"u{user}" for user in range(USERS)], "profile": profiles})


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Slates of four; users click what is in their favourite category at 40%, anything else at 5%."""
    generator = np.random.default_rng(5)
    events = []
    for request in range(2400):
        user, time = request % USERS, START + int(request * 3e7)
        for position, item in enumerate(generator.choice(ITEMS, 4, replace=False)):
            shown = {
                "event_time": time,
                "user_id": f"u{user}",
                "item_id": f"i{item}",
                "request_id": f"r{request}",
                "placement": "home" if request % 2 else "detail",
                "position": position,
                "price": float(item + 1),
                "bid": float(generator.uniform(0.1, 1.0)),
            }
            events.append({**shown, "event_type": "impression"})
            if generator.random() < (0.4 if item % CATEGORIES == user % CATEGORIES else 0.05):
                events.append({**shown, "event_type": "click", "event_time": time + 5_000_000})
    return [{"event_id": f"e{number:06d}", **event} for number, event in enumerate(events)]


@pytest.fixture(scope="module")
def context(rows: list[dict]) -> BusinessContext:
    return BusinessContext(events_table(rows), items_table(), users_table())


@pytest.fixture(scope="module")
def model(context: BusinessContext) -> EcpmModel:
    return EcpmModel.fit(context, seed=0, trees=120)


def states_table(users: list[str], times: list[int], contexts: list[str | None] | None = None) -> pa.Table:
    return pa.table(
        {
            "user_id": users,
            "as_of": pa.array(times, pa.timestamp("us", "UTC")),
            "profile": pa.array(
                [json.dumps({"favourite": f"category {int(user[1:]) % CATEGORIES}"}) for user in users]
            ),
            "context": pa.array(contexts or [None] * len(users), pa.string()),
        }
    )


def test_features_count_only_what_happened_strictly_before(rows, context):
    encodings = context.fit_encoding()
    queries, labels, users = context.impressions()
    features, names = context.features(queries, encodings)
    column = {name: features[:, number] for number, name in enumerate(names)}
    impressions = sorted(
        (row for row in events_table(rows).to_pylist() if row["event_type"] == "impression"),
        key=lambda row: (row["event_time"], row["event_id"]),
    )
    clicks = [row for row in events_table(rows).to_pylist() if row["event_type"] == "click"]
    for number in range(0, len(impressions), 601):
        row = impressions[number]
        seen = [r for r in impressions if r["event_time"] < row["event_time"]]
        clicked = [r for r in clicks if r["event_time"] < row["event_time"]]
        same_category = [
            r for r in clicked if int(r["item_id"][1:]) % CATEGORIES == int(row["item_id"][1:]) % CATEGORIES
        ]
        assert column["item_impressions"][number] == pytest.approx(
            np.log1p(sum(r["item_id"] == row["item_id"] for r in seen))
        )
        assert column["user_clicks"][number] == pytest.approx(
            np.log1p(sum(r["user_id"] == row["user_id"] for r in clicked))
        )
        assert column["user_category_clicks"][number] == pytest.approx(
            np.log1p(sum(r["user_id"] == row["user_id"] for r in same_category))
        )
    assert labels.sum() == len(clicks)
    assert len(users) == len(impressions)


def test_the_future_changes_no_feature_and_no_reward(rows, model):
    middle = START + int(1200 * 3e7)
    past = BusinessContext(events_table([r for r in rows if r["event_time"] < middle]), items_table(), users_table())
    whole = BusinessContext(events_table(rows), items_table(), users_table())
    states = states_table(["u3", "u17"], [middle, middle])
    group = [[f"i{item}" for item in range(8)]] * 2
    np.testing.assert_array_equal(model.reward(states, group, past), model.reward(states, group, whole))


def test_the_model_learns_taste_and_its_probabilities_are_honest(model):
    metrics = model.metrics
    rate = metrics["clicks"] / metrics["impressions"]
    assert metrics["auc_in_fold"] > metrics["auc"] > 0.7
    assert metrics["ece"] < 0.04
    assert metrics["log_loss"] < -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) - 0.02


def test_reward_is_a_thousand_times_click_probability_times_last_bid(rows, context, model):
    time = START + int(2000 * 3e7)
    states = states_table(["u3"], [time], ['{"placement":"home"}'])
    group = [[f"i{item}" for item in range(8)]]
    reward = model.reward(states, group, context)
    assert reward.shape == (1, 8)
    bids = []
    for item in group[0]:
        bids.append([r["bid"] for r in rows if r["item_id"] == item and r["event_time"] < time and r["bid"]][-1])
    probability = reward[0] / 1000 / np.array(bids)
    assert (probability > 0).all()
    assert (probability < 1).all()
    # User 3 likes category 3: items 3 and 7.
    assert probability[[3, 7]].min() > probability[[0, 1, 2, 4, 5, 6]].max()


def test_an_item_without_an_earlier_bid_gets_the_median_of_the_last_bids():
    hour = 3_600_000_000
    shown = {"user_id": "u0", "request_id": "r", "event_type": "impression"}
    context = BusinessContext(
        events_table(
            [
                {**shown, "item_id": "i0", "event_time": START + 1, "bid": 1.0},
                {**shown, "item_id": "i1", "event_time": START + 2, "bid": 5.0},
                {**shown, "item_id": "i2", "event_time": START + 3, "bid": 9.0},
                {**shown, "item_id": "i0", "event_time": START + hour + 5, "bid": 7.0},
            ]
        ),
        items_table(),
        users_table(),
    )

    def bid(item: int, time: int) -> float:
        return float(context.last_bids(np.array([item]), np.array([START + time]))[0])

    assert bid(0, hour) == 1.0
    assert bid(0, hour + 5) == 1.0, "a bid at as_of itself is not before it"
    assert bid(0, hour + 6) == 7.0
    assert bid(9, hour + 6) == 5.0, "last bids before the full hour: 1, 5, 9"
    assert bid(9, 2 * hour) == 7.0, "last bids before the full hour: 7, 5, 9"
    assert bid(9, 1) == 5.0, "nothing before: first bids of the window"


def test_the_model_survives_json_and_a_fit_is_repeatable(context, model):
    config = json.loads(json.dumps(model.to_config()))
    states = states_table(["u1", "u9999"], [START + int(1e10)] * 2)
    states = states.set_column(2, "profile", pa.array([None, "{}"], pa.string()))
    group = [["i1", "i2"], ["i3", "i4"]]
    reward = model.reward(states, group, context)
    np.testing.assert_array_equal(EcpmModel.from_config(config).reward(states, group, context), reward)
    assert EcpmModel.fit(context, seed=0, trees=120).to_config() == model.to_config()


def test_left_out_users_leave_no_trace(rows):
    even = BusinessContext(
        events_table([r for r in rows if int(r["user_id"][1:]) % 2 == 0]), items_table(), users_table()
    )
    filtered = BusinessContext(
        events_table(rows),
        items_table(),
        users_table(),
        keep_user=lambda users: np.array([int(user[1:]) % 2 == 0 for user in users]),
    )
    encodings = even.fit_encoding()
    assert encodings == filtered.fit_encoding()
    np.testing.assert_array_equal(
        even.features(even.impressions()[0], encodings)[0], filtered.features(filtered.impressions()[0], encodings)[0]
    )


def test_held_out_labels_are_no_history(rows):
    labels = [{**row, "role": "test", "event_id": f"t{number}"} for number, row in enumerate(rows[:50])]
    with_labels = BusinessContext(events_table([*rows, *labels]), items_table(), users_table())
    assert len(with_labels.impressions()[1]) == sum(row["event_type"] == "impression" for row in rows)


def test_errors_name_what_is_wrong(rows, context, model):
    with pytest.raises(InputError, match="'nothing' is not in the day's catalogue"):
        model.reward(states_table(["u0"], [START]), [["nothing"]], context)
    no_clicks = BusinessContext(
        events_table([r for r in rows if r["event_type"] == "impression"]), items_table(), users_table()
    )
    with pytest.raises(InputError, match="has 0 clicks"):
        EcpmModel.fit(no_clicks, seed=0)
    no_bids = BusinessContext(events_table([{**r, "bid": None} for r in rows]), items_table(), users_table())
    assert not no_bids.has_impressions_with_bids
    assert context.has_impressions_with_bids
    with pytest.raises(InputError, match="no impression has a bid"):
        no_bids.last_bids(np.array([0]), np.array([START]))


def test_metrics_by_hand():
    labels = np.array([0.0, 0, 1, 1])
    assert auc(labels, np.array([0.1, 0.4, 0.35, 0.8])) == pytest.approx(0.75)
    assert auc(labels, np.zeros(4)) == pytest.approx(0.5)
    assert expected_calibration_error(labels, np.array([0.2, 0.2, 0.7, 0.7]), bins=2) == pytest.approx(0.25)
