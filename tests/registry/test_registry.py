"""Models in a real MLflow on SQLite: idempotent registration, artifacts without code, the history of champions."""

import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from registered_models import register
from safetensors.torch import save_file

from sgrec_core.errors import SgrecError
from sgrec_core.registry import Registry
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import Settings


@pytest.fixture
def registry(registry_home: Path) -> Registry:
    return Registry(Settings(home=registry_home))


def test_what_was_registered_comes_back(registry: Registry) -> None:
    version = register(registry, "2026-01-05", seed=2)
    tensors, config = registry.load(version)
    assert torch.equal(tensors["weight"], torch.arange(6.0).reshape(2, 3) + 2)
    assert config == {"kind": "test", "seed": 2}
    run = registry.client.get_run(version.run_id)
    assert run.data.metrics["ndcg"] == 0.5
    assert run.data.params["width"] == "8"
    assert version.tags["sgrec.table.rewards"] == "3"
    assert version.tags["sgrec.day"] == "2026-01-05"
    assert len(version.tags["sgrec.git_revision"].removesuffix("-dirty")) in (40, 7)


def test_the_same_inputs_register_one_version(registry: Registry) -> None:
    first = register(registry, "2026-01-05")
    again = register(registry, "2026-01-05")
    assert first.version == again.version
    assert len(registry.versions(GENERATOR)) == 1
    runs = registry.client.search_runs([registry.client.get_experiment_by_name(GENERATOR).experiment_id])
    assert len(runs) == 1


def test_a_version_that_is_damaged_is_made_again_as_another(registry: Registry) -> None:
    first = register(registry, "2026-01-05")
    (weights,) = Path(mlflow.artifacts.download_artifacts(artifact_uri=first.source)).rglob("*.safetensors")
    save_file({"weight": torch.full((2, 3), torch.nan)}, weights)
    again = register(registry, "2026-01-05")
    assert again.version != first.version
    assert registry.find(GENERATOR, first.fingerprint) == again
    assert torch.equal(registry.load(again)[0]["weight"], torch.arange(6.0).reshape(2, 3))
    assert register(registry, "2026-01-05") == again


def test_artifacts_hold_no_code_and_no_pickle(registry: Registry) -> None:
    version = register(registry, "2026-01-05")
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=version.source))
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".yaml", ".txt", ""}
    assert (folder / "MLmodel").exists()


def test_a_night_is_pinned_to_the_newest_promotion_of_an_earlier_night(registry: Registry) -> None:
    first, second = register(registry, "2026-01-05"), register(registry, "2026-01-06")
    registry.promote(first)
    registry.promote(second)
    assert registry.aliases(GENERATOR)["champion"] == second.version
    assert registry.pinned_champion("2026-01-05") is None
    # A re-run of the 6th works against the champion that the 6th met, not against its own.
    assert registry.pinned_champion("2026-01-06").version == first.version
    assert registry.pinned_champion("2026-01-07").version == second.version


def test_promoting_an_old_version_does_not_change_what_nights_met(registry: Registry) -> None:
    first, second = register(registry, "2026-01-05"), register(registry, "2026-01-06")
    registry.promote(first)
    registry.promote(second)
    registry.pin_champion("2026-01-07", second)
    assert registry.promote(first) == "2026-01-07"
    assert [registry.pinned_champion(f"2026-01-0{day}") for day in (5, 6, 7, 8)] == [None, first, second, first]


def test_rollback_serves_the_champion_before_and_later_nights_pin_it(registry: Registry) -> None:
    first, second = register(registry, "2026-01-05"), register(registry, "2026-01-06")
    registry.promote(first)
    registry.promote(second)
    registry.pin_champion("2026-01-07", second)
    demoted, champion = registry.rollback()
    assert (demoted.version, champion.version) == (second.version, first.version)
    assert registry.aliases(GENERATOR)["champion"] == first.version
    assert registry.pinned_champion("2026-01-07").version == second.version, "it has worked against it"
    assert registry.pinned_champion("2026-01-08").version == first.version
    demoted, champion = registry.rollback()
    assert (demoted.version, champion) == (first.version, None)
    assert "champion" not in registry.aliases(GENERATOR)
    with pytest.raises(SgrecError, match="no champion to roll back"):
        registry.rollback()


def test_an_unknown_version_lists_the_valid_ones(registry: Registry) -> None:
    with pytest.raises(SgrecError, match="no version '7'; valid are none yet"):
        registry.get(GENERATOR, "7")
    register(registry, "2026-01-05")
    with pytest.raises(SgrecError, match="no version 'champion'; valid are 1"):
        registry.get(GENERATOR, "champion")


def test_weights_that_are_no_numbers_are_not_registered(registry: Registry) -> None:
    tensors = {"good": torch.ones(3), "broken": torch.tensor([1.0, float("nan"), float("inf")])}
    with pytest.raises(SgrecError, match="sgrec-generator of night 2026-01-05: 2 of 3 numbers of tensor 'broken' are"):
        registry.register(GENERATOR, day="2026-01-05", fingerprint="ab" * 16, tensors=tensors, config={})
    assert registry.versions(GENERATOR) == []
    assert registry.client.get_experiment_by_name(GENERATOR) is None, "no run was logged either"


def test_weights_that_were_damaged_name_model_version_and_tensor(registry: Registry) -> None:
    version = register(registry, "2026-01-05")
    (path,) = (Settings().home / "mlflow").rglob("model.safetensors")
    save_file({"weight": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(SgrecError, match="sgrec-generator version 1: 1 of 2 numbers of tensor 'weight' are NaN or inf"):
        registry.load(version)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SgrecError, match=f"sgrec-generator version 1: it cannot be read from {path.parent}"):
        registry.load(version)
    shutil.rmtree(path.parents[3])
    with pytest.raises(SgrecError, match="sgrec-generator version 1: its files are gone from file:"):
        registry.load(version)
