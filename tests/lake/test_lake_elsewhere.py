"""SGREC_LAKE: the tables lie apart from the home, by path or URI."""

from pathlib import Path

import pytest
from small_night import DAY, run_night

from sgrec_core.lake import Lake
from sgrec_core.quality.night import gather_night
from sgrec_core.settings import Settings


@pytest.mark.parametrize("is_uri", [True, False])
def test_a_night_keeps_its_tables_where_the_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_uri: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SGREC_HOME", "home")
    monkeypatch.setenv("SGREC_LAKE", (tmp_path / "far away" / "lake").as_uri() if is_uri else "far away/lake")
    settings = Settings()
    run_night(settings)
    assert not (tmp_path / "home" / "lake").exists()
    assert (tmp_path / "far away" / "lake" / "rewards" / "_delta_log").is_dir()
    night = gather_night(settings, DAY)
    assert night.stopped_at is None
    assert all(result.success for result in night.results)
    # A job in another folder finds the same tables.
    lake = settings.environment()["SGREC_LAKE"]
    monkeypatch.chdir("/")
    assert Lake(Settings(lake=lake).lake_root).count("rewards", where={"day": DAY}) == 120
