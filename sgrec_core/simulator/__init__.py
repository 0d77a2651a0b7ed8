"""A seeded marketplace that writes raw logs, and keeps the truth that no stage reads beside them."""

from sgrec_core.simulator.raw_logs import catalogue_rows, event_rows, fingerprint_of_day, profile_rows, write_day
from sgrec_core.simulator.requests import (
    Requests,
    SimulatedDay,
    day_requests,
    logging_policy,
    logging_propensities,
    simulate_day,
)
from sgrec_core.simulator.world import (
    ASPECTS,
    DAY_MILLISECONDS,
    QUALITY_GAIN,
    Items,
    State,
    Users,
    draw_items,
    draw_users,
    true_aspects,
)

__all__ = [
    "ASPECTS",
    "DAY_MILLISECONDS",
    "QUALITY_GAIN",
    "Items",
    "Requests",
    "SimulatedDay",
    "State",
    "Users",
    "catalogue_rows",
    "day_requests",
    "draw_items",
    "draw_users",
    "event_rows",
    "fingerprint_of_day",
    "logging_policy",
    "logging_propensities",
    "profile_rows",
    "simulate_day",
    "true_aspects",
    "write_day",
]
