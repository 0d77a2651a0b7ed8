"""What the generator's stages of a night share: the day's catalogue, and models by name and day."""

import json
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from sgrec_core.errors import SgrecError
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.generator.model import Generator, GeneratorConfig
from sgrec_core.generator.recommend import CODES, Recommender
from sgrec_core.lake import Lake
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.rewards.ranking import ranking_reward
from sgrec_core.settings import Settings

BUSINESS_REWARD = "sgrec-business-reward"
SUPERVISED = "sgrec-supervised"


def days_until(day: str, count: int) -> list[str]:
    """The ``count`` days that end with ``day``, oldest first."""
    last = date.fromisoformat(day)
    return [(last - timedelta(days=back)).isoformat() for back in reversed(range(count))]


def use_threads(settings: Settings) -> None:
    """Give torch the threads that the settings allow."""
    torch.set_num_threads(settings.threads)


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mark_of_night(registry: Registry, version: ModelVersion) -> None:
    """Make ``version`` the one that night uses: its alias ``night-<day>`` is what `of_night` finds.

    Nights that come back to earlier inputs come back to an earlier version, so the newest is not always the one.
    """
    registry.set_alias(version, f"night-{version.day}")


def of_night(registry: Registry, name: str, day: str, *, stage: str) -> ModelVersion:
    """The version of ``name`` that night ``day`` made.

    Raises:
        SgrecError: there is none; the message names the stage to run.
    """
    number = registry.aliases(name).get(f"night-{day}")
    if number is not None:
        return registry.get(name, number)
    made = [version for version in registry.versions(name) if version.day == day]
    if not made:
        raise SgrecError(f"night {day} has no {name}; run `python -m jobs.{stage} --day {day}` first")
    return made[-1]


def day_catalogue(lake: Lake, day: str, tokenizer_version: str, codebook_size: int) -> Catalogue:
    """The day's items that have codes of this tokenizer.

    Raises:
        SgrecError: there are none.
    """
    items = lake.read("items", where={"day": day}, columns=["item_id"])
    codes = lake.read(
        "item_codes", where={"tokenizer_version": tokenizer_version}, columns=["item_id", "codes", "wanted_codes"]
    )
    try:
        return Catalogue.build(
            items["item_id"], codes, codebook_size=codebook_size, tokenizer_version=tokenizer_version
        )
    except ValueError as error:
        raise SgrecError(f"{day}: {error}; run `python -m jobs.tokenize_items --day {day}` first") from error


def load_generator(registry: Registry, version: ModelVersion) -> tuple[Generator, str]:
    """The model of a registered version, ready to predict, and the version of the tokenizer that it reads."""
    tensors, config = registry.load(version)
    model = Generator(GeneratorConfig(**config["generator"]))
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name != CODES})
    return model.to(device()).eval(), config["tokenizer_version"]


def generator_of_day(lake: Lake, registry: Registry, version: ModelVersion, day: str) -> tuple[Generator, Catalogue]:
    """The model of a registered version, ready to predict, and the day's items as it reads them.

    Raises:
        SgrecError: no item of the day has codes of the model's tokenizer.
    """
    model, tokenizer_version = load_generator(registry, version)
    catalogue = day_catalogue(lake, day, tokenizer_version, model.config.codebook_size)
    model.align(catalogue.trie)
    return model, catalogue


def register_generator(
    registry: Registry,
    name: str,
    model: Generator,
    catalogue: Catalogue,
    *,
    day: str,
    fingerprint: str,
    metrics: Mapping[str, float],
    parameters: Mapping[str, Any],
    tables: Mapping[str, int | None],
    tags: Mapping[str, str],
) -> ModelVersion:
    """Register a generator with the codes of its catalogue, so that it can serve by itself, as the night's version."""
    tensors = {**model.state_dict(), CODES: torch.from_numpy(catalogue.codes).int()}
    config = {
        "kind": "generator",
        "generator": model.config.as_json(),
        "tokenizer_version": catalogue.tokenizer_version,
        "item_ids": catalogue.item_ids.to_pylist(),
    }
    history = [catalogue.item_ids[0].as_py()]
    answer = Recommender(tensors, config).recommend([history], count=min(5, len(catalogue)))[0]
    version = registry.register(
        name,
        day=day,
        fingerprint=fingerprint,
        tensors=tensors,
        config=config,
        metrics=metrics,
        parameters=parameters,
        tables=tables,
        tags={"sgrec.tokenizer_version": catalogue.tokenizer_version, **tags},
        example=(
            pd.DataFrame({"history": [",".join(history)]}),
            pd.DataFrame(
                {
                    "items": [",".join(item for item, _ in answer)],
                    "scores": [json.dumps([score for _, score in answer])],
                }
            ),
        ),
    )
    mark_of_night(registry, version)
    return version


def table_versions(lake: Lake, tables: tuple[str, ...]) -> dict[str, int | None]:
    """Current Delta version of each table."""
    return {table: lake.version(table) for table in tables}


def decisions(lake: Lake, days: list[str], split: str, columns: list[str]) -> pa.Table:
    """Rows of user_states of a split over several days."""
    return lake.read("user_states", where={"day": days, "split": split}, columns=columns)


def business_reward(
    config: Mapping[str, Any], lake: Lake, day: str, settings: Settings, states: pa.Table, catalogue: Catalogue
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The night's business reward for decision points ``states``: (rows [B], items [B, G]) to rewards [B, G].

    ``config`` is that of the registered business model: the next-item ranking reward, or eCPM.
    """
    if config["kind"] == "ranking":
        targets = catalogue.index(states["target_item"])
        return lambda rows, items: ranking_reward(items, targets[rows])
    from sgrec_core.rewards.business import BusinessContext, EcpmModel

    context = BusinessContext.from_lake(lake, day, settings)
    model = EcpmModel.from_config(config)
    return lambda rows, items: model.reward(states.take(rows), [catalogue.ids(row) for row in items], context)
