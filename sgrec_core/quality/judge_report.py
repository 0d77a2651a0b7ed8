"""The page about a judge that may become active: is it better, at what, how sure of itself, and where does it go wrong.

``reports/<day>/judge_training/<judge version>.html``, one file without scripts or outside resources; everything from
data is escaped. ``index.html`` beside it is the same page of the newest comparison.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgrec_core.evaluation.gate import Verdict
from sgrec_core.files import write_text
from sgrec_core.judge.engines import is_meaningless
from sgrec_core.judge.versions.accepted import judge_in_words
from sgrec_core.judge.versions.comparison import Answers, Row
from sgrec_core.quality.environment import page_environment
from sgrec_core.runtime.job import Job
from sgrec_core.runtime.runs import Run, last_done
from sgrec_core.settings import Settings

TEMPLATE = "judge_report.html.jinja"
TRAINED = ("train_judge", "train_judge_weights")
"""Stages whose facts the page shows."""


def write_judge_report(
    job: Job,
    roles: Mapping[str, Settings],
    of_role: Mapping[str, Answers],
    rows: Mapping[str, Sequence[Row]],
    found: Verdict,
    *,
    was_trained: bool,
) -> Path:
    """Write the page and return its path; ``was_trained``: the candidate is what the day's training made."""
    text = (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            day=job.day,
            verdict=found,
            is_tiny=is_meaningless(job.settings),
            versions={role: (of_role[role].version, judge_in_words(settings)) for role, settings in roles.items()},
            figures=_figures(rows),
            calibration=_calibration(rows["candidate"]),
            confusion=_confusion(rows["candidate"], of_role["candidate"]),
            training=_training(job) if was_trained else [],
            notes=_notes(job, TRAINED if was_trained else ()),
        )
    )
    page = job.reports / f"{of_role['candidate'].version}.html"
    for path in (job.reports / "index.html", page):
        write_text(path, text)
    return page


FIGURES = {
    "point_acc": "PointAcc",
    "pair_auc": "PairAUC",
    "calibration_error": "calibration error",
    "failed_share": "failed calls",
    "agreement": "same level as the active judge",
    "score_distance": "distance to the active judge's score",
}


def _figures(rows: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """One line a figure and aspect, with both versions side by side."""
    of_role = {role: {(row.metric, row.aspect): row for row in of if row.bucket == "all"} for role, of in rows.items()}
    return [
        {
            "name": words,
            "aspect": aspect,
            "candidate": row,
            "active": of_role.get("active", {}).get((metric, aspect)),
        }
        for metric, words in FIGURES.items()
        for (name, aspect), row in of_role["candidate"].items()
        if name == metric
    ]


def _calibration(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By range of confidence: how sure the judge was and how often right."""
    right = {row.bucket: row for row in rows if row.metric == "accuracy"}
    return [
        {"bucket": row.bucket, "confidence": row.value, "accuracy": right[row.bucket].value, "count": row.count}
        for row in rows
        if row.metric == "confidence"
    ]


def _confusion(rows: Sequence[Row], judge: Answers) -> list[dict[str, Any]]:
    """A matrix an aspect: true levels down, given ones across."""
    shares = {(row.aspect, row.bucket): row for row in rows if row.metric == "confusion"}
    found = []
    for aspect in judge.aspects:
        labels = [level.label for level in aspect.levels]
        lines = [[shares.get((aspect.id, f"{true} > {given}")) for given in labels] for true in labels]
        found.append({"aspect": aspect.id, "title": aspect.title, "labels": labels, "lines": lines})
    return found


def _training(job: Job) -> list[dict[str, Any]]:
    return [{"stage": stage, "facts": run.facts if run else {}} for stage, run in _runs(job, TRAINED)]


def _notes(job: Job, stages: Sequence[str]) -> list[str]:
    return [note for _, run in _runs(job, ("import_judge_labels", *stages)) if run for note in run.notes]


def _runs(job: Job, stages: Sequence[str]) -> list[tuple[str, Run | None]]:
    return [(stage, last_done(job.lake, job.day, stage)) for stage in stages]
