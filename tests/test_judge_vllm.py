"""The real vLLM engine, in its own environment, on the tiny model: one process for the whole module (see vllm_probe.py)."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from sgrec_core.judge import judge_version, load_rubric
from sgrec_core.settings import PROJECT_ROOT, JudgeSettings, Settings

pytestmark = pytest.mark.vllm

PYTHON = PROJECT_ROOT / ".venv-judge" / "bin" / "python"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    if not PYTHON.exists():
        pytest.fail(
            "the judge's environment is not installed: make judge-env (or leave these tests out: -m 'not vllm')"
        )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SGREC_")}
    environment.pop("OMP_NUM_THREADS", None)
    process = subprocess.run(
        [PYTHON, Path(__file__).with_name("vllm_probe.py"), tmp_path_factory.mktemp("home")],
        cwd=PROJECT_ROOT,
        env={**environment, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    report = json.loads(process.stdout.splitlines()[-1])
    print(
        f"vLLM start {report['start_seconds']:.1f} s, {report['requests_per_second']:.0f} requests/s with the tiny model"
    )
    return report


def test_every_answer_is_in_the_schema_and_on_the_scales(report):
    assert len(report["plain"]) == 128
    for result in report["plain"]:
        assert result["failure"] is None
        for aspect, score in zip(load_rubric(True).aspects, result["scores"], strict=True):
            assert score in aspect.value_of.values()


def test_different_requests_get_different_answers(report):
    assert len({tuple(result["scores"]) for result in report["plain"]}) > 1


def test_the_same_call_gives_the_same_scores(report):
    assert report["again"] == report["plain"]


def test_hostile_items_get_answers_in_the_schema(report):
    assert all(result["scores"] and result["failure"] is None for result in report["hostile"])


def test_one_bad_request_leaves_the_others_alone(report):
    good, long, blank = report["mixed"]
    assert good["scores"]
    assert good["failure"] is None
    assert long["scores"] is None
    assert "judge.max_model_len" in long["failure"]
    assert blank["failure"] == "the item has no text"


def test_malformed_output_is_a_failure_with_its_reason(report):
    (result,) = report["cut_off"]
    assert result["scores"] is None
    assert result["failure"].startswith("malformed answer (length): not JSON")


def test_job_runs_in_the_judge_environment_and_says_that_its_scores_are_meaningless(report):
    first = report["first_run"]
    assert first["facts"]["judge_paid"] > 0
    assert first["facts"]["judge_failed"] == 0
    assert first["facts"]["judge_engine"] == "vllm"
    assert any("meaningless" in note for note in first["notes"])
    assert len(report["rows"]) == first["facts"]["judge_paid"] + first["facts"]["judge_without_text"]


def test_second_run_pays_nothing(report):
    second = report["second_run"]
    assert second["facts"]["judge_paid"] == 0
    assert second["facts"]["judge_cached"] == len(report["rows"])
    assert second["table_version"] == report["first_run"]["table_version"]


def test_version_is_the_same_in_both_environments(report, tmp_path):
    settings = Settings(home=tmp_path, judge=JudgeSettings(engine="vllm"))
    assert report["judge_version"] == judge_version(settings, True)
    assert {row["judge_version"] for row in report["rows"]} == {judge_version(settings, False)}
