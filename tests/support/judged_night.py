"""A small night as score_aspects finds it: states, candidates and pairs in a lake; used by several test modules."""

from datetime import UTC, datetime

import pyarrow as pa

from sgrec_core.lake import Lake, load_contract
from sgrec_core.settings import Settings

DAY = "2026-01-05"
GROUP_SIZE = 4
THINGS = ["lamp", "desk", "chair", "kettle", "tent", "drill", "novel", "guitar", "carpet", "camera", "spade", "scarf"]
COLOURS = ["red", "blue", "green", "white"]
ITEMS = [f"item-{number:02d}" for number in range(len(THINGS) * len(COLOURS))]


def publish_night(
    settings: Settings,
    *,
    day: str = DAY,
    groups: int = 12,
    with_text: bool = True,
    with_context: bool = False,
    flat_groups: int = 2,
) -> Lake:
    """Publish items, user_states, candidates and preference_pairs.

    Of ``groups`` groups the last ``flat_groups`` have one business reward for all; item-00 has no text; the last
    quarter of the states belongs to validation users, and each state has one preference pair.
    """
    lake = Lake(settings.lake_root)
    partition = {"day": day}
    items = [
        {
            "item_id": item,
            "title": f"{COLOURS[number % 4]} {THINGS[number // 4]}" if with_text and number else None,
            "item_hash": f"hash-of-{item}",
        }
        for number, item in enumerate(ITEMS)
    ]
    states, candidates, pairs = [], [], []
    for group in range(groups):
        names = {"decision_id": f"decision-{group:03d}", "state_id": f"state-{group % (groups - 1):03d}"}
        history = [ITEMS[(group * 5 + step) % len(ITEMS)] for step in range(1, 4)]
        context = '{"hour":20,"placement":"home"}' if with_context else None
        split = "validation" if group >= groups * 3 // 4 else "train"
        times = {"as_of": datetime(2026, 1, 5, tzinfo=UTC), "target_type": "click", "position": 0}
        users = {"user_id": f"user-{group}", "request_id": f"request-{group}", "profile": f'{{"age":{20 + group}}}'}
        target = {"split": split, "history": history, "context": context, "target_item": ITEMS[group]}
        states.append({**names, **times, **users, **target})
        for rank in range(GROUP_SIZE):
            flat = group >= groups - flat_groups
            versions = {"policy_version": "1", "tokenizer_version": "1", "business_version": "1"}
            item = ITEMS[(group * 7 + rank * 11) % len(ITEMS)]
            reward = 0.5 if flat else float(rank == group % GROUP_SIZE)
            candidate = {"rank": rank, "item_id": item, "log_probs": [-1.0, -2.0], "business_reward": reward}
            candidates.append({**names, **versions, **candidate})
        other = ITEMS[(group + 20) % len(ITEMS)]
        pairs.append({**names, "preferred_item": ITEMS[group + 1], "other_item": other, "source": "impression"})
    for table, rows in [
        ("items", items),
        ("user_states", states),
        ("candidates", candidates),
        ("preference_pairs", pairs),
    ]:
        columns = [column for column in load_contract(table).columns if column.name != "day"]
        data = pa.table(
            {column.name: pa.array([row.get(column.name) for row in rows], column.arrow_type) for column in columns}
        )
        lake.publish(table, data, partition=partition, fingerprint="0" * 16)
    return lake
