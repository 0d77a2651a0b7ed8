"""The night as an Airflow DAG. Wiring only: a stage is a module of ``jobs/``, the list is `sgrec_core.runtime.stages`.

A night is a partition. The run at 02:00 UTC on D+1 has the partition key D, scheduled or from ``airflow
backfill create``; a run without a key (``airflow dags test``, a manual trigger) takes the parameter ``day``.

    airflow dags test sgrec_nightly --conf '{"day": "2026-01-05"}'
    airflow backfill create --dag-id sgrec_nightly --max-active-runs 1 \\
        --from-date 2026-01-05 --to-date 2026-01-06T23:59:59

The bounds of a backfill are instants and a partition's instant is 02:00 UTC of its day: a plain
``--to-date 2026-01-06`` ends at midnight and leaves the 6th out. One run at a time, because a night starts from the
champion of the nights before it. Days that have a run already need ``--reprocess-behavior completed``.
"""

import shlex
from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, CronPartitionTimetable, TriggerRule, chain
from sgrec_alerts import alerts_task, deadline
from sgrec_tasks import (
    DAG_OPTIONS,
    DAY_OF_RUN,
    GPU_POOL,
    PARAM_DAY,
    PARAM_FORCE_FROM,
    gate_job,
    gpus_of,
    owner,
    settings,
    stage_job,
)

from sgrec_core.runtime.stages import STAGES, Stage
from sgrec_core.settings import PROJECT_ROOT


def judge_workers(stage: Stage) -> BashOperator:
    """``judge.workers`` tasks that judge side by side, each with ``judge.tensor_parallel`` GPUs of its own."""
    interpreter = shlex.quote(settings.interpreters.judge)
    gpus = gpus_of(stage)
    commands = []
    for worker in range(settings.judge.workers):
        devices = ",".join(str(worker * gpus + device) for device in range(gpus))
        commands.append(
            f"CUDA_VISIBLE_DEVICES={devices} {interpreter} -m jobs.judge_worker --day {DAY_OF_RUN} --worker {worker}"
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


with DAG(
    dag_id="sgrec_nightly",
    description="turn a day of recommendation logs into a better generator",
    doc_md=__doc__,
    schedule=CronPartitionTimetable("0 2 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    params={"day": PARAM_DAY, "force_from": PARAM_FORCE_FROM},
    tags=["sgrec", "nightly"],
    deadline=deadline(),
    **DAG_OPTIONS,
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

    if settings.alerts.destinations:
        report >> alerts_task(report.owner)
