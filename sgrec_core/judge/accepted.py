"""Which judges nights may use: the first one of a home, those that passed the gate, and those that a person accepted.

A changed word of the rubric, another model, mode or adapter makes another ``judge_version``, and so may a new sgrec. Stages that ask
the judge refuse one that is not in ``<home>/judge/accepted.json``; beside it lie the rubrics, so that a judge can be asked again
when another is to be compared with it (`comparison`).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sgrec_core.active_judge import judge_folder, rubric_digest
from sgrec_core.errors import SettingsError
from sgrec_core.files import read_json, write_json, write_json_once, write_text_once
from sgrec_core.judge import judge_version, load_rubric
from sgrec_core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A judge that nights may use."""

    versions: list[str]
    """Its ``judge_version`` with and without the aspects that need a context."""
    judge: dict[str, Any]
    """Settings that make it: what of ``SGREC_JUDGE__*`` its scores depend on, and where its server was."""
    rubric: str
    """Digest of the rubric."""
    day: str
    """Of the night, or the comparison, that it was accepted for."""
    how: Literal["first", "gate", "hand"]
    reason: str

    def __str__(self) -> str:
        return f"{self.versions[-1]} ({_in_words(self.judge, self.rubric)})"


def accepted_judges(settings: Settings) -> list[Accepted]:
    """The oldest first."""
    return [Accepted(**fields) for fields in read_json(_path(settings)).get("judges", [])]


def find_accepted(settings: Settings, version: str) -> Accepted | None:
    """The judge whose ``judge_version`` is ``version``, if nights may use it."""
    return next((one for one in reversed(accepted_judges(settings)) if version in one.versions), None)


def require_accepted(settings: Settings, day: str) -> Accepted:
    """What says that night ``day`` may use the judge of ``settings``; a home's first judge is accepted here.

    Raises:
        SettingsError: it passed no gate, and nobody accepted it.
    """
    wanted = _record(settings, day, "first", "the first judge of this home")
    if not _path(settings).exists():
        _keep_rubric(settings, wanted)
        write_json_once(_path(settings), {"judges": [asdict(wanted)]})
    found = find_accepted(settings, wanted.versions[-1])
    if found is None:
        *_, last = accepted_judges(settings)
        raise SettingsError(
            f"judge {wanted} has passed no gate, and nobody has accepted it; accepted last in {settings.home}: {last}."
            f" {_difference(wanted, last)}. Compare the two on labels (`sgrec compare-judge --day {day}`), accept it without that"
            " (`sgrec accept-judge`), or go back"
        )
    return found


def accept(settings: Settings, day: str, how: Literal["gate", "hand"], reason: str) -> Accepted:
    """Let nights use the judge of ``settings``."""
    judge = _record(settings, day, how, reason)
    _keep_rubric(settings, judge)
    others = [one for one in accepted_judges(settings) if one.versions != judge.versions]
    _write(settings, [*others, judge])
    return judge


def take_back(settings: Settings, day: str, version: str) -> None:
    """Forget that the comparison of ``day`` let the judge pass, for example because other rules hold now."""
    kept = [
        one
        for one in accepted_judges(settings)
        if not (version in one.versions and (one.how, one.day) == ("gate", day))
    ]
    _write(settings, kept)


def settings_of(settings: Settings, judge: Accepted) -> Settings:
    """``settings`` with the judge that was accepted; what does not change scores (limits, memory, speed) stays."""
    folder = judge_folder(settings)
    adapter = judge.judge["adapter"]
    update = {**judge.judge, "rubric": _rubric_path(settings, judge), "adapter": adapter and folder / adapter}
    return settings.model_copy(update={"judge": settings.judge.model_copy(update=update)})


def judge_in_words(settings: Settings) -> str:
    """The settings that make the judge."""
    return _in_words(_judge(settings), rubric_digest(settings))


def _in_words(judge: dict[str, Any], rubric: str) -> str:
    shown = {name: value for name, value in judge.items() if value is not None} | {"rubric": rubric}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def _record(settings: Settings, day: str, how: Literal["first", "gate", "hand"], reason: str) -> Accepted:
    with_context = (True, False) if load_rubric(True, settings.judge.rubric).aspects_for(False) else (True,)
    return Accepted(
        versions=[judge_version(settings, has_context) for has_context in with_context],
        judge=_judge(settings),
        rubric=rubric_digest(settings),
        day=day,
        how=how,
        reason=reason,
    )


def _judge(settings: Settings) -> dict[str, Any]:
    judge = settings.judge
    fields: dict[str, Any] = {"engine": judge.engine, "adapter": None}
    if judge.engine == "embedding":
        return fields
    fields |= {name: getattr(judge, name) for name in ("model", "revision", "mode", "max_model_len")}
    if judge.mode == "reasoning":
        fields["reasoning_characters"] = judge.reasoning_characters
    if judge.engine == "server":
        fields |= {"served_name": judge.served_name, "server_url": judge.server_url}
    if judge.adapter_folder is not None:
        path, ours = judge.adapter_folder.resolve(), judge_folder(settings)
        # Relative, so that a home can move.
        fields["adapter"] = str(path.relative_to(ours) if path.is_relative_to(ours) else path)
    return fields


def _difference(wanted: Accepted, last: Accepted) -> str:
    """Which settings tell two judges apart."""
    ours, theirs = ({**one.judge, "rubric": one.rubric} for one in (wanted, last))
    names = [name for name in ours | theirs if name != "server_url" and ours.get(name) != theirs.get(name)]
    changed = [f"SGREC_JUDGE__{name.upper()} ({theirs.get(name)} before, now {ours.get(name)})" for name in names]
    return "They differ in " + (
        ", ".join(changed) or "the model's files, or in how this version of sgrec words prompts"
    )


def _path(settings: Settings) -> Path:
    return judge_folder(settings) / "accepted.json"


def _rubric_path(settings: Settings, judge: Accepted) -> Path:
    return judge_folder(settings) / f"rubric-{judge.rubric}.yaml"


def _keep_rubric(settings: Settings, judge: Accepted) -> None:
    write_text_once(_rubric_path(settings, judge), load_rubric(True, settings.judge.rubric).text)


def _write(settings: Settings, judges: list[Accepted]) -> None:
    if judges:
        write_json(_path(settings), {"judges": [asdict(one) for one in judges]})
    else:
        _path(settings).unlink(missing_ok=True)
