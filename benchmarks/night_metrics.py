"""How often clean days have an alarm, and which incidents are out of their bands: ``make bench-metrics``.

Days come from the simulator, at two sizes, on seeds other than those that the floors of ``schemas/metrics/night.yaml``
were chosen on (`CHOSEN_ON`). Metrics behind ``ingest_events`` are counted without Spark: each accepted row is a row of
the raw file. Every day is compared with the days before it; incidents strike the last one.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.gate_months import wilson
from benchmarks.report import Claim, write
from sgrec_core.quality import measures
from sgrec_core.quality.measures import Measured
from sgrec_core.quality.night_metrics import Past, banded, declared
from sgrec_core.settings import SimulatorSettings
from sgrec_core.simulator.raw_logs import catalogue_rows, event_rows, profile_rows
from sgrec_core.simulator.requests import simulate_day

FIRST_DAY = "2026-01-05"
CHOSEN_ON = range(1, 5)
SIZES = {
    "tiny": ({"users": 150, "items": 80, "new_items_per_day": 2}, range(101, 131)),
    "default": ({}, range(201, 209)),
}
"""Settings of the simulator, and seeds."""
DAYS = 6
Logs = dict[str, pa.Table]
"""``events``, ``items`` and ``users`` of a day."""


def day_after(number: int) -> str:
    return (date.fromisoformat(FIRST_DAY) + timedelta(days=number)).isoformat()


def logs_of(settings: SimulatorSettings, day: str) -> Logs:
    simulated = simulate_day(settings, day, FIRST_DAY)
    events = pa.Table.from_pylist(event_rows(simulated, day))
    time = events["event_time"].cast(pa.timestamp("ms", "UTC"))
    return {
        "events": events.set_column(events.column_names.index("event_time"), "event_time", time),
        "items": pa.Table.from_pylist(catalogue_rows(simulated.items)),
        "users": pa.Table.from_pylist(profile_rows(simulated.users)),
    }


def measured(logs: Logs, before: Logs | None) -> Iterator[Measured]:
    """What the gate behind ``ingest_events`` measures."""
    rows = {"event": "events", "item": "items", "user": "users"}
    files = {
        "record": list(rows),
        "rows_seen": [logs[name].num_rows for name in rows.values()],
        "rows_rejected": [0] * 3,
    }
    events = logs["events"]
    yield from measures.of_files(pa.table(files), measures.error_of_rows(events))
    yield from measures.of_events(events, logs["items"], logs["users"])
    yield from measures.of_catalogue(logs["items"])
    if before is not None:
        yield measures.seen_before(events, before["events"])
        yield measures.item_overlap(events, before["events"])


def alarms_of(figures: list[Measured], past: Past, day: str) -> dict[str, str]:
    """Severity by metric and dimension, of those out of their bands."""
    return {
        f"{one.metric} {one.dimension}".strip(): metric.severity
        for metric, one, band in banded(figures, past, day)
        if band is not None and not band.holds(one.figure.value)
    }


def remember(past: Past, figures: list[Measured], day: str, out: dict[str, str]) -> None:
    """What was not out is of the past of the days after it."""
    for one in figures:
        if f"{one.metric} {one.dimension}".strip() not in out:
            past.setdefault((one.metric, one.dimension), []).insert(0, (day, one.figure))


# Incidents: what a day's logs become


def _with(logs: Logs, table: str, column: str, values: pa.Array | pa.ChunkedArray) -> Logs:
    rows = logs[table]
    return {**logs, table: rows.set_column(rows.column_names.index(column), column, values)}


def half_of_the_requests(logs: Logs, _: Logs) -> Logs:
    kept = pc.is_in(pc.utf8_slice_codeunits(logs["events"]["request_id"], -1), value_set=pa.array(list("13579")))
    return {**logs, "events": logs["events"].filter(kept)}


def half_of_the_rows(logs: Logs, _: Logs) -> Logs:
    return {**logs, "events": logs["events"].take(np.arange(0, logs["events"].num_rows, 2))}


def impressions_as_clicks(logs: Logs, _: Logs) -> Logs:
    kind = logs["events"]["event_type"]
    return _with(logs, "events", "event_type", pc.if_else(pc.equal(kind, "impression"), "click", kind))


def no_clicks(logs: Logs, _: Logs) -> Logs:
    return {**logs, "events": logs["events"].filter(pc.not_equal(logs["events"]["event_type"], "click"))}


def prices_in_cents(logs: Logs, _: Logs) -> Logs:
    return _with(logs, "events", "price", pc.multiply(logs["events"]["price"], 100.0))


def zero_bids(logs: Logs, _: Logs) -> Logs:
    return _with(logs, "events", "bid", pc.multiply(logs["events"]["bid"], 0.0))


def one_bid_beyond_all(logs: Logs, _: Logs) -> Logs:
    events = logs["events"]
    is_first = pc.equal(events["item_id"], events["item_id"][0])
    return _with(logs, "events", "bid", pc.if_else(is_first, pc.multiply(events["bid"], 1e5), events["bid"]))


def null_positions(logs: Logs, _: Logs) -> Logs:
    return _with(logs, "events", "position", pa.nulls(logs["events"].num_rows, pa.int64()))


def items_shifted_by_one(logs: Logs, _: Logs) -> Logs:
    ids = logs["items"]["item_id"].combine_chunks()
    places = pc.index_in(logs["events"]["item_id"], ids).to_numpy()
    return _with(logs, "events", "item_id", ids.take(pa.array((places + 1) % len(ids))))


def items_renamed(logs: Logs, _: Logs) -> Logs:
    for table in ("events", "items"):
        logs = _with(logs, table, "item_id", pc.binary_join_element_wise("new", logs[table]["item_id"], "-"))
    return logs


def replay_of_the_day_before(_: Logs, before: Logs) -> Logs:
    return before


def catalogue_of_a_tenth(logs: Logs, _: Logs) -> Logs:
    """Events of other items are rejected."""
    items = logs["items"].slice(0, logs["items"].num_rows // 10)
    known = pc.is_in(logs["events"]["item_id"], value_set=items["item_id"].combine_chunks())
    return {**logs, "items": items, "events": logs["events"].filter(known)}


def emptied_texts(logs: Logs, _: Logs) -> Logs:
    for column in ("title", "description"):
        logs = _with(logs, "items", column, pa.array([""] * logs["items"].num_rows))
    return logs


def equal_titles(logs: Logs, _: Logs) -> Logs:
    return _with(logs, "items", "title", pa.array(["unknown"] * logs["items"].num_rows))


def half_of_the_profiles(logs: Logs, _: Logs) -> Logs:
    return {**logs, "users": logs["users"].take(np.arange(0, logs["users"].num_rows, 2))}


def a_bot(logs: Logs, _: Logs) -> Logs:
    """One user reads a fifth as much again as all others."""
    events = logs["events"]
    rows = events.slice(0, events.num_rows // 5)
    rows = rows.set_column(rows.column_names.index("user_id"), "user_id", pa.array(["bot"] * rows.num_rows))
    requests = pc.binary_join_element_wise("bot", rows["request_id"], "-")
    rows = rows.set_column(rows.column_names.index("request_id"), "request_id", requests)
    return {**logs, "events": pa.concat_tables([events, rows])}


def a_clock_that_stands(logs: Logs, _: Logs) -> Logs:
    """Half of the events bear one time."""
    events = logs["events"]
    first = pa.repeat(events["event_time"][0], events.num_rows)
    odd = pa.array(np.arange(events.num_rows) % 2 == 1)
    return _with(logs, "events", "event_time", pc.if_else(odd, first, events["event_time"]))


INCIDENTS: tuple[Callable[[Logs, Logs], Logs], ...] = (
    half_of_the_requests,
    half_of_the_rows,
    impressions_as_clicks,
    no_clicks,
    prices_in_cents,
    zero_bids,
    one_bid_beyond_all,
    null_positions,
    items_shifted_by_one,
    items_renamed,
    replay_of_the_day_before,
    catalogue_of_a_tenth,
    emptied_texts,
    equal_titles,
    half_of_the_profiles,
    a_bot,
    a_clock_that_stands,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choosing", action="store_true", help="seeds of `CHOSEN_ON`; prints, writes nothing")
    choosing = parser.parse_args().choosing
    claims: list[Claim] = []
    details: dict[str, object] = {}
    for size, (changes, seeds) in SIZES.items():
        nights, critical, any_alarm = 0, 0, 0
        false: Counter[str] = Counter()
        caught: dict[str, Counter[str]] = {incident.__name__: Counter() for incident in INCIDENTS}
        struck = 0
        for seed in CHOSEN_ON if choosing else seeds:
            settings = SimulatorSettings(seed=seed, **changes)
            past: Past = {}
            before = None
            for number in range(DAYS):
                day = day_after(number)
                logs = logs_of(settings, day)
                # Of the second day, with one night to go by, and of the last.
                if before is not None and number in (1, DAYS - 1):
                    struck += 1
                    for incident in INCIDENTS:
                        out = alarms_of(list(measured(incident(logs, before), before)), past, day)
                        caught[incident.__name__].update(name for name, how in out.items() if how == "critical")
                        caught[incident.__name__]["any"] += "critical" in out.values()
                figures = list(measured(logs, before))
                out = alarms_of(figures, past, day)
                remember(past, figures, day, out)
                if before is not None:
                    nights += 1
                    critical += "critical" in out.values()
                    any_alarm += bool(out)
                    false.update(out)
                before = logs
            print(f"{size}, seed {seed}: {critical} of {nights} clean nights amber, {dict(false)}", flush=True)
        details[size] = {"false alarms": dict(false), "caught": {name: dict(of) for name, of in caught.items()}}
        budget = declared().false_alarms
        share = wilson(critical, nights)
        claims.append(
            Claim.percent(
                f"{size}: clean nights that are amber ({critical} of {nights})",
                share,
                goal=f"budget {budget:.0%}",
                met=share.lower <= budget,
            )
        )
        claims.append(Claim.percent(f"{size}: with any alarm ({any_alarm})", wilson(any_alarm, nights)))
        for name, of_incident in caught.items():
            claims.append(
                Claim(
                    name=f"{size}: {name.replace('_', ' ')}, nights held",
                    value=of_incident["any"],
                    interval=None,
                    unit=f"of {struck}",
                    goal="all",
                    met=of_incident["any"] == struck,
                )
            )
    for claim in claims:
        print(f"{claim.name}: {claim.value:.4g} {claim.unit}")
    if not choosing:
        seeds_read = [seed for _, seeds in SIZES.values() for seed in seeds]
        text = " ".join((__doc__ or "").split("\n\n", 1)[1].split())
        write("night-metrics", claims, seeds=seeds_read, text=text, details=details)


if __name__ == "__main__":
    main()
