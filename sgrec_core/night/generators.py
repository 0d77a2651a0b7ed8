"""What the generator's stages of a night share: the day's catalogue, and models by name and day."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from sgrec_core.errors import SettingsError, SgrecError
from sgrec_core.generator.config import GeneratorConfig
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.generator.device import device
from sgrec_core.generator.language_model import LanguageModel, read_language_model
from sgrec_core.generator.model import Generator
from sgrec_core.generator.recommend import Recommender
from sgrec_core.generator.stored import rebuild, take_apart
from sgrec_core.hashing import digest
from sgrec_core.lake import Lake
from sgrec_core.logs.landing import file_digests
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.runtime.stages import GENERATOR
from sgrec_core.settings import SupervisedSettings

TOKENIZER_TAG = "sgrec.tokenizer_version"
"""Of a version: the semantic ids that it reads."""
OWN_TAGS = ("sgrec.day", "sgrec.fingerprint", "sgrec.version", "sgrec.git_revision")
"""That a version gets when it is registered, whatever it is a copy of."""
NO_SHAPE = ("dropout", "item_weight", "followers", "memory_weight")
"""Of a generator's configuration what a warm start may change."""


def day_catalogue(lake: Lake, day: str, tokenizer_version: str, codebook_size: int | None = None) -> Catalogue:
    """The day's items that have codes of this tokenizer; by default the codebook is as large as its codes need.

    Raises:
        SgrecError: there are none.
    """
    items = lake.read("items", where={"day": day}, columns=["item_id"])
    codes = lake.read(
        "item_codes", where={"tokenizer_version": tokenizer_version}, columns=["item_id", "codes", "wanted_codes"]
    )
    codebook_size = codebook_size or (pc.max(pc.list_flatten(codes["codes"])).as_py() or 0) + 1
    try:
        return Catalogue.build(
            items["item_id"], codes, codebook_size=codebook_size, tokenizer_version=tokenizer_version
        )
    except ValueError as error:
        raise SgrecError(f"{day}: {error}; run `python -m jobs.tokenize_items --day {day}` first") from error


def fresh_generator(catalogue: Catalogue, settings: SupervisedSettings, max_items: int) -> Generator:
    """An untrained generator of the catalogue's items in the shape of the settings, weights by torch's seed.

    With a language model as backbone the encoder begins with what that has learnt.
    """
    scorers: dict[str, Any] = {
        "items": len(catalogue) if settings.item_head else 0,
        "item_weight": settings.item_weight,
        "followers": settings.followers if settings.item_head else 0,
        "memory_weight": settings.memory_weight,
    }
    codes = {"levels": catalogue.codes.shape[1], "codebook_size": catalogue.codebook_size}
    if settings.backbone == "transformer":
        shape: dict[str, Any] = {name: getattr(settings, name) for name in ("width", "layers", "heads", "dropout")}
        model = Generator(GeneratorConfig(max_items=max_items, **codes, **shape, **scorers))
    else:
        pretrained, shape = read_language_model(settings.backbone, **codes)
        config = GeneratorConfig(max_items=max_items, **codes, **shape, **scorers)
        model = Generator(config, LanguageModel(config, pretrained))
    model = model.to(device())
    model.align(catalogue.trie)
    return model


def backbone_digest(settings: SupervisedSettings) -> str | None:
    """Content of the language model that is the backbone; None where our transformer is.

    Raises:
        SettingsError: the folder holds no model.
    """
    if settings.backbone == "transformer":
        return None
    if not (settings.backbone / "config.json").is_file():
        raise SettingsError(
            f"supervised.backbone: {settings.backbone} holds no config.json; valid are 'transformer' and the folder of"
            " a causal language model in Hugging Face format"
        )
    return digest(*file_digests({path.name: path for path in sorted(settings.backbone.iterdir()) if path.is_file()}))


def take_over(
    fresh: Generator,
    registry: Registry,
    champion: ModelVersion,
    catalogue: Catalogue,
    *,
    note: Callable[[str], None],
) -> bool:
    """Give ``fresh``, of this catalogue, the weights of the champion; False, and why, where they do not fit."""
    model, tokenizer_version = load_generator(registry, champion)
    if tokenizer_version != catalogue.tokenizer_version:
        note(
            f"trained from scratch: {champion} reads semantic ids of tokenizer {tokenizer_version},"
            f" the night those of {catalogue.tokenizer_version}"
        )
        return False
    model.align(catalogue.trie)
    misfit = give_weights(model, fresh)
    if misfit is not None:
        note(f"trained from scratch: {champion} has {misfit}")
    return misfit is None


def give_weights(model: Generator, fresh: Generator) -> str | None:
    """Give ``fresh`` the weights of ``model``, aligned with the same catalogue; in words what keeps them from fitting.

    What ``model`` remembers is left behind: a night counts anew, in the size that the settings want.
    """
    its, wanted = shape_of(model.config), shape_of(fresh.config)
    if its != wanted:
        return f"the shape {its}, the settings {wanted}"
    model.memory = fresh.memory
    fresh.load_tensors(model.tensors())
    return None


def shape_of(config: GeneratorConfig) -> dict[str, Any]:
    """What two generators must have in common for one to take the other's weights."""
    shape = {name: value for name, value in config.as_json().items() if name not in NO_SHAPE}
    if config.language_model is not None:
        # Too long to be told in a note.
        shape["language_model"] = digest(json.dumps(config.language_model, sort_keys=True))
    return shape


def load_generator(registry: Registry, version: ModelVersion) -> tuple[Generator, str]:
    """The model of a registered version, ready to predict, and the version of the tokenizer that it reads."""
    model, catalogue = rebuild(*registry.load(version))
    return model.to(device()), catalogue.tokenizer_version


def generator_of_day(lake: Lake, registry: Registry, version: ModelVersion, day: str) -> tuple[Generator, Catalogue]:
    """The model of a registered version, ready to predict, and the day's items as it reads them.

    Raises:
        SgrecError: no item of the day has codes of the model's tokenizer.
    """
    model, tokenizer_version = load_generator(registry, version)
    catalogue = day_catalogue(lake, day, tokenizer_version, model.config.codebook_size)
    model.align(catalogue.trie)
    return model, catalogue


def as_generator(registry: Registry, version: ModelVersion) -> ModelVersion:
    """``version`` under the name that serves: itself, or a copy of a supervised policy that came before its optimised
    one; the same copy each time."""
    if version.name == GENERATOR:
        return version
    tensors, config = registry.load(version)
    origin = {name: value for name, value in version.tags.items() if name.startswith("sgrec.") and name not in OWN_TAGS}
    return registry.register(
        GENERATOR,
        day=version.day,
        fingerprint=digest(GENERATOR, version.name, version.fingerprint, length=32),
        tensors=tensors,
        config=config,
        metrics=registry.metrics(version),
        tags={**origin, "sgrec.copy_of": str(version)},
    )


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
    leave_out_history: bool = False,
) -> ModelVersion:
    """Register a generator with the codes of its catalogue, so that it can serve by itself.

    ``leave_out_history`` is what lists do where nobody says otherwise. Eleven parameters, because it passes most of
    `Registry.register`'s on.
    """
    tensors, config = take_apart(model, catalogue)
    config["leave_out_history"] = leave_out_history
    history = [catalogue.item_ids[0].as_py()]
    answer = Recommender(tensors, config).recommend([history], count=min(5, len(catalogue)))[0]
    return registry.register(
        name,
        day=day,
        fingerprint=fingerprint,
        tensors=tensors,
        config=config,
        metrics=metrics,
        parameters=parameters,
        tables=tables,
        tags={TOKENIZER_TAG: catalogue.tokenizer_version, **tags},
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
