"""Days, and the questions about tables that several stages ask."""

from sgrec_core.lake.queries import days_until


def test_the_days_that_end_with_a_day() -> None:
    assert days_until("2026-03-01", 3) == ["2026-02-27", "2026-02-28", "2026-03-01"]
