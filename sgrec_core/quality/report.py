"""The on-call page and the summary of a night: ``reports/<day>/index.html`` and ``summary.json``.

The page answers at seven in the morning: did the night succeed, where did it stop and since when, how bad is it, who
owns it, what to do. It is one file without outside resources, readable without its one script, which copies a command;
everything that comes from data is escaped. `calendar` writes the page of all nights beside it.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, POPULARITY, ROLES, SUPERVISED
from sgrec_core.evaluation.value import OUTCOMES
from sgrec_core.files import write_json, write_text
from sgrec_core.lake.glance import Glance
from sgrec_core.quality.alarms import TOLD, Alarm
from sgrec_core.quality.calendar import last_green, neighbours, reported_nights, write_calendar
from sgrec_core.quality.environment import page_environment
from sgrec_core.quality.impact import impact_of
from sgrec_core.quality.night import Night, gather_night
from sgrec_core.quality.night_metrics import declared
from sgrec_core.quality.timeline import timeline
from sgrec_core.quality.validation import short
from sgrec_core.settings import Settings
from sgrec_core.wording import MOST, fact, words

TEMPLATE = "report.html.jinja"
JUDGE_FACTS = (
    "engine",
    "version",
    "asked",
    "cached",
    "skipped",
    "unaffordable",
    "paid",
    "failed",
    "left_format",
    "drift",
    "flagged_items",
    "flagged_items_shown",
    "flagged_users",
    "flagged_users_shown",
)
"""Facts of ``score_aspects``, there with the prefix ``judge_``."""
REWARD_FACTS = (
    "agreement_rate",
    "mean_gate",
    "groups",
    "groups_with_business_variance",
    "covered_groups",
    "advantage_growth",
)
"""Facts of ``materialize_rewards``."""
ROLLOUT_FACTS = ("target_rate", "held_out_target_rate", "rolled_out_by")
"""Facts of ``generate_candidates``."""


def write_report(
    settings: Settings,
    day: str,
    *,
    data_docs: Path | None = None,
    problem: str | None = None,
    lake: Glance | None = None,
) -> tuple[dict[str, Any], Path]:
    """Write page and summary for whatever the night left behind, and the page of all nights.

    Args:
        data_docs: index of the Data Docs, if they were built.
        problem: something that went wrong with the report itself, in words.
        lake: the tables, where many nights are written from one state of them.

    Returns:
        The summary and the path of the page.
    """
    night = gather_night(settings, day, lake)
    if problem:
        night.problems.append(problem)
    page = settings.reports(day) / "index.html"
    summary = summary_of_night(night, page, data_docs)
    write_json(page.parent / "summary.json", summary)
    write_text(page, render_page(night, summary))
    write_calendar(settings)
    return summary, page


def summary_of_night(night: Night, page: Path, data_docs: Path | None) -> dict[str, Any]:
    """The night's figures as JSON; what the night did not get to is null.

    Keys: ``day``; ``verdict`` (green, amber or red); ``status`` (succeeded or stopped); ``stopped_at`` (task),
    ``reason``, ``since``; ``cause`` of a night that is not green (`sgrec_core.quality.cause.Cause`); ``source``;
    ``rows`` {in, accepted, rejected, rejected_by_reason}; ``checks`` {run, failed_critical, failed_warning}; ``alarms``
    [{metric, dimension, value, low, high, how, severity, owner, description}], metrics out of the band of their past;
    ``judge`` {engine, version, meaningless, asked, cached, skipped, unaffordable, paid, failed, left_format, drift
    {aspect: stability index}, flagged_items, flagged_items_shown {item: signs}, flagged_users, flagged_users_shown
    {user: signs}}; ``rollout`` {target_rate, held_out_target_rate (shares of groups that hold the chosen item),
    rolled_out_by}; ``reward`` {agreement_rate, mean_gate, groups, groups_with_business_variance, covered_groups,
    advantage_growth}; ``evaluation`` {supervised, optimised, champion, popularity: each null or {model, version, users,
    hr@10, ndcg@10, ecpm, gmv, dislikes, and intervals}, values_by (estimator of the values), differences [{of, minus,
    ndcg@10, and its interval}], promoted, serves (the candidate that was promoted), reason, history (kept in lists, or
    left out of them)}; ``hold`` (that on promotion, in words); ``stages`` [{name, state, seconds, facts, message}];
    ``tables`` {table: version}; ``rows_of_tables`` {table: rows of the day}; ``paths`` {report, data_docs, models,
    lake}, below the home; ``notes`` [{stage, text}].
    """
    told = night.cause.told() if night.cause else None
    stopped = told if told and night.stopped_at else {"reason": None, "since": None}
    return {
        "day": night.day,
        "verdict": night.verdict,
        "status": night.status,
        "stopped_at": night.stopped_at,
        "reason": stopped["reason"],
        "since": stopped["since"],
        "cause": told,
        "source": night.source,
        "rows": _row_counts(night),
        "checks": {
            "run": sum(len(result.checks) for result in night.results),
            "failed_critical": sum(check.severity == "critical" for check in night.failures),
            "failed_warning": sum(check.severity != "critical" for check in night.failures),
        },
        "alarms": [_alarm(alarm) for alarm in night.alarms],
        "judge": {
            "meaningless": night.meaningless,
            **{name: night.facts("score_aspects").get(f"judge_{name}") for name in JUDGE_FACTS},
        },
        "rollout": {name: night.facts("generate_candidates").get(name) for name in ROLLOUT_FACTS},
        "reward": {name: night.facts("materialize_rewards").get(name) for name in REWARD_FACTS},
        "evaluation": _evaluation(night),
        "hold": night.hold,
        "stages": [
            {
                "name": step.name,
                "state": step.state,
                "seconds": None if step.stale else step.seconds,
                "message": step.message,
                "facts": {} if step.stale else step.facts,
            }
            for step in night.steps
        ],
        "tables": {table["table"]: table["version"] for table in night.tables},
        "rows_of_tables": {table["table"]: table["rows"] for table in night.tables if table["of_day"]},
        "paths": {
            "report": below(night.home, page),
            "data_docs": below(night.home, data_docs) if data_docs else None,
            "models": "mlflow",
            "lake": night.lake,
        },
        "notes": [{"stage": stage, "text": text} for stage, text in night.notes],
    }


def _alarm(alarm: Alarm) -> dict[str, Any]:
    """One metric out of its band, and who answers for it."""
    metric = declared().metrics.get(alarm.metric)
    shown = {name: getattr(alarm, name) for name in TOLD}
    about = {"owner": metric.owner, "description": metric.description} if metric else {"owner": None, "description": ""}
    return {**shown, **about}


def below(home: Path, path: Path) -> str:
    """A path as a home that may be moved keeps it."""
    return str(path.relative_to(home))


def render_page(night: Night, summary: Mapping[str, Any]) -> str:
    """The page as HTML; all text is escaped."""
    paths = summary["paths"]
    nights = reported_nights(night.home / "reports")
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            night=night,
            summary=summary,
            impact=impact_of(night),
            timeline=timeline(night.stages),
            series={one.name: one for one in night.metrics},
            last_green=last_green(nights, night.day),
            neighbours=neighbours(nights, night.day),
            facts_of={step.name: shown_facts(step.facts) for step in night.steps if not step.stale},
            plot=interval_plot(summary["evaluation"]),
            written=datetime.now(UTC).replace(microsecond=0),
            data_docs=os.path.relpath(paths["data_docs"], Path(paths["report"]).parent) if paths["data_docs"] else None,
        )
    )


def shown_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first facts of a stage as (name, value) in words."""
    return [(words(name), str(short(fact(value)))) for name, value in list(facts.items())[:MOST]]


def interval_plot(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """NDCG@10 of each model on one axis from 0: value and interval as percent of the axis's length."""
    models = [(role, evaluation[role]) for role in ROLES if evaluation[role]]
    longest = max((max(model["ndcg@10"] or 0, model["ndcg@10_upper"] or 0) for _, model in models), default=0.0)
    if not longest:
        return []
    scale = 100 / (longest * 1.05)
    return [
        {
            "role": role,
            "value": model["ndcg@10"],
            "at": (model["ndcg@10"] or 0) * scale,
            "low": (model["ndcg@10_lower"] if model["ndcg@10_lower"] is not None else model["ndcg@10"] or 0) * scale,
            "high": (model["ndcg@10_upper"] if model["ndcg@10_upper"] is not None else model["ndcg@10"] or 0) * scale,
        }
        for role, model in models
    ]


def _row_counts(night: Night) -> dict[str, Any]:
    facts = night.facts("ingest_events")
    return {
        "in": facts.get("rows_in"),
        "accepted": facts.get("rows_accepted"),
        "rejected": facts.get("rows_rejected"),
        "rejected_by_reason": {reason.reason: reason.count for reason in night.rejects},
    }


def _evaluation(night: Night) -> dict[str, Any]:
    """HR@10 and NDCG@10 on the day's validation decisions, by role."""
    facts = night.facts("evaluate_generator")
    # Before there were two candidates a night's optimised policy was its challenger.
    rows = [
        {**row, "role": OPTIMISED if row["role"] == "challenger" else row["role"]}
        for row in night.evaluations
        if row["split"] == "validation" and row["bucket"] == "all" and row["cutoff"] == 10
    ]
    by_role: dict[str, Any] = {role: _model(rows, role) for role in ROLES}
    values = {f"{outcome}_{facts.get('values_by')}": outcome for outcome in OUTCOMES}
    for row in night.evaluations:
        if row["metric"] in values and by_role.get(row["role"]):
            name = values[row["metric"]]
            by_role[row["role"]] |= {name: row["value"], f"{name}_lower": row["lower"], f"{name}_upper": row["upper"]}
    baseline = CHAMPION if by_role[CHAMPION] else POPULARITY
    minus = {"start_difference": SUPERVISED, "difference": baseline, "popularity_difference": POPULARITY}
    return {
        **by_role,
        "differences": [
            {
                "of": row["role"],
                "minus": minus[row["metric"].removesuffix("_ndcg")],
                "ndcg@10": row["value"],
                "ndcg@10_lower": row["lower"],
                "ndcg@10_upper": row["upper"],
            }
            for row in rows
            if row["metric"].endswith("difference_ndcg")
        ],
        **{name: facts.get(name) for name in ("promoted", "serves", "reason", "history", "values_by")},
    }


def _model(rows: list[dict[str, Any]], role: str) -> dict[str, Any] | None:
    """One model's figures, or None when the night did not compare it."""
    of_role = {row["metric"]: row for row in rows if row["role"] == role}
    if "ndcg" not in of_role and "hit_rate" not in of_role:
        return None
    figures: dict[str, Any] = {}
    for name, metric_name in (("hr@10", "hit_rate"), ("ndcg@10", "ndcg")):
        row = of_role.get(metric_name, {})
        figures |= {name: row.get("value"), f"{name}_lower": row.get("lower"), f"{name}_upper": row.get("upper")}
    first = next(iter(of_role.values()))
    return {"model": first["model"], "version": first["model_version"], "users": first["users"], **figures}
