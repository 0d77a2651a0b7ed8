"""The click model is cross-fitted: nobody's reward comes from a model that has seen that user."""

import json

import numpy as np
import pyarrow as pa
import pytest
from test_business_reward import (
    CATEGORIES,
    ITEMS,
    START,
    events_table,
    items_table,
    rows,  # noqa: F401
    states_table,
    users_table,
)
from test_business_reward_job import DAY, night_config, publish, rewards, run

from sgrec_core.hashing import is_validation_user
from sgrec_core.lake import Lake
from sgrec_core.night.business import day_context
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.rewards.business import EcpmModel, auc
from sgrec_core.rewards.business_context import BusinessContext
from sgrec_core.runtime.stages import BUSINESS_REWARD
from sgrec_core.settings import PROJECT_ROOT, Settings

MIDDLE = START + int(1200 * 3e7)
GROUP = [f"i{item}" for item in range(8)]


def halves(users: list[str], day: int = START) -> tuple[set[str], set[str]]:
    """Which half each user is in, were they all shown one item that day."""
    shown = {"event_time": day, "item_id": "i0", "event_type": "impression", "request_id": "r", "bid": 1.0}
    context = BusinessContext(
        events_table([{**shown, "user_id": user} for user in users]), items_table(), users_table()
    )
    first, second = context.halves(0)
    return set(first.user_index), set(second.user_index)


def planted(households: int = 60, members: int = 16) -> tuple[list[dict], pa.Table]:
    """Events and users of households that each like half of the categories, drawn by lot.

    A user has one slate, so that no history tells a taste, and a household lies within one half: its number in the
    profile, and a model's memory of what that number clicked, is all that tells.
    """
    draw = np.random.default_rng(0)
    share = Settings().states.validation_share
    names = [f"u{number}" for number in range(4 * households * members)]
    names = [name for name, out in zip(names, is_validation_user(names, share), strict=True) if not out]
    free = [sorted(half) for half in halves(names)]
    events, users = [], {}
    for household in range(households):
        likes = draw.permutation(np.arange(CATEGORIES) < CATEGORIES // 2)
        for _ in range(members):
            user = free[household % 2].pop()
            users[user] = json.dumps({"household": household})
            time = START + int(draw.integers(8e10))
            for position, item in enumerate(draw.choice(ITEMS, 8, replace=False)):
                shown = {
                    "event_time": time,
                    "user_id": user,
                    "item_id": f"i{item}",
                    "request_id": f"request of {user}",
                    "placement": "home",
                    "position": position,
                    "price": float(item + 1),
                    "bid": 1.0,
                }
                events.append({**shown, "event_type": "impression"})
                if draw.random() < (0.6 if likes[item % CATEGORIES] else 0.05):
                    events.append({**shown, "event_type": "click", "event_time": time + 1})
    return events, pa.table({"user_id": list(users), "profile": list(users.values())})


def test_what_a_user_clicks_moves_the_rewards_of_the_other_half_alone(registry_home, rows):  # noqa: F811
    settings = Settings(home=registry_home)
    publish(settings, events_table(rows))
    run(settings)
    first, second = day_context(Lake(settings.lake_root), DAY, settings).halves(settings.business.seed)
    users = [f"u{number}" for number in range(60)]
    user = next(name for name in users if name in first.user_index)
    states = states_table(users, [MIDDLE] * len(users))
    before = rewards(settings, states, [GROUP] * len(users))

    clicked = {(row["request_id"], row["item_id"]) for row in rows if row["event_type"] == "click"}

    def turned(row: dict) -> list[dict]:
        """From the decision on, what the user was shown and left is clicked, and what was clicked is left."""
        if row["user_id"] != user or row["event_time"] < MIDDLE:
            return [row]
        if row["event_type"] == "click":
            return []
        click = {"event_type": "click", "event_time": row["event_time"] + 5_000_000, "event_id": f"t{row['event_id']}"}
        return [row] if (row["request_id"], row["item_id"]) in clicked else [row, {**row, **click}]

    publish(settings, events_table([new for row in rows for new in turned(row)]), "cd" * 8)
    run(settings)
    moved = (rewards(settings, states, [GROUP] * len(users)) != before).any(axis=1)
    in_first = np.array([name in first.user_index for name in users])
    outside = ~in_first & np.array([name not in second.user_index for name in users])
    assert not moved[in_first].any(), "to the last digit, the user's own above all"
    assert moved[~in_first].all(), "their model has learnt from the user; so has one of the two that outsiders get"
    assert 0 < outside.sum() < 20 < in_first.sum()


def test_what_a_model_can_only_remember_does_not_tell_the_clicked_item(registry_home):
    settings = Settings(home=registry_home)
    events, users = planted()
    publish(settings, events_table(events), users=users)
    job = run(settings)
    assert job.facts["auc_in_fold"] > 0.75
    assert job.facts["auc"] == pytest.approx(0.5, abs=0.04)
    assert any(f"{job.facts['auc_in_fold']:.3f} instead of {job.facts['auc']:.3f}" in note for note in job.notes)

    shown: dict[str, list[str]] = {}
    times, clicked = {}, set()
    for event in events:
        if event["event_type"] == "impression":
            shown.setdefault(event["user_id"], []).append(event["item_id"])
            times[event["user_id"]] = event["event_time"]
        else:
            clicked.add((event["user_id"], event["item_id"]))
    profiles = dict(zip(users["user_id"].to_pylist(), users["profile"].to_pylist(), strict=True))
    states = states_table(list(shown), [times[user] for user in shown], ['{"placement":"home"}'] * len(shown))
    states = states.set_column(2, "profile", pa.array([profiles[user] for user in shown]))
    labels = np.array([[(user, item) in clicked for item in items] for user, items in shown.items()], dtype=float)

    def told(found: np.ndarray) -> float:
        """Share of the pairs of a clicked and an ignored item of one slate that are in order; ties count half."""
        both = [(label, row) for label, row in zip(labels, found, strict=True) if len(set(label)) == 2]
        pairs = [label.sum() * (1 - label).sum() for label, _ in both]
        return float(np.average([auc(label, row) for label, row in both], weights=pairs))

    assert told(rewards(settings, states, list(shown.values()))) == pytest.approx(0.5, abs=0.04)
    # With the models exchanged, each user is rewarded by the one that has seen that user.
    config = night_config(settings)
    remembering = EcpmModel.from_config({**config, "folds": config["folds"][::-1]})
    context = day_context(Lake(settings.lake_root), DAY, settings)
    assert told(remembering.reward(states, list(shown.values()), context)) > 0.75


def test_a_user_outside_of_both_halves_gets_the_mean_of_the_models(rows):  # noqa: F811
    context = BusinessContext(events_table(rows), items_table(), users_table())
    model = EcpmModel.fit(context, seed=0)
    users = [min(half.user_index) for half in context.halves(0)] + ["u9999"]
    # Before all events, users differ in their half alone.
    states = states_table(users, [START] * 3).set_column(2, "profile", pa.array(["{}"] * 3))
    first, second, outside = model.reward(states, [GROUP] * 3, context)
    assert (first != second).any()
    np.testing.assert_allclose(outside, (first + second) / 2, rtol=1e-12)


def test_users_are_in_the_same_half_every_night():
    users = [f"u{number}" for number in range(400)]
    first, second = halves(users)
    assert first | second == set(users)
    assert not first & second
    assert 160 < len(first) < 240
    later = halves([*users[100:], *(f"new{number}" for number in range(50))], START + 86_400_000_000)
    assert later[0] & set(users) == first & set(users[100:])
    assert later[1] & set(users) == second & set(users[100:])


def test_another_home_makes_the_same_bytes(registry_home, tmp_path, rows):  # noqa: F811
    made = []
    for home in (registry_home, tmp_path / "other"):
        settings = Settings(home=home)
        publish(settings, events_table(rows))
        job = run(settings)
        made.append((json.dumps(night_config(settings)), job.facts))
    assert made[0] == made[1]


def test_a_version_of_before_there_were_halves_still_rewards(registry_home, rows):  # noqa: F811
    """Model and rewards were made by that code, of these events."""
    known = json.loads((PROJECT_ROOT / "tests" / "support" / "click_model_of_before.json").read_text())
    settings = Settings(home=registry_home)
    publish(settings, events_table(rows))
    registry = Registry(settings)
    version = registry.register(BUSINESS_REWARD, day=DAY, fingerprint="ef" * 8, tensors={}, config=known["config"])
    mark_of_night(registry, version)
    states = states_table(["u3", "u17", "u9999"], [START + int(2000 * 3e7)] * 3, ['{"placement":"home"}', None, None])
    np.testing.assert_allclose(rewards(settings, states, [["i3", "i4", "i7"]] * 3), known["rewards"], rtol=1e-12)
