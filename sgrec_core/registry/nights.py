"""Which version of a model a night uses."""

from sgrec_core.errors import SgrecError
from sgrec_core.registry.models import ModelVersion, Registry


def night_alias(day: str) -> str:
    """The alias of the version that night ``day`` uses."""
    return f"night-{day}"


def mark_of_night(registry: Registry, version: ModelVersion) -> None:
    """Make ``version`` the one that night uses: its alias ``night-<day>`` is what `of_night` finds.

    Nights that come back to earlier inputs come back to an earlier version, so the newest is not always the one.
    """
    registry.set_alias(version, night_alias(version.day))


def of_night(registry: Registry, name: str, day: str, *, stage: str) -> ModelVersion:
    """The version of ``name`` that night ``day`` made.

    Raises:
        SgrecError: there is none; the message names the stage to run.
    """
    number = registry.aliases(name).get(night_alias(day))
    if number is not None:
        return registry.get(name, number)
    made = [version for version in registry.versions(name) if version.day == day]
    if not made:
        raise SgrecError(f"night {day} has no {name}; run `python -m jobs.{stage} --day {day}` first")
    return made[-1]
