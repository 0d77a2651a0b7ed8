"""The gate of a judge that needs no training (another model, mode or rubric) as an Airflow DAG, run by hand.

It compares the judge of the settings with the one that nights use, on labels and pairs of held-out users, and lets
nights use it if it is better. Nights refuse a judge that passed no gate.

    airflow dags trigger sgrec_judge_comparison --conf '{"day": "2026-01-05", "judge": {"rubric": "/clearer.yaml"}}'

Change ``SGREC_JUDGE__*`` for nights after it has passed: until then they go on with the judge they have. The
interpreter ``SGREC_INTERPRETERS__JUDGE`` has to run both judges; ``.venv-judge`` runs any.
"""

from airflow.sdk import DAG
from sgrec_tasks import DAG_OPTIONS, PARAM_DAY, PARAM_JUDGE, line_of

from sgrec_core.runtime.stages import JUDGE_COMPARISON_STAGES

with DAG(
    dag_id="sgrec_judge_comparison",
    description="compare the judge of the settings with the one that nights use, and accept it if it is better",
    doc_md=__doc__,
    schedule=None,
    params={"day": PARAM_DAY, "judge": PARAM_JUDGE},
    tags=["sgrec"],
    **DAG_OPTIONS,
) as dag:
    line_of(
        JUDGE_COMPARISON_STAGES, environment="SGREC_JUDGE_TRAINING__CANDIDATE=settings {{ judge_settings(params) }}"
    )
