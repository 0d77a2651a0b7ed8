"""The gate of the adapters that name weights, as `jobs.train_judge_weights` makes them."""

from sgrec_core.errors import SettingsError
from sgrec_core.judge.versions.registered import MODEL_TAG, model_tag
from sgrec_core.registry import ModelVersion, Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.runtime.stages import JUDGE_WEIGHTS
from sgrec_core.settings import Settings


def accepted_weights(registry: Registry, settings: Settings, day: str) -> tuple[ModelVersion, list[str]]:
    """The adapter that names the weights of night ``day``, and why newer ones do not.

    It is the newest of an earlier day for the judge's model that passed its gate: on held-out pairs its PairAUC is
    below the small network's by no more than ``judge_training.tolerance`` at the lower end of the interval.

    Raises:
        SettingsError: there is none.
    """
    model, tolerance = model_tag(settings.judge), settings.judge_training.tolerance
    refused: list[str] = []
    days = {
        version.day
        for version in registry.versions(JUDGE_WEIGHTS)
        if version.day < day and version.tags.get(MODEL_TAG) == model
    }
    for earlier in sorted(days, reverse=True):
        version = of_night(registry, JUDGE_WEIGHTS, earlier, stage="train_judge_weights")
        if version.tags.get(MODEL_TAG) != model:
            continue
        lower = registry.metrics(version)["pair_auc_gain_grpo_over_network_lower"]
        if lower >= -tolerance:
            return version, refused
        refused.append(
            f"version {version.version} of {earlier} may order pairs worse than the small network by {-lower:.4f},"
            f" above {tolerance} (SGREC_JUDGE_TRAINING__TOLERANCE)"
        )
    raise SettingsError(
        f"SGREC_AGGREGATOR__ENGINE=language_model: no {JUDGE_WEIGHTS} was trained for {model} and a day before"
        f" {day} and passed its gate{': ' if refused else ''}{', '.join(refused)}; run `sgrec train-judge`, or set it"
        " to network"
    )
