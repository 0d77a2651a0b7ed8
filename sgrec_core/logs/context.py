"""How a moment is told to models and judges: parts of the day instead of hours."""

DAYPARTS: dict[str, range] = {
    "night": range(0, 6),
    "morning": range(6, 11),
    "midday": range(11, 14),
    "afternoon": range(14, 18),
    "evening": range(18, 24),
}
"""Part of the day -> hours in UTC."""
