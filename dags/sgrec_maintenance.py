"""Upkeep of the lake's tables as an Airflow DAG, once a week: compact, checkpoint, vacuum. Wiring only.

    airflow dags test sgrec_maintenance

A night may run beside it. No row is deleted; ``keep_days`` says for how long old versions of the tables can be read.
"""

import shlex
from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param
from sgrec_tasks import DAG_OPTIONS, settings

from sgrec_core.settings import PROJECT_ROOT

PYTHON = shlex.quote(settings.interpreters.torch)

with DAG(
    dag_id="sgrec_maintenance",
    description="compact, checkpoint and vacuum the tables of the lake",
    doc_md=__doc__,
    schedule="0 18 * * 0",
    params={"keep_days": Param(30, type="integer", minimum=1, description="days that old versions are kept")},
    tags=["sgrec", "weekly"],
    **DAG_OPTIONS,
) as dag:
    BashOperator(
        task_id="maintain_lake",
        bash_command=f"{PYTHON} -m jobs.maintain_lake --keep-days {{{{ params.keep_days }}}}",
        cwd=str(PROJECT_ROOT),
        skip_on_exit_code=None,
        owner="data-platform",
        execution_timeout=timedelta(hours=4),
        doc_md="Make the tables small to open again; by hand: `sgrec maintain`.",
    )
