"""Label files: what is accepted, what is rejected and why, and that nothing is lost."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgrec_core.errors import InputError
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.training.labels import label_request, nearest_label, read_labels
from sgrec_core.lake import load_contract
from sgrec_core.logs.rows import Limits

RUBRIC = load_rubric(True)
LIMITS = Limits()
GOOD: dict[str, Any] = {
    "sample_id": "s1",
    "user_id": "u1",
    "source": "human",
    "history": ["blue kettle", "tea cup"],
    "profile": {"age": 30},
    "item": "green tea",
    "labels": {"s0": "A", "s1": "B", "s2": "C"},
}


def read(folder: Path, share: float = 0.1) -> tuple[list[dict[str, Any]], list[Any]]:
    return read_labels(folder, RUBRIC, LIMITS, share)


def write(folder: Path, *rows: Any, name: str = "labels.jsonl") -> Path:
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    data = lines.encode("utf-8", "surrogatepass")
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def test_a_good_row_becomes_a_row_of_the_table(tmp_path: Path) -> None:
    accepted, rejected = read(write(tmp_path, GOOD, name="labels.jsonl.gz"))
    assert rejected == []
    (row,) = accepted
    assert (row["aspects"], row["labels"]) == (["s0", "s1", "s2"], ["A", "B", "C"])
    assert (row["profile"], row["context"]) == ('{"age":30}', None)
    assert set(row) == set(load_contract("judge_labels").arrow_schema.names) - {"day"}


def test_a_context_asks_for_its_aspect(tmp_path: Path) -> None:
    with_context = {**GOOD, "sample_id": "s2", "context": {"hour": 20}}
    complete = {**with_context, "sample_id": "s3", "labels": {**GOOD["labels"], "s3": "A"}}
    accepted, rejected = read(write(tmp_path, with_context, complete))
    assert [row["sample_id"] for row in accepted] == ["s3"]
    assert [(row.reason, row.line) for row in rejected] == [("missing_field", 1)]
    assert "labels.s3" in rejected[0].detail


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ("{", "invalid_json", "not one JSON object"),
        ({**GOOD, "item": None}, "wrong_type", "column item"),
        ({name: GOOD[name] for name in GOOD if name != "labels"}, "missing_field", "column labels"),
        ({**GOOD, "labels": {"s0": "A", "s1": "B"}}, "missing_field", "labels.s2"),
        ({**GOOD, "labels": {**GOOD["labels"], "s1": "E"}}, "invalid_value", "valid are A, B, C"),
        ({**GOOD, "labels": {**GOOD["labels"], "s3": "A"}}, "invalid_value", "'s3' is no aspect of this row"),
        ({**GOOD, "labels": ["A", "B", "C"]}, "wrong_type", "column labels"),
        ({**GOOD, "history": "tea cup"}, "wrong_type", "column history"),
        ({**GOOD, "history": ["tea", 7]}, "wrong_type", "history.1"),
        ({**GOOD, "item": ""}, "invalid_value", "column item"),
        ({**GOOD, "colour": "red"}, "invalid_value", "colour"),
        ({**GOOD, "profile": {"age": float("nan")}}, "invalid_json", "NaN"),
        (json.dumps({**GOOD, "item": "half \ud83d"}), "invalid_value", "item"),
        (json.dumps({**GOOD, "profile": {"name": "half \ud83d"}}), "invalid_value", "stored"),
        ("[1, 2]", "wrong_type", "not a JSON object"),
    ],
)
def test_bad_rows_are_rejected_with_column_and_reason(tmp_path: Path, row: Any, reason: str, words: str) -> None:
    accepted, (rejected,) = read(write(tmp_path, {**GOOD, "sample_id": "other"}, row))
    assert [kept["sample_id"] for kept in accepted] == ["other"]
    assert (rejected.reason, rejected.file, rejected.line) == (reason, "labels.jsonl", 2)
    assert words in rejected.detail
    assert reason in load_contract("judge_labels_rejected").column("reason").allowed
    rejected.detail.encode()


def test_a_repeated_sample_is_rejected_wherever_it_comes_again(tmp_path: Path) -> None:
    write(tmp_path, GOOD, name="a.jsonl")
    write(tmp_path, {**GOOD, "item": "black tea"}, name="b.jsonl")
    accepted, (rejected,) = read(tmp_path)
    assert [row["item_text"] for row in accepted] == ["green tea"]
    assert (rejected.reason, rejected.file) == ("duplicate_key", "b.jsonl")
    assert "a.jsonl line 1" in rejected.detail


def test_a_folder_without_files_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected \*\.jsonl"):
        read(tmp_path)


def test_users_are_held_out_whole_and_the_same_as_in_nights(tmp_path: Path) -> None:
    from sgrec_core.hashing import is_validation_user

    rows = [{**GOOD, "sample_id": f"s{n}", "user_id": f"u{n % 40}"} for n in range(120)]
    accepted, _ = read(write(tmp_path, *rows), share=0.3)
    for row in accepted:
        assert (row["split"] == "validation") == bool(is_validation_user([row["user_id"]], 0.3)[0])
    assert {row["split"] for row in accepted} == {"train", "validation"}


@given(st.lists(st.one_of(st.text(), st.dictionaries(st.sampled_from(list(GOOD)), st.text() | st.none()))))
def test_every_line_ends_somewhere(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    lines = [json.dumps(row, ensure_ascii=True) for row in rows]
    accepted, rejected = read(write(tmp_path_factory.mktemp("labels"), GOOD, *lines))
    assert len(accepted) + len(rejected) == 1 + len(lines)


def test_requests_are_keyed_by_content(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "sample_id": "s2"}, {**GOOD, "sample_id": "s3", "history": ["tea cup"]}]
    accepted, _ = read(write(tmp_path, *rows))
    first, same, other = (label_request(row) for row in accepted)
    assert first == same
    assert first.state_id != other.state_id
    assert first.item_id == other.item_id


def test_the_level_nearest_to_the_truth() -> None:
    fit = RUBRIC.aspects[0]
    assert [nearest_label(fit, share) for share in (0.0, 0.2, 0.5, 0.9, 1.0)] == ["E", "D", "C", "A", "A"]
