"""What the business reward of a night is counted from."""

from sgrec_core.hashing import is_validation_user
from sgrec_core.lake import Lake
from sgrec_core.lake.queries import days_until
from sgrec_core.rewards.business_context import BusinessContext
from sgrec_core.settings import Settings


def day_context(lake: Lake, day: str, settings: Settings, *, everybody: bool = False) -> BusinessContext:
    """The events of ``settings.business.window_days`` days up to ``day``, without those of validation users.

    Items and users are the day's snapshots. ``everybody``: validation users as well, which no fit may read.
    """
    share = settings.states.validation_share
    return BusinessContext(
        lake.read("events", where={"day": days_until(day, settings.business.window_days), "role": "logged"}),
        lake.read("items", where={"day": day}, columns=["item_id", "price", "category", "brand"]),
        lake.read("users", where={"day": day}, columns=["user_id", "profile"]),
        keep_user=None if everybody else lambda users: ~is_validation_user(users, share),
    )
