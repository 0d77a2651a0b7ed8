"""The stages of a night and of the judge's training, in order: the one place that says who reads and publishes what.

The DAG, the command line, the quality gates and the documentation all read this list, so it imports nothing
but the standard library: Airflow parses it on every DAG refresh.
"""

from dataclasses import dataclass

# Registered models: one name each, used by stages and registry alike.
TOKENIZER = "sgrec-tokenizer"
BUSINESS_REWARD = "sgrec-business-reward"
SUPERVISED = "sgrec-supervised"
ROLLOUT = "sgrec-rollout"
AGGREGATOR = "sgrec-aggregator"
GENERATOR = "sgrec-generator"
JUDGE = "sgrec-judge"
JUDGE_WEIGHTS = "sgrec-judge-weights"

STAGE_RUNS = "stage_runs"
"""The one table that no stage publishes: every run of a stage or a gate adds its rows."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One job: ``python -m jobs.<name> --day D``."""

    name: str
    engine: str
    """What it runs on, and whose interpreter setting applies: ``spark``, ``torch``, ``judge`` or ``quality``."""
    reads: tuple[str, ...]
    publishes: tuple[str, ...]
    """Delta tables. A stage that publishes at least one table is followed by a quality gate."""
    registers: tuple[str, ...] = ()
    """MLflow registered models that it adds versions to."""
    uses: tuple[str, ...] = ()
    """Models of the same night that it reads."""
    stays: bool = False
    """Whether what it made stays until somebody asks for another, whatever becomes of its code."""
    summary: str
    timeout_minutes: int = 60
    folder: str = ""
    """Below ``reports/<day>``, where facts and progress go: stages of two DAGs tell of different runs."""

    @property
    def uses_gpu(self) -> bool:
        """Whether the stage takes a slot of the GPU pool (it runs on the CPU where there is none)."""
        return self.engine in ("torch", "judge")


STAGES: tuple[Stage, ...] = (
    Stage(
        name="ingest_events",
        engine="spark",
        reads=(),
        publishes=("events", "events_rejected", "ingest_files", "items", "users"),
        summary="parse and validate the raw logs, the catalogue and the profiles of the day",
        timeout_minutes=240,
    ),
    Stage(
        name="build_states",
        engine="spark",
        reads=("events", "items", "users"),
        publishes=("user_states", "preference_pairs"),
        summary="one row per decision point, and pairs of preferred and passed-over items",
        timeout_minutes=240,
    ),
    Stage(
        name="tokenize_items",
        engine="torch",
        reads=("items",),
        publishes=("item_codes",),
        registers=(TOKENIZER,),
        stays=True,
        summary="give each item a collision-free semantic id",
    ),
    Stage(
        name="fit_business_reward",
        engine="torch",
        reads=("events", "items", "users"),
        publishes=(),
        registers=(BUSINESS_REWARD,),
        summary="fit the calibrated click model behind eCPM, or declare the ranking reward",
    ),
    Stage(
        name="train_supervised",
        engine="torch",
        reads=("user_states", "item_codes"),
        publishes=(),
        registers=(SUPERVISED, ROLLOUT),
        uses=(TOKENIZER,),
        summary="train the night's starting policy on next items, and what rolls out where no champion can",
        timeout_minutes=480,
    ),
    Stage(
        name="generate_candidates",
        engine="torch",
        reads=("user_states", "item_codes", "items", "events", "users"),
        publishes=("candidates",),
        uses=(SUPERVISED, ROLLOUT, BUSINESS_REWARD),
        summary="roll out groups of candidates with log-probabilities and business reward",
        timeout_minutes=240,
    ),
    Stage(
        name="score_aspects",
        engine="judge",
        reads=("candidates", "preference_pairs", "user_states", "items"),
        publishes=("aspect_scores", "judge_versions", "judge_ledger"),
        summary="judge whole groups of candidates aspect by aspect",
        timeout_minutes=480,
    ),
    Stage(
        name="train_aggregator",
        engine="torch",
        reads=("preference_pairs", "aspect_scores", "user_states", "items", "candidates"),
        publishes=("user_weights",),
        registers=(AGGREGATOR,),
        summary="learn per-user weights of the aspects from preference pairs",
    ),
    Stage(
        name="materialize_rewards",
        engine="torch",
        reads=("candidates", "aspect_scores", "user_weights", "items", "item_codes", "user_states"),
        publishes=("rewards",),
        summary="standardise, gate and fuse business and semantic reward",
    ),
    Stage(
        name="train_generator",
        engine="torch",
        # The last five for training on fresh groups (policy.mode=on_policy).
        reads=("user_states", "candidates", "rewards", "item_codes")
        + ("items", "users", "events", "aspect_scores", "user_weights"),
        publishes=(),
        registers=(GENERATOR,),
        uses=(SUPERVISED, BUSINESS_REWARD),
        summary="improve the starting policy with A2PO and register it as challenger",
        timeout_minutes=480,
    ),
    Stage(
        name="evaluate_generator",
        engine="torch",
        reads=("user_states", "item_codes", "events", "items", "users"),
        publishes=("evaluations", "candidate_results"),
        uses=(GENERATOR, SUPERVISED, BUSINESS_REWARD),
        summary="compare the night's candidates with the champion on held-out decisions and promote one that is better",
    ),
    Stage(
        name="report_quality",
        engine="quality",
        reads=(),
        publishes=(),
        summary="write the Data Docs, the on-call page and the summary of the night",
    ),
)

JUDGE_TRAINING_FOLDER = "judge_training"
JUDGE_TRAINING_STAGES: tuple[Stage, ...] = (
    Stage(
        name="import_judge_labels",
        engine="torch",
        reads=("user_states", "items"),
        publishes=("judge_labels", "judge_labels_rejected"),
        summary="read and validate the label files of the judge",
        folder=JUDGE_TRAINING_FOLDER,
    ),
    Stage(
        name="train_judge",
        engine="torch",
        reads=("judge_labels",),
        publishes=(),
        registers=(JUDGE,),
        summary="train an adapter of the judge's model on labels: supervised, then by GRPO",
        timeout_minutes=24 * 60,
        folder=JUDGE_TRAINING_FOLDER,
    ),
    Stage(
        name="train_judge_weights",
        engine="torch",
        reads=("preference_pairs", "user_states", "items"),
        publishes=(),
        registers=(JUDGE_WEIGHTS,),
        summary="train an adapter that names the aspects' weights, by GRPO on preference pairs",
        timeout_minutes=24 * 60,
        folder=JUDGE_TRAINING_FOLDER,
    ),
    Stage(
        name="score_labels",
        engine="judge",
        reads=("judge_labels", "preference_pairs", "user_states", "items"),
        publishes=("aspect_scores", "judge_versions", "judge_ledger"),
        summary="ask the candidate and the active judge about held-out labels and pairs",
        timeout_minutes=480,
        folder=JUDGE_TRAINING_FOLDER,
    ),
    Stage(
        name="evaluate_judge",
        engine="torch",
        reads=("judge_labels", "preference_pairs", "user_states", "items", "aspect_scores"),
        publishes=("judge_evaluations",),
        summary="compare the candidate with the active judge, report, and let nights use it if it is better",
        folder=JUDGE_TRAINING_FOLDER,
    ),
)
"""Weekly."""

JUDGE_COMPARISON_STAGES = tuple(stage for stage in JUDGE_TRAINING_STAGES if not stage.registers)
"""For a judge that needs no training: another model, mode or rubric."""

ALL_STAGES = (*STAGES, *JUDGE_TRAINING_STAGES)
BY_NAME = {stage.name: stage for stage in ALL_STAGES}
