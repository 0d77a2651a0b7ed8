"""What share of the users a generator has never read: of its start, of its days, of whom it was trained on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from sgrec_core.lake import Lake
from sgrec_core.night.held_out import MODEL_SHARE, NIGHT_SHARE, shares_as_tags, smallest_share
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.settings import Settings

DAY = "2026-03-05"


def policy(day: str, **tags: str) -> ModelVersion:
    return ModelVersion("m", "1", day, "f", {f"sgrec.{name}": value for name, value in tags.items()}, "", "")


def tags(tmp_path: Path, start: ModelVersion | None, *of_nights: ModelVersion, users: list[str]) -> dict[str, Any]:
    registry = cast(Registry, SimpleNamespace(versions=lambda _: list(of_nights)))
    settings = Settings(home=tmp_path, states={"validation_share": 0.4, "history_days": 30})
    return shares_as_tags(Lake(settings.lake_root), registry, DAY, settings, start, pa.chunked_array([users]))


@pytest.mark.parametrize(
    ("start", "night", "share"),
    [
        (None, None, "0.4"),
        # A champion of a month ago, whose days are no longer read, has read them all the same.
        (policy("2026-01-05", held_out_share="0.1"), None, "0.1"),
        (None, policy("2026-02-05", validation_share="0.2"), "0.2"),
        (None, policy("2026-01-05", validation_share="0.2"), "0.4"),
    ],
)
def test_the_smallest_of_all_that_went_into_it_counts(
    tmp_path: Path, start: ModelVersion | None, night: ModelVersion | None, share: str
) -> None:
    found = tags(tmp_path, start, *([night] if night else []), users=[])
    assert found == {NIGHT_SHARE: "0.4", MODEL_SHARE: share}


def test_whom_it_was_trained_on_it_has_read_whatever_nights_say(tmp_path: Path) -> None:
    found = tags(tmp_path, None, users=[f"u{number}" for number in range(50)])
    assert 0 < float(found[MODEL_SHARE]) < 0.1
    assert smallest_share([policy(DAY), policy(DAY, held_out_share="0.3"), None]) == 0.3
    assert smallest_share([policy(DAY)]) == 1
