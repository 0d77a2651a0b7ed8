"""Checks of what a home holds: tables, Airflow's database, nights, the champion."""

import os
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path

from sgrec_core.errors import ContractError, SgrecError
from sgrec_core.lake import Lake, table_names
from sgrec_core.lake.damage import damaged_files
from sgrec_core.lake.storage import filesystem_of
from sgrec_core.night.airflow import airflow_environment, running_night
from sgrec_core.quality.commands import job_of_night, sgrec
from sgrec_core.quality.health.answer import SERVER_SECONDS, SLACK_SECONDS, Answer, few, folder_there, line
from sgrec_core.quality.night import state_of_night
from sgrec_core.quality.status import is_late
from sgrec_core.registry.glance import folder_of
from sgrec_core.registry.promotions import Promotions, standing
from sgrec_core.runtime.runs import days_with_runs, runs_of_day
from sgrec_core.runtime.stages import GENERATOR, STAGES
from sgrec_core.settings import Settings

HEARTBEAT_SECONDS = 60.0
"""Without a word of a scheduler for so long it is dead; Airflow's own limit is half of it."""


def _lake(settings: Settings) -> Answer:
    """A probe can be written, read and removed, and each file that a table consists of is there in its size."""
    lake, (filesystem, folder) = Lake(settings.lake_root), filesystem_of(settings.lake_root)
    probe = f"{folder if '://' in lake.root else folder_there(Path(folder))}/.doctor-{uuid.uuid4().hex}"
    try:
        with filesystem.open_output_stream(probe) as file:
            file.write(b"probe")
        with filesystem.open_input_stream(probe) as file:
            assert file.read() == b"probe"
        filesystem.delete_file(probe)
    except OSError as error:
        what = f"{lake.root} cannot be written to: {line(error)}"
        return Answer("failed", what, "give this user the right to, or set SGREC_LAKE to a place that it may write to")
    tables = 0
    for table in table_names():
        try:
            damage = damaged_files(lake, table)
        except ContractError as error:
            return Answer("failed", line(error), sgrec(settings, "migrate"))
        if damage is None:
            continue
        tables += 1
        if damage:
            what = f"{damage[0]}" + (f", and {len(damage) - 1} files more" if len(damage) > 1 else "")
            return Answer("failed", what, _mend_of_table(settings, table, damage[0].day))
    return Answer("ok", f"{lake.root} can be read and written, {tables} tables are whole")


def _mend_of_table(settings: Settings, table: str, day: str | None) -> str:
    """The stage that published the day makes it again; what no stage makes comes from a backup."""
    stage = next((stage.name for stage in STAGES if table in stage.publishes), None)
    if stage is None or day is None:
        return f"restore {settings.lake_root}/{table} from a backup"
    return job_of_night(settings, day, stage, f"--day {day} --force")


def _airflow(settings: Settings) -> Answer:
    """The database of the Airflow that runs here, and its scheduler where it has had one."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    own = airflow_environment(settings)[name]
    url = make_url(os.environ.get(name) or own)
    if url.drivername == "sqlite" and not Path(url.database or "").exists():
        return Answer("ok", "not set up yet; the first night does that")
    timeout = "timeout" if url.drivername == "sqlite" else "connect_timeout"
    question = "SELECT state, latest_heartbeat FROM job WHERE job_type = 'SchedulerJob' ORDER BY latest_heartbeat DESC"
    try:
        with create_engine(url, connect_args={timeout: SERVER_SECONDS}).connect() as connection:
            last = connection.execute(text(question)).first()
    except SQLAlchemyError as error:
        is_ours = url == make_url(own)
        # Neither the URL nor the error's own words, which may hold a password.
        place = str(url.database) if is_ours else f"{url.drivername} at {url.host or url.database}"
        what = f"the database {place} cannot be read: {type(error).__name__}"
        return Answer("failed", what, "move it away: the next night makes another" if is_ours else "start it")
    if last is None or last.state != "running":
        return Answer("ok", "the database answers; no scheduler: nights are begun by hand")
    heartbeat = last.latest_heartbeat
    heartbeat = datetime.fromisoformat(heartbeat) if isinstance(heartbeat, str) else heartbeat
    silent = (datetime.now(UTC) - heartbeat.replace(tzinfo=heartbeat.tzinfo or UTC)).total_seconds()
    if silent > HEARTBEAT_SECONDS:
        what = f"the scheduler has been silent for {silent / 60:,.0f} minutes: it was killed, or hangs"
        return Answer("failed", what, "start it again: `airflow scheduler`, with the settings of before")
    return Answer("ok", "database and scheduler answer")


def _last_night(settings: Settings) -> Answer:
    lake = Lake(settings.lake_root)
    running = running_night(settings)
    if running is not None:
        return Answer("ok", f"the night of {running} runs")
    for day in days_with_runs(lake):
        at = state_of_night(settings, lake, day)
        if at is None:
            continue
        ahead = [run.stage for run in runs_of_day(lake, day) if run.started.timestamp() > time.time() + SLACK_SECONDS]
        if ahead:
            what = f"{few(ahead)} of night {day} began later than now: the clock is behind"
            return Answer("failed", what, "timedatectl set-ntp true")
        if at.state != "succeeded":
            return Answer("warning", f"{day} is {at.state} at {at.step.name}", sgrec(settings, f"status --day {day}"))
        # Invented and public days are of long ago.
        if settings.source == "logs" and is_late(day, settings.airflow.late_hours):
            age = (datetime.now(UTC).date() - date.fromisoformat(day)).days
            what = f"the newest night is {day}, {age} days ago"
            mend = f"see whether logs land and the scheduler runs; by hand: {sgrec(settings, 'nightly')}"
            return Answer("warning", what, mend)
        return Answer("ok", f"{day} succeeded")
    return Answer("warning", "no stage has run yet", sgrec(settings, "nightly"))


def _champion(settings: Settings) -> Answer:
    """Its weights can be read, and each of them is a number."""
    promotions = standing(Promotions(Lake(settings.lake_root)).read())
    if not promotions:
        return Answer("ok", "none yet")
    version = str(promotions[-1].version)
    try:
        tensors = _weights(settings, version)
    except SgrecError as error:
        back = sgrec(settings, "rollback") if len(promotions) > 1 else "restore <home>/mlflow from a backup"
        return Answer("failed", line(error), back)
    return Answer("ok", f"{GENERATOR} version {version}: {len(tensors)} tensors, all finite")


def _weights(settings: Settings, version: str) -> Mapping[str, object]:
    if settings.mlflow_uri is not None:
        from sgrec_core.registry import Registry

        registry = Registry(settings)
        return registry.load(registry.get(GENERATOR, version))[0]
    # Without MLflow, which takes longer to import than all the checks together.
    from sgrec_core.registry.weights import read_model

    return read_model(folder_of(settings, version), of=f"{GENERATOR} version {version}")[0]


STORES: dict[str, Callable[[Settings], Answer]] = {
    "lake": _lake,
    "airflow": _airflow,
    "last night": _last_night,
    "champion": _champion,
}
