"""How figures read for people: the same on pages, on terminals and in summaries."""

import re
from collections.abc import Mapping
from typing import Any

NOTHING = "–"
MOST = 12
"""Facts of a stage, and parts of one fact, that are shown; ``summary.json`` has all."""


def number(value: Any) -> str:
    """1234567 as 1,234,567; 1000.0 as 1,000; 0.12345 as 0.1235; True as yes; a dash where there is nothing."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        is_whole = value.is_integer() or abs(value) >= 1000
        return f"{value:,.0f}" if is_whole and abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def metric(value: float | None) -> str:
    """A metric with four decimals, as papers print it."""
    return NOTHING if value is None else f"{value:.4f}"


def share(value: float | None) -> str:
    """0.0123 as 1.23%; never 0.00% for something that is not zero."""
    if value is None:
        return NOTHING
    return "<0.01%" if 0 < value < 0.0001 else f"{value:.2%}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def words(name: str) -> str:
    """``rows_in`` as "rows in"."""
    return name.replace("_", " ")


def fact(value: Any) -> str:
    """Any JSON value in a few words."""
    if isinstance(value, Mapping):
        shown = [f"{words(str(name))} {fact(inner)}" for name, inner in list(value.items())[:MOST]]
        return ", ".join(shown) or "none"
    if isinstance(value, list):
        shown = [fact(inner) for inner in value[:6]]
        return ", ".join([*shown, f"… ({len(value)} in all)"] if len(value) > 6 else shown) or "none"
    return number(value)


def without_secrets(text: str) -> str:
    """``text`` whose URLs have neither user and password nor what stands behind a question mark: keys do."""
    return re.sub(r"(\b[a-zA-Z][\w+.-]*://)(?:[^\s/'\"@]*@)?([^\s'\"?]*)(\?[^\s'\"]*)?", _bare, text)


def _bare(url: re.Match[str]) -> str:
    return f"{url[1]}{url[2]}" + ("?…" if url[3] else "")


def out_of_band(name: str, value: float, low: float, high: float) -> str:
    """A figure beside where it should lie: ``events click 30, not 60 to 140``."""
    return f"{name} {number(value)}, not {number(low)} to {number(high)}"
