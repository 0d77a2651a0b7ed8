"""Who is told of incidents: what a webhook and a mail server receive, once, without a secret, and late nights too."""

import email
import email.policy
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from typer.testing import CliRunner

from sgrec_core.cli import app
from sgrec_core.files import write_json
from sgrec_core.lake import Lake
from sgrec_core.quality.incidents import Incidents, Met, after_night
from sgrec_core.runtime.layout import LAYOUT
from sgrec_core.runtime.runs import Run, record
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import PROJECT_ROOT, Settings

pytestmark = pytest.mark.airflow

DAYS = ("2026-01-05", "2026-01-06", "2026-01-07", "2026-01-08")
TOKEN = "T0123/B4567/hushhushhush"
PASSWORD = "mail-hush-hush"
KEY = "sk-hush-hush-hush"
SECRETS = (TOKEN.rpartition("/")[2], PASSWORD, KEY, "dbpassword", "signature")
ATTACK = "<!channel> <b>{{ 7 * 7 }}</b> {% raw"
CAUSE = f"field price is missing; it is called cost now, most likely ({ATTACK})"


class Webhook:
    """A server that takes messages as Slack does, or refuses them."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.paths: list[str] = []
        self.answer = 200
        received = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.paths.append(self.path)
                if received.answer == 200:
                    received.texts.append(body["text"])
                self.send_response(received.answer)
                self.end_headers()
                self.wfile.write(b"ok" if received.answer == 200 else f"no such hook {TOKEN}".encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/{TOKEN}"


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.server.shutdown()
    server.server.server_close()


class Mails:
    """What a mail server has received."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.envelopes.append(envelope)
        return "250 OK"

    def texts(self) -> list[tuple[str, str]]:
        """Subjects and bodies."""
        found = []
        for envelope in self.envelopes:
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            found.append((mail["Subject"], mail.get_body(("html",)).get_content()))
        return found


@pytest.fixture
def mails() -> Iterator[tuple[Mails, dict[str, Any]]]:
    """A mail server that wants a password, and the settings that it is reached by."""
    handler = Mails()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def authenticate(*arguments: Any) -> AuthResult:
        login = arguments[-1]
        return AuthResult(success=(login.login, login.password) == (b"ann", PASSWORD.encode()))

    controller = Controller(
        handler,
        hostname="127.0.0.1",
        port=port,
        authenticator=authenticate,
        auth_required=True,
        auth_require_tls=False,
    )
    controller.start()
    yield (
        handler,
        {
            "smtp_host": "127.0.0.1",
            "smtp_port": port,
            "smtp_encryption": "none",
            "smtp_user": "ann",
            "smtp_password": PASSWORD,
            "smtp_from": "sgrec@example.org",
            "smtp_to": "ann@example.org, bob@example.org",
        },
    )
    controller.stop()


@pytest.fixture(scope="module")
def wiring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """``dags/sgrec_alerts.py`` as Airflow imports it."""
    folder = tmp_path_factory.mktemp("airflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(folder))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        patch.syspath_prepend(PROJECT_ROOT / "dags")
        before = {name: sys.modules.pop(name, None) for name in ("sgrec_alerts", "sgrec_tasks")}
        import sgrec_alerts

        yield sgrec_alerts
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


Setting = Callable[..., Settings]


@pytest.fixture
def with_alerts(home: Path, wiring: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Settings of a home, its alerts as they are given; the tasks run with them."""
    home.mkdir()
    write_json(home / "source.json", {"input": "simulator"})
    write_json(home / "home.json", {"layout": LAYOUT})
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LOGNAME", "ann")

    def settings_with(**alerts: Any) -> Settings:
        settings = Settings(home=home, alerts=alerts)
        monkeypatch.setattr(wiring, "settings", settings)
        monkeypatch.setattr(wiring, "home", home)
        monkeypatch.setattr(wiring, "lake", settings.lake_root)
        return settings

    return settings_with


def night(settings: Settings, day: str, verdict: str = "red", **what: Any) -> None:
    """What the report of a night writes down."""
    met = {
        "kind": "renamed_field",
        "cause": CAUSE,
        "cause_table": "events",
        "owner": "data-platform",
        "command": f"SGREC_HOME=/home sgrec nightly --day {day}",
        "last_good": DAYS[0],
    }
    seen = Met(day=day, verdict=verdict, **{**met, **what})
    Incidents(Lake(settings.lake_root)).change(lambda before: after_night(before, seen))


def test_a_webhook_hears_of_the_first_night_and_of_recovery(
    wiring: ModuleType, with_alerts: Setting, webhook: Webhook
) -> None:
    settings = with_alerts(webhook=webhook.url)
    night(settings, DAYS[1])
    wiring.tell()
    (text,) = webhook.texts
    assert webhook.paths == [f"/services/{TOKEN}"]
    first, *lines = text.splitlines()
    escaped = CAUSE.replace("<", "&lt;").replace(">", "&gt;")
    assert first == f"Night {DAYS[1]} is red: {escaped}", "neither markup nor a template"
    assert lines == [
        "owner: data-platform",
        f"last good night: {DAYS[0]}",
        f"page: {settings.reports(DAYS[1])}/index.html",
        "incident 1: no more is told until it is over. Whoever takes it says so: sgrec incidents ack 1 --reason WHY",
        f"```SGREC_HOME=/home sgrec nightly --day {DAYS[1]}```",
    ]
    night(settings, DAYS[1])
    night(settings, DAYS[2])
    wiring.tell()
    assert len(webhook.texts) == 1, "it goes on"
    night(settings, DAYS[3], "green")
    wiring.tell()
    wiring.tell()
    _, recovery = webhook.texts
    assert recovery.splitlines() == [
        f"Incident 1 is over after 2 nights ({DAYS[1]} to {DAYS[2]}): night {DAYS[3]} is green.",
        f"It was: {escaped}",
        "owner: data-platform",
    ]


def test_a_mail_says_the_same(wiring: ModuleType, with_alerts: Setting, mails: tuple[Mails, dict[str, Any]]) -> None:
    received, reached_by = mails
    settings = with_alerts(**reached_by)
    night(settings, DAYS[1], "amber")
    wiring.tell()
    wiring.tell()
    ((subject, body),) = received.texts()
    assert subject == f"sgrec: night {DAYS[1]} is amber: renamed_field, data-platform"
    assert f"Night {DAYS[1]} is amber: field price is missing" in body
    assert "&lt;!channel&gt; &lt;b&gt;{{ 7 * 7 }}&lt;/b&gt; {% raw" in body
    assert f"<pre>SGREC_HOME=/home sgrec nightly --day {DAYS[1]}</pre>" in body
    (envelope,) = received.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("sgrec@example.org", ["ann@example.org", "bob@example.org"])


@pytest.mark.parametrize("encryption", ["starttls", "tls"])
def test_no_mail_leaves_without_the_encryption_that_was_asked_for(
    wiring: ModuleType, with_alerts: Setting, mails: tuple[Mails, dict[str, Any]], encryption: str
) -> None:
    from airflow.sdk.exceptions import AirflowException

    received, reached_by = mails
    settings = with_alerts(**{**reached_by, "smtp_encryption": encryption})
    night(settings, DAYS[1])
    with pytest.raises(AirflowException, match="^mail: "):
        wiring.tell()
    assert received.envelopes == []


def test_nobody_is_told_by_default(wiring: ModuleType, with_alerts: Setting) -> None:
    settings = with_alerts()
    night(settings, DAYS[1])
    wiring.tell()
    (incident,) = Incidents(Lake(settings.lake_root)).read()
    assert (incident.told, incident.problems) == ((), ())
    assert wiring.deadline() is None


def test_nothing_is_told_of_what_somebody_knows(wiring: ModuleType, with_alerts: Setting, webhook: Webhook) -> None:
    settings = with_alerts(webhook=webhook.url)
    night(settings, DAYS[1])
    assert CliRunner().invoke(app, ["incidents", "ack", "1", "--reason", "I am on it"]).exit_code == 0
    wiring.tell()
    night(settings, DAYS[2])
    wiring.tell()
    assert webhook.texts == []
    night(settings, DAYS[2], kind="lost_table", cause="table items is lost")
    wiring.tell()
    (text,) = webhook.texts
    assert "table items is lost" in text, "of another incident they are"


def test_a_message_that_was_not_sent_is_due_again(
    wiring: ModuleType, with_alerts: Setting, webhook: Webhook, mails: tuple[Mails, dict[str, Any]]
) -> None:
    from airflow.sdk.exceptions import AirflowException

    received, reached_by = mails
    settings = with_alerts(webhook=webhook.url, **reached_by)
    night(settings, DAYS[1])
    webhook.answer = 500
    with pytest.raises(AirflowException, match="^webhook: ") as failed:
        wiring.tell()
    (incident,) = Incidents(Lake(settings.lake_root)).read()
    assert incident.told == ("mail",), "the other is told all the same"
    (problem,) = incident.problems
    assert problem.startswith("webhook: AirflowException: Response body: 'no such hook")
    assert problem == str(failed.value)
    (told,) = json.loads(CliRunner().invoke(app, ["status", "--json"]).output)["incidents"]
    assert told["problems"] == [problem]
    webhook.answer = 200
    wiring.tell()
    (incident,) = Incidents(Lake(settings.lake_root)).read()
    assert (sorted(incident.told), incident.problems) == (["mail", "webhook"], ())
    assert (len(webhook.texts), len(received.envelopes)) == (1, 1), "no one twice"


def test_no_message_holds_a_secret(
    wiring: ModuleType,
    with_alerts: Setting,
    webhook: Webhook,
    mails: tuple[Mails, dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from airflow.sdk.exceptions import AirflowException
    from airflow.sdk.log import redact

    received, reached_by = mails
    settings = with_alerts(webhook=webhook.url, **reached_by)
    quoted = [webhook.url, f"services/{TOKEN}", PASSWORD, KEY, "s3://ann:dbpassword@host/x?sig=signature"]
    night(settings, DAYS[1], cause=f"cannot read {' '.join(quoted)}", command=f"X={quoted[-1]} {KEY} sgrec nightly")
    wiring.tell()
    (text,) = webhook.texts
    ((subject, body),) = received.texts()
    assert text.startswith(f"Night {DAYS[1]} is red: cannot read")
    assert "cannot read" in body
    webhook.answer = 404
    night(settings, DAYS[2], kind="lost_table")
    with pytest.raises(AirflowException) as failed:
        wiring.tell()
    (told,) = [problem for one in Incidents(Lake(settings.lake_root)).read() for problem in one.problems]
    logged = str(redact("".join(capfd.readouterr()) + caplog.text))
    assert "Failed to send notification" in logged
    for place in (text, subject, body, str(failed.value), told, logged, repr(settings), str(settings.assignments())):
        for secret in SECRETS:
            assert secret not in place
    assert not [name for name, value in os.environ.items() if TOKEN in value or PASSWORD in value]
    assert settings.environment()["SGREC_ALERTS__WEBHOOK"] == webhook.url, "a child process is told"


RUN = {"state": "running", "partition_key": DAYS[1], "conf": None, "run_type": "scheduled"}


def test_a_late_night_is_an_incident_that_its_end_resolves(
    wiring: ModuleType, with_alerts: Setting, webhook: Webhook
) -> None:
    settings = with_alerts(webhook=webhook.url, late_hours=9)
    steps = [name for stage in STAGES for name in (stage.name, *([f"check_{stage.name}"] if stage.publishes else []))]
    good = [Run(day=DAYS[0], stage=name, input="simulator", git_revision=None) for name in steps]
    run = Run(day=DAYS[1], stage="ingest_events", input="simulator", git_revision=None)
    record(Lake(settings.lake_root), [*good, *(one.ended("finished") for one in good), run])
    for _ in range(2):
        wiring.night_is_late({"dag_run": RUN, "deadline": {}})
    (text,) = webhook.texts
    assert text.startswith(
        f"Night {DAYS[1]} is late: it has not ended 9 hours after it was queued: it is at ingest_events\n"
        f"owner: data-platform\nlast good night: {DAYS[0]}\nincident 1: "
    )
    assert f"```SGREC_HOME={settings.home.resolve()} SGREC_INPUT=simulator " in text
    assert "SGREC_LAKE" not in text, "it is where it is by default"
    wiring.night_is_late({"dag_run": {**RUN, "partition_key": None, "conf": {"day": DAYS[2]}}})
    assert len(webhook.texts) == 1, "the next night waits for it"
    night(settings, DAYS[2], "red")
    wiring.tell()
    _, over, red = webhook.texts
    assert over.startswith(f"Incident 1 is over after 2 nights ({DAYS[1]} to {DAYS[2]}): night {DAYS[2]} is red.")
    assert red.startswith(f"Night {DAYS[2]} is red: field price")


@pytest.mark.parametrize("run", [{"state": "failed"}, {"state": "success"}, {"run_type": "backfill"}])
def test_a_run_that_has_ended_or_waits_for_another_is_not_late(
    wiring: ModuleType, with_alerts: Setting, webhook: Webhook, run: dict[str, str]
) -> None:
    settings = with_alerts(webhook=webhook.url)
    wiring.night_is_late({"dag_run": {**RUN, **run}})
    assert webhook.texts == []
    assert Incidents(Lake(settings.lake_root)).read() == []


def test_a_night_that_never_began_is_late(wiring: ModuleType, with_alerts: Setting, webhook: Webhook) -> None:
    """By Airflow's own way from its declaration to the call."""
    from airflow.sdk.execution_time.callback_supervisor import execute_callback
    from structlog import get_logger

    with_alerts(webhook=webhook.url)
    alert = wiring.deadline()
    assert alert.interval == timedelta(hours=20)
    assert alert.reference.reference_name == "DagRunQueuedAtDeadline"
    kwargs = {**alert.callback.kwargs, "context": {"dag_run": {**RUN, "state": "queued"}, "deadline": {}}}
    assert execute_callback(alert.callback.path, kwargs, Path("sgrec_nightly.py"), None, get_logger()) == (True, None)
    (text,) = webhook.texts
    assert text.startswith(f"Night {DAYS[1]} is late: it has not ended 20 hours after it was queued: no stage of it")
