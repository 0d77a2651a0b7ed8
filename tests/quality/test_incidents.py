"""Incidents: what nights, people and the sender of messages make of them, and what the table keeps."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console
from small_night import DAY, run_night
from stage_runs import last_run
from typer.testing import CliRunner

from jobs import report_quality
from sgrec_core.cli import app
from sgrec_core.cli.app import console
from sgrec_core.errors import SgrecError
from sgrec_core.files import write_json
from sgrec_core.lake import Lake
from sgrec_core.quality.alerts import hidden, message
from sgrec_core.quality.incidents import (
    LATE,
    LEARNS,
    Due,
    Incident,
    Incidents,
    Met,
    acknowledge,
    after_message,
    after_night,
    due,
    resolve,
)
from sgrec_core.quality.status import status_of_home
from sgrec_core.runtime.job import Job, read_settings
from sgrec_core.runtime.layout import LAYOUT
from sgrec_core.settings import Settings

DAYS = [f"2026-01-0{number}" for number in range(1, 10)]
FIELD = {"kind": "renamed_field", "owner": "data-platform", "cause_table": "events", "cause": "price is cost"}
CATALOGUE = {"kind": "shrunken_catalogue", "owner": "catalogue", "cause_table": "items", "cause": "3 items"}


def nights(*met: Met, before: list[Incident] | None = None) -> list[Incident]:
    incidents = before or []
    for one in met:
        incidents = after_night(incidents, one)
    return incidents


def red(day: str, **what: Any) -> Met:
    return Met(day=day, verdict="red", **{**FIELD, "command": f"again {day}", "last_good": "2025-12-31", **what})


def amber(day: str, **what: Any) -> Met:
    return replace(red(day, **what), verdict="amber")


def green(day: str) -> Met:
    return Met(day=day, verdict="green")


def in_short(incidents: list[Incident]) -> list[tuple[Any, ...]]:
    return [(one.kind, one.first_night, one.last_night, one.nights, one.resolved_by) for one in incidents]


# What nights make of them


def test_a_cause_goes_on_until_a_night_is_green() -> None:
    incidents = nights(red(DAYS[0], command="first"), red(DAYS[1], cause="price is still cost"), red(DAYS[3]))
    (one,) = incidents
    assert in_short(incidents) == [("renamed_field", DAYS[0], DAYS[3], 3, None)]
    assert (one.incident, one.severity, one.owner, one.last_good) == (1, "critical", "data-platform", "2025-12-31")
    assert (one.cause, one.command) == ("price is cost", f"again {DAYS[3]}"), "those of the last night"
    (over,) = nights(green(DAYS[4]), before=incidents)
    assert (over.is_open, over.resolved_by, over.resolved_why) == (False, f"night {DAYS[4]}", "green")
    assert (over.last_night, over.nights) == (DAYS[3], 3)
    again = nights(red(DAYS[5]), before=[over])
    assert again[0] == over
    assert in_short(again)[1] == ("renamed_field", DAYS[5], DAYS[5], 1, None)
    assert again[1].incident == 2


def test_a_night_that_runs_again_opens_nothing() -> None:
    incidents = nights(red(DAYS[0]), red(DAYS[1]))
    for again in (red(DAYS[1]), red(DAYS[0])):
        assert nights(again, before=incidents) == incidents
    over = nights(green(DAYS[1]), before=incidents)
    assert not over[0].is_open, "its own day is well"
    assert nights(green(DAYS[1]), green(DAYS[2]), before=over) == over


@pytest.mark.parametrize("other", [{"kind": "empty_field"}, {"owner": "catalogue"}, {"cause_table": "items"}])
def test_another_kind_owner_or_table_is_another_incident(other: dict[str, str]) -> None:
    assert all(one.is_open for one in nights(amber(DAYS[0]), amber(DAYS[1], **other))), "later nights learn from both"
    incidents = nights(red(DAYS[0]), red(DAYS[1], **other))
    assert [(one.incident, one.last_night, one.is_open) for one in incidents] == [
        (1, DAYS[0], True),
        (2, DAYS[1], True),
    ]
    assert not any(one.is_open for one in nights(green(DAYS[2]), before=incidents)), "a green night ends both"


def test_an_older_night_says_nothing_of_what_came_later() -> None:
    incidents = nights(red(DAYS[4]))
    assert nights(green(DAYS[3]), before=incidents) == incidents
    earlier = nights(red(DAYS[2]), before=incidents)
    assert in_short(earlier) == [("renamed_field", DAYS[2], DAYS[4], 2, None)]
    assert earlier[0].command == f"again {DAYS[4]}"


def test_a_night_that_stops_is_worse_than_an_amber_one() -> None:
    incidents = nights(amber(DAYS[0]), amber(DAYS[1]), red(DAYS[2]))
    assert [(one.severity, one.nights, one.is_open) for one in incidents] == [
        ("warning", 2, True),
        ("critical", 1, True),
    ]
    warning, critical = nights(amber(DAYS[3]), before=incidents)
    assert (warning.is_open, warning.last_night) == (True, DAYS[3]), "back to where it was"
    assert critical.resolved_by == f"night {DAYS[3]}"
    milder = nights(red(DAYS[0]), amber(DAYS[1]))
    assert [(one.severity, one.nights) for one in milder] == [("critical", 2)], "but the same goes on in a milder one"


def test_a_night_that_came_to_its_end_resolves_what_stopped_those_before() -> None:
    stopped, held = nights(red(DAYS[0]), amber(DAYS[1], **CATALOGUE))
    assert (stopped.resolved_by, stopped.resolved_why) == (f"night {DAYS[1]}", "amber")
    assert held.is_open
    _, still = nights(red(DAYS[2]), before=[held])[:2][::-1]
    assert still.is_open, "a night that stopped says nothing of it"


def test_nights_that_learn_from_an_amber_one_are_its_incident() -> None:
    learns = {
        "kind": LEARNS,
        "owner": "data-platform",
        "cause_table": "night_metrics",
        "of_day": DAYS[1],
        "cause": "learns",
    }
    incidents = nights(amber(DAYS[1]), amber(DAYS[2], **learns), amber(DAYS[3], **learns))
    assert in_short(incidents) == [("renamed_field", DAYS[1], DAYS[3], 3, None)]
    assert incidents[0].cause == "price is cost", "what began it"
    stopped = nights(amber(DAYS[0]), red(DAYS[1], **CATALOGUE))
    assert [one.nights for one in nights(amber(DAYS[2], **learns), before=stopped)] == [1, 1, 1], "it was red"
    other = nights(amber(DAYS[4], **{**learns, "of_day": DAYS[0]}), before=incidents)
    assert [one.kind for one in other] == ["renamed_field", LEARNS], "of a day that it did not meet"


@pytest.mark.parametrize("end", [red, amber, lambda day, **_: green(day)])
def test_a_late_night_is_over_once_it_has_ended(end: Any) -> None:
    late = nights(Met(day=DAYS[0], verdict=LATE, kind=LATE, cause="has not ended", owner="data-platform"))
    assert late[0].severity == "critical"
    assert nights(end(DAYS[0], **CATALOGUE), before=late)[0].resolved_by == f"night {DAYS[0]}"
    later = Met(day=DAYS[1], verdict=LATE, kind=LATE, cause="has not ended", owner="data-platform")
    assert in_short(nights(later, before=late)) == [(LATE, DAYS[0], DAYS[1], 2, None)]
    assert nights(red(DAYS[0]), later)[0].is_open, "a late night says nothing of what else is wrong"


# What people say


def test_what_a_person_resolved_opens_anew_a_night_later() -> None:
    incidents = resolve(nights(red(DAYS[0])), 1, "ann", " mended\nat the source ")
    assert (incidents[0].resolved_by, incidents[0].resolved_why) == ("ann", "mended at the source")
    assert nights(red(DAYS[0]), before=incidents) == incidents, "this night was spoken of"
    assert in_short(nights(red(DAYS[1]), before=incidents))[1] == ("renamed_field", DAYS[1], DAYS[1], 1, None)
    by_night = nights(red(DAYS[0]), green(DAYS[0]), red(DAYS[0]))
    assert [one.is_open for one in by_night] == [False, True], "one that was well in between is news"


def test_what_cannot_be_said() -> None:
    incidents = acknowledge(nights(red(DAYS[0])), 1, "ann", "on it")
    with pytest.raises(SgrecError, match="incident 1 is acknowledged by ann: on it"):
        acknowledge(incidents, 1, "bob", "too")
    with pytest.raises(SgrecError, match="there is no incident 2"):
        acknowledge(incidents, 2, "ann", "on it")
    over = nights(green(DAYS[1]), before=incidents)
    for say in (acknowledge, resolve):
        with pytest.raises(SgrecError, match=f"incident 1 is over, by night {DAYS[1]}: green"):
            say(over, 1, "bob", "why")


# What is told


def in_words(messages: list[Due]) -> list[tuple[int, str, bool]]:
    return [(one.incident.incident, one.destination, one.is_over) for one in messages]


def sent(incidents: list[Incident], problem: str | None = None) -> list[Incident]:
    for one in due(incidents, ["webhook", "mail"]):
        incidents = after_message(incidents, one, problem)
    return incidents


def test_a_message_when_it_begins_and_one_when_it_is_over() -> None:
    both = ["webhook", "mail"]
    incidents = nights(red(DAYS[0]))
    assert in_words(due(incidents, both)) == [(1, "webhook", False), (1, "mail", False)]
    assert due(incidents, []) == []
    half = after_message(incidents, due(incidents, both)[1], None)
    assert in_words(due(half, both)) == [(1, "webhook", False)]
    told = nights(red(DAYS[1]), before=sent(incidents))
    assert due(told, both) == []
    over = nights(green(DAYS[2]), before=told)
    assert in_words(due(over, both)) == [(1, "webhook", True), (1, "mail", True)]
    assert due(sent(over), both) == []
    assert due(nights(green(DAYS[2]), before=incidents), both) == [], "who was told nothing is told nothing"
    assert due(resolve(told, 1, "ann", "mended"), both) == [], "a person's word is no night's"


def test_nothing_is_told_of_what_is_known_but_that_it_is_over() -> None:
    known = acknowledge(nights(red(DAYS[0])), 1, "ann", "on it")
    assert due(nights(red(DAYS[1]), before=known), ["webhook"]) == []
    told = acknowledge(sent(nights(red(DAYS[0]))), 1, "ann", "on it")
    assert in_words(due(nights(green(DAYS[1]), before=told), ["webhook"])) == [(1, "webhook", True)]


def test_a_problem_stands_until_the_message_was_sent() -> None:
    incidents = sent(nights(red(DAYS[0])), "refused")
    assert incidents[0].problems == ("webhook: refused", "mail: refused")
    webhook, mail = due(incidents, ["webhook", "mail"])
    (one,) = after_message(after_message(incidents, webhook, "away"), mail, None)
    assert (one.told, one.problems) == (("mail",), ("webhook: away",))
    for moot in (
        acknowledge([one], 1, "ann", "on it"),
        resolve([one], 1, "ann", "mended"),
        nights(green(DAYS[1]), before=[one]),
    ):
        assert moot[0].problems == ()


def test_words_without_secrets(tmp_path: Path) -> None:
    url = "https://hooks.slack.com/services/T01/B02/abcdefghijkl"
    for text in (url, "/services/T01/B02/abcdefghijkl", "token abcdefghijkl", "s3://ann:secret@host/file"):
        shown = hidden(text, [url])
        assert "abcdefghijkl" not in shown
        assert "B02" not in shown
        assert "secret" not in shown
    assert hidden("sgrec status", ["https://host/sgrec", "ec"]) == "sgrec status", "what is short is a word"
    (one,) = nights(red(DAYS[0], cause="x" * 5000))
    assert len(message(Due(one, "mail", False), tmp_path, []).lines[0]) < 2000


# The table


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    home.mkdir()
    write_json(home / "source.json", {"input": "simulator"})
    write_json(home / "home.json", {"layout": LAYOUT})
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setattr(console, "width", 200)
    return Settings(home=home)


def test_the_table_keeps_what_it_was_given(settings: Settings) -> None:
    lake = Lake(settings.lake_root)
    table = Incidents(lake)
    assert table.read() == []
    assert table.change(lambda before: nights(green(DAYS[0]), before=before)) == []
    assert lake.version("incidents") is None, "a home without incidents has no table"
    table.change(lambda before: sent(nights(red(DAYS[0]), amber(DAYS[1], **CATALOGUE), before=before), "away"))
    table.change(lambda before: acknowledge(before, 2, "ann", "on it"))
    kept = table.change(lambda before: nights(green(DAYS[2]), red(DAYS[3], last_good=None), before=sent(before)))
    assert table.read() == kept
    assert len(kept) == 3
    version = lake.version("incidents")
    table.change(lambda before: nights(red(DAYS[3], last_good=None), before=before))
    assert lake.version("incidents") == version, "nothing is committed where nothing changes"
    assert lake.read("incidents").num_rows == 3


def test_writers_at_once_lose_nothing(settings: Settings) -> None:
    def write(number: int) -> None:
        met = red(DAYS[0], kind=f"kind {number}")
        Incidents(Lake(settings.lake_root)).change(lambda before: after_night(before, met))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(6)))
    incidents = Incidents(Lake(settings.lake_root)).read()
    assert sorted(one.kind for one in incidents) == [f"kind {number}" for number in range(6)]
    assert [one.incident for one in incidents] == [1, 2, 3, 4, 5, 6]


def sgrec(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_the_command(settings: Settings) -> None:
    assert sgrec("incidents") == "no incident is open\n"
    assert sgrec("incidents", "list", "--all") == "no incident\n"
    Incidents(Lake(settings.lake_root)).change(
        lambda before: sent(nights(red(DAYS[0], cause="[bold]price"), red(DAYS[1], **CATALOGUE)), "away")
    )
    assert sgrec("incidents").splitlines() == [
        f"1: critical, data-platform, {DAYS[0]}; last good night: 2025-12-31",
        "   renamed_field: [bold]price",
        "   could not be told: webhook: away",
        "   could not be told: mail: away",
        f"   again {DAYS[0]}",
        f"2: critical, catalogue, {DAYS[1]}; last good night: 2025-12-31",
        "   shrunken_catalogue: 3 items",
        "   could not be told: webhook: away",
        "   could not be told: mail: away",
        f"   again {DAYS[1]}",
    ]
    assert (
        sgrec("incidents", "ack", "2", "--reason", "on it")
        == "incident 2 is acknowledged; no more is told until it is over\n"
    )
    sgrec("incidents", "resolve", "1", "--reason", "mended")
    assert "\n   ann knows: on it\n" in sgrec("incidents", "list")
    assert "1: " not in sgrec("incidents")
    assert "\n   over by ann: mended\n" in sgrec("incidents", "list", "--all")
    for wrong in (("ack", "1", "--reason", "x"), ("ack", "3", "--reason", "x"), ("resolve", "2", "--reason", " ")):
        assert isinstance(CliRunner().invoke(app, ["incidents", *wrong]).exception, SgrecError)
    (told,) = json.loads(sgrec("status", "--json"))["incidents"]
    assert told == {
        "incident": 2,
        "opened": told["opened"],
        "kind": "shrunken_catalogue",
        "cause": "3 items",
        "owner": "catalogue",
        "severity": "critical",
        "first_night": DAYS[1],
        "last_night": DAYS[1],
        "nights": 1,
        "acknowledged": {"by": "ann", "at": told["acknowledged"]["at"], "why": "on it"},
        "problems": [],
    }
    shown = sgrec("status")
    assert f"incident 2: shrunken_catalogue, catalogue, since night {DAYS[1]}; ann knows: on it" in shown


# The report


def report(settings: Settings) -> None:
    assert Job("report_quality", DAY, settings).execute(report_quality.run, Console(quiet=True)) == 0


def test_a_night_that_stopped_opens_one_and_its_mended_run_resolves_it(home: Path) -> None:
    settings = Settings(home=home)
    run_night(settings, fail_at="build_states")
    for _ in range(2):
        report(settings)
        (one,) = Incidents(Lake(settings.lake_root)).read()
        summary = json.loads((settings.reports(DAY) / "summary.json").read_text())
        cause = summary["cause"]
        assert (one.kind, one.cause, one.owner) == (cause["kind"], cause["reason"], cause["owner"])
        assert (one.cause_table, one.command) == (cause["table"], cause["command"])
        assert (one.severity, one.first_night, one.nights, one.last_good) == ("critical", DAY, 1, None)
    Incidents(Lake(settings.lake_root)).change(lambda before: sent(before, "refused"))
    report(settings)
    notes = last_run(settings, DAY, "report_quality")["notes"]
    assert any("incident 1" in note and "webhook: refused" in note for note in notes)
    run_night(settings)
    report(settings)
    (one,) = Incidents(Lake(settings.lake_root)).read()
    assert one.resolved_by == f"night {DAY}"


def test_a_lost_table_of_incidents_stops_no_night(home: Path) -> None:
    settings = Settings(home=home)
    run_night(settings, fail_at="build_states")
    report(settings)
    shutil.rmtree(home / "lake" / "incidents" / "_delta_log")
    (home / "lake" / "incidents" / "_delta_log").mkdir()
    (home / "lake" / "incidents" / "_delta_log" / f"{0:020}.json").write_text("no json")
    report(settings)
    run = last_run(settings, DAY, "report_quality")
    assert run["state"] == "finished"
    assert any(note.startswith("incidents were not written: ") for note in run["notes"])
    found = status_of_home(settings)
    assert found["incidents"] == []
    assert any(problem.startswith("table incidents could not be read") for problem in found["problems"])


# Settings


def test_no_error_shows_a_webhook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGREC_ALERTS__WEBHOOK", "hooks.slack.com/hush")
    monkeypatch.setenv("SGREC_ALERTS__SMTP_HOST", "mail")
    with pytest.raises(SgrecError, match="SGREC_ALERTS__WEBHOOK: .*valid is a URL that begins with https://") as wrong:
        read_settings()
    assert "hush" not in str(wrong.value)
    with pytest.raises(ValidationError) as raw:
        Settings()
    assert "hush" not in str(raw.value), "as Airflow shows it"
    monkeypatch.setenv("SGREC_ALERTS__WEBHOOK", "https://hooks.slack.com/hush")
    with pytest.raises(SgrecError, match="needs smtp_from and smtp_to") as wrong:
        read_settings()
    assert "hush" not in str(wrong.value)


def test_what_goes_to_files_and_commands_knows_no_alerts(home: Path) -> None:
    given = {"webhook": "https://hooks.slack.com/hush", "smtp_password": "hush"}
    settings = Settings(home=home, alerts=given, threads=2)
    assert "alerts" not in str(settings.assignments()).lower()
    assert "hush" not in repr(settings)
    child = settings.environment()
    assert (child["SGREC_ALERTS__WEBHOOK"], child["SGREC_ALERTS__SMTP_PASSWORD"]) == (given["webhook"], "hush")
