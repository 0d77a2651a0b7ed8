"""Tables to index arrays: catalogue, histories and training sequences."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgrec_core.generator.dataset import Catalogue, chain_decisions, history_matrix
from sgrec_core.lake import load_contract

ITEMS = [f"i{number}" for number in range(9)]
COLUMNS = ["user_id", "as_of", "position", "history", "target_item"]
SCHEMA = pa.schema([load_contract("user_states").arrow_schema.field(name) for name in COLUMNS])


def catalogue(known: list[str] = ITEMS) -> Catalogue:
    codes = pa.table(
        {"item_id": known[::-1], "codes": [[int(item[1:]) // 3, int(item[1:]) % 3] for item in known[::-1]]}
    )
    return Catalogue.build(pa.chunked_array([[*ITEMS, "new"]]), codes, codebook_size=3, tokenizer_version="t1")


def test_catalogue_is_sorted_and_holds_only_items_of_the_day_with_codes() -> None:
    built = catalogue(["i5", "i1", "i2"])
    assert built.item_ids.to_pylist() == ["i1", "i2", "i5"]
    assert built.codes.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert built.index(pa.array(["i5", "new", "i1", "i7"])).tolist() == [2, -1, 0, -1]
    assert built.ids(np.array([2, 0])) == ["i5", "i1"]
    assert built.digest != catalogue(["i5", "i1"]).digest
    assert built.digest == catalogue(["i1", "i2", "i5"]).digest
    with pytest.raises(ValueError, match="none of 1 items has codes of tokenizer t9"):
        Catalogue.build(
            pa.chunked_array([["x"]]),
            pa.table({"item_id": ["y"], "codes": [[0]]}),
            codebook_size=2,
            tokenizer_version="t9",
        )


@given(st.lists(st.lists(st.sampled_from([*ITEMS, "new"]), max_size=7), min_size=1, max_size=6), st.integers(1, 4))
def test_histories_keep_the_newest_known_items_in_order(histories: list[list[str]], max_items: int) -> None:
    matrix = history_matrix(pa.chunked_array([pa.array(histories, pa.list_(pa.string()))]), catalogue(), max_items)
    assert matrix.shape == (len(histories), max_items)
    for row, history in zip(matrix.tolist(), histories, strict=True):
        known = [ITEMS.index(item) for item in history if item != "new"][-max_items:]
        assert row == known + [-1] * (max_items - len(known))


def test_histories_of_a_slice_are_those_of_the_slice() -> None:
    histories = pa.chunked_array([pa.array([["i0"], ["i1", "i2"], ["i3"]])])
    assert history_matrix(histories.slice(1), catalogue(), 2).tolist() == [[1, 2], [3, -1]]


def states_of(users: dict[str, list[tuple[list[str], str]]]) -> pa.Table:
    """Decision points (history, target) of each user, in the order of time."""
    start = datetime(2026, 1, 5, tzinfo=UTC)
    rows: list[dict[str, Any]] = [
        {
            "user_id": user,
            "as_of": start + timedelta(minutes=number),
            "position": number,
            "history": history,
            "target_item": target,
        }
        for user, decisions in users.items()
        for number, (history, target) in enumerate(decisions)
    ]
    return pa.Table.from_pylist(rows[::-1], schema=SCHEMA)


def test_decisions_that_follow_each_other_become_one_sequence() -> None:
    sequences = chain_decisions(
        states_of(
            {
                "a": [(["i0"], "i1"), (["i0", "i1"], "i2"), (["i1", "i2"], "i3")],
                "b": [([], "i4"), (["i4"], "i5"), (["i4"], "i6"), (["i4", "i5"], "new"), (["i4", "i5", "new"], "i7")],
            }
        ),
        catalogue(),
        max_items=2,
    )
    assert [sequence.tolist() for sequence in sequences.items] == [[0, 1, 2, 3], [4, 5], [4, 6], [4, 5, 7]]
    assert sequences.first_target == [1, 0, 1, 2]
    assert sequences.decisions == 7


@given(
    st.lists(st.lists(st.sampled_from(ITEMS), min_size=2, max_size=9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_each_decision_is_a_target_after_its_own_history(walks: list[list[str]], max_items: int, seed: int) -> None:
    """Some decisions are dropped at random, so that chains break."""
    draws = np.random.default_rng(seed)
    users: dict[str, list[tuple[list[str], str]]] = {
        f"u{user}": [
            (walk[max(0, at - max_items) : at], walk[at]) for at in range(len(walk)) if draws.random() < 0.8 or at == 0
        ]
        for user, walk in enumerate(walks)
    }
    sequences = chain_decisions(states_of(users), catalogue(), max_items)
    found = [
        (items[max(0, at - max_items) : at].tolist(), int(items[at]))
        for items, first in zip(sequences.items, sequences.first_target, strict=True)
        for at in range(first, len(items))
    ]
    expected = [
        ([ITEMS.index(item) for item in history], ITEMS.index(target))
        for decisions in users.values()
        for history, target in decisions
    ]
    assert found == expected
    assert sequences.decisions == len(expected)


def test_two_choices_of_one_request_are_one_sequence() -> None:
    """A slate with two clicks broke the chain, and a transformer that reads a night once per decision takes hours."""
    rows = states_of({"a": [(["i0"], "i1"), (["i0"], "i2"), (["i0", "i1", "i2"], "i3")]}).to_pylist()
    same_request = [{**row, "as_of": rows[-1]["as_of"]} if row["position"] < 2 else row for row in rows]
    sequences = chain_decisions(pa.Table.from_pylist(same_request, schema=SCHEMA), catalogue(), max_items=5)
    assert [sequence.tolist() for sequence in sequences.items] == [[0, 1, 2, 3]]
    assert sequences.first_target == [1]


def test_no_decisions_make_no_sequences() -> None:
    nothing = states_of({"a": [(["i0"], "new")]})
    assert chain_decisions(nothing, catalogue(), 3).items == []
