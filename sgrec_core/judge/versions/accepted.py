"""Which judges nights may use: the first one of a home, those that passed the gate, and those that a person accepted.

A changed word of the rubric, another model, mode or adapter makes another ``judge_version``, and so may a new sgrec.
Stages that ask the judge refuse one that is not in ``<home>/judge/accepted.json``; beside it lie the rubrics, so that a
judge can be asked again when another is to be compared with it (`comparison`).
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sgrec_core.errors import SettingsError
from sgrec_core.files import write_json, write_text_once
from sgrec_core.judge.engines import judge_version
from sgrec_core.judge.engines.backends import decoding_settings, served_model
from sgrec_core.judge.rubric import load_rubric
from sgrec_core.judge.versions.adapters import judge_folder, rubric_digest
from sgrec_core.settings import Settings

How = Literal["first", "gate", "hand"]


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
    how: How
    reason: str

    def __str__(self) -> str:
        return f"{' / '.join(dict.fromkeys(self.versions))} ({_in_words(self.judge, self.rubric)})"


def accepted_judges(settings: Settings) -> list[Accepted]:
    """The oldest first; a judge that was accepted more than once is there as often.

    Raises:
        SettingsError: the file that keeps them was damaged.
    """
    path = judge_folder(settings) / "accepted.json"
    try:
        return [Accepted(**fields) for fields in json.loads(path.read_text())["judges"]]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            f"{path}: not what `sgrec` writes ({error}); put it right, or remove it: the judge of the next night is"
            " accepted then"
        ) from error


def find_accepted(settings: Settings, version: str) -> Accepted | None:
    """What says that nights may use judge ``version``, if anything does."""
    return next((one for one in reversed(accepted_judges(settings)) if version in one.versions), None)


def check_accepted(settings: Settings) -> None:
    """Raise where nights may not use the judge of ``settings``. The first one that scores in a home is accepted.

    Raises:
        SettingsError: it passed no gate, and nobody accepted it.
    """
    accepted = accepted_judges(settings)
    if not accepted:
        return
    wanted, last = _record(settings, "", "hand", ""), accepted[-1]
    if not any(set(one.versions) & set(wanted.versions) for one in accepted):
        raise SettingsError(
            f"judge {wanted} has passed no gate, and nobody has accepted it; accepted last in {settings.home}: {last}."
            f" {_difference(wanted, last)}. Compare the two on the labels of a day whose night has run"
            " (`sgrec compare-judge --day D`),"
            " accept it without that (`sgrec accept-judge`), or go back"
            + (
                f"; of this judge both need SGREC_JUDGE__ADAPTER={settings.judge.adapter}"
                if wanted.judge["adapter"]
                else ""
            )
        )


def accept(settings: Settings, day: str, how: How, reason: str) -> Accepted:
    """Let nights use the judge of ``settings``; as ``first`` only where none was accepted before."""
    judge = _record(settings, day, how, reason)
    write_text_once(_rubric_path(settings, judge), load_rubric(True, settings.judge.rubric).text)
    with _changing(settings) as judges:
        if judge not in judges and not (how == "first" and judges):
            judges.append(judge)
    return judge


def take_back(settings: Settings, day: str, version: str) -> None:
    """Forget that the comparison of ``day`` let the judge pass, for example because other rules hold now."""
    with _changing(settings) as judges:
        judges[:] = [one for one in judges if not (version in one.versions and (one.how, one.day) == ("gate", day))]


@contextmanager
def _changing(settings: Settings) -> Iterator[list[Accepted]]:
    """The accepted judges, to be changed in place by one process at a time."""
    folder = judge_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "accepted.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = accepted_judges(settings)
        after = list(before)
        yield after
        if after != before:
            write_json(folder / "accepted.json", {"judges": [asdict(one) for one in after]})


def settings_of(settings: Settings, judge: Accepted) -> Settings:
    """``settings`` with the judge that was accepted; what does not change scores (limits, memory, speed) stays.

    So does the address of the server, where the settings name a server by the same name.
    """
    folder = judge_folder(settings)
    adapter = judge.judge["adapter"]
    update = {**judge.judge, "rubric": _rubric_path(settings, judge), "adapter": adapter and folder / adapter}
    ours = settings.judge
    if ours.engine == judge.judge["engine"] == "server" and served_model(ours) == (
        judge.judge["served_name"] or judge.judge["model"]
    ):
        update["server_url"] = ours.server_url
    return settings.model_copy(update={"judge": settings.judge.model_copy(update=update)})


def judge_in_words(settings: Settings) -> str:
    """The settings that make the judge."""
    return _in_words(_judge(settings), rubric_digest(settings))


def versions_of(settings: Settings) -> list[str]:
    """``judge_version`` with and without a context, as far as the judge can do each.

    Raises:
        SettingsError: it can do neither.
    """
    versions, problems = [], []
    for has_context in (True, False):
        try:
            versions.append(judge_version(settings, has_context))
        except SettingsError as error:
            problems.append(error)
    if not versions:
        raise problems[0]
    return versions


def _in_words(judge: dict[str, Any], rubric: str) -> str:
    shown = {name: value for name, value in judge.items() if value is not None and name != "server_url"}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in (shown | {"rubric": rubric}).items())


def _record(settings: Settings, day: str, how: How, reason: str) -> Accepted:
    return Accepted(
        versions=versions_of(settings),
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
    fields |= {"model": judge.model, "revision": judge.revision, **decoding_settings(judge)}
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


def _rubric_path(settings: Settings, judge: Accepted) -> Path:
    return judge_folder(settings) / f"rubric-{judge.rubric}.yaml"
