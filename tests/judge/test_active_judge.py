"""Which adapter a night uses, whatever trainings do meanwhile."""

import threading
from pathlib import Path
from typing import Any

import pytest

from sgrec_core.errors import SettingsError
from sgrec_core.judge.versions.adapters import (
    Adapter,
    activate,
    activated,
    active,
    newest,
    of_night,
    remember,
    resolve_adapter,
    rubric_digest,
    settings_of_stage,
    trained,
    with_adapter,
)
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.stages import BY_NAME
from sgrec_core.settings import JudgeSettings, Settings

SCORE = BY_NAME["score_aspects"]


def adapter(day: str, **changes: Any) -> Adapter:
    fields = {"day": day, "folder": f"sgrec-judge-{day}", "model": "tiny", "revision": None, "version": "1"}
    return Adapter(**{**fields, "rubric": rubric_digest(Settings()), **changes})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, judge=JudgeSettings(engine="vllm", adapter="active"))


def test_a_night_uses_what_an_earlier_day_activated(settings: Settings) -> None:
    assert active(settings, "2026-01-10") is None
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    activate(settings, "2026-01-10", adapter("2026-01-10"))
    assert active(settings, "2026-01-03") is None, "its own day's night has run before"
    assert active(settings, "2026-01-10") == adapter("2026-01-03")
    assert active(settings, "2026-01-11") == newest(settings) == adapter("2026-01-10")
    activate(settings, "2026-01-10", None)
    assert (activated(settings, "2026-01-10"), newest(settings)) == (None, adapter("2026-01-03"))


def test_what_was_trained_is_not_yet_active(settings: Settings) -> None:
    remember(settings, adapter("2026-01-03"))
    assert trained(settings, "2026-01-03") == adapter("2026-01-03")
    assert newest(settings) is None


def test_a_night_keeps_its_judge_though_a_training_ends_meanwhile(settings: Settings) -> None:
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    folder = adapter("2026-01-03").path(settings)
    assert settings_of_stage(settings, SCORE, "2026-01-11").judge.adapter == folder
    activate(settings, "2026-01-10", adapter("2026-01-10"))
    for stage in ("score_aspects", "train_aggregator", "materialize_rewards"):
        assert settings_of_stage(settings, BY_NAME[stage], "2026-01-11").judge.adapter == folder
    assert settings_of_stage(settings, SCORE, "2026-01-12").judge.adapter == adapter("2026-01-10").path(settings)


def test_a_night_without_an_active_judge_keeps_the_model_as_it_came(settings: Settings) -> None:
    assert settings_of_stage(settings, SCORE, "2026-01-11").judge.adapter is None
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    assert settings_of_stage(settings, SCORE, "2026-01-11").judge.adapter is None


def test_looking_does_not_pin(settings: Settings) -> None:
    assert of_night(settings, "2026-01-11") is None
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    assert of_night(settings, "2026-01-11") == adapter("2026-01-03")


def test_stages_that_begin_at_once_agree(settings: Settings) -> None:
    activate(settings, "2026-01-03", adapter("2026-01-03", version="0"))
    found, together = [], threading.Barrier(8)

    def begin() -> None:
        together.wait()
        found.append(of_night(settings, "2026-01-11", pin=True))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    activate(settings, "2026-01-03", adapter("2026-01-03", version="1"))
    found.append(of_night(settings, "2026-01-11", pin=True))
    assert [one and one.version for one in found] == ["0"] * 9


@pytest.mark.parametrize("stage", ["train_judge", "score_labels", "report_quality"])
def test_training_and_report_do_without_the_active_judge(settings: Settings, stage: str) -> None:
    activate(settings, "2026-01-03", adapter("2026-01-03", model="another"))
    assert settings_of_stage(settings, BY_NAME[stage], "2026-01-11").judge.adapter is None


@pytest.mark.parametrize("changes", [{"model": "another"}, {"revision": "abc"}, {"rubric": "words"}])
def test_an_adapter_fits_no_other_model(settings: Settings, changes: dict[str, Any]) -> None:
    activate(settings, "2026-01-03", adapter("2026-01-03", **changes))
    with pytest.raises(SettingsError, match="is for judge.model="):
        settings_of_stage(settings, SCORE, "2026-01-11")


@pytest.mark.parametrize("changes", [{"engine": "server"}, {"mode": "reasoning"}])
def test_the_active_adapter_is_for_how_it_was_compared(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="adapter=active needs"):
        JudgeSettings(**{"engine": "vllm", "adapter": "active", **changes})


def test_an_estimate_pins_nothing(settings: Settings) -> None:
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    resolve_adapter(Job("score_aspects", "2026-01-11", settings, looks_only=True))
    assert not settings.reports("2026-01-11").exists()


def test_a_folder_is_used_as_it_is(settings: Settings, tmp_path: Path) -> None:
    chosen = settings.model_copy(update={"judge": JudgeSettings(engine="vllm", adapter=tmp_path)})
    activate(settings, "2026-01-03", adapter("2026-01-03"))
    assert settings_of_stage(chosen, SCORE, "2026-01-11").judge.adapter == tmp_path
    assert with_adapter(chosen, None).judge.adapter is None
