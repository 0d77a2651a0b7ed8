"""Which version of a model a night uses."""

from typing import Any

from sgrec_core.errors import SgrecError
from sgrec_core.registry.models import ModelVersion, Registry
from sgrec_core.runtime.stages import TOKENIZER


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


def current_tokenizer(registry: Registry, day: str) -> tuple[str, dict[str, Any]]:
    """The tokenizer that night ``day`` uses: its ``tokenizer_version``, the partition of item_codes, and its config.

    The config has `kind` (text or supplied), `levels` and `codebook_size`. A tokenizer is fitted once for a source and
    its item settings, by whichever night came first, also when an earlier day is backfilled later.

    Raises:
        SgrecError: the night has not coded its items yet.
    """
    number = registry.aliases(TOKENIZER).get(f"night-{day}")
    if number is None:
        raise SgrecError(f"night {day} has no {TOKENIZER}; run `python -m jobs.tokenize_items --day {day}` first")
    _, config = registry.load(registry.get(TOKENIZER, number))
    return config["tokenizer_version"], config
