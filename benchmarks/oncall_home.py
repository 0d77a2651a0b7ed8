"""Faults of the judge, the lake and the models."""

import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from deltalake import DeltaTable
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks import oncall_judge
from benchmarks.oncall_fault import CannotBeMadeError, fault
from benchmarks.oncall_world import DAY, PAST, World, day_after
from sgrec_core.lake import Lake
from sgrec_core.registry.glance import folder_of
from sgrec_core.registry.promotions import Promotions, champion
from sgrec_core.runtime.stages import TOKENIZER
from sgrec_core.settings import Settings

YESTERDAY = day_after(PAST - 1)


def judge_is_well(world: World) -> None:
    """The person's mend."""
    world.judge.back()


def from_backup(*names: str) -> Callable[[World], None]:
    """The person's mend: what lies under these names in the home is as it was before."""

    def mend(world: World) -> None:
        for name in names:
            world.put_back(f"home/{name}")

    return mend


def damaged_from_backup(world: World) -> None:
    """The person's mend: the damaged files of tables and models are as they were before."""
    for name in world.damaged:
        world.put_back(name)


def live_file(world: World, table: str, part: str = "") -> Path:
    """The largest data file of a table whose path holds ``part``."""
    folder = world.lake / table
    files = [folder / uri.removeprefix(f"{folder}/") for uri in DeltaTable(str(folder)).file_uris() if part in uri]
    return world.note_damage(max(files, key=lambda path: path.stat().st_size))


def champion_weights(world: World) -> Path:
    version = champion(Promotions(Lake(str(world.lake))).read())
    if version is None:
        raise CannotBeMadeError("no night of the past has promoted anything")
    folder = folder_of(Settings(home=world.home), version)
    return world.note_damage(max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Eight bytes in each of twelve places, so that most columns of a Parquet file are struck; its footer is not."""
    content = bytearray(path.read_bytes())
    values = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for part in range(12):
        start = 16 + (values - 32) * part // 12
        for place in range(start, start + 8):
            content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def with_weights(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata)


def _commits(world: World, table: str) -> list[Path]:
    return sorted((world.lake / table / "_delta_log").glob("*.json"))


def _folders_of_model(world: World, name: str) -> list[Path]:
    with closing(sqlite3.connect(world.home / "mlflow" / "mlflow.db")) as database:
        rows = database.execute("SELECT source FROM model_versions WHERE name = ?", (name,)).fetchall()
    return [path for (source,) in rows for path in (world.home / "mlflow").rglob(str(source).rsplit("/", 1)[-1])]


# Judge


@fault(mend=judge_is_well)
def constant_judge(world: World) -> None:
    world.judge.mood = oncall_judge.CONSTANT


@fault(mend=judge_is_well)
def inverted_judge(world: World) -> None:
    world.judge.mood = oncall_judge.INVERTED


@fault(mend=judge_is_well)
def favouring_judge(world: World) -> None:
    world.judge.mood = oncall_judge.FAVOURING


@fault(mend=judge_is_well)
def judge_away(world: World) -> None:
    world.judge.away()


@fault(mend=judge_is_well, during="score_aspects")
def judge_dies_midway(world: World) -> None:
    before = world.judge.calls
    for _ in range(600):
        if world.judge.calls > before + 40:
            break
        time.sleep(0.05)
    world.judge.away()


@fault(mend=judge_is_well)
def judge_refuses_a_third(world: World) -> None:
    world.judge.mood = oncall_judge.REFUSING


@fault(mend=judge_is_well)
def judge_answers_prose(world: World) -> None:
    world.judge.mood = oncall_judge.NONSENSE


@fault(mend=judge_is_well)
def judge_under_another_name(world: World) -> None:
    world.judge.model = "another-model"


# Lake


@fault()
def events_file_of_an_earlier_day_deleted(world: World) -> None:
    live_file(world, "events", f"day={YESTERDAY}").unlink()


@fault()
def events_file_of_an_earlier_day_truncated(world: World) -> None:
    cut(live_file(world, "events", f"day={YESTERDAY}"))


@fault()
def events_file_of_an_earlier_day_flipped(world: World) -> None:
    flip(live_file(world, "events", f"day={YESTERDAY}"))


@fault(mend=damaged_from_backup)
def item_codes_file_deleted(world: World) -> None:
    live_file(world, "item_codes").unlink()


@fault(mend=damaged_from_backup)
def item_codes_file_truncated(world: World) -> None:
    cut(live_file(world, "item_codes"))


@fault()
def aspect_scores_file_truncated(world: World) -> None:
    cut(live_file(world, "aspect_scores", f"day={YESTERDAY}"))


@fault()
def user_states_file_deleted(world: World) -> None:
    live_file(world, "user_states", f"day={YESTERDAY}").unlink()


@fault()
def user_states_file_flipped(world: World) -> None:
    flip(live_file(world, "user_states", f"day={YESTERDAY}"))


@fault(during="tokenize_items")
def events_damaged_during_the_night(world: World) -> None:
    cut(live_file(world, "events", f"day={DAY}"))


@fault(mend=from_backup("lake/events"))
def events_folder_deleted(world: World) -> None:
    shutil.rmtree(world.lake / "events")


@fault(mend=from_backup("lake/item_codes"))
def item_codes_folder_deleted(world: World) -> None:
    shutil.rmtree(world.lake / "item_codes")


@fault(mend=damaged_from_backup)
def a_commit_of_events_deleted(world: World) -> None:
    commits = _commits(world, "events")
    world.note_damage(commits[len(commits) // 2]).unlink()


@fault()
def last_commit_of_events_deleted(world: World) -> None:
    _commits(world, "events")[-1].unlink()


@fault(mend=damaged_from_backup)
def last_commit_of_stage_runs_torn(world: World) -> None:
    world.note_damage(_commits(world, "stage_runs")[-1]).write_bytes(b"")


@fault(mend=from_backup("lake/night_metrics"))
def night_metrics_deleted(world: World) -> None:
    shutil.rmtree(world.lake / "night_metrics")


@fault(mend=damaged_from_backup)
def promotions_truncated(world: World) -> None:
    cut(live_file(world, "promotions"))


# Models


@fault(mend=damaged_from_backup)
def champion_weights_truncated(world: World) -> None:
    cut(champion_weights(world))


@fault(mend=damaged_from_backup)
def champion_weights_deleted(world: World) -> None:
    champion_weights(world).unlink()


@fault(mend=damaged_from_backup)
def champion_weights_nan(world: World) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        for name, values in weights.items():
            if np.issubdtype(values.dtype, np.floating):
                weights[name] = np.full_like(values, np.nan)

    with_weights(champion_weights(world), spoil)


@fault(mend=damaged_from_backup)
def champion_weights_a_nan(world: World) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        floats = {name: values for name, values in weights.items() if np.issubdtype(values.dtype, np.floating)}
        name = max(floats, key=lambda one: floats[one].size)
        weights[name] = floats[name].copy()
        weights[name].reshape(len(weights[name]), -1)[0] = np.nan

    with_weights(champion_weights(world), spoil)


@fault(mend=damaged_from_backup)
def champion_weights_zero(world: World) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        for name, values in weights.items():
            if np.issubdtype(values.dtype, np.floating):
                weights[name] = np.zeros_like(values)

    with_weights(champion_weights(world), spoil)


@fault(mend=from_backup("mlflow"))
def tokenizer_deleted(world: World) -> None:
    for folder in _folders_of_model(world, TOKENIZER):
        shutil.rmtree(folder)


@fault(mend=from_backup("mlflow/mlflow.db"))
def registry_deleted(world: World) -> None:
    for path in (world.home / "mlflow").glob("mlflow.db*"):
        path.unlink()


@fault()
def champion_far_older(world: World) -> None:
    shutil.rmtree(world.raw)
    world.day = day_after(PAST + 40)
    world.land(world.day)
