"""What the generator's stages of a night share: the day's catalogue, and models by name and day."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch

from sgrec_core.errors import SgrecError
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.generator.device import device
from sgrec_core.generator.model import Generator, GeneratorConfig
from sgrec_core.generator.recommend import CODES, Recommender
from sgrec_core.lake import Lake
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import mark_of_night


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
    """Register a generator with the codes of its catalogue, so that it can serve by itself, as the night's version.

    Ten parameters, because it passes most of `Registry.register`'s on.
    """
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
