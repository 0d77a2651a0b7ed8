"""Figures read the same wherever they are shown."""

from typing import Any

import pytest

from sgrec_core.cli.views import figures_in_words
from sgrec_core.quality.report import page_environment, shown_facts
from sgrec_core.runtime.job import _headline
from sgrec_core.wording import fact, number

VALUES = [
    (None, "–"),
    (True, "yes"),
    (False, "no"),
    (0, "0"),
    (1234567, "1,234,567"),
    (0.12345, "0.1235"),
    (1000.0, "1,000"),
    (12345.6, "12,346"),
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    (1e15, "1e+15"),
    ("a_text", "a_text"),
]


@pytest.mark.parametrize(("value", "wanted"), VALUES)
def test_a_value_reads_the_same_everywhere(value: Any, wanted: str) -> None:
    assert number(value) == fact(value) == wanted
    assert shown_facts({"rows_in": value}) == [("rows in", wanted)]
    assert page_environment().from_string("{{ value | number }}").render(value=value) == wanted
    if value is not None:
        assert figures_in_words({"rows_in": value}, "rows_in") == f"rows in {wanted}"
        assert _headline({"rows_in": value}) == f"rows in {wanted}"


def test_parts_of_a_fact() -> None:
    assert fact({"s_0": 0.5, "s_1": None}) == "s 0 0.5, s 1 –"
    assert fact([1000.0] * 7) == ", ".join(["1,000"] * 6) + ", … (7 in all)"
    assert (fact({}), fact([])) == ("none", "none")
