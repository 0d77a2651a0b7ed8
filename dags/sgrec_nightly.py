"""The night as an Airflow DAG. Wiring only: a stage is a module of ``jobs/``, the list is `sgrec_core.stages`.

A night is a partition. The run at 02:00 UTC on D+1 has the partition key D, scheduled or from ``airflow
backfill create``; a run without a key (``airflow dags test``, a manual trigger) takes the parameter ``day``.

    airflow dags test sgrec_nightly --conf '{"day": "2026-01-05"}'
    airflow backfill create --dag-id sgrec_nightly --max-active-runs 1 \\
        --from-date 2026-01-05 --to-date 2026-01-06T23:59:59

The bounds of a backfill are instants and a partition's instant is 02:00 UTC of its day: a plain
``--to-date 2026-01-06`` ends at midnight and leaves the 6th out. One run at a time, because a night starts from the
champion of the nights before it. Days that have a run already need ``--reprocess-behavior completed``.
"""

import json
import os
import re
import shlex
from datetime import UTC, date, datetime, timedelta
from typing import Any

import yaml
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import (
    DAG,
    Asset,
    Context,
    CronPartitionTimetable,
    Param,
    RetryDecision,
    RetryPolicy,
    TriggerRule,
    chain,
)
from airflow.sdk.exceptions import AirflowFailException

from sgrec_core.settings import PROJECT_ROOT, Settings
from sgrec_core.stages import STAGES, Stage

settings = Settings()
# A relative home is relative to where the jobs run, whatever folder the scheduler was started from.
home = (PROJECT_ROOT / settings.home).resolve()

GPU_POOL = "gpu"
"""One slot per GPU: ``airflow pools set gpu 1 "one slot per GPU"``. `sgrec nightly` does it for its own Airflow."""

DELIBERATE_EXITS = {2: "an input or a setting is wrong", 3: "a quality gate stopped the night"}
"""Exit codes with which a job says that trying again changes nothing; a crash exits otherwise (`sgrec_core.errors`)."""


def load_asset(table: str) -> Asset:
    """The asset of a table; who owns it and what it holds comes from its contract.

    Its URI names the table, not the place: an asset whose URI changes while its name stays is a conflict that stops
    every task, so a lake that moves must not change it.

    The contract is read as plain YAML: `sgrec_core.lake.contracts` would import Arrow (0.4 s) at every parse.
    """
    contract = yaml.load((PROJECT_ROOT / "schemas" / f"{table}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return Asset(
        name=table,
        uri=f"x-sgrec://lake/{table}",
        group="sgrec",
        extra={
            "location": f"{(home / 'lake').as_uri()}/{table}",
            **{key: contract[key] for key in ("owner", "severity", "description", "runbook", "partition_by", "key")},
        },
    )


def day_of_night(partition_key: str | None, day: str | None) -> str:
    """The day that a run is for: its partition key, else its parameter ``day``.

    Raises:
        AirflowFailException: neither is given, both are and differ, or it is not a date. Not worth a retry.
    """
    if partition_key and day and partition_key != day:
        raise AirflowFailException(
            f"this run has the partition key {partition_key!r} but the parameter day={day!r}: give one of them"
        )
    chosen = partition_key or day
    if not chosen:
        raise AirflowFailException(
            "this run has neither a partition key nor the parameter day: trigger it with "
            '--conf \'{"day": "2026-01-05"}\', or backfill the day'
        )
    try:
        return date.fromisoformat(chosen).isoformat()
    except ValueError:
        raise AirflowFailException(f"the day {chosen!r} is not a date like 2026-01-05") from None


def day_of_context(context: Context) -> str:
    return day_of_night(context.get("partition_key"), context["params"].get("day"))


def mark_partition(context: Context) -> None:
    """Let the asset events of the task name the day even where the run has no partition key."""
    for asset in context["task"].outlets:
        context["outlet_events"][asset].add_partitions(day_of_context(context))


def record_failure(context: Context) -> None:
    """Append a line to ``reports/<day>/failures.jsonl`` once a task has failed for good; the on-call page reads it."""
    task, task_instance = context["task"], context["task_instance"]
    try:
        day = day_of_context(context)
    except AirflowFailException:
        return  # Without a day there is no report to write to; Airflow's log has the reason.
    exception = context.get("exception")
    # The settings that the job ran with, but no credentials: the line ends up on a page.
    variables = {name: value for name, value in os.environ.items() if name.startswith("SGREC_") and "@" not in value}
    variables["SGREC_HOME"] = str(home)
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items()))
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": task.task_id,
        "day": day,
        "try": task_instance.try_number,
        "exception": f"{type(exception).__name__}: {exception}" if exception else "the task was killed",
        "exit_code": exit_code(exception),
        "rerun": f"cd {shlex.quote(str(PROJECT_ROOT))} && {environment} {getattr(task, 'bash_command', '')}",
        "run_id": context["run_id"],
    }
    folder = home / "reports" / day
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "failures.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def exit_code(exception: BaseException | str | None) -> int | None:
    """The exit code that `BashOperator` names in its exception, the only place where it passes it on."""
    found = re.search(r"non-zero exit code (-?\d+)", str(exception))
    return int(found[1]) if found else None


class RetryCrashesOnly(RetryPolicy):
    """Retry a job that crashed (out of memory, a lost disk), not one that stopped because its input is bad."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        reason = DELIBERATE_EXITS.get(exit_code(exception) or 0)
        return RetryDecision.fail(reason) if reason else RetryDecision.default()


def job(task_id: str, module: str, engine: str, *, arguments: str = "", **options: Any) -> BashOperator:
    """A task that runs ``python -m jobs.<module> --day <day>`` with the interpreter of its engine."""
    interpreter = shlex.quote(getattr(settings.interpreters, engine))
    day = "{{ day_of_night(partition_key, params.day) }}"
    return BashOperator(
        task_id=task_id,
        bash_command=f"{interpreter} -m jobs.{module} --day {day}{arguments}",
        cwd=str(PROJECT_ROOT),
        skip_on_exit_code=None,  # no exit code means "skip": a skipped stage would let the night end well
        **options,
    )


def judge_workers(stage: Stage) -> BashOperator:
    """``judge.workers`` tasks that judge side by side, each with ``judge.tensor_parallel`` GPUs of its own."""
    interpreter = shlex.quote(settings.interpreters.judge)
    day = "{{ day_of_night(partition_key, params.day) }}"
    gpus = gpus_of(stage)
    commands = []
    for worker in range(settings.judge.workers):
        devices = ",".join(str(worker * gpus + device) for device in range(gpus))
        commands.append(
            f"CUDA_VISIBLE_DEVICES={devices} {interpreter} -m jobs.judge_worker --day {day} --worker {worker}"
        )
    return BashOperator.partial(
        task_id="judge_workers",
        cwd=str(PROJECT_ROOT),
        skip_on_exit_code=None,
        owner=owner(stage),
        pool=GPU_POOL,
        pool_slots=gpus,
        execution_timeout=timedelta(minutes=stage.timeout_minutes),
        doc_md=f"The calls of `{stage.name}`, shard by shard; that stage does what is left and reports.",
    ).expand(bash_command=commands)


def owner(stage: Stage) -> str:
    """Who answers for the stage's first table; models belong to the team that owns the rewards."""
    return str(assets[stage.publishes[0] if stage.publishes else "rewards"].extra["owner"])


def gpus_of(stage: Stage) -> int:
    """Slots of the GPU pool that the stage takes."""
    return settings.judge.gpus if stage.engine == "judge" else 1


def stage_job(stage: Stage) -> BashOperator:
    tables = ", ".join(f"`{table}`" for table in stage.publishes) or "no table"
    return job(
        stage.name,
        stage.name,
        stage.engine,
        owner=owner(stage),
        pool=GPU_POOL if stage.uses_gpu else "default_pool",
        pool_slots=gpus_of(stage),
        execution_timeout=timedelta(minutes=stage.timeout_minutes),
        inlets=[assets[table] for table in stage.reads],
        outlets=[assets[table] for table in stage.publishes],
        pre_execute=mark_partition,
        doc_md=f"{stage.summary.capitalize()}. Publishes {tables}; alone: `python -m jobs.{stage.name} --day D`.",
    )


def gate_job(stage: Stage) -> BashOperator:
    return job(
        f"check_{stage.name}",
        "check_quality",
        "quality",
        arguments=f" --stage {stage.name}",
        owner=owner(stage),
        execution_timeout=timedelta(minutes=30),
        doc_md=f"Stop the night when a table of `{stage.name}` breaks a critical expectation of its contract.",
    )


assets = {table: load_asset(table) for stage in STAGES for table in stage.publishes}

with DAG(
    dag_id="sgrec_nightly",
    description="turn a day of recommendation logs into a better generator",
    doc_md=__doc__,
    schedule=CronPartitionTimetable("0 2 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={
        "day": Param(
            None,
            type=["null", "string"],
            pattern=r"^\d{4}-\d{2}-\d{2}$",
            description="only for runs without a partition key",
        )
    },
    user_defined_macros={"day_of_night": day_of_night},
    tags=["sgrec", "nightly"],
    default_args={
        "retries": settings.airflow.retries,
        "retry_delay": timedelta(seconds=settings.airflow.retry_delay_seconds),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
        "retry_policy": RetryCrashesOnly(),
        "on_failure_callback": record_failure,
        "do_xcom_push": False,  # stages exchange tables
    },
) as dag:
    *working_stages, reporting_stage = STAGES
    line = []
    for stage in working_stages:
        if stage.engine == "judge" and settings.judge.workers > 1:
            workers, whole = judge_workers(stage), stage_job(stage)
            line[-1] >> workers >> whole
            # What failed workers left, the stage does, unless the gate before them has failed.
            whole.trigger_rule = TriggerRule.ALL_DONE_MIN_ONE_SUCCESS
            line.append(whole)
        else:
            line.append(stage_job(stage))
        if stage.publishes:
            line.append(gate_job(stage))
    # The line is a chain, so its last task has ended, in whatever state, only when everything before it has.
    report = stage_job(reporting_stage)
    report.trigger_rule = TriggerRule.ALL_DONE
    chain(*line, report)

    # A run's state is that of its leaves. The report runs after failures too and must not make them a success, so
    # the leaf is this task, which succeeds when the whole line and the report did. It is never sent to a worker.
    night_complete = EmptyOperator(
        task_id="night_complete", owner=report.owner, doc_md="Everything ran, every gate passed."
    )
    [line[-1], report] >> night_complete
