"""Public sets as raw logs: who sees which item when, and errors that name the file."""

import json
from pathlib import Path

import pytest

from sgrec_core.errors import InputError
from sgrec_core.logs import adaptors, landing
from sgrec_core.logs.parsing import Accepted, Options, parse_file
from sgrec_core.logs.rows import Reading
from sgrec_core.night.sources import prepare_landing
from sgrec_core.settings import Settings

FIRST_DAY = "2026-01-05"


def scientific(folder: Path, inter: object = None) -> str:
    folder.mkdir(exist_ok=True)
    inter = {"0": [0, 1, 2, 3, 4, 5], "1": [2, 0, 1], "2": [4, 4]} if inter is None else inter
    (folder / "inter.json").write_text(json.dumps(inter))
    items = {str(n): {"title": f"Item {n}", "description": "", "brand": "B", "categories": "a,b"} for n in range(6)}
    (folder / "item.json").write_text(json.dumps(items))
    (folder / "sid_index.json").write_text(json.dumps({str(n): ["<a_1>", f"<b_{n}>"] for n in range(6)}))
    return f"scientific:{folder}"


def rows(home: Path, source: str, day: str = FIRST_DAY, days: int = 1) -> tuple[list[dict], list[dict]]:
    """Events and items of a day, as the night would accept them."""
    root = prepare_landing(Settings(home=home, input=source, adaptor={"days": days}), day)
    options = Options.of(Settings(home=home, input=source))
    parsed = [row for file in landing.raw_files(root, day) for row in parse_file(file, day, options, Reading())]
    assert all(isinstance(row, Accepted) for row in parsed)
    values = [row.values for row in parsed]
    return [v for v in values if "event_id" in v], [v for v in values if "item_hash" in v]


def by_user(events: list[dict], role: str) -> dict[str, list[str]]:
    sequences: dict[str, list[str]] = {}
    for event in sorted(events, key=lambda event: event["event_time"]):
        if event["role"] == role:
            sequences.setdefault(event["user_id"], []).append(event["item_id"])
    return sequences


def test_leave_one_out_roles_and_order(tmp_path: Path) -> None:
    events, items = rows(tmp_path / "home", scientific(tmp_path / "set"))
    assert by_user(events, "logged") == {"0": ["0", "1", "2", "3"], "1": ["2"], "2": ["4", "4"]}
    assert by_user(events, "validation") == {"0": ["4"], "1": ["0"]}
    assert by_user(events, "test") == {"0": ["5"], "1": ["1"]}
    times = {role: [e["event_time"] for e in events if e["role"] == role] for role in ("logged", "validation", "test")}
    assert max(times["logged"]) < min(times["validation"]) <= max(times["validation"]) < min(times["test"])
    assert {event["event_type"] for event in events} == {"conversion"}
    assert {event["propensity"] for event in events} == {None}
    assert len({event["request_id"] for event in events}) == len(events)
    assert [item["item_id"] for item in items] == [str(n) for n in range(6)]
    assert items[0]["title"] == "Item 0"
    assert items[0]["description"] is None
    assert items[0]["supplied_codes"] is None


def test_days_split_the_training_sequence_and_repeat_the_labels(tmp_path: Path) -> None:
    source = scientific(tmp_path / "set")
    days = ["2026-01-05", "2026-01-06", "2026-01-07"]
    per_day = [rows(tmp_path / "home", source, day, days=3)[0] for day in days]
    whole = rows(tmp_path / "once", source)[0]
    for user, sequence in by_user(whole, "logged").items():
        assert sum((by_user(events, "logged").get(user, []) for events in per_day), []) == sequence
    for events in per_day:
        assert by_user(events, "validation") == by_user(whole, "validation")
        assert by_user(events, "test") == by_user(whole, "test")
    with pytest.raises(InputError, match=r"2026-01-05 to 2026-01-07 \(setting adaptor.days=3\).*2026-01-08"):
        rows(tmp_path / "home", source, "2026-01-08", days=3)


def test_a_change_in_the_files_or_days_makes_the_day_anew(tmp_path: Path) -> None:
    source = scientific(tmp_path / "set")
    assert len(rows(tmp_path, source)[0]) == 11
    assert len(rows(tmp_path, source, days=2)[0]) < 11
    scientific(tmp_path / "set", {"0": [0, 1, 2]})
    assert len(rows(tmp_path, source)[0]) == 3


def test_beauty_has_codes_and_no_text(tmp_path: Path) -> None:
    scientific(tmp_path / "set")
    _, items = rows(tmp_path / "home", f"beauty:{tmp_path / 'set'}")
    assert items[3]["supplied_codes"] == [1, 3]
    assert items[3]["title"] is None


def test_office_logs_only_what_precedes_the_first_target(tmp_path: Path) -> None:
    folder = tmp_path / "office"
    scientific(folder)
    header = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
    (folder / "valid.csv").write_text(
        header + '"A","[\'x, ""y""\']",t,"[0, 1]",2,s,s\n' + 'A,h,t,"[0, 1, 2]",3,s,s\n' + "B,h,t,[5],4,s,s\n"
    )
    (folder / "test.csv").write_text(header + 'A,h,t,"[0, 1, 2, 3]",4,s,s\n' + 'C,h,t,"[1, 2]",3,s,s\n')
    items = json.loads((folder / "item.json").read_text())
    items["0"]["description"] = '["Ink &amp; <b>paper</b>", "<style>p {x}</style> more <!-- no -->text"]'
    (folder / "item.json").write_text(json.dumps(items))
    events, catalogue = rows(tmp_path / "home", f"minionerec:{folder}")
    assert by_user(events, "logged") == {"A": ["0", "1"], "B": ["5"]}
    assert by_user(events, "validation") == {"A": ["2", "3"], "B": ["4"]}
    assert by_user(events, "test") == {"A": ["4"]}
    assert catalogue[0]["description"] == "Ink & paper more text"
    rules = " ".join(adaptors.declared_rules(adaptors.parse_source(f"minionerec:{folder}"), 1))
    assert "left out" in rules


def test_rules_are_told_for_public_sets_only(tmp_path: Path) -> None:
    scientific(tmp_path / "set")
    for kind in ("scientific", "beauty"):
        rules = adaptors.declared_rules(adaptors.parse_source(f"{kind}:{tmp_path / 'set'}"), 3)
        assert any("by position over 3 declared days" in rule for rule in rules)
        assert any("leave-one-out" in rule for rule in rules)
    assert adaptors.declared_rules(adaptors.parse_source("simulator"), 3) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("inter.json", None, "cannot be read"),
        ("inter.json", "{", "not valid JSON"),
        ("inter.json", "[]", "user -> list of item ids"),
        ("inter.json", '{"0": {"a": 1}}', "user 0"),
        ("inter.json", '{"0": [0, 99]}', "unknown to the catalogue"),
        ("item.json", '{"0": {"brand": "x"}}', "no title"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    source = scientific(tmp_path / "set")
    path = tmp_path / "set" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        rows(tmp_path / "home", source)
    assert str(tmp_path / "set") in str(error.value)
    assert not (tmp_path / "home" / "landing" / "scientific" / f"day={FIRST_DAY}").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("amazon:x", "valid are simulator, scientific:PATH"),
        ("scientific", "names no path"),
        ("simulator:x", "takes no path"),
        ("logs:/nowhere/at/all", "no folder"),
    ],
)
def test_a_bad_source_names_the_valid_ones(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        adaptors.parse_source(text)


@pytest.mark.public_data
@pytest.mark.parametrize(
    ("source", "users", "items", "roles"),
    [
        ("scientific:scientific", 8317, 4344, {"logged": 41858, "validation": 8317, "test": 8317}),
        ("beauty:beauty", 22363, 12101, {"logged": 153776, "validation": 22363, "test": 22363}),
        ("minionerec:office", 1795, 3459, {"logged": 6780, "validation": 4866, "test": 1074}),
    ],
)
def test_public_sets_give_the_numbers_of_their_readme(
    public_data: Path, source: str, users: int, items: int, roles: dict
) -> None:
    kind, _, folder = source.partition(":")
    public_set = adaptors.read_public_set(adaptors.parse_source(f"{kind}:{public_data / folder}"))
    assert (len(public_set.sequences), len(public_set.items)) == (users, items)
    found = {role: sum(len(user.get(role, [])) for user in public_set.sequences.values()) for role in adaptors.TIMES}
    assert found == roles
    if kind == "minionerec":
        targets = sum(len(user["validation"]) for user in public_set.sequences.values())
        assert targets == roles["validation"]
