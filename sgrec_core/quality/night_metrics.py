"""The gate against history: what a stage made of a day, measured, and compared with the nights before.

Declared in ``schemas/metrics/night.yaml``, counted by `measures`, bands by `history`; the rows are those of table
``night_metrics``. Bands go by earlier days alone, so a day that runs again measures and finds the same.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from sgrec_core.errors import ContractError
from sgrec_core.evaluation.roles import SUPERVISED
from sgrec_core.hashing import digest
from sgrec_core.lake import Lake, load_contract
from sgrec_core.lake.contracts import SCHEMAS
from sgrec_core.lake.tables import transaction_version
from sgrec_core.quality import measures
from sgrec_core.quality.alarms import TABLE, Alarm, accepted_figures, alarms, alarms_of_days, figure
from sgrec_core.quality.history import Allowed, Band, Figure, band, deviations, same_weekday
from sgrec_core.quality.measures import Measured
from sgrec_core.runtime.runs import last_done
from sgrec_core.runtime.stages import STAGES
from sgrec_core.settings import Settings

DECLARATION = SCHEMAS / "metrics" / "night.yaml"
Past = dict[tuple[str, str], list[tuple[str, Figure]]]
"""By metric and dimension: figures with their days."""
STANDARD_ERRORS_OF_INTERVAL = 2 * 1.96
"""In a 95% interval."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is measured behind a stage, how far it may move, and who answers for it."""

    metric: str
    stage: str
    severity: str
    owner: str
    description: str
    dimensions: tuple[str, ...] = ("",)
    relative: float = 0.0
    points: float = 0.0
    expected: float | None = None
    """Known without a past."""
    least: float = 0.0
    """No value lies below it."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """All metrics, and what they share."""

    metrics: dict[str, Metric]
    false_alarms: float
    nights: int
    spread: float

    @property
    def figures(self) -> list[tuple[str, str]]:
        """Metric and dimension of each, in their order."""
        return [(metric.metric, dimension) for metric in self.metrics.values() for dimension in metric.dimensions]

    def place_of(self, measured: Measured) -> int:
        """Among the figures; dimensions that are not declared, such as aspects, share the metric's first place."""
        dimensions = self.metrics[measured.metric].dimensions
        known = measured.dimension if measured.dimension in dimensions else dimensions[0]
        return self.figures.index((measured.metric, known))

    @property
    def deviations(self) -> float:
        """Of chance that each figure may lie off."""
        return deviations(self.false_alarms, len(self.figures))


@cache
def declared() -> Declaration:
    """What ``schemas/metrics/night.yaml`` declares.

    Raises:
        ContractError: the file is no valid declaration.
    """
    raw = yaml.load(DECLARATION.read_text(encoding="utf-8"), yaml.CSafeLoader)
    stages = {stage.name for stage in STAGES}
    try:
        found = [Metric(**{**one, "dimensions": tuple(one.get("dimensions", ("",)))}) for one in raw.pop("metrics")]
        declaration = Declaration(metrics={one.metric: one for one in found}, **raw)
    except (TypeError, KeyError) as error:
        raise ContractError(f"{DECLARATION.name}: not a valid declaration of metrics: {error}") from error
    twice = [name for name, times in Counter(one.metric for one in found).items() if times > 1]
    if twice:
        raise ContractError(f"{DECLARATION.name}: {', '.join(twice)} is declared more than once")
    for one in found:
        if one.severity not in ("critical", "warning") or one.stage not in stages:
            raise ContractError(
                f"{DECLARATION.name}, metric {one.metric}: severity {one.severity!r}, stage {one.stage!r}; valid are"
                f" critical, warning and {', '.join(sorted(stages))}"
            )
    return declaration


def measured_behind(stage: str) -> list[str]:
    """The stages that the gate behind ``stage`` measures: it, and those before it that have no gate of their own."""
    names = [one.name for one in STAGES]
    if stage not in names:
        return []  # Of the judge's training.
    found = [stage]
    for one in reversed(STAGES[: names.index(stage)]):
        if one.publishes:
            break
        found.insert(0, one.name)
    return found


def write_metrics(settings: Settings, lake: Lake, day: str, stage: str) -> list[Alarm]:
    """Measure what the gate behind ``stage`` is to measure of ``day``; write the rows, and say what is out of its band.

    Nothing is committed where the rows are there already.
    """
    stages = measured_behind(stage)
    for one in stages:
        if one in MEASURES:
            found = banded(MEASURES[one](lake, day), _past(settings, lake, day, one), day)
            rows = [_row(settings, day, *of_figure) for of_figure in found]
            table = pa.Table.from_pylist(rows, schema=load_contract(TABLE).arrow_schema)
            partition, fingerprint = {"day": day, "stage": one}, digest("night_metrics", repr(rows), length=32)
            if lake.fingerprint(TABLE, partition) != transaction_version(fingerprint):
                lake.publish(TABLE, table, partition=partition, fingerprint=fingerprint)
    return alarms(lake, day, stages=stages) if any(one in MEASURES for one in stages) else []


def banded(measures_of_day: Iterable[Measured], past: Past, day: str) -> Iterator[tuple[Metric, Measured, Band | None]]:
    """Each figure of ``day`` with its metric and its band."""
    declaration = declared()
    for measured in measures_of_day:
        metric = declaration.metrics[measured.metric]
        allowed = Allowed(
            deviations=declaration.deviations,
            relative=metric.relative,
            points=metric.points,
            spread=declaration.spread,
            least=metric.least,
        )
        if metric.expected is not None:
            band_of = Band(
                low=max(0.0, metric.expected - metric.points),
                high=metric.expected + metric.points,
                how=f"{metric.expected:g}, known beforehand, give or take {metric.points:g}: declared floor",
            )
            yield metric, measured, band_of
            continue
        figures, of = same_weekday(past.get((measured.metric, measured.dimension), []), day)
        yield metric, measured, band(figures, allowed, size=measured.figure.size, of=of)


def _row(settings: Settings, day: str, metric: Metric, measured: Measured, of: Band | None) -> dict[str, Any]:
    of_day = measured.figure
    return {
        "day": date.fromisoformat(day),
        "stage": metric.stage,
        "metric": measured.metric,
        "dimension": measured.dimension,
        "place": declared().place_of(measured),
        # Sums come in any order: rounded, they are the same again.
        "value": float(f"{of_day.value:.10g}"),
        "error": float(f"{of_day.error:.10g}"),
        "size": None if of_day.size is None else float(of_day.size),
        "low": of and of.low,
        "high": of and of.high,
        "how": of.how if of else "no earlier night to go by",
        "severity": metric.severity,
        "status": "no band" if of is None else "in" if of.holds(of_day.value) else "out",
        "input": settings.input,
    }


def _past(settings: Settings, lake: Lake, day: str, stage: str) -> Past:
    """What was measured behind ``stage`` on earlier days and was not out of its band, the newest first.

    A figure that was out of its band and was accepted begins a new level: what lies before it is no past any more.
    """
    nights = declared().nights
    partitions = lake.partitions(TABLE)
    days = sorted((one["day"] for one in partitions if one["stage"] == stage and one["day"] < day), reverse=True)
    rows = lake.read(TABLE, where={"day": days[: 2 * nights], "stage": stage}).to_pylist() if days else []
    accepted = accepted_figures(lake) if any(row["status"] == "out" for row in rows) else set()
    past: Past = {}
    begun: set[tuple[str, str]] = set()
    for row in sorted(rows, key=lambda row: row["day"], reverse=True):
        name, of_day = (row["metric"], row["dimension"]), row["day"].isoformat()
        of_figure = past.setdefault(name, [])
        is_out = row["status"] == "out"
        if name in begun or row["input"] != settings.input or len(of_figure) == nights:
            continue
        if not is_out or (of_day, figure(*name, row["value"])) in accepted:
            of_figure.append((of_day, Figure(value=row["value"], error=row["error"], size=row["size"])))
            if is_out:
                begun.add(name)
    return past


# What is measured behind each stage


def _ingested(lake: Lake, day: str) -> Iterator[Measured]:
    of_day = {"day": day}
    logged = {**of_day, "role": "logged"}
    events = lake.read("events", where=logged, columns=list(measures.EVENT_COLUMNS), ordered=False)
    items = lake.read("items", where=of_day, columns=["item_id", "title", "description", "price"], ordered=False)
    users = lake.read("users", where=of_day, columns=["user_id"], ordered=False)
    files = lake.read("ingest_files", where=of_day, columns=["record", "rows_seen", "rows_rejected"], ordered=False)
    yield from measures.of_files(files, measures.error_of_rows(events))
    yield from measures.of_events(events, items, users)
    yield from measures.of_catalogue(items)
    earlier = sorted({one["day"] for one in lake.partitions("events") if one["day"] < day}, reverse=True)
    if not earlier or not events.num_rows:
        return
    before = _seen(lake, earlier[0])
    yield measures.seen_before(events, before)
    few = earlier[: declared().nights]
    out = {alarm.day for alarm in alarms_of_days(lake, few, stages=["ingest_events"]) if alarm.severity == "critical"}
    good = next((one for one in few if one not in out), None)
    if good is not None:
        yield measures.item_overlap(events, before if good == earlier[0] else _seen(lake, good))


def _seen(lake: Lake, day: str) -> pa.Table:
    where = {"day": day, "role": "logged"}
    return lake.read("events", where=where, columns=list(measures.SEEN_COLUMNS), ordered=False)


def _states(lake: Lake, day: str) -> Iterator[Measured]:
    for metric, table, cluster in (
        ("states", "user_states", "request_id"),
        ("pairs", "preference_pairs", "decision_id"),
    ):
        rows = lake.read(table, where={"day": day}, columns=[cluster], ordered=False)
        yield measures.count_of(metric, rows[cluster])


def _business(lake: Lake, day: str) -> Iterator[Measured]:
    """Where there are no clicks to model there is no AUC."""
    fitted = last_done(lake, day, "fit_business_reward")
    auc = fitted.facts.get("auc") if fitted else None
    if auc is not None:
        clicks = lake.read("events", where={"day": day, "role": "logged"}, columns=["event_type"], ordered=False)
        clicked = max(1, pc.sum(pc.equal(clicks["event_type"], "click"), min_count=0).as_py())
        # At most what so many clicks alone leave open (Hanley and McNeil, 1982).
        error = (auc * (1 - auc) / clicked) ** 0.5
        yield Measured(metric="click_auc", figure=Figure(value=auc, error=error, size=clicked))


def _judged(lake: Lake, day: str) -> Iterator[Measured]:
    """Of the night's own calls. Another judge has a past of its own: its version is part of the dimension."""
    scored = last_done(lake, day, "score_aspects")
    version = scored.facts.get("judge_version") if scored else None
    if version is None:
        return
    rows = lake.read(
        "aspect_scores",
        where={"judge_version": version, "day": day},
        columns=["state_id", "aspects", "scores"],
        ordered=False,
    )
    yield from measures.of_judge(rows.filter(pc.is_valid(rows["scores"])), version)


def _evaluation(lake: Lake, day: str) -> Iterator[Measured]:
    where = {"day": day, "role": SUPERVISED, "split": "validation", "metric": "ndcg", "cutoff": 10, "bucket": "all"}
    for row in lake.read("evaluations", where=where).to_pylist():
        error = (row["upper"] - row["lower"]) / STANDARD_ERRORS_OF_INTERVAL if row["upper"] is not None else 0.0
        yield Measured(metric="supervised_ndcg", figure=Figure(value=row["value"], error=error, size=row["users"]))


MEASURES: dict[str, Callable[[Lake, str], Iterable[Measured]]] = {
    "ingest_events": _ingested,
    "build_states": _states,
    "fit_business_reward": _business,
    "score_aspects": _judged,
    "evaluate_generator": _evaluation,
}
"""By stage."""
