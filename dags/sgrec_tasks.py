"""What the DAGs share: a stage as a task, the day of a run, assets, retries. A stage is a module of ``jobs/``."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import yaml
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Asset, Context, Param, RetryDecision, RetryPolicy, chain
from airflow.sdk.exceptions import AirflowFailException

from sgrec_core.files import append_json_line
from sgrec_core.runtime.stages import ALL_STAGES, BY_NAME, STAGES, Stage
from sgrec_core.runtime.warm import SOCKET
from sgrec_core.settings import PROJECT_ROOT, Settings

settings = Settings()
# A relative home is relative to where the jobs run, whatever folder the scheduler was started from.
home = (PROJECT_ROOT / settings.home).resolve()
lake = settings.lake or str(home / "lake")
if "://" not in lake:
    lake = (PROJECT_ROOT / lake).resolve().as_uri()

GPU_POOL = "gpu"
"""One slot per GPU: ``airflow pools set gpu 1 "one slot per GPU"``. `sgrec nightly` does it for its own Airflow."""

DAY_OF_RUN = "{{ day_of_run(partition_key, params) }}"
"""In the commands of tasks."""

SETTLE_SECONDS = "SGREC_INGEST__SETTLE_SECONDS"
"""How long a day without manifest or _SUCCESS must not have changed; `sgrec nightly` sets it for its own Airflow."""

BESIDE_A_WARM_PROCESS = "sgrec_core.runtime.warm "
"""Before the module of a job: fork it from the night's warm process, where Airflow was started with one."""

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
            "location": f"{lake}/{table}",
            **{key: contract[key] for key in ("owner", "severity", "description", "runbook", "partition_by", "key")},
        },
    )


def day_of_night(partition_key: str | None, day: str | None, days_back: int = 0) -> str:
    """The day that a run is for: ``days_back`` days before its partition key, else its parameter ``day``.

    Raises:
        AirflowFailException: neither is given, both are and differ, or it is not a date. Not worth a retry.
    """
    if not partition_key and not day:
        raise AirflowFailException(
            "this run has neither a partition key nor the parameter day: trigger it with "
            '--conf \'{"day": "2026-01-05"}\', or backfill the day'
        )
    of_key = _date(partition_key) - timedelta(days=days_back) if partition_key else None
    of_day = _date(day) if day else None
    if of_key and of_day and of_key != of_day:
        raise AirflowFailException(
            f"this run has the partition key {partition_key!r} but the parameter day={day!r}: give one of them"
        )
    return str(of_key or of_day)


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise AirflowFailException(f"the day {text!r} is not a date like 2026-01-05") from None


def day_of_run(partition_key: str | None, params: Mapping[str, Any]) -> str:
    """`day_of_night` with the parameters of a run."""
    return day_of_night(partition_key, params.get("day"), params.get("days_back", 0))


def forced(params: Mapping[str, Any], stage: str) -> str:
    """The option of a job that computes although it is up to date: of the stage ``force_from`` and those behind it."""
    first, names = params.get("force_from"), [one.name for one in STAGES]
    return " --force" if first and names.index(stage) >= names.index(first) else ""


def judge_settings(params: Mapping[str, Any]) -> str:
    """The parameter ``judge`` of a run as assignments before a command."""
    return " ".join(
        f"SGREC_JUDGE__{name.upper()}={shlex.quote(str(value))}" for name, value in sorted(params["judge"].items())
    )


def day_of_context(context: Context) -> str:
    return day_of_run(context.get("partition_key"), context["params"])


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
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": task.task_id,
        "day": day,
        "try": task_instance.try_number,
        "exception": f"{type(exception).__name__}: {exception}" if exception else "the task was killed",
        "exit_code": exit_code(exception),
        "run_id": context["run_id"],
    }
    stage = BY_NAME.get(task.task_id.removeprefix("check_"))
    folder = home / "reports" / day / (stage.folder if stage else "")
    append_json_line(folder / "failures.jsonl", line)


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


def job(
    task_id: str, module: str, engine: str, *, arguments: str = "", environment: str = "", **options: Any
) -> BashOperator:
    """A task that runs ``python -m jobs.<module> --day <day>`` with the interpreter of its engine.

    ``environment``: assignments before the command, as a shell reads them.
    """
    interpreter = shlex.quote(getattr(settings.interpreters, engine))
    client = BESIDE_A_WARM_PROCESS if SOCKET in os.environ else ""
    return BashOperator(
        task_id=task_id,
        bash_command=f"{environment} {interpreter} -m {client}jobs.{module} --day {DAY_OF_RUN}{arguments}".lstrip(),
        cwd=str(PROJECT_ROOT),
        skip_on_exit_code=None,  # no exit code means "skip": a skipped stage would let the night end well
        **options,
    )


def owner(stage: Stage) -> str:
    """Who answers for the stage's first table; models belong to the team that owns the rewards."""
    return str(assets[stage.publishes[0] if stage.publishes else "rewards"].extra["owner"])


def gpus_of(stage: Stage) -> int:
    """Slots of the GPU pool that the stage takes."""
    return settings.judge.gpus if stage.engine == "judge" else 1


def option_of_force(stage: Stage) -> str:
    """`forced`, as a template; of the judge's training nothing is forced."""
    return "" if stage.folder else f"{{{{ forced(params, '{stage.name}') }}}}"


def stage_job(stage: Stage, environment: str = "") -> BashOperator:
    if stage.name == "ingest_events" and SETTLE_SECONDS not in os.environ:
        # A scheduler begins a night by the clock, maybe while its logs are still being written.
        environment = f"{SETTLE_SECONDS}=600 {environment}".strip()
    tables = ", ".join(f"`{table}`" for table in stage.publishes) or "no table"
    return job(
        stage.name,
        stage.name,
        stage.engine,
        arguments=option_of_force(stage),
        environment=environment,
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
        arguments=f" --stage {stage.name}{option_of_force(stage)}",
        owner=owner(stage),
        execution_timeout=timedelta(minutes=30),
        doc_md=f"Stop the night when a table of `{stage.name}` breaks a critical expectation of its contract.",
    )


def line_of(stages: Iterable[Stage], environment: str = "") -> None:
    """The stages one after another, each that publishes with its gate behind it; ``environment`` as in `job`."""
    line = []
    for stage in stages:
        line.append(stage_job(stage, environment))
        if stage.publishes:
            line.append(gate_job(stage))
    chain(*line)


assets = {table: load_asset(table) for stage in ALL_STAGES for table in stage.publishes}

PARAM_DAY = Param(
    None,
    type=["null", "string"],
    pattern=r"^\d{4}-\d{2}-\d{2}$",
    description="only for runs without a partition key",
)

PARAM_FORCE_FROM = Param(
    None,
    type=["null", "string"],
    enum=[None, *(stage.name for stage in STAGES)],
    description="compute this stage and those behind it again, though they are up to date",
)

PARAM_JUDGE = Param(
    {},
    type="object",
    propertyNames={"pattern": "^[a-z_]+$"},
    additionalProperties={"type": ["string", "number"]},
    description='what the judge has that is not that of the nights, for example {"rubric": "/rubrics/clearer.yaml"}',
)

DAG_OPTIONS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "max_active_runs": 1,
    "user_defined_macros": {"day_of_run": day_of_run, "judge_settings": judge_settings, "forced": forced},
    "default_args": {
        "retries": settings.airflow.retries,
        "retry_delay": timedelta(seconds=settings.airflow.retry_delay_seconds),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
        "retry_policy": RetryCrashesOnly(),
        "on_failure_callback": record_failure,
        "do_xcom_push": False,  # stages exchange tables
    },
}
"""The same for every DAG."""
