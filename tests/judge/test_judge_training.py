"""The judge's training: rewards by hand, and real LoRA training of the tiny model with TRL."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sgrec_core.errors import SettingsError
from sgrec_core.judge.engines import LanguageModelEngine, judge_version
from sgrec_core.judge.engines.tiny_model import make_tiny_model
from sgrec_core.judge.prompt import read_weights, weights_messages
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.training.measures import correct_points, ordered_pairs
from sgrec_core.judge.training.rewards import aspect_reward, order_reward
from sgrec_core.judge.training.samples import Labelled, Preference, ScoredPair, scored_pairs
from sgrec_core.judge.training.tuner import Tuner
from sgrec_core.settings import PROJECT_ROOT, JudgeSettings, JudgeTrainingSettings, Settings

RUBRIC = load_rubric(False, PROJECT_ROOT / "benchmarks" / "short_rubric.yaml")


def request(item: str, state: str = "s") -> JudgeRequest:
    return JudgeRequest(
        state_id=state,
        item_id=item,
        item_hash="",
        history_texts=("tea cup",),
        profile=None,
        context=None,
        item_text=item,
    )


# Good things get the best levels, bad ones the worst.
SAMPLES = [
    Labelled(request=request(f"{word} {number}"), labels=labels)
    for number in range(6)
    for word, labels in (("good", ("A", "A", "A")), ("bad", ("E", "C", "C")))
]


def test_aspect_reward_by_hand() -> None:
    fit, future = RUBRIC.aspects[0], RUBRIC.aspects[1]
    assert [aspect_reward(fit, answer, "B") for answer in "ABCDE"] == [1.75, 3.0, 1.75, 1.5, 1.25]
    assert [aspect_reward(future, answer, "A") for answer in "ABC"] == [3.0, 1.5, 1.0]
    assert aspect_reward(future, "D", "A") == 0, "no level of this aspect"
    assert aspect_reward(future, "well, A", "A") == 0


def test_weights_are_read_from_letters_of_importance() -> None:
    assert read_weights(RUBRIC, "A E E") == pytest.approx([4.001 / 4.003, 0.001 / 4.003, 0.001 / 4.003])
    assert read_weights(RUBRIC, " B\nB B ") == pytest.approx([1 / 3] * 3)
    for wrong in ("", "A", "A B", "A B C D", "A B F", "AB C", "AB C D", "ABC A A", "a b c"):
        assert read_weights(RUBRIC, wrong) is None, wrong


def test_order_reward_is_the_indicator() -> None:
    assert order_reward(RUBRIC, "A E E", (1, 0, 0), (0, 1, 1)) == 1
    assert order_reward(RUBRIC, "E A A", (1, 0, 0), (0, 1, 1)) == 0
    assert order_reward(RUBRIC, "A A A", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) == 0, "a tie is not the order"
    assert order_reward(RUBRIC, "no idea", (1, 1, 1), (0, 0, 0)) == -1


def test_pairs_in_order_by_hand() -> None:
    state = request("x")
    pairs = [
        ScoredPair(state=state, preferred=(1.0, 0.0, 0.0), other=(0.0, 0.5, 0.0)),
        ScoredPair(state=state, preferred=(0.0, 0.0, 0.0), other=(0.0, 0.5, 0.0)),
        ScoredPair(state=state, preferred=(0.5, 0.5, 0.5), other=(0.5, 0.5, 0.5)),
    ]
    assert ordered_pairs(pairs).tolist() == [1, 0, 0.5]
    assert ordered_pairs(pairs, np.array([[0.1, 0.9, 0]] * 3)).tolist() == [0, 0, 0.5]


def test_the_weights_prompt_shows_the_state_and_no_item() -> None:
    system, user = weights_messages(RUBRIC, request("secret item"))
    assert "tea cup" in user["content"]
    assert "secret item" not in system["content"] + user["content"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = [RUBRIC.text, *(sample.request.item_text for sample in SAMPLES)] * 3
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny", corpus)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Tuner, Path]:
    """Share of points that are right before, after supervised training and after GRPO; the tuner; its adapter."""
    config = JudgeTrainingSettings(
        sft_batch_size=12,
        grpo_batch_size=16,
        sft_epochs=15,
        sft_learning_rate=5e-3,
        grpo_epochs=1,
        grpo_learning_rate=1e-4,
    )
    tuner = Tuner(base, RUBRIC, config)
    right = [correct_points(tuner.engine(), SAMPLES).mean()]
    tuner.supervise_labels(SAMPLES)
    right.append(correct_points(tuner.engine(), SAMPLES).mean())
    tuner.reinforce_labels(SAMPLES)
    right.append(correct_points(tuner.engine(), SAMPLES).mean())
    return right, tuner, tuner.save(tmp_path_factory.mktemp("adapter"))


def test_supervised_training_and_grpo_learn_what_is_good(trained: tuple[list[float], Tuner, Path]) -> None:
    before, supervised, reinforced = trained[0]
    assert before < 0.7 < 0.95 < supervised
    assert reinforced >= 0.95, "what was learnt is not lost"


def test_grpo_alone_learns_levels_that_are_rewarded(base: Path) -> None:
    """From a model that has learnt nothing but that answers are letters."""
    config = JudgeTrainingSettings(
        sft_batch_size=48,
        grpo_batch_size=48,
        sft_epochs=3,
        sft_learning_rate=3e-3,
        grpo_epochs=12,
        grpo_learning_rate=2e-3,
        kl_weight=0.0,
    )
    tuner = Tuner(base, RUBRIC, config)
    letters = [
        Labelled(request=sample.request, labels=labels)
        for sample in SAMPLES
        for labels in zip("ABCDE", "ABCAB", "ABCAB", strict=True)
    ]
    tuner.supervise_labels(letters)
    wanted = [Labelled(request=sample.request, labels=("E", "C", "C")) for sample in SAMPLES]
    before = correct_points(tuner.engine(), wanted).mean()
    tuner.reinforce_labels(wanted)
    assert correct_points(tuner.engine(), wanted).mean() > before + 0.2


def test_an_adapter_is_data_and_gives_the_same_scores_again(
    trained: tuple[list[float], Tuner, Path], base: Path
) -> None:
    _, tuner, adapter = trained
    assert {path.suffix for path in adapter.iterdir()} <= {".json", ".safetensors", ".md"}
    again = Tuner(base, RUBRIC, tuner.config, adapter=adapter)
    requests = [sample.request for sample in SAMPLES]
    first, second = (one.engine().score(requests) for one in (tuner, again))
    for mine, theirs in zip(first, second, strict=True):
        assert mine.scores == pytest.approx(theirs.scores, abs=1e-5)


def test_an_adapter_is_part_of_the_version(
    trained: tuple[list[float], Tuner, Path], base: Path, tmp_path: Path
) -> None:
    def version(adapter: Path | None) -> str:
        judge = JudgeSettings(engine="vllm", model=str(base), adapter=adapter)
        return judge_version(Settings(home=tmp_path, judge=judge), True)

    assert version(None) != version(trained[2])
    with pytest.raises(SettingsError, match="has no adapter_config.json"):
        version(tmp_path)


def test_weights_learn_which_aspect_tells_pairs_apart(base: Path) -> None:
    """Only s0 tells the preferred item; s1 and s2 say the opposite."""
    config = JudgeTrainingSettings(
        sft_batch_size=16,
        grpo_batch_size=16,
        sft_epochs=40,
        sft_learning_rate=5e-3,
        grpo_epochs=12,
        grpo_learning_rate=2e-3,
        kl_weight=0.0,
    )
    tuner = Tuner(base, RUBRIC, config)
    states = [request("x", f"s{number}") for number in range(16)]
    tuner.supervise_form_of_weights(states)
    before = tuner.weights(states)
    assert before.sum(axis=1) == pytest.approx(1)
    pairs = [ScoredPair(state=state, preferred=(0.6, 0.0, 0.0), other=(0.0, 0.5, 0.5)) for state in states]
    tuner.reinforce_weights(pairs)
    after = tuner.weights(states)
    assert after[:, 0].mean() > 0.62, "enough for the preferred item to come first"
    assert ordered_pairs(pairs, after).mean() == 1


def test_fewer_prompts_than_a_batch_holds_are_trained_on_all_the_same(base: Path) -> None:
    config = JudgeTrainingSettings(sft_batch_size=12, sft_learning_rate=5e-3, grpo_batch_size=256)
    tuner = Tuner(base, RUBRIC, config)
    # So that some answers are letters, and some of these right.
    tuner.supervise_labels(SAMPLES)
    before = [parameter.clone() for parameter in tuner.model.parameters() if parameter.requires_grad]
    tuner.reinforce_labels(SAMPLES[:2])
    after = [parameter for parameter in tuner.model.parameters() if parameter.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_training_cuts_histories_as_nights_do(base: Path) -> None:
    """Else an adapter would be trained on prompts that nobody asks."""
    rubric = load_rubric(False)
    long = replace(request("good 1"), history_texts=tuple(f"good thing number {number}" for number in range(4)))
    roomy = Tuner(base, rubric, JudgeTrainingSettings()).engine()
    whole = len(roomy.backend.tokens(roomy.prompts(long)[0]) or [])
    tuner = Tuner(base, rubric, JudgeTrainingSettings(), max_model_len=whole)
    judge = JudgeSettings(engine="vllm", model=str(base), max_model_len=whole)
    assert tuner.engine().prompts(long) == LanguageModelEngine(Settings(judge=judge), rubric).prompts(long)
    _, user = tuner.engine().prompts(long)[0]
    assert "number 3" in user["content"]
    assert "number 1" not in user["content"], "the older half is gone, there was no room for the answer"
    whole = len(roomy.backend.tokens(weights_messages(rubric, long)) or [])
    _, user = Tuner(base, rubric, JudgeTrainingSettings(), max_model_len=whole)._weights_chat(long)
    assert "number 3" in user["content"]
    assert "number 1" not in user["content"], "the same of the question for weights"


def test_a_label_of_several_tokens_cannot_be_trained(base: Path) -> None:
    engine = Tuner(base, RUBRIC, JudgeTrainingSettings()).engine()
    chat = engine.prompts(request("good 1"))[0]
    with pytest.raises(SettingsError, match="writes label 'AA' with 2 tokens"):
        engine.backend.label_log_probs([chat], [["AA", "B"]])


def test_training_leaves_nothing_in_the_working_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tuner = Tuner(base, RUBRIC, JudgeTrainingSettings(sft_batch_size=36, sft_epochs=1, grpo_batch_size=8))
    tuner.supervise_labels(SAMPLES)
    tuner.reinforce_labels(SAMPLES[:1])
    assert not list(tmp_path.iterdir())


def test_pairs_are_scored_by_the_judge(trained: tuple[list[float], Tuner, Path]) -> None:
    pairs = [Preference(preferred=request("good 1"), other=request("bad 2"))]
    (scored,) = scored_pairs(trained[1].engine(), pairs)
    assert ordered_pairs([scored]).tolist() == [1]


@pytest.mark.vllm
def test_vllm_scores_with_the_adapter_as_the_training_did(
    trained: tuple[list[float], Tuner, Path], base: Path, tmp_path: Path
) -> None:
    """The adapter beside the base model, in the judge's own environment."""
    program = """
import json, sys
from pathlib import Path
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.engines import LanguageModelEngine
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.settings import JudgeSettings, Settings
asked = json.load(sys.stdin)
judge = JudgeSettings(engine="vllm", model=asked["model"], adapter=asked["adapter"], kv_cache_gib=0.25)
rubric = load_rubric(False, Path(asked["rubric"]))
engine = LanguageModelEngine(Settings(home=Path(asked["home"]), threads=1, judge=judge), rubric)
results = engine.score([JudgeRequest(**fields) for fields in asked["requests"]])
print(json.dumps([[result.failure, result.probabilities] for result in results]))
"""
    requests = [sample.request for sample in SAMPLES]
    asked = {
        "home": str(tmp_path),
        "model": str(base),
        "adapter": str(trained[2]),
        "rubric": str(PROJECT_ROOT / "benchmarks" / "short_rubric.yaml"),
        "requests": [vars(one) for one in requests],
    }
    process = subprocess.run(
        [PROJECT_ROOT / ".venv-judge" / "bin" / "python", "-c", program],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    expected = trained[1].engine().score(requests)
    for (failure, probabilities), result in zip(json.loads(process.stdout.splitlines()[-1]), expected, strict=True):
        assert failure is None
        assert probabilities == pytest.approx(result.probabilities, abs=1e-3)
