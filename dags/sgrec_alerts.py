"""Who is told of incidents, by Airflow's notifiers: a task behind the night's report, and Airflow's deadline of a run.

What a message says, and to whom it is due, is the core's. A message counts as sent once its server has taken it: killed
in between, it is sent twice; one that could not be sent is tried again, and by the next night.

Notifiers and tables are imported where they are used: Airflow parses the DAGs every half a minute.
"""

import html
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback
from airflow.sdk.exceptions import AirflowException
from sgrec_tasks import day_of_night, home, lake, settings

from sgrec_core.settings import AlertSettings

if TYPE_CHECKING:
    from sgrec_core.quality.alerts import Message

CONNECTION = "sgrec_alerts"
"""Airflow's id of where a message goes; it exists while one is sent."""
TIMEOUT_SECONDS = 30
KEYS = ("OPENAI_API_KEY",)
"""Variables beside the settings whose values no message may hold."""


def tell() -> None:
    """Send what is due of all incidents.

    Raises:
        AirflowException: a message could not be sent; incident and log say why.
    """
    from airflow.sdk.log import mask_secret

    from sgrec_core.lake import Lake
    from sgrec_core.quality.alerts import hidden, message, parts
    from sgrec_core.quality.incidents import Incidents, after_message, due

    alerts, table, problems = settings.alerts, Incidents(Lake(lake)), []
    secrets = [*alerts.secrets, *filter(None, (os.environ.get(name) for name in KEYS))]
    for part in parts(secrets):
        mask_secret(part)  # Airflow's log quotes what servers answer
    for one in due(table.read(), alerts.destinations):
        problem = None
        try:
            SENDERS[one.destination](alerts, message(one, home / "reports", secrets))
        except Exception as error:  # whatever a server or the network does; the others are told all the same
            problem = hidden(" ".join(f"{type(error).__name__}: {error}".split()), secrets)
            problems.append(f"{one.destination}: {problem}")
        table.change(lambda now, one=one, problem=problem: after_message(now, one, problem))
    if problems:
        raise AirflowException("; ".join(problems))


def send_to_webhook(alerts: AlertSettings, message: "Message") -> None:
    """As Slack takes it. Its three special characters are escaped, so that no text of a log calls anybody."""
    from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

    assert alerts.webhook is not None
    text = html.escape("\n".join(message.lines), quote=False)
    if message.command:
        text += f"\n```{html.escape(message.command, quote=False)}```"
    with connection({"conn_type": "slackwebhook", "password": alerts.webhook.get_secret_value()}):
        # The words are an argument of the template and no part of it: Airflow would compute what stands in braces.
        notifier = SlackWebhookNotifier(
            slack_webhook_conn_id=CONNECTION, text="{{ words }}", timeout=TIMEOUT_SECONDS, unfurl_links=False
        )
        notifier({"words": text})


def send_mail(alerts: AlertSettings, message: "Message") -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    body = "<br>\n".join(html.escape(line) for line in message.lines)
    if message.command:
        body += f"\n<pre>{html.escape(message.command)}</pre>"
    password = alerts.smtp_password
    server = {
        "conn_type": "smtp",
        "host": alerts.smtp_host,
        "port": alerts.smtp_port,
        "login": alerts.smtp_user,
        "password": password and password.get_secret_value(),
        "extra": {
            "disable_ssl": alerts.smtp_encryption != "tls",
            "disable_tls": alerts.smtp_encryption != "starttls",
            "timeout": TIMEOUT_SECONDS,
            "retry_limit": 1,
        },
    }
    with connection(server):
        notifier = SmtpNotifier(
            smtp_conn_id=CONNECTION,
            from_email=alerts.smtp_from,
            to=alerts.smtp_to or "",
            subject="{{ about }}",
            html_content="{{ words }}",
        )
        notifier({"about": message.subject, "words": body})


SENDERS = {"webhook": send_to_webhook, "mail": send_mail}


@contextmanager
def connection(parts: Mapping[str, Any]) -> Iterator[None]:
    """A connection that Airflow finds in the environment of this process, and nowhere else."""
    name = f"AIRFLOW_CONN_{CONNECTION.upper()}"
    os.environ[name] = json.dumps({key: value for key, value in parts.items() if value is not None})
    try:
        yield
    finally:
        del os.environ[name]


def alerts_task(owner: str) -> PythonOperator:
    """`tell`, behind whatever is put before it, however that ended; a teardown, so that it does not decide the run."""
    tell_incidents = PythonOperator(
        task_id="tell_incidents",
        python_callable=tell,
        owner=owner,
        execution_timeout=timedelta(minutes=10),
        on_failure_callback=None,  # the page knows stages and gates alone
        doc_md="Send what is due of incidents; by hand nothing needs it: what is not sent is due the next night.",
    )
    return tell_incidents.as_teardown()


def night_is_late(context: Mapping[str, Any]) -> None:
    """What Airflow calls when a run has not succeeded in time: an incident, and its message.

    A run that has ended otherwise is not late: its report has said what was wrong. Those of a backfill wait for each
    other.
    """
    from sgrec_core.lake import Lake
    from sgrec_core.quality.commands import sgrec
    from sgrec_core.quality.incidents import LATE, Incidents, Met, after_night
    from sgrec_core.quality.night import state_of_night
    from sgrec_core.quality.status import UNREADABLE, last_good
    from sgrec_core.runtime.runs import days_with_runs

    run = context["dag_run"]
    if run["state"] in ("success", "failed") or run["run_type"] == "backfill":
        return
    day = day_of_night(run["partition_key"], (run["conf"] or {}).get("day"))
    here, tables = settings.model_copy(update={"home": home, "lake": settings.lake and lake}), Lake(lake)
    try:
        at = state_of_night(here, tables, day)
        before = last_good(here, tables, [one for one in days_with_runs(tables) if one < day])
    except UNREADABLE:
        at = before = None
    where = f"it is at {at.step.name}" if at else "no stage of it has begun"
    met = Met(
        day=day,
        verdict=LATE,
        kind=LATE,
        cause=f"it has not ended {settings.alerts.late_hours:g} hours after it was queued: {where}",
        cause_table=None,
        owner="data-platform",
        command=sgrec(here, "status"),
        last_good=before,
    )
    Incidents(tables).change(lambda incidents: after_night(incidents, met))
    tell()


def deadline() -> DeadlineAlert | None:
    """Of a night: told while it is late. The executor runs the callback, so that no triggerer is needed."""
    if not settings.alerts.destinations:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=settings.alerts.late_hours),
        callback=SyncCallback(night_is_late),
        name="the night is late",
    )
