"""What a training was worth: points and pairs that a judge gets right, and the figures of them."""

from collections.abc import Sequence

import numpy as np

from sgrec_core.evaluation.metrics import per_user
from sgrec_core.evaluation.significance import bootstrap, paired_bootstrap
from sgrec_core.judge.engines.language_model import LanguageModelEngine
from sgrec_core.judge.training.samples import Labelled, ScoredPair

LABEL_STAGES = ("base", "supervised", "grpo")
"""Of a training on labels, in their order."""


def correct_points(engine: LanguageModelEngine, samples: Sequence[Labelled]) -> np.ndarray:
    """Bool [N, A]: whether the likeliest level is the true one; its mean is PointAcc."""
    results = engine.score([sample.request for sample in samples])
    correct = np.zeros((len(samples), len(engine.rubric.aspects)), dtype=bool)
    for row, (sample, result) in enumerate(zip(samples, results, strict=True)):
        if result.probabilities is None:
            continue
        rest = iter(result.probabilities)
        for column, (aspect, label) in enumerate(zip(engine.rubric.aspects, sample.labels, strict=True)):
            likely = {level.label: next(rest) for level in aspect.levels}
            correct[row, column] = max(likely, key=lambda name: likely[name]) == label
    return correct


def ordered_pairs(pairs: Sequence[ScoredPair], weights: np.ndarray | None = None) -> np.ndarray:
    """[N]: 1 where the preferred item has the higher holistic score, one half at a tie; the mean is PairAUC.

    ``weights`` [N, A]; default: uniform.
    """
    difference = np.array([np.subtract(pair.preferred, pair.other) for pair in pairs])
    lead = np.round(difference.mean(axis=1) if weights is None else (difference * weights).sum(axis=1), 9)
    return (lead > 0) + 0.5 * (lead == 0)


def or_uniform(weights: np.ndarray) -> np.ndarray:
    """Weights [N, A] with 1 / A in place of NaN."""
    return np.where(np.isnan(weights), 1 / weights.shape[1], weights)


def label_figures(correct: dict[str, np.ndarray], users: list[str], seed: int) -> dict[str, float]:
    """PointAcc after each stage, and the interval of what each adds."""
    of_users = {stage: per_user(points.mean(axis=1), np.array(users)) for stage, points in correct.items()}
    figures: dict[str, float] = {}
    for before, stage in zip((None, *LABEL_STAGES), LABEL_STAGES, strict=False):
        interval = bootstrap(of_users[stage], seed=seed)
        figures |= {f"point_acc_{stage}": interval.value}
        if before:
            gain = paired_bootstrap(of_users[stage], of_users[before], seed=seed)
            figures |= {f"point_acc_gain_{stage}_lower": gain.lower, f"point_acc_gain_{stage}_upper": gain.upper}
        else:
            figures |= {"point_acc_base_lower": interval.lower, "point_acc_base_upper": interval.upper}
    return figures


def weight_figures(right: dict[str, np.ndarray], users: list[str], seed: int) -> dict[str, float]:
    """PairAUC of each kind of weights, and intervals over users of what GRPO adds to its start and to the network."""
    of_users = {name: per_user(values, np.array(users)) for name, values in right.items()}
    figures = {f"pair_auc_{name}": float(values.mean()) for name, values in of_users.items()}
    for name, interval in (
        ("pair_auc_grpo", bootstrap(of_users["grpo"], seed=seed)),
        ("pair_auc_gain_grpo_over_form", paired_bootstrap(of_users["grpo"], of_users["form"], seed=seed)),
        ("pair_auc_gain_grpo_over_network", paired_bootstrap(of_users["grpo"], of_users["network"], seed=seed)),
    ):
        figures |= {f"{name}_lower": interval.lower, f"{name}_upper": interval.upper}
    return figures
