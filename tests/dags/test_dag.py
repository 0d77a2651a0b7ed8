"""The DAG as Airflow sees it: it parses fast, says what it should, and gives every run the right day."""

import json
import os
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest

from sgrec_core.lake import load_contract
from sgrec_core.night.airflow import airflow_environment
from sgrec_core.runtime.stages import BY_NAME, STAGES
from sgrec_core.runtime.warm import SOCKET
from sgrec_core.settings import PROJECT_ROOT, Settings

pytestmark = pytest.mark.airflow

DAG_FILE = PROJECT_ROOT / "dags" / "sgrec_nightly.py"
JUDGE = "/judge with a blank/bin/python"

GRAPH = """
ingest_events -> check_ingest_events
check_ingest_events -> build_states
build_states -> check_build_states
check_build_states -> tokenize_items
tokenize_items -> check_tokenize_items
check_tokenize_items -> fit_business_reward
fit_business_reward -> train_supervised
train_supervised -> generate_candidates
generate_candidates -> check_generate_candidates
check_generate_candidates -> score_aspects
score_aspects -> check_score_aspects
check_score_aspects -> train_aggregator
train_aggregator -> check_train_aggregator
check_train_aggregator -> materialize_rewards
materialize_rewards -> check_materialize_rewards
check_materialize_rewards -> train_generator
train_generator -> evaluate_generator
evaluate_generator -> check_evaluate_generator
check_evaluate_generator -> night_complete, report_quality
report_quality -> night_complete
night_complete ->
"""


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real DagBag over ``dags/``, with settings that a production worker might have."""
    home = tmp_path_factory.mktemp("airflow")
    variables = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "SGREC_HOME": str(home / "sgrec"),
        "SGREC_INTERPRETERS__JUDGE": JUDGE,
        "SGREC_AIRFLOW__RETRIES": "2",
        "SGREC_AIRFLOW__RETRY_DELAY_SECONDS": "7",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        # As every Airflow process does with its folder of DAGs.
        patch.syspath_prepend(DAG_FILE.parent)
        from airflow.dag_processing.dagbag import DagBag

        yield DagBag(dag_folder=DAG_FILE.parent)


@pytest.fixture(scope="module")
def dag(bag: Any) -> Any:
    return bag.dags["sgrec_nightly"]


def test_dags_import_without_errors(bag: Any) -> None:
    assert bag.import_errors == {}
    assert sorted(bag.dags) == ["sgrec_judge_comparison", "sgrec_judge_training", "sgrec_maintenance", "sgrec_nightly"]


def edges(dag: Any) -> list[str]:
    """A line for each task and what comes after it, sorted."""
    return sorted(
        f"{task.task_id} -> {', '.join(sorted(task.downstream_task_ids))}".strip() for task in dag.topological_sort()
    )


def test_task_graph(dag: Any) -> None:
    assert edges(dag) == sorted(GRAPH.strip().splitlines())


def test_one_night_at_a_time_and_none_for_the_past(dag: Any) -> None:
    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.tags == {"sgrec", "nightly"}
    assert "partition" in dag.doc_md


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_stage_tasks(dag: Any, stage: Any) -> None:
    task = dag.get_task(stage.name)
    assert task.pool == ("gpu" if stage.engine in ("torch", "judge") else "default_pool")
    assert task.execution_timeout == timedelta(minutes=stage.timeout_minutes)
    assert task.retries == 2
    assert task.retry_delay == timedelta(seconds=7)
    assert task.retry_exponential_backoff == 2.0
    assert task.on_failure_callback
    assert task.do_xcom_push is False
    assert {asset.name for asset in task.outlets} == set(stage.publishes)
    assert {asset.name for asset in task.inlets} == set(stage.reads)
    for asset in task.outlets:
        assert asset.uri == f"x-sgrec://lake/{asset.name}", "the same wherever the lake lies"
        assert asset.extra["location"].startswith("file:///")
        assert asset.extra["location"].endswith(f"/sgrec/lake/{asset.name}")
        assert asset.extra["owner"] == load_contract(asset.name).owner
    if stage.publishes:
        assert task.owner == load_contract(stage.publishes[0]).owner


def force(stage: str) -> str:
    """In a command, what computes again where the run asks for it."""
    return f"{{{{ forced(params, '{stage}') }}}}"


def test_a_run_computes_again_from_the_stage_that_it_names(dag: Any) -> None:
    assert dag.params["force_from"] is None
    macros = {**dag.user_defined_macros, "partition_key": None}
    names = [stage.name for stage in STAGES]

    def command(task: str, first: str | None) -> str:
        params = {"day": "2026-01-05", "force_from": first}
        return jinja2.Template(dag.get_task(task).bash_command).render(params=params, **macros)

    for first in (None, "ingest_events", "train_supervised"):
        for name in names:
            is_forced = first is not None and names.index(name) >= names.index(first)
            tasks = [name, f"check_{name}"] if BY_NAME[name].publishes else [name]
            assert [command(task, first).endswith(" --force") for task in tasks] == [is_forced] * len(tasks)
    with pytest.raises(Exception, match="not one of"):
        dag.params["force_from"] = "nothing"


def test_a_gate_follows_every_stage_that_publishes(dag: Any) -> None:
    gates = {task_id.removeprefix("check_") for task_id in dag.task_ids if task_id.startswith("check_")}
    assert gates == {stage.name for stage in STAGES if stage.publishes}
    for name in gates:
        gate = dag.get_task(f"check_{name}")
        assert gate.upstream_task_ids == {name}
        assert gate.trigger_rule == "all_success"
        assert gate.bash_command.endswith(
            f"-m jobs.check_quality --day {{{{ day_of_run(partition_key, params) }}}} --stage {name}{force(name)}"
        )
        assert gate.execution_timeout
        assert gate.on_failure_callback


def test_the_report_always_runs_and_does_not_decide_the_night(dag: Any) -> None:
    assert dag.get_task("report_quality").trigger_rule == "all_done"
    assert [task.task_id for task in dag.leaves] == ["night_complete"]
    assert dag.get_task("night_complete").trigger_rule == "all_success"


def test_every_engine_has_its_own_interpreter(dag: Any) -> None:
    day = "{{ day_of_run(partition_key, params) }}"
    command = f"'{JUDGE}' -m jobs.score_aspects --day {day}{force('score_aspects')}"
    assert dag.get_task("score_aspects").bash_command == command
    command = f".venv/bin/python -m jobs.train_generator --day {day}{force('train_generator')}"
    assert dag.get_task("train_generator").bash_command == command
    assert BY_NAME["score_aspects"].engine == "judge"


def test_a_scheduled_night_waits_for_logs_that_still_grow(dag: Any) -> None:
    assert dag.get_task("ingest_events").bash_command.startswith("SGREC_INGEST__SETTLE_SECONDS=600 ")
    assert dag.get_task("build_states").bash_command.startswith(".venv/bin/python ")
    assert airflow_environment(Settings())["SGREC_INGEST__SETTLE_SECONDS"] == "0.0", "one by hand does not"


def test_the_night_of_a_day_runs_after_it(dag: Any) -> None:
    """Guards against a change of meaning of ``run_offset``: scheduled and backfill runs must agree on the key."""
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables.base import TimeRestriction
    from pendulum import instance

    timetable = coerce_to_core_timetable(dag.timetable)
    earliest = instance(datetime(2026, 1, 6, tzinfo=UTC))
    scheduled = timetable.next_dagrun_info_v2(last_dagrun_info=None, restriction=TimeRestriction(earliest, None, True))
    assert scheduled.run_after == datetime(2026, 1, 6, 2, tzinfo=UTC)
    assert scheduled.partition_key == "2026-01-05"
    window = {"earliest": datetime(2026, 1, 5, tzinfo=UTC), "latest": datetime(2026, 1, 6, 23, 59, tzinfo=UTC)}
    backfilled = list(timetable.iter_partition_dagrun_infos(**window))
    assert [info.partition_key for info in backfilled] == ["2026-01-05", "2026-01-06"]
    assert backfilled[0].partition_date == scheduled.partition_date


@pytest.mark.parametrize(
    ("partition_key", "parameter", "day"),
    [
        ("2026-01-05", None, "2026-01-05"),
        (None, "2026-01-05", "2026-01-05"),
        ("2026-01-05", "2026-01-05", "2026-01-05"),
    ],
)
def test_day_is_the_partition_key_else_the_parameter(dag: Any, partition_key: Any, parameter: Any, day: str) -> None:
    assert dag.user_defined_macros["day_of_run"](partition_key, {"day": parameter}) == day


@pytest.mark.parametrize(
    ("partition_key", "parameter", "message"),
    [
        (None, None, "neither a partition key nor the parameter day"),
        ("2026-01-05", "2026-01-06", "partition key '2026-01-05' but the parameter day='2026-01-06'"),
        (None, "2026-02-30", "'2026-02-30' is not a date"),
        ("2026-01-05T02:00:00", None, "'2026-01-05T02:00:00' is not a date"),
    ],
)
def test_a_run_without_a_clear_day_fails_clearly(dag: Any, partition_key: Any, parameter: Any, message: str) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match=message):
        dag.user_defined_macros["day_of_run"](partition_key, {"day": parameter})


TRAINING_GRAPH = """
import_judge_labels -> check_import_judge_labels
check_import_judge_labels -> train_judge
train_judge -> train_judge_weights
train_judge_weights -> score_labels
score_labels -> check_score_labels
check_score_labels -> evaluate_judge
evaluate_judge -> check_evaluate_judge
check_evaluate_judge ->
"""


def test_the_judge_is_trained_weekly_on_the_day_before(bag: Any) -> None:
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables.base import TimeRestriction
    from pendulum import instance

    training = bag.dags["sgrec_judge_training"]
    assert edges(training) == sorted(TRAINING_GRAPH.strip().splitlines())
    assert training.get_task("score_labels").bash_command.startswith(f"'{JUDGE}' -m jobs.score_labels --day ")
    assert {training.get_task(name).pool for name in ("train_judge", "score_labels")} == {"gpu"}
    earliest = instance(datetime(2026, 1, 6, tzinfo=UTC))
    scheduled = coerce_to_core_timetable(training.timetable).next_dagrun_info_v2(
        last_dagrun_info=None, restriction=TimeRestriction(earliest, None, True)
    )
    assert scheduled.run_after == datetime(2026, 1, 11, 12, tzinfo=UTC), "a Sunday"
    day_of_run = training.user_defined_macros["day_of_run"]
    params = {name: param.value if hasattr(param, "value") else param for name, param in training.params.items()}
    assert day_of_run(scheduled.partition_key, params) == "2026-01-10", "the last night that has run"
    assert day_of_run(None, {**params, "day": "2026-01-05"}) == "2026-01-05"


COMPARISON_GRAPH = """
import_judge_labels -> check_import_judge_labels
check_import_judge_labels -> score_labels
score_labels -> check_score_labels
check_score_labels -> evaluate_judge
evaluate_judge -> check_evaluate_judge
check_evaluate_judge ->
"""


def test_a_judge_that_needs_no_training_is_compared_when_a_person_asks(bag: Any) -> None:
    comparison = bag.dags["sgrec_judge_comparison"]
    assert edges(comparison) == sorted(COMPARISON_GRAPH.strip().splitlines())
    assert comparison.timetable.can_be_scheduled is False
    params = {"day": "2026-01-05", "judge": {"rubric": "/rubrics/it's clearer.yaml", "max_model_len": 4096}}
    commands = {
        name: comparison.get_template_env()
        .from_string(comparison.get_task(name).bash_command)
        .render(params=params, partition_key=None)
        for name in ("import_judge_labels", "score_labels", "evaluate_judge")
    }
    for name, command in commands.items():
        assert shlex.split(command)[:3] == [
            "SGREC_JUDGE_TRAINING__CANDIDATE=settings",
            "SGREC_JUDGE__MAX_MODEL_LEN=4096",
            "SGREC_JUDGE__RUBRIC=/rubrics/it's clearer.yaml",
        ], "not what the day's training made"
        assert command.endswith(f" -m jobs.{name} --day 2026-01-05")
    assert shlex.split(commands["score_labels"])[3] == JUDGE
    from airflow.sdk.exceptions import ParamValidationError

    for wrong in ({"RUBRIC=1 rm": "x"}, {"rubric": ["x"]}):
        with pytest.raises(ParamValidationError):
            comparison.params["judge"] = wrong
    assert comparison.user_defined_macros["day_of_run"](None, {"day": "2026-01-05"}) == "2026-01-05"


@pytest.mark.parametrize(("exit_code", "action"), [(1, "default"), (2, "fail"), (3, "fail"), (137, "default")])
def test_only_crashes_are_retried(dag: Any, exit_code: int, action: str) -> None:
    from airflow.sdk.exceptions import AirflowException

    # The wording is BashOperator's, which passes the exit code on in no other way; `test_cli` runs the real thing.
    exception = AirflowException(f"Bash command failed. The command returned a non-zero exit code {exit_code}.")
    policy = dag.get_task("ingest_events").retry_policy
    assert policy.evaluate(exception, try_number=1, max_tries=2).action.value == action


def test_a_failure_is_recorded(dag: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setenv("SGREC_INPUT", "logs:/raw logs")
    monkeypatch.setenv("SGREC_MLFLOW_URI", "https://user:secret@mlflow")
    task = SimpleNamespace(
        task_id="build_states", bash_command="python -m jobs.build_states --day 2026-01-05", outlets=[]
    )
    context = {
        "task": task,
        "task_instance": SimpleNamespace(try_number=2),
        "params": {"day": "2026-01-05"},
        "exception": RuntimeError("Bash command failed. The command returned a non-zero exit code 137."),
        "run_id": "manual",
    }
    (callback,) = dag.get_task("build_states").on_failure_callback
    callback(context)
    home = Path(dag.get_task("build_states").outlets[0].extra["location"].removeprefix("file://")).parent.parent
    (line,) = (home / "reports" / "2026-01-05" / "failures.jsonl").read_text().splitlines()
    failure = json.loads(line)
    assert (failure["stage"], failure["try"], failure["exit_code"]) == ("build_states", 2, 137)
    assert datetime.fromisoformat(failure["time"]).tzinfo is not None
    assert str(home) not in line, "that of a copied home is another"
    assert "secret" not in line


def test_the_dag_serializes(dag: Any) -> None:
    """The scheduler and the pages see only what survives this."""
    from airflow.serialization.serialized_objects import DagSerialization

    data = DagSerialization.to_dict(dag)
    restored = DagSerialization.from_dict(data)
    assert set(restored.task_ids) == set(dag.task_ids)
    assert restored.timetable.partitioned


def test_judges_side_by_side_are_mapped_tasks_with_gpus_of_their_own(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(DAG_FILE.parent)!r})\n"
        f"dag = runpy.run_path({str(DAG_FILE)!r})['dag']\n"
        "task = dag.get_task('judge_workers')\n"
        "stage = dag.get_task('score_aspects')\n"
        "print(stage.trigger_rule, *sorted(stage.upstream_task_ids))\n"
        "print(task.is_mapped, task.pool_slots, *sorted(task.upstream_task_ids), *sorted(task.downstream_task_ids))\n"
        "print(*task.expand_input.value['bash_command'], sep='\\n')\n"
    )
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "SGREC_JUDGE__WORKERS": "2",
        "SGREC_JUDGE__TENSOR_PARALLEL": "2",
        "SGREC_JUDGE__ENGINE": "vllm",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=PROJECT_ROOT, check=True
    )
    rule, graph, *commands = done.stdout.splitlines()[-4:]
    assert graph == "True 2 check_generate_candidates score_aspects"
    assert rule.split() == ["TriggerRule.ALL_DONE_MIN_ONE_SUCCESS", "check_generate_candidates", "judge_workers"]
    assert [command.split()[0] for command in commands] == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]
    assert [command.split()[-2:] for command in commands] == [["--worker", "0"], ["--worker", "1"]]


def test_beside_a_warm_process_jobs_are_forked_from_it(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(DAG_FILE.parent)!r})\n"
        f"dag = runpy.run_path({str(DAG_FILE)!r})['dag']\n"
        "from types import SimpleNamespace\n"
        "task = dag.get_task('check_build_states')\n"
        "(callback,) = task.on_failure_callback\n"
        "instance = SimpleNamespace(try_number=1)\n"
        "callback({'task': task, 'task_instance': instance, 'params': {'day': '2026-01-05'}, 'run_id': 'manual'})\n"
        "print(*(task.bash_command for task in dag.tasks if hasattr(task, 'bash_command')), sep='\\n')\n"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "SGREC_HOME": str(tmp_path), SOCKET: "/nowhere",
                   "SGREC_INGEST__SETTLE_SECONDS": "0"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=PROJECT_ROOT, check=True
    )
    commands = done.stdout.splitlines()[-len(GRAPH.strip().splitlines()) + 1 :]
    for command in commands:
        _, *client, module = shlex.split(command)[:4]
        assert client == ["-m", "sgrec_core.runtime.warm"]
        assert module.startswith("jobs.")
    failure = json.loads((tmp_path / "reports" / "2026-01-05" / "failures.jsonl").read_text())
    assert (failure["stage"], failure["day"]) == ("check_build_states", "2026-01-05")


def test_parsing_is_fast_and_imports_nothing_heavy(tmp_path: Path) -> None:
    """Airflow parses the file every half a minute. Airflow's own import is not counted; typical is 0.2 s."""
    script = (
        "import time, sys, runpy, airflow.sdk\n"
        f"sys.path.insert(0, {str(DAG_FILE.parent)!r})\n"
        "started = time.perf_counter()\n"
        f"runpy.run_path({str(DAG_FILE)!r})\n"
        "print(time.perf_counter() - started)\n"
        "print(*sorted({'torch', 'pyarrow', 'pyspark', 'mlflow', 'pandas', 'deltalake'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    before = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=PROJECT_ROOT, check=True
    )
    seconds, heavy = done.stdout.splitlines()[-2:]
    assert heavy == ""
    assert float(seconds) < 5, f"parsing took {seconds} s, the whole process {time.perf_counter() - before:.1f} s"


def test_ruff_airflow_rules() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "AIR", "--preview", str(DAG_FILE.parent)],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
    )
    assert done.returncode == 0, done.stdout


TOLD = """
import json
from airflow.serialization.serialized_objects import DagSerialization
import sgrec_nightly
dag = sgrec_nightly.dag
task = dag.get_task("tell_incidents")
alert, = dag.deadline
DagSerialization.to_dict(dag)
print(json.dumps({
    "upstream": sorted(task.upstream_task_ids),
    "downstream": sorted(task.downstream_task_ids),
    "rule": task.trigger_rule,
    "decides": not task.is_teardown or task.on_failure_fail_dagrun,
    "callbacks": len(task.on_failure_callback),
    "deciding": [leaf.task_id for leaf in dag.leaves if not leaf.is_teardown],
    "late": [alert.reference.reference_name, alert.interval.total_seconds(), alert.callback.path],
}))
"""


def test_incidents_are_told_behind_the_report_and_decide_nothing(dag: Any, tmp_path: Path) -> None:
    assert "tell_incidents" not in dag.task_ids, "where nobody is to be told"
    assert dag.deadline is None
    variables = {
        "AIRFLOW_HOME": str(tmp_path),
        "PYTHONPATH": f"{PROJECT_ROOT}:{DAG_FILE.parent}",
        "SGREC_ALERTS__WEBHOOK": "https://hooks.example.org/hush",
        "SGREC_ALERTS__LATE_HOURS": "5",
    }
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", TOLD], capture_output=True, text=True, env=environment, cwd=PROJECT_ROOT, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "upstream": ["report_quality"],
        "downstream": [],
        "rule": "all_done_setup_success",  # a teardown's: all is done, and of set-ups there are none
        "decides": False,
        "callbacks": 0,
        "deciding": ["night_complete"],
        "late": ["DagRunQueuedAtDeadline", 5 * 3600, "sgrec_alerts.night_is_late"],
    }
    assert "hush" not in done.stdout + done.stderr
