"""The judge behind a server: a real vLLM server with the tiny model, and what a server may do wrong."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from attacks import ATTACKS
from judged_night import DAY, publish_night

from jobs import score_aspects
from sgrec_core.errors import JudgeGoneError, SettingsError
from sgrec_core.judge.calls.ledger import Account, measured_speed, paid_before
from sgrec_core.judge.calls.plan import estimate, plan_day
from sgrec_core.judge.calls.scores import publish_scores
from sgrec_core.judge.engines import is_meaningless, judge_version, make_engine
from sgrec_core.judge.engines.tiny_model import make_tiny_model
from sgrec_core.judge.prompt import clean
from sgrec_core.judge.request import NO_TEXT, JudgeRequest, JudgeResult
from sgrec_core.judge.rubric import DEFAULT, load_rubric
from sgrec_core.lake import Lake
from sgrec_core.quality.gates import check_stage
from sgrec_core.runtime.job import Job
from sgrec_core.settings import PROJECT_ROOT, JudgeSettings, Settings

JUDGE_BIN = PROJECT_ROOT / ".venv-judge" / "bin"
COUNT = 24


def requests() -> list[JudgeRequest]:
    return [
        JudgeRequest(
            state_id=f"state-{number // 8}",
            item_id=f"item-{number}",
            item_hash="hash",
            history_texts=tuple(f"thing {step}" for step in range(number // 8)),
            profile='{"likes":["tea"]}' if number % 2 else None,
            context=None,
            item_text=f"item number {number}",
        )
        for number in range(COUNT)
    ]


def settings(home: Path, **judge: Any) -> Settings:
    return Settings(home=home, threads=1, judge=JudgeSettings(engine="server", reasoning_characters=16, **judge))


# A real server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """URL of a `vllm serve`, and the model it serves."""
    if not (JUDGE_BIN / "python").exists():
        pytest.fail(
            "the judge's environment is not installed: make judge-env (or leave these tests out: -m 'not vllm')"
        )
    folder = tmp_path_factory.mktemp("served")
    model = make_tiny_model(folder / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SGREC_")},
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
    }
    # What `vllm serve` runs; the command itself looks for a package named vllm, and the CPU build is named vllm-cpu.
    command = [JUDGE_BIN / "python", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "8192", "--enable-prompt-tokens-details"]
    # An untrained model fills JSON with blanks until its tokens are used up.
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()[-4000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-4000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.vllm
def test_the_server_scores_as_the_engine_in_process_does(served: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = served
    found, evidence = {}, {}
    for mode in ("labels", "reasoning"):
        engine = make_engine(settings(tmp_path, server_url=url, mode=mode), True)
        results = engine.score(requests())
        assert [result.failure for result in results] == [None] * COUNT
        found[mode] = [result.scores for result in results]
        evidence[mode] = [result.evidence for result in results]
        assert engine.usage.prompt > engine.usage.cached > 0
    in_process = run_in_judge_environment(tmp_path)
    for theirs, ours in zip(found["labels"], in_process["labels"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)
    # Greedy answers may part where two tokens are all but equally likely.
    same = [theirs == ours for theirs, ours in zip(evidence["reasoning"], in_process["evidence"], strict=True)]
    assert sum(same) >= COUNT - 1
    assert [s for s, equal in zip(found["reasoning"], same, strict=True) if equal] == [
        s for s, equal in zip(in_process["reasoning"], same, strict=True) if equal
    ]


@pytest.mark.vllm
@pytest.mark.parametrize("mode", ["labels", "reasoning"])
def test_no_attack_gets_a_served_judge_out_of_the_schema(served: tuple[str, Path], tmp_path: Path, mode: str) -> None:
    """In the item, in the history, in the profile and in the context at once."""
    engine = make_engine(settings(tmp_path, server_url=served[0], mode=mode), True)
    hostile = [
        JudgeRequest(
            state_id=name,
            item_id=name,
            item_hash="hash",
            history_texts=(text, "a lamp"),
            profile=json.dumps({"bio": text[:100]}),
            context=json.dumps({text[:50]: text}),
            item_text=text,
        )
        for name, text in ATTACKS
    ]
    results = dict(zip((name for name, _ in ATTACKS), engine.score(hostile), strict=True))
    failed = {name: result.failure for name, result in results.items() if result.failure}
    assert failed == {name: NO_TEXT for name, text in ATTACKS if not clean(text, 1200)}, (
        "all but what is nothing at all"
    )
    aspects = load_rubric(True).aspects
    for name, result in results.items():
        if name in failed:
            continue
        assert result.scores is not None
        for aspect, score in zip(aspects, result.scores, strict=True):
            assert aspect.lowest <= score <= aspect.highest, name
            assert mode == "labels" or score in aspect.value_of.values(), name


def run_in_judge_environment(home: Path) -> dict[str, Any]:
    """The same requests to vLLM's offline engine."""
    program = """
import json, sys
from pathlib import Path
from sgrec_core.judge.request import JudgeRequest
from sgrec_core.judge.engines import is_meaningless, judge_version, make_engine
from sgrec_core.settings import JudgeSettings, Settings
requests = [JudgeRequest(**fields) for fields in json.load(sys.stdin)]
found, backend = {}, None
for mode in ("labels", "reasoning"):
    judge = JudgeSettings(engine="vllm", mode=mode, reasoning_characters=16, kv_cache_gib=0.5)
    engine = make_engine(Settings(home=Path(sys.argv[1]), threads=1, judge=judge), True)
    engine.backend = backend = backend or engine.backend
    results = engine.score(requests)
    found[mode] = [result.scores for result in results]
    found["evidence"] = [result.evidence for result in results]
print(json.dumps(found))
"""
    process = subprocess.run(
        [JUDGE_BIN / "python", "-c", program, home],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        input=json.dumps([vars(asked) for asked in requests()]),
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.mark.vllm
def test_a_model_that_is_not_served_is_named_with_those_that_are(served: tuple[str, Path], tmp_path: Path) -> None:
    engine = make_engine(settings(tmp_path, server_url=served[0], served_name="large"), True)
    with pytest.raises(SettingsError, match="does not serve 'large'; it serves tiny"):
        engine.score(requests())


# Servers that are not vLLM, and servers in trouble. What they answer over HTTP is written out here.


class Scripted(BaseHTTPRequestHandler):
    """Answers chat completions with what the test put into ``server.answers``, in turn; the last one for ever.

    An answer is a status and a body, or a function of the request that gives them.
    """

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "me"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)  # type: ignore[attr-defined]
        answers = self.server.answers  # type: ignore[attr-defined]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        status, answer = found(body) if callable(found) else found
        if status == "hang":
            time.sleep(answer)
            status, answer = 200, {}
        self._send(status, answer)

    def _send(self, status: int, body: Any) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.answers, server.asked = [], []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


def completion(content: str = "", likely: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    if likely is not None:
        top = [{"token": token, "logprob": value, "bytes": None} for token, value in likely.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice], **more}


def test_of_another_server_the_likeliest_tokens_are_taken(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    scripted.answers.append((200, completion("A", {"A": -0.5, "B": -1.5, "The": -2.0})))  # type: ignore[attr-defined]
    engine = make_engine(settings(tmp_path, server_url=url_of(scripted)), False)
    (result,) = engine.score(requests()[:1])
    first = 1 / (1 + 2.718281828**-1.0)
    assert result.scores == pytest.approx([first + 0.5 * (1 - first)] * 3)
    assert result.probabilities is not None
    assert len(result.probabilities) == 11
    assert result.format_mass == pytest.approx(2.718281828**-0.5 + 2.718281828**-1.5)
    asked = scripted.asked[0]  # type: ignore[attr-defined]
    assert (asked["max_tokens"], asked["top_logprobs"], asked["temperature"]) == (1, 20, 0)
    assert "logprob_token_ids" not in asked, "other servers refuse what they do not know"


GOOD = completion(json.dumps({"reasoning": "fits", "s0": "A", "s1": "B", "s2": "C"}))


@pytest.mark.parametrize(
    ("answers", "failure"),
    [
        ([(200, completion("I cannot say"))], "not JSON"),
        ([(200, completion(""))], "not JSON"),
        ([(200, {"choices": []})], "malformed response"),
        ([(200, b"<html>proxy</html>")], "malformed response"),
        ([(400, {"error": {"message": "prompt too long"}})], "prompt too long"),
        ([(500, {"error": {"message": "out of memory"}})], "server: "),
        ([("hang", 3)], "no answer within 0.5 s"),
    ],
)
def test_what_a_server_does_wrong_is_the_failure_of_the_call(
    scripted: ThreadingHTTPServer, tmp_path: Path, answers: list[Any], failure: str
) -> None:
    scripted.answers.extend(answers)  # type: ignore[attr-defined]
    judge = {"mode": "reasoning", "format_sample": 0.0, "timeout": 0.5, "retries": 0}
    engine = make_engine(settings(tmp_path, server_url=url_of(scripted), **judge), False)
    (result,) = engine.score(requests()[:1])
    assert result.scores is None
    assert failure in (result.failure or "")
    assert result.unanswered == (failure == "server: " or failure.startswith("no answer"))


@pytest.mark.parametrize("likely", [{"<think>": -0.1, "The": -3.0}, {"\n": -0.1}])
def test_an_answer_without_any_label_is_a_failure_and_no_score(
    scripted: ThreadingHTTPServer, tmp_path: Path, likely: dict[str, float]
) -> None:
    scripted.answers.append((200, completion("A", likely)))  # type: ignore[attr-defined]
    (result,) = make_engine(settings(tmp_path, server_url=url_of(scripted)), False).score(requests()[:1])
    assert result.scores is None
    assert "no probability of A, B, C, D, E" in (result.failure or "")
    assert not result.unanswered


def test_labels_after_a_blank_are_labels(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    scripted.answers.append((200, completion("A", {" A": -0.7, "A": -1.7, "B": -3.0})))  # type: ignore[attr-defined]
    (result,) = make_engine(settings(tmp_path, server_url=url_of(scripted)), False).score(requests()[:1])
    assert result.probabilities is not None
    assert result.probabilities[0] == pytest.approx(
        (math.exp(-0.7) + math.exp(-1.7)) / (math.exp(-0.7) + math.exp(-1.7) + math.exp(-3.0))
    )


def test_the_version_is_of_the_model_that_is_served(tmp_path: Path) -> None:
    def version(**judge: Any) -> str:
        return judge_version(settings(tmp_path, **judge), True)

    assert len({version(served_name="large"), version(served_name="small"), version()}) == 3
    assert version(served_name="large") == version(served_name="large", server_url="http://elsewhere/v1")
    assert is_meaningless(settings(tmp_path))
    assert not is_meaningless(settings(tmp_path, served_name="large"))


def test_a_call_that_fails_is_tried_again(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    scripted.answers.extend([(503, {}), (500, {}), (200, GOOD)])  # type: ignore[attr-defined]
    judge = {"mode": "reasoning", "format_sample": 0.0, "retries": 2}
    engine = make_engine(settings(tmp_path, server_url=url_of(scripted), **judge), False)
    (result,) = engine.score(requests()[:1])
    assert (result.scores, result.evidence) == ([1.0, 0.5, 0.0], "fits")


def test_malformed_answers_are_asked_for_again(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    scripted.answers.extend([(200, completion("I cannot say")), (200, GOOD)])  # type: ignore[attr-defined]
    judge = {"mode": "reasoning", "format_sample": 0.0, "retries": 1}
    engine = make_engine(settings(tmp_path, server_url=url_of(scripted), **judge), False)
    assert engine.score(requests()[:1])[0].scores == [1.0, 0.5, 0.0]


def test_a_server_that_goes_away_fails_the_rest_and_one_that_never_was_there_stops_the_job(
    scripted: ThreadingHTTPServer, tmp_path: Path
) -> None:
    scripted.answers.append((200, GOOD))  # type: ignore[attr-defined]
    judge = {"mode": "reasoning", "format_sample": 0.0, "retries": 0}
    engine = make_engine(settings(tmp_path, server_url=url_of(scripted), **judge), False)
    assert engine.score(requests()[:1])[0].scores
    scripted.shutdown()
    scripted.server_close()
    results = engine.score(requests())
    assert all("server gone" in (result.failure or "") for result in results)
    assert "server gone" in (engine.gone or "")
    late = make_engine(settings(tmp_path, server_url=url_of(scripted), **judge), False)
    with pytest.raises(SettingsError, match="does not answer"):
        late.score(requests()[:1])


def test_a_wrong_key_stops_the_job(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    scripted.answers.append((401, {"error": {"message": "invalid api key"}}))  # type: ignore[attr-defined]
    engine = make_engine(settings(tmp_path, server_url=url_of(scripted)), False)
    with pytest.raises(SettingsError, match="invalid api key"):
        engine.score(requests()[:1])


# The job with a server that comes and goes


def serving(port: int, answers: list[Any]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", port), Scripted)
    server.answers, server.asked = answers, []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def score(settings: Settings) -> Job:
    job = Job("score_aspects", DAY, settings)
    score_aspects.run(job)
    return job


def test_a_server_that_fails_costs_nothing_and_the_night_recovers(tmp_path: Path) -> None:
    good = (200, completion("A", {"A": -0.5, "B": -1.5, "C": -2.5}))
    server = serving(0, [good] * 30 + [(500, {"error": {"message": "out of memory"}})])
    judge = {"server_url": url_of(server), "retries": 0, "concurrency": 1, "shard_size": 8}
    whole = settings(tmp_path / "whole", **judge)
    publish_night(whole, groups=6, flat_groups=1)
    with pytest.raises(JudgeGoneError, match=r"no longer answers \(server: .*out of memory"):
        score(whole)
    lake = Lake(whole.lake_root)
    rows = lake.read("aspect_scores").to_pylist()
    reasons = {row["failure"] for row in rows if row["scores"] is None}
    assert len(reasons) == 1
    assert "out of memory" in reasons.pop()
    scored = sum(row["scores"] is not None for row in rows)
    assert scored == 10, "three questions each"
    assert check_stage(whole, "score_aspects", DAY).state == "failed"

    server.answers[:] = [good]  # type: ignore[attr-defined]
    limited = whole.model_copy(update={"judge": whole.judge.model_copy(update={"max_calls": 200})})
    job = score(limited)
    assert job.facts["judge_failed"] == 0
    assert job.facts["judge_unaffordable"] == 0
    assert job.facts["judge_cached"] >= scored
    assert check_stage(whole, "score_aspects", DAY).state == "finished"
    version = job.facts["judge_version"]
    assert paid_before(lake, DAY, version) == scored + job.facts["judge_paid"], "what nobody answered is not charged"
    server.shutdown()
    server.server_close()


LIKELY = {"A": -0.5, "B": -1.5, "C": -2.5}


def test_a_job_killed_while_it_waits_for_answers_ends_with_the_undisturbed_table(
    scripted: ThreadingHTTPServer, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        time.sleep(0.02)
        # Of the prompt, so that each call has scores of its own.
        worth = sum(body["messages"][1]["content"].encode()) % 50 / 10
        return 200, completion("A", {"A": -0.1, "B": -worth, "C": -2.0, "D": -3.0, "E": -4.0})

    scripted.answers.append(answer)  # type: ignore[attr-defined]
    judge = {"server_url": url_of(scripted), "concurrency": 2, "shard_size": 2}
    undisturbed, killed = (settings(tmp_path / name, **judge) for name in ("undisturbed", "killed"))
    for night in (undisturbed, killed):
        publish_night(night)
    score(undisturbed)
    environment = {
        **os.environ,
        "SGREC_HOME": str(killed.home),
        "SGREC_JUDGE__ENGINE": "server",
        **{f"SGREC_JUDGE__{name.upper()}": str(value) for name, value in judge.items()},
    }
    lake = Lake(killed.lake_root)
    command = [sys.executable, "-m", "jobs.score_aspects", "--day", DAY]
    for rows_at_kill in (2, 9, 20):
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while lake.count("aspect_scores") < rows_at_kill and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "the job must still be at work when it is killed"
        process.kill()
        process.wait()
    rows = Lake(undisturbed.lake_root).read("aspect_scores").to_pylist()
    assert 20 <= lake.count("aspect_scores") < len(rows)
    score(killed)
    assert lake.read("aspect_scores").to_pylist() == rows
    assert len({tuple(row["scores"]) for row in rows}) > 10


@pytest.mark.parametrize(
    ("status", "unanswered"), [(400, False), (500, True)], ids=["refused each time", "broken each time"]
)
def test_calls_that_fail_again_and_again_are_no_reason_to_stop(
    scripted: ThreadingHTTPServer, tmp_path: Path, status: int, unanswered: bool
) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "red carpet" in body["messages"][1]["content"].split("<item>")[1]:
            return status, {"error": {"message": "not this one"}}
        return 200, completion("A", LIKELY)

    scripted.answers.append(answer)  # type: ignore[attr-defined]
    judge = {"retries": 0, "concurrency": 2, "max_failed_share": 0.2}
    night = settings(tmp_path, server_url=url_of(scripted), **judge)
    publish_night(night, groups=6, flat_groups=1)
    failed = score(night).facts["judge_failed"]
    assert failed > 0
    # Only these are left: a shard without any answer, of a server that is there.
    again = score(night)
    assert (again.facts["judge_failed"], again.facts["judge_unanswered"]) == (failed, failed * unanswered)
    assert again.facts["judge_paid"] == failed * (not unanswered)
    assert check_stage(night, "score_aspects", DAY).state == "finished"


def test_after_a_long_silence_nobody_is_asked_any_more(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    scripted.answers.append((503, {"error": {"message": "overloaded"}}))  # type: ignore[attr-defined]
    judge = {"retries": 0, "concurrency": 4}
    engine = make_engine(settings(tmp_path, server_url=url_of(scripted), **judge), False)
    results = engine.score(requests() * 3)
    assert all(result.unanswered and "overloaded" in (result.failure or "") for result in results)
    assert 32 <= len(scripted.asked) < 40, "of 216 questions"  # type: ignore[attr-defined]
    assert "overloaded" in (engine.gone or "")


def test_a_server_whose_tokenizer_is_known_gets_prompts_that_fit(scripted: ThreadingHTTPServer, tmp_path: Path) -> None:
    scripted.answers.append((200, completion("A", LIKELY)))  # type: ignore[attr-defined]
    long = requests()[-1]
    long = JudgeRequest(**{**vars(long), "history_texts": tuple(f"a rather long title {n}" for n in range(16))})

    def histories(**judge: Any) -> list[int]:
        del scripted.asked[:]  # type: ignore[attr-defined]
        make_engine(settings(tmp_path, server_url=url_of(scripted), **judge), False).score([long])
        bodies = scripted.asked  # type: ignore[attr-defined]
        return [body["messages"][1]["content"].count("rather long") for body in bodies]

    assert histories() == [16] * 3
    engine = make_engine(settings(tmp_path), False)
    whole = max(len(engine.backend.tokens(chat)) for chat in engine.prompts(long))
    assert histories(max_model_len=whole - 100) == [8] * 3


def test_speed_is_that_of_the_model_and_in_the_tokens_that_the_server_counts(
    scripted: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """After a changed word no call is known, but how fast the model is."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 1, "total_tokens": 1001}
    scripted.answers.append((200, completion("A", LIKELY, usage=usage)))  # type: ignore[attr-defined]
    night = settings(tmp_path, server_url=url_of(scripted))
    publish_night(night, groups=6, flat_groups=1)
    before = Job("score_aspects", DAY, night, looks_only=True)
    assert estimate(before, plan_day(before))["GPU hours"] is None
    score(night)
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(DEFAULT.read_text().replace("how likely is the user to want", "how eager is the user to have"))
    changed = night.model_copy(update={"judge": night.judge.model_copy(update={"rubric": rubric})})
    job = Job("score_aspects", DAY, changed, looks_only=True)
    plan = plan_day(job)
    expected = estimate(job, plan)
    speed = measured_speed(job.lake, plan.version, plan.engine)
    assert speed is not None
    assert not speed.counts_computed
    tokens = expected["prompt tokens"] + expected["generated tokens"]
    assert expected["GPU hours"] == pytest.approx(tokens / speed.tokens / 3600)
    assert expected["prompt tokens"] > 2 * expected["of them computed"]


def test_failed_calls_that_the_stage_does_not_ask_for_do_not_stop_the_night(
    scripted: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """Training on fresh groups leaves such rows."""
    scripted.answers.append((200, completion("A", {"A": -0.5, "B": -1.5, "C": -2.5})))  # type: ignore[attr-defined]
    night = settings(tmp_path / "home", server_url=url_of(scripted))
    lake = publish_night(night, groups=6, flat_groups=1)
    version = score(night).facts["judge_version"]
    fresh = [("state-000", f"fresh-{number}", "hash") for number in range(50)]
    failed = dict.fromkeys(fresh, JudgeResult(failure="server gone", unanswered=True))
    publish_scores(lake, Account(judge_version=version, day=DAY, kind="server"), ["s0", "s1", "s2"], failed)
    assert check_stage(night, "score_aspects", DAY).state == "finished"
