"""The days of the marketplace as raw logs, bad rows among them, and the truth beside them."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_core.errors import InputError
from sgrec_core.hashing import digest
from sgrec_core.logs import landing
from sgrec_core.runtime.code import code_digest
from sgrec_core.settings import SimulatorSettings
from sgrec_core.simulator.requests import SimulatedDay, logging_propensities, simulate_day
from sgrec_core.simulator.vocabulary import (
    AGE_BANDS,
    CATEGORIES,
    COLOURS,
    MANNERS,
    OCCASIONS,
    PLACEMENTS,
    REGIONS,
    STYLES,
    TIERS,
)
from sgrec_core.simulator.world import (
    ASPECTS,
    CLICK_GAIN,
    CLICK_THRESHOLD,
    DAY_MILLISECONDS,
    Items,
    Stream,
    Users,
)


def write_day(settings: SimulatorSettings, *, day: str, first_day: str, landing_root: Path, truth_root: Path) -> bool:
    """Write the raw logs of ``day`` under ``landing_root`` and the truth behind them under ``truth_root``.

    Returns whether anything was written: a day that the same settings made before is left as it is.

    Raises:
        InputError: ``day`` lies before ``first_day``.
    """
    if landing.day_number(day, first_day) < 0:
        raise InputError(f"the simulated marketplace opened on {first_day}; it has no logs of {day}")
    fingerprint = fingerprint_of_day(settings, day=day, first_day=first_day)
    return landing.write_day(
        landing_root, day, fingerprint, lambda folder: _write_files(folder, truth_root, settings, day, first_day)
    )


def fingerprint_of_day(settings: SimulatorSettings, *, day: str, first_day: str) -> str:
    """Digest of what `write_day` makes a day from: the settings and the code of the simulator."""
    code = code_digest(f"{__name__}:_write_files")
    return digest("simulator", code, settings.model_dump_json(), first_day, day, length=32)


def _write_files(folder: Path, truth_root: Path, settings: SimulatorSettings, day: str, first_day: str) -> None:
    simulated = simulate_day(settings, day, first_day, propensities=logging_propensities)
    bad = _write_events(folder / landing.FOLDERS["event"], simulated, settings, day)
    landing.write_jsonl(folder / landing.FOLDERS["item"] / "items.jsonl", catalogue_rows(simulated.items))
    landing.write_csv(folder / landing.FOLDERS["user"] / "profiles.csv", profile_rows(simulated.users))
    _write_truth(truth_root, simulated, settings, day, bad)


def catalogue_rows(items: Items) -> list[dict[str, object]]:
    """Raw catalogue rows; the text names every latent attribute except quality."""
    categories, tiers, styles, occasions = (list(v.items()) for v in (CATEGORIES, TIERS, STYLES, OCCASIONS))
    rows: list[dict[str, object]] = []
    for index, item_id in enumerate(items.ids):
        path, products = categories[items.category[index]]
        product = products[items.product[index]]
        _, (brands, tier_word, tier_sentence) = tiers[items.tier[index]]
        _, (adjectives, style_sentence) = styles[items.style[index]]
        _, (occasion_phrase, occasion_sentence) = occasions[items.occasion[index]]
        brand = brands[index % len(brands)]
        adjective = adjectives[index % len(adjectives)]
        colour = COLOURS[items.colour[index]]
        title = " ".join(
            word for word in (brand, adjective, tier_word, product.title(), occasion_phrase + ",", colour) if word
        )
        rows.append(
            {
                "item_id": item_id,
                "title": title,
                "description": f"{style_sentence} {occasion_sentence} {tier_sentence}",
                "brand": brand,
                "category": path,
                "price": float(items.price[index]),
            }
        )
    return rows


def profile_rows(users: Users) -> list[dict[str, object]]:
    """Raw profile rows: what users say of themselves, which tells their lasting taste but not its exact weights."""
    categories, styles, tiers, manners = (list(v) for v in (CATEGORIES, STYLES, TIERS, MANNERS.values()))
    favourites = np.argsort(-users.category, axis=1, kind="stable")[:, :2]
    return [
        {
            "user_id": user_id,
            "age": AGE_BANDS[users.age[index]],
            "region": REGIONS[users.region[index]],
            "favourite_categories": "; ".join(categories[category] for category in favourites[index]),
            "favourite_style": styles[int(users.style[index].argmax())],
            "price_level": tiers[users.tier[index]],
            "shopping": manners[users.manner[index]][0],
        }
        for index, user_id in enumerate(users.ids)
    ]


def event_rows(simulated: SimulatedDay, day: str) -> list[dict[str, object]]:
    """The day's events in order of time; ``event_time`` in milliseconds since 1970.

    What follows on an impression repeats what it says, its ``propensity`` too: to 6 digits, None where it is not known.
    """
    start = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    item_ids, user_ids, compact_day = simulated.items.ids, simulated.users.ids, day.replace("-", "")
    random = np.random.default_rng([start // DAY_MILLISECONDS, len(simulated.user)])
    click_delay = random.integers(2_000, 60_000, simulated.shown.shape)
    purchase_delay = random.integers(30_000, 1_200_000, simulated.shown.shape)
    propensities = simulated.propensity
    rows: list[dict[str, object]] = []
    for slate, user in enumerate(simulated.user):
        time = start + int(simulated.time[slate])
        common = {
            "user_id": user_ids[user],
            "request_id": f"r{compact_day}-{slate:07d}",
            "placement": PLACEMENTS[simulated.placement[slate]],
        }
        for position, item in enumerate(simulated.shown[slate]):
            event: dict[str, object] = {
                "event_time": time,
                "event_type": "impression",
                **common,
                "item_id": item_ids[item],
                "position": position,
                "price": float(simulated.items.price[item]),
                "bid": float(simulated.bids[item]),
                "propensity": None if propensities is None else float(f"{propensities[slate, position]:.6g}"),
            }
            rows.append(event)
            clicked_at = time + int(click_delay[slate, position])
            if simulated.clicked[slate, position]:
                rows.append({**event, "event_type": "click", "event_time": clicked_at})
            if simulated.converted[slate, position]:
                bought_at = clicked_at + int(purchase_delay[slate, position])
                rows.append({**event, "event_type": "conversion", "event_time": bought_at})
            if simulated.disliked[slate, position]:
                rows.append({**event, "event_type": "dislike", "event_time": clicked_at})
    rows.sort(key=lambda row: row["event_time"])  # type: ignore[arg-type, return-value]
    return [{"event_id": f"e{compact_day}-{number:08d}", **row} for number, row in enumerate(rows)]


def _write_events(folder: Path, simulated: SimulatedDay, settings: SimulatorSettings, day: str) -> dict[str, int]:
    """Write the events as two producers would, each in two files: the web in ISO times, the app in milliseconds.

    Returns how many bad rows were added, by the reason for which they must be rejected.
    """
    rows = event_rows(simulated, day)
    random = np.random.default_rng([settings.seed, Stream.BAD_ROWS, len(rows)])
    bad_count = round(len(rows) * settings.bad_share / (1 - settings.bad_share))
    copied = np.sort(random.integers(0, len(rows), bad_count))
    bad_rows: dict[int, list[str]] = {}
    reasons: dict[str, int] = {}
    for number, index in enumerate(copied):
        reason, make = list(_BAD_ROWS_BY_REASON.items())[number % len(_BAD_ROWS_BY_REASON)]
        bad_rows.setdefault(int(index), []).append(make(rows[index]))
        reasons[reason] = reasons.get(reason, 0) + 1
    lines: dict[str, list[str]] = {name: [] for name in ("web-0", "web-1", "app-0", "app-1")}
    for index, row in enumerate(rows):
        half = int(2 * index >= len(rows))
        app = int(str(row["user_id"])[1:]) % 2
        shown = row if app else {**row, "event_time": landing.iso_time(row["event_time"])}  # type: ignore[arg-type]
        file = lines[f"{'app' if app else 'web'}-{half}"]
        file.append(landing.json_line(shown))
        file += bad_rows.get(index, [])
    for name, file in lines.items():
        landing.write_lines(folder / f"{name}.jsonl.gz", file)
    return reasons


def _broken(**changes: object):
    return lambda row: landing.json_line({**row, **changes})


# What goes wrong in real logs: each makes a bad row out of a good one, which stays.
_BAD_ROWS_BY_REASON = {
    "invalid_json": lambda row: landing.json_line(row)[:-20],
    "invalid_value": _broken(price=-1.0),
    "unknown_item": lambda row: landing.json_line({**row, "event_id": row["event_id"] + "-x", "item_id": "withdrawn"}),
    "other_day": lambda row: landing.json_line({**row, "event_time": row["event_time"] - DAY_MILLISECONDS}),
    "duplicate_event_id": landing.json_line,
    "wrong_type": _broken(position="first"),
    "missing_field": _broken(request_id=None),
    "future_time": lambda row: landing.json_line({**row, "event_time": row["event_time"] + 2 * DAY_MILLISECONDS}),
    "unknown_event_type": _broken(event_type="hover"),
}


def _write_truth(
    root: Path, simulated: SimulatedDay, settings: SimulatorSettings, day: str, bad_rows: dict[str, int]
) -> None:
    folder = landing.day_folder(root, day)
    folder.mkdir(parents=True, exist_ok=True)
    users, items = simulated.users, simulated.items
    truth = {
        "what": "the true preferences behind the simulated logs; to measure what was learned, never read by the night",
        "aspects": ASPECTS,
        "click": {"gain": CLICK_GAIN, "threshold": CLICK_THRESHOLD},
        "settings": settings.model_dump(),
        "bad_rows": bad_rows,
        "events": {
            "impression": int(simulated.shown.size),
            "click": int(simulated.clicked.sum()),
            "conversion": int(simulated.converted.sum()),
            "dislike": int(simulated.disliked.sum()),
        },
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    user_columns = {name: _column(values) for name, values in vars(users).items()}
    pq.write_table(pa.table({"user_id": users.ids, **user_columns}), folder / "users.parquet")
    item_columns = {name: _column(values) for name, values in vars(items).items()}
    pq.write_table(pa.table({"item_id": items.ids, "bid": simulated.bids, **item_columns}), folder / "items.parquet")
    slate = simulated.shown.shape[1]
    compact_day = day.replace("-", "")
    request_ids = np.array([f"r{compact_day}-{number:07d}" for number in range(len(simulated.user))])
    impressions = {
        "request_id": request_ids.repeat(slate),
        "user_id": np.array(users.ids)[simulated.user].repeat(slate),
        "item_id": np.array(items.ids)[simulated.shown.ravel()],
        "position": np.tile(np.arange(slate), len(simulated.user)),
        **{name: simulated.aspects[:, :, index].ravel() for index, name in enumerate(ASPECTS)},
        "utility": simulated.utility.ravel(),
        "click_probability": simulated.click_probability.ravel(),
    }
    pq.write_table(pa.table(impressions), folder / "impressions.parquet")


def _column(values: np.ndarray) -> pa.Array:
    return pa.array(values if values.ndim == 1 else list(values))
