"""The training of the judge as an Airflow DAG, once a week. Wiring only, like `sgrec_nightly`.

The run on Sunday noon has that Sunday as its partition key and trains on the labels of the day before, whose night has
run by then; a run without a key takes the parameter ``day``.

    airflow dags test sgrec_judge_training --conf '{"day": "2026-01-05"}'

It needs ``SGREC_JUDGE__ENGINE=vllm``, a model and labels (``SGREC_JUDGE_TRAINING__LABELS``; the simulator brings its
own). A judge that passes its gate becomes active: nights with ``SGREC_JUDGE__ADAPTER=active`` use it from then on.
"""

from airflow.sdk import DAG, CronPartitionTimetable, Param
from sgrec_tasks import DAG_OPTIONS, PARAM_DAY, line_of

from sgrec_core.runtime.stages import JUDGE_TRAINING_STAGES

with DAG(
    dag_id="sgrec_judge_training",
    description="train the judge on labels, and activate it if it is better",
    doc_md=__doc__,
    schedule=CronPartitionTimetable("0 12 * * 0", timezone="UTC", key_format="%Y-%m-%d"),
    params={
        "day": PARAM_DAY,
        "days_back": Param(
            1, type="integer", minimum=0, description="how many days before its partition key a scheduled run trains on"
        ),
    },
    tags=["sgrec", "weekly"],
    **DAG_OPTIONS,
) as dag:
    line_of(JUDGE_TRAINING_STAGES)
