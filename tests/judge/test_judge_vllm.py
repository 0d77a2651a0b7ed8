"""The real vLLM engine, in its own environment, on the tiny model: one process for the module (vllm_probe.py)."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from attacks import ATTACKS

from sgrec_core.judge.engines import judge_version
from sgrec_core.judge.rubric import load_rubric
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
        [PYTHON, Path(__file__).parents[1] / "support" / "vllm_probe.py", tmp_path_factory.mktemp("home")],
        cwd=PROJECT_ROOT,
        env={**environment, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    report = json.loads(process.stdout.splitlines()[-1])
    print(
        f"vLLM start {report['start_seconds']:.1f} s, {report['requests_per_second']:.0f} requests/s with the tiny one"
    )
    return report


def test_label_scores_are_expectations_over_the_levels(report):
    aspects = load_rubric(True).aspects
    assert len(report["labels"]) == 64
    for result in report["labels"]:
        assert result["failure"] is None
        assert 0 < result["format_mass"] < 1
        probabilities = iter(result["probabilities"])
        for aspect, score in zip(aspects, result["scores"], strict=True):
            of_aspect = [next(probabilities) for _ in aspect.levels]
            assert sum(of_aspect) == pytest.approx(1)
            values = [level.value for level in aspect.levels]
            assert score == pytest.approx(sum(p * value for p, value in zip(of_aspect, values, strict=True)))
        assert next(probabilities, None) is None


def test_one_token_an_aspect_is_generated_and_shared_prompts_are_computed_once(report):
    usage, calls = report["usage"], 65 * len(load_rubric(True).aspects)
    assert usage["generated"] == calls
    assert usage["cached"] > 0.7 * usage["prompt"]


def test_different_requests_get_different_answers(report):
    assert len({tuple(result["scores"]) for result in report["labels"]}) > 32


def test_the_same_call_gives_the_same_scores(report):
    assert report["again"] == report["labels"]


def test_reasoning_names_levels_and_keeps_the_evidence(report):
    for result in report["reasoning"]:
        assert result["failure"] is None
        assert len(result["evidence"]) <= 24
        for aspect, score in zip(load_rubric(True).aspects, result["scores"], strict=True):
            assert score in aspect.value_of.values()
    assert len({result["evidence"] for result in report["reasoning"]}) > 1


def test_a_sample_of_reasoned_answers_is_tried_without_the_schema(report):
    masses = [result["format_mass"] for result in report["reasoning"]]
    assert set(masses) == {0.0, None}, "an untrained model never writes the JSON of itself"
    assert 1 <= masses.count(0.0) <= 9, "about a quarter of sixteen"


@pytest.mark.parametrize("mode", ["labels", "reasoning"])
def test_no_attack_gets_the_judge_out_of_the_schema(report, mode):
    results = report[f"hostile_{mode}"]
    assert len(results) == len(ATTACKS)
    for (name, _), result in zip(ATTACKS, results, strict=True):
        if result["failure"] == "the item has no text":
            continue
        assert result["failure"] is None, (name, result["failure"])
        for aspect, score in zip(load_rubric(True).aspects, result["scores"], strict=True):
            assert aspect.lowest <= score <= aspect.highest, name
    assert sum(result["failure"] is not None for result in results) <= 2, "texts that are nothing but invisible"


def test_no_attack_adds_a_turn_to_the_chat(report):
    assert set(report["special_tokens"]) == {report["special_tokens"][0]}


def test_one_bad_request_leaves_the_others_alone(report):
    good, long, too_long, blank = report["mixed"]
    assert good["scores"]
    assert good["failure"] is None
    assert long["scores"], "the older half of the history goes until the prompt fits"
    assert too_long["scores"] is None
    assert "judge.max_model_len" in too_long["failure"]
    assert blank["failure"] == "the item has no text"


def test_malformed_output_is_a_failure_with_its_reason(report):
    (result,) = report["cut_off"]
    assert result["scores"] is None
    assert result["failure"].startswith("not JSON")


def test_job_runs_in_the_judge_environment_and_says_that_its_scores_are_meaningless(report):
    first = report["first_run"]
    assert first["facts"]["judge_paid"] > 0
    assert first["facts"]["judge_failed"] == 0
    assert first["facts"]["judge_engine"] == "vllm"
    assert any("meaningless" in note for note in first["notes"])
    assert first["facts"]["judge_left_format"] > 0.5
    facts = first["facts"]
    assert facts["judge_tokens_estimated"] == pytest.approx(facts["judge_tokens_prompt"], rel=0.02)
    computed = facts["judge_tokens_prompt"] - facts["judge_tokens_cached"]
    # Prompts that begin in one step of the engine compute their common part each: of few calls that is much.
    assert (
        0.5 * computed < facts["judge_tokens_computed_estimated"] < 1.1 * computed < 0.3 * facts["judge_tokens_prompt"]
    )
    assert facts["judge_gpu_hours_estimated"] is None, "this judge had not run before"
    assert first["facts"]["judge_tokens_prompt"] > first["facts"]["judge_tokens_cached"] > 0
    assert len(report["rows"]) == first["facts"]["judge_paid"]


def test_second_run_pays_nothing(report):
    second = report["second_run"]
    assert second["facts"]["judge_paid"] == 0
    assert second["facts"]["judge_cached"] == len(report["rows"])
    assert second["table_version"] == report["first_run"]["table_version"]


def test_version_is_the_same_in_both_environments(report, tmp_path):
    settings = Settings(home=tmp_path, judge=JudgeSettings(engine="vllm"))
    assert report["judge_version"] == judge_version(settings, True)
    assert {row["judge_version"] for row in report["rows"]} == {judge_version(settings, False)}
