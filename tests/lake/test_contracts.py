"""Contracts are what they say: schema, constraints and checks come from one file per table."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from sgrec_core.errors import ContractError
from sgrec_core.lake import all_contracts, load_contract
from sgrec_core.quality.alarms import TABLE as NIGHT_METRICS
from sgrec_core.quality.incidents import TABLE as INCIDENTS
from sgrec_core.registry.promotions import TABLE as PROMOTIONS
from sgrec_core.runtime.stages import ALL_STAGES, STAGE_RUNS


def event(**changes: object) -> pa.Table:
    row = {
        "day": datetime(2026, 1, 5).date(),
        "role": "logged",
        "event_id": "e1",
        "event_time": datetime(2026, 1, 5, 12, tzinfo=UTC),
        "user_id": "u",
        "item_id": "i",
        "event_type": "click",
        "request_id": "r",
        "placement": "home",
        "position": 0,
        "price": 1.5,
        "bid": None,
        "propensity": None,
        **changes,
    }
    return pa.table({name: [value] for name, value in row.items()})


def test_every_published_table_has_a_contract_and_every_contract_a_publisher() -> None:
    published = {table for stage in ALL_STAGES for table in stage.publishes}
    beside = {STAGE_RUNS, PROMOTIONS, NIGHT_METRICS, INCIDENTS}
    assert published | beside == {contract.table for contract in all_contracts()}


def test_contracts_name_an_owner_a_runbook_and_describe_every_column() -> None:
    for contract in all_contracts():
        assert contract.owner
        assert len(contract.runbook) > 30, contract.table
        assert all(column.description for column in contract.columns), contract.table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"event_type": "clik"}, ["event_type", "'clik'", "impression, click, conversion, dislike"]),
        ({"price": -1.0}, ["price", "-1.0", "at least 0"]),
        ({"bid": float("nan")}, ["bid", "nan"]),
        ({"propensity": 0.0}, ["propensity", "0.0", "above 0, at most 1"]),
        ({"propensity": 1.01}, ["propensity", "1.01", "above 0, at most 1"]),
        ({"user_id": None}, ["user_id", "not null"]),
        ({"item_id": "x" * 300}, ["item_id", "at most 256 characters"]),
        ({"position": -3}, ["position", "-3"]),
    ],
)
def test_a_bad_value_is_named_with_column_key_and_what_is_valid(changes: dict, words: list[str]) -> None:
    contract = load_contract("events")
    with pytest.raises(ContractError) as error:
        contract.check(contract.conform(event(**changes)))
    for word in ["table events", "event_id=e1", *words]:
        assert word in str(error.value)


def test_good_rows_pass() -> None:
    contract = load_contract("events")
    contract.check(contract.conform(event()))
    contract.check(contract.conform(event(propensity=1e-9)))
    contract.check(contract.conform(event(propensity=1.0)))


def test_missing_and_unknown_columns_are_named() -> None:
    with pytest.raises(ContractError, match="missing columns propensity; unknown columns bit"):
        load_contract("events").conform(event().rename_columns([*event().column_names[:-1], "bit"]))


def test_a_lossy_type_is_refused() -> None:
    with pytest.raises(ContractError, match="column position: cannot store double as int32"):
        load_contract("events").conform(event(position=0.5))


@pytest.mark.parametrize("scores", [[0.5, 1.5], [float("nan")], [0.5, None]])
def test_elements_of_lists_are_checked(scores: list) -> None:
    contract = load_contract("aspect_scores")
    row = {
        "judge_version": "v",
        "day": date(2026, 1, 5),
        "state_id": "s",
        "item_id": "i",
        "item_hash": "h",
        "aspects": ["a"],
        "scores": scores,
    }
    data = pa.Table.from_pylist([row], schema=contract.arrow_schema)
    with pytest.raises(ContractError, match="column scores"):
        contract.check(contract.conform(data))


def test_repeated_semantic_ids_break_the_contract() -> None:
    contract = load_contract("item_codes")
    data = pa.table(
        {"tokenizer_version": ["t", "t"], "item_id": ["a", "b"], "item_hash": ["h", "h"], "codes": [[1, 2], [1, 2]]}
    ).append_column("wanted_codes", pa.nulls(2, pa.list_(pa.int32())))
    with pytest.raises(ContractError, match="tokenizer_version, codes occur more than once"):
        contract.check_unique(contract.conform(data))


def test_an_unknown_table_lists_the_valid_ones() -> None:
    with pytest.raises(ContractError, match="no contract for table 'event'; valid are .*events"):
        load_contract("event")
