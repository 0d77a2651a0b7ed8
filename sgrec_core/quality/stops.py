"""What stopped a night, by what its step said last and by what its tables have lost: pure rules over its evidence.

A rule is a kind of words that the code, its libraries and the machine can produce, not a single incident.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sgrec_core.lake.damage import Damage
from sgrec_core.night.display import KILLED_CODES
from sgrec_core.quality.evidence import Evidence
from sgrec_core.quality.findings import Finding, Mend
from sgrec_core.quality.gates import COUNTED, JUDGE_CALLS, failure_in_words
from sgrec_core.runtime.stages import BY_NAME, GENERATOR, STAGE_RUNS, STAGES, Stage

Said = str
Rule = Callable[[Evidence, Said], Finding | None]
MOST_WORDS = 600
"""Characters of a message: a crash of Spark's has pages."""
WANTING = (
    "MemoryError|[Oo]ut ?[Oo]f ?[Mm]emory|Cannot allocate memory|Java heap space|GC overhead|bad_alloc"
    "|not enough memory"
)
KILLED = (
    r"exit code (?:137|-9)\b|SIGKILL|was killed|the warm process that ran it has ended|Answer from Java side is empty"
    "|trying to connect to the Java server"
)
UNANSWERED = r"no answer|connection|timed? ?out|refused|unreachable|50[0-9]"


def stop_finding(evidence: Evidence) -> Finding | None:
    """What the step itself says, where that is of a kind that is known; else None."""
    said = words_of_stop(evidence)
    return next((found for rule in RULES if (found := rule(evidence, said)) is not None), None)


def words_of_stop(evidence: Evidence) -> Said:
    """The step's message and the scheduler's word."""
    step, failure = evidence.step, evidence.failure
    if step is None:
        return ""
    parts = [step.message or "", str(failure.get("exception") or "") if step.state == "failed" else ""]
    return " ".join(" ".join(dict.fromkeys(parts)).split())


# The machine


def _disk(evidence: Evidence, said: Said) -> Finding | None:
    if not re.search(
        r"No space left|Errno 28\b|ENOSPC|[Qq]uota exceeded|disk is full|[Nn]ot enough (?:disk )?space", said
    ):
        return None
    return Finding(
        kind="disk_full",
        sentence=f"the disk is full: {_own(evidence)}",
        table=STAGE_RUNS,
        runbook=f"Make room where {evidence.lake} lies; `sgrec maintain` takes away what tables hold no more.",
    )


def _memory(evidence: Evidence, said: Said) -> Finding | None:
    is_killed = bool(re.search(KILLED, said)) or evidence.failure.get("exit_code") in KILLED_CODES
    if not re.search(WANTING, said) and not is_killed:
        return None
    what = "it was killed, most likely for want of memory" if is_killed else "memory was not enough"
    return Finding(
        kind="out_of_memory",
        sentence=f"{what}: {_own(evidence)}",
        table=STAGE_RUNS,
        runbook="See what else runs on this machine, or give the night a larger one; Spark takes SGREC_SPARK_MEMORY.",
    )


def _rights(evidence: Evidence, said: Said) -> Finding | None:
    if not re.search(r"Permission denied|PermissionError|Read-only file system|cannot be written to", said):
        return None
    return Finding(
        kind="no_rights",
        sentence=_own(evidence),
        table=STAGE_RUNS,
        runbook="Give the user that runs nights the right to write there, then run the night again.",
    )


def _environment(evidence: Evidence, said: Said) -> Finding | None:
    if not re.search(
        r"Spark needs Java|needs the package|ModuleNotFoundError|ImportError|weights are not installed", said
    ):
        return None
    runbook = "Install what the message names (`make env`, `make judge-env`; `sgrec doctor` looks), then run it again."
    return Finding(kind="environment", sentence=_own(evidence), table=STAGE_RUNS, runbook=runbook)


def _older(evidence: Evidence, said: Said) -> Finding | None:
    if "older version of sgrec" not in said:
        return None
    runbook = "`sgrec migrate` brings the home to this version of sgrec, once."
    return Finding(
        kind="old_home", sentence=_own(evidence), table=STAGE_RUNS, runbook=runbook, mend=Mend(instead="migrate")
    )


# What the night reads


def _input(evidence: Evidence, said: Said) -> Finding | None:
    if found := re.search(r"no (events|catalogue) files of", said):
        table = "items" if found[1] == "catalogue" else "events"
        return Finding(kind="missing_input", sentence=_own(evidence), table=table, file=found[1])
    if found := re.search(r"may still be growing: (\S+) changed", said):
        return Finding(
            kind="not_ready",
            sentence=_own(evidence),
            table="events",
            runbook="Wait until the day has landed whole, or write _SUCCESS beside its files; then run the night.",
            file=found[1],
        )
    return None


def _damaged(evidence: Evidence, said: Said) -> Finding | None:
    """A table that has lost something; the first in the order of the night."""
    damage = [one for one in evidence.damage if one.kind != "version"]
    if damage:
        return _lost_as(evidence, damage)
    if found := re.search(r"table (\w+) has no version (\d+)", said):
        return _lost(evidence, _own(evidence), found[1], version=int(found[2]))
    if found := re.search(r"table (\w+): files of version (\d+) are gone", said):
        return _lost(evidence, _own(evidence), found[1], version=int(found[2]))
    known = {table for stage in STAGES for table in stage.publishes}
    is_lost = re.search(r"FileNotFound|No such file|not found|FILE_NOT_EXIST|[Pp]arquet|Corrupt|[Ii]nvalid table", said)
    for path in re.findall(r"[^\s'\"<>]+/_delta_log\S*|[^\s'\"<>]+\.parquet", said) if is_lost else ():
        table = next((part for part in path.split("/") if part in known), None)
        if table is not None:
            day = next((part[4:] for part in path.split("/") if part.startswith("day=")), None)
            return _lost(evidence, _own(evidence), table, file=path.split(f"/{table}/")[-1], day=day)
    return None


def _rewound(evidence: Evidence, said: Said) -> Finding | None:
    """A table that is older than a run has left it; where its content broke its contract, that says more."""
    return _lost_as(evidence, evidence.damage) if evidence.damage else None


def _lost_as(evidence: Evidence, damage: Sequence[Damage]) -> Finding:
    first, more = damage[0], len(damage) - 1
    sentence = str(first) + (f"; {more} more loss{'es' if more > 1 else ''} like it" if more else "")
    found = _lost(evidence, sentence, first.table, file=first.file, day=first.day, version=first.version)
    if first.kind in ("table", "log") and first.day and _is_of_days(first.table):
        away = f"Move {evidence.lake}/{first.table} away; " if first.kind == "log" else ""
        return replace(found, runbook=f"{away}{found.runbook}", mend=Mend(backfill_from=first.day))
    # All that stages make again, in the order of days and of the night.
    made = [one for one in damage if _is_of_days(one.table)]
    again = [
        (day, stage.name)
        for day in sorted({one.day or evidence.day for one in made})
        for stage in STAGES
        if any(one.table in stage.publishes and (one.day or evidence.day) == day for one in made)
    ]
    before = tuple(one for one in again if one[0] < evidence.day)
    today = [stage for day, stage in again if day == evidence.day]
    return replace(found, mend=Mend(before=before, force_from=today[0] if today else None))


def _lost(
    evidence: Evidence,
    sentence: str,
    table: str,
    *,
    file: str | None = None,
    day: str | None = None,
    version: int | None = None,
) -> Finding:
    """A stage makes a day's rows again; what is keyed by content, or written by people, comes from a backup."""
    publisher = next((stage for stage in STAGES if table in stage.publishes), None)
    mend = Mend()
    runbook = f"Nothing makes it again: restore {evidence.lake}/{table} from a backup, then run the night."
    if publisher is not None and _is_of_days(table):
        runbook = f"{publisher.name} makes it again from what it reads; `sgrec doctor` says whether more is lost."
        is_earlier = day is not None and day < evidence.day
        mend = Mend(before=((day, publisher.name),)) if is_earlier and day else Mend(force_from=publisher.name)
    return Finding(
        kind="lost_table",
        sentence=sentence,
        table=table,
        runbook=runbook,
        file=file,
        day=day,
        version=version,
        mend=mend,
    )


def _is_of_days(table: str) -> bool:
    from sgrec_core.lake import load_contract

    return load_contract(table).partition_by[:1] == ("day",)


# Models


def _weights(evidence: Evidence, said: Said) -> Finding | None:
    """Weights that are no numbers, or a model whose files or record are lost."""
    not_finite = re.search(r"NaN or infinite|[Nn]on-?finite|not finite|(?:is|are|contains?) (?:NaN|nan|inf)\b", said)
    lost = re.search(
        r"its files are gone from|it cannot be read from|mlflow\.db|MlflowException|has no version '|no sgrec-[a-z-]+;"
        r"|sqlite3\.|knows no sgrec-|SafetensorError",
        said,
    )
    if not not_finite and not lost:
        return None
    named = re.search(r"(sgrec-[a-z]+(?:-[a-z]+)*)(?: version (\d+))?", said)
    model, version = (named[1], named[2]) if named else (None, None)
    makes = next((stage for stage in STAGES if model in stage.registers), None)
    kind = "non_finite_weights" if not_finite else "lost_model"
    runbook = f"{makes.name} makes the model again." if makes else "Restore <home>/mlflow from a backup."
    mend = Mend(force_from=makes.name) if makes else Mend()
    step = evidence.step
    if model == GENERATOR and step is not None and _comes_before(step.name, "train_generator"):
        # Of a night before: what the night starts from.
        runbook = "The champion before it serves again, and the night starts from that one."
        mend = Mend(instead="rollback --reason 'its weights are lost'")
    return Finding(
        kind=kind,
        sentence=_own(evidence),
        table="rewards",
        runbook=runbook,
        version=int(version) if version else None,
        value=model,
        mend=mend,
    )


def _comes_before(step: str, stage: str) -> bool:
    names = [one.name for one in STAGES]
    return names.index(step.removeprefix("check_")) < names.index(stage)


def _upstream(evidence: Evidence, said: Said) -> Finding | None:
    """A stage whose work is missing, which the message names."""
    found = re.search(r"(?:run `python -m jobs\.|re-run )([a-z_]+)", said)
    if found is None or found[1] not in BY_NAME:
        return None
    stage = BY_NAME[found[1]]
    table = stage.publishes[0] if stage.publishes else "rewards"
    return Finding(kind="missing_work", sentence=_own(evidence), table=table, mend=Mend(force_from=stage.name))


# The judge


def _judge(evidence: Evidence, said: Said) -> Finding | None:
    away = re.search(r"judge no longer answers|judge\.server_url=\S+ does not answer|APIConnectionError", said)
    calls = next((one for one in evidence.results if one.table == JUDGE_CALLS and not one.success), None)
    if calls is not None and evidence.step is not None and evidence.step.is_gate:
        failed = next((check for check in calls.failures if check.name == "failed calls"), None)
        if failed is not None:
            kind = "judge_away" if re.search(UNANSWERED, failed.observed.lower()) else "judge_fails"
            sentence = failure_in_words(calls, failed)
            return Finding(kind=kind, sentence=sentence, table="aspect_scores", column=failed.column)
    if "has passed no gate, and nobody has accepted it" in said:
        runbook = "Compare it with the judge of before, or let it in by `sgrec accept-judge`; the message says how."
        return Finding(kind="judge_not_accepted", sentence=_own(evidence), table="aspect_scores", runbook=runbook)
    return Finding(kind="judge_away", sentence=_own(evidence), table="aspect_scores") if away else None


# Settings


def _setting(evidence: Evidence, said: Said) -> Finding | None:
    """A setting that somebody has changed from its default and that the message names."""
    if evidence.step is None or evidence.step.is_gate:
        return None
    dotted = {f"SGREC_{one.replace('.', '__').upper()}" for one in re.findall(r"\b[a-z_]+\.[a-z_]+\b", said)}
    named = {*dotted, *re.findall(r"SGREC_[A-Z_]*[A-Z]", said)} & set(evidence.variables)
    named -= {"SGREC_INPUT", "SGREC_LAKE"}
    if not named:
        return None
    names = ", ".join(sorted(named))
    return Finding(
        kind="wrong_setting",
        sentence=_own(evidence),
        table=table_of(evidence),
        runbook=f"Set {names} to what is valid by the message; the command leaves it at its default.",
        column=names,
        value=evidence.variables[sorted(named)[0]],
        mend=Mend(without=tuple(sorted(named))),
    )


# Contracts


def _contract(evidence: Evidence, said: Said) -> Finding | None:
    """A table that broke its contract, at its gate or when it was published."""
    step = evidence.step
    if step is None:
        return None
    if step.is_gate:
        tables = (*COUNTED, *_stage(step.name).publishes)
        broken = next((one for one in evidence.results if one.table in tables and not one.success), None)
        if broken is None:
            return None
        first = next(check for check in broken.failures if check.severity == "critical")
        others = sum(check.severity == "critical" for check in broken.failures) - 1
        more = f"; {others} more critical check{'s' if others > 1 else ''} failed" if others else ""
        return Finding(
            kind="broken_contract",
            sentence=failure_in_words(broken, first) + more,
            table=None if broken.table in COUNTED else broken.table,
            owner=broken.owner,
            runbook=broken.runbook,
            column=first.column,
        )
    found = re.search(r"table (\w+)(?:, column (\w+))?: ", said)
    tables = _stage(step.name).publishes
    if found is None or found[1] not in tables:
        return None
    return Finding(kind="broken_contract", sentence=_own(evidence), table=found[1], column=found[2])


def _killed(evidence: Evidence, said: Said) -> Finding | None:
    if evidence.step is None or evidence.step.state != "running":
        return None
    sentence = "it began and did not end: still running, or killed"
    return Finding(kind="killed", sentence=sentence, table=table_of(evidence))


RULES: tuple[Rule, ...] = (
    _disk,
    _memory,
    _rights,
    _older,
    _input,
    _judge,
    _environment,
    _damaged,
    _weights,
    _setting,
    _upstream,
    _contract,
    _rewound,
    _killed,
)
"""What lies below comes before what is built on it."""
OF_THE_MACHINE = ("disk_full", "out_of_memory", "no_rights", "environment", "old_home", "judge_away", "lost_table")
OF_MODELS = ("non_finite_weights", "lost_model", "wrong_setting")
STANDS_FIRST = (*OF_THE_MACHINE, *OF_MODELS)
"""Kinds that no rows of the day explain."""


def unmatched(evidence: Evidence) -> Iterator[Finding]:
    """The night's own words, where no rule knows better."""
    step = evidence.step
    if step is not None:
        sentence = {"failed": _own(evidence)}.get(step.state, "it has not run")
        stage = _stage(step.name)
        runbook = f"Read the message and the stage's log, repair the cause and run the night of {evidence.day} again."
        yield Finding(
            kind="unknown" if step.state == "failed" else "not_run",
            sentence=sentence,
            table=table_of(evidence),
            runbook=None if stage.publishes else runbook,
        )


def table_of(evidence: Evidence) -> str:
    """The table whose owner answers for the step; models belong to the team that owns the rewards."""
    stage = _stage(evidence.step.name) if evidence.step else None
    return stage.publishes[0] if stage and stage.publishes else "rewards"


def _stage(step: str) -> Stage:
    return BY_NAME[step.removeprefix("check_")]


def _own(evidence: Evidence) -> str:
    """What the step says, in one line."""
    step = evidence.step
    line = " ".join((step.message if step and step.message else "no message").split())
    return line if len(line) <= MOST_WORDS else line[:MOST_WORDS] + "…"
