"""Every setting of sgrec, with its default; the environment overrides (``SGREC_JUDGE__ENGINE=vllm``).

A section belongs to a stage or a part of the core. Settings that change what a stage computes are part of its
fingerprint: change one, and the stage and all behind it are computed anew at the next run. More than 400 lines, because
who looks for a setting looks in one place.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from sgrec_core.wording import without_secrets

PROJECT_ROOT = Path(__file__).resolve().parent.parent
RAN_WITH = "settings.json"
"""In a day's reports: `Settings.assignments` of the stage that ran last."""


class Section(BaseModel):
    """A group of settings; unknown names are errors, so that a typo in the environment is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InterpreterSettings(Section):
    """The Python that runs each kind of job, so that heavy environments stay apart."""

    spark: str = ".venv/bin/python"
    torch: str = ".venv/bin/python"
    judge: str = ".venv/bin/python"
    quality: str = ".venv/bin/python"


class SimulatorSettings(Section):
    """The marketplace behind ``INPUT=simulator``."""

    seed: int = 7
    users: int = Field(1500, ge=10)
    items: int = Field(300, ge=20)
    new_items_per_day: int = Field(10, ge=0)
    requests_per_user: float = Field(8.0, gt=0)
    slate: int = Field(8, ge=2)
    bad_share: float = Field(0.005, ge=0, lt=1)


class AdaptorSettings(Section):
    """How public sets without time become days."""

    days: int = Field(1, ge=1, description="declared days over which each user's sequence is spread by position")


class IngestSettings(Section):
    max_rejected_share: float = Field(0.05, ge=0, le=1, description="above this share of bad rows the night stops")
    max_line_bytes: int = Field(1_000_000, ge=1000)
    max_raw_text: int = Field(2000, ge=10, description="characters of a bad row kept in events_rejected")
    max_unread_share: float = Field(
        0.0, ge=0, le=1, description="above this share of a day's bytes in files that broke off the night stops"
    )
    max_anonymous_share: float = Field(
        0.5, ge=0, le=1, description="above this share of events without a user the night stops"
    )
    null_words: tuple[str, ...] = Field(
        ("", "NULL", "null", "\\N", "nan", "NaN", "None"), description="texts that stand for no id and no number"
    )
    mapping: Path | None = Field(None, description="YAML file that tells how the rows become sgrec's (docs/input.md)")
    settle_seconds: float = Field(
        0.0, ge=0, description="a day without _MANIFEST.json or _SUCCESS that changed within so long is not begun"
    )


class StateSettings(Section):
    history_days: int = Field(30, ge=1)
    max_history: int = Field(20, ge=1)
    min_history: int = Field(1, ge=0)
    validation_share: float = Field(0.1, gt=0, lt=1, description="share of users of a log source that no fit reads")
    max_pairs_per_decision: int = Field(3, ge=1)


QuantiserName = Literal["kmeans", "normalised_kmeans", "balanced_kmeans", "rqvae"]


class ItemSettings(Section):
    codes: Literal["auto", "text", "supplied"] = Field(
        "auto", description="semantic ids from item text or as supplied; auto: text where half of the items have some"
    )
    levels: int = Field(3, ge=1, description="codes per item, where they are made from text")
    codebook_size: int = Field(256, ge=2, description="codes per level at most; fewer for a small catalogue")
    quantiser: QuantiserName = Field("normalised_kmeans", description="what turns text vectors into codes")
    resolver: Literal["reassign", "extra_token"] = Field(
        "reassign",
        description="items whose codes collide: moved at the least cost to free codes of the last level, or told apart "
        "by one more code, which numbers them",
    )
    seed: int = 0


class BusinessSettings(Section):
    window_days: int = Field(7, ge=1, description="days of events, up to the night's, that the click model learns from")
    trees: int = Field(200, ge=1, description="at most this many boosting rounds; it stops early")
    learning_rate: float = Field(0.05, gt=0)
    seed: int = 0


class SupervisedSettings(Section):
    """The generator's shape and training on next items; defaults by validation items of Scientific and simulator."""

    backbone: Literal["transformer"] | Path = Field(
        "transformer",
        description="what reads histories: our transformer, whose shape is width, layers, heads and dropout, or the"
        " folder of a causal language model in Hugging Face format, which brings its own",
    )
    width: int = Field(128, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    item_head: bool = Field(
        True,
        description="score whole items beside their codes: better lists, at the cost of a softmax over the catalogue"
        " for each target, which 100,000 items bear and millions do not",
    )
    item_weight: float = Field(
        0.8, ge=0, le=1, description="weight of item head and memory together in the policy; codes have the rest"
    )
    followers: int = Field(
        64,
        ge=0,
        description="followers of each item that the memory of transitions keeps, beside an item head; 0: no memory",
    )
    memory_weight: float = Field(
        0.7,
        ge=0,
        le=1,
        description="weight of the memory beside the item head, which has the rest; less where items have many events"
        " each",
    )
    epochs: int = Field(20, ge=1, description="passes over the training windows of a night that starts from scratch")
    warm_epochs: int = Field(5, ge=1, description="the same of a night that goes on from the champion")
    batch_size: int = Field(128, ge=1, description="windows of mean length per step; steps are alike in tokens")
    learning_rate: float = Field(1e-3, gt=0)
    warm_learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    bfloat16: bool = Field(True, description="multiply matrices in bfloat16 while training")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: on a GPU only, and not with a language model"
    )
    processes: int = Field(1, ge=1, description="processes that share each batch: one a GPU")
    checkpoint_steps: int = Field(200, ge=1, description="steps that a killed training repeats at most")
    seed: int = 0


class RolloutSettings(Section):
    group_size: int = Field(16, ge=2)
    max_groups: int = Field(2048, ge=1)
    batch_size: int = Field(128, ge=1, description="groups rolled out at once")
    seed: int = 0


class JudgeSettings(Section):
    engine: Literal["embedding", "vllm", "server"] = Field(
        "embedding", description="server: any server with OpenAI's chat completions, for example `vllm serve`"
    )
    rubric: Path | None = Field(None, description="a YAML file like sgrec_core/judge/rubric.yaml, which is the default")
    mode: Literal["labels", "reasoning"] = Field(
        "labels",
        description="expected score over the probabilities of an aspect's labels, or reasoning and levels as JSON",
    )
    reasoning_characters: int = Field(600, ge=1, description="room for the reasoning, with mode=reasoning")
    format_sample: float = Field(
        0.01,
        ge=0,
        le=1,
        description="with mode=reasoning, the share of calls that are answered without the schema as well",
    )
    model: str = Field(
        "tiny", description="a Hugging Face name or folder; 'tiny' is an untrained model made on the spot"
    )
    revision: str | None = Field(None, description="commit of a model given by its Hugging Face name; needed for those")
    adapter: Literal["active"] | Path | None = Field(
        None,
        description="folder of a LoRA adapter for the model; active: the one that the judge's training activated last "
        "before the night, with engine=vllm; with engine=server name the folder's adapter by served_name as well",
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share one model, with engine=vllm")
    server_url: str = "http://localhost:8000/v1"
    served_name: str | None = Field(None, description="what the server calls the model, where that is not judge.model")
    concurrency: int = Field(64, ge=1, description="calls to the server at once")
    timeout: float = Field(120.0, gt=0, description="seconds that a call to the server may take")
    retries: int = Field(3, ge=0, description="further tries of a call to the server that failed")
    max_model_len: int = Field(
        8192, ge=512, description="tokens of prompt and answer; longer prompts lose the older part of the history"
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory that vLLM takes")
    kv_cache_gib: float = Field(1.0, gt=0, description="memory for vLLM's key-value cache on a CPU")
    sampling_ratio: float = Field(1.0, gt=0, le=1, description="p: share of the groups with business variance")
    max_failed_share: float = Field(
        0.05, ge=0, le=1, description="share of failed calls above which the gate stops the night"
    )
    max_calls: int | None = Field(None, ge=0, description="no more than this many paid calls a night")
    tokens_per_second: float | None = Field(
        None,
        gt=0,
        description="speed of one engine in computed tokens, for estimates; by default what the model has shown so far",
    )
    workers: int = Field(1, ge=1, description="tasks that judge side by side, each with an engine and GPUs of its own")
    max_pairs: int = Field(2000, ge=0, description="preference pairs whose items are judged for the aggregator")
    shard_size: int = Field(
        4096, ge=1, description="calls that are published together; a killed job repeats at most these"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _an_active_adapter_is_the_one_that_was_compared(self) -> Self:
        if self.engine == "server" and self.adapter == "active":
            raise ValueError(
                "adapter=active needs engine=vllm: a server goes on serving what it was started with; valid is the"
                " folder of the adapter that it serves, and its name there as served_name"
            )
        if self.mode != "labels" and self.adapter == "active":
            raise ValueError("adapter=active needs mode=labels, in which adapters are trained and compared")
        return self

    @property
    def adapter_folder(self) -> Path | None:
        """The adapter's folder, once `sgrec_core.judge.versions.adapters` has said which is the active one."""
        assert self.adapter != "active", "sgrec_core.judge.versions.adapters.settings_of_stage comes first"
        return self.adapter

    @property
    def gpus(self) -> int:
        """GPUs that one engine in a process of ours takes; 1 stands for the slot of a judge that takes none."""
        return self.tensor_parallel if self.engine == "vllm" else 1


class JudgeTrainingSettings(Section):
    """Defaults of the learning rates are for models of some billion parameters."""

    rank: int = Field(16, ge=1, description="of the LoRA adapters")
    sft_batch_size: int = Field(16, ge=1, description="prompts per step")
    sft_epochs: float = Field(2.0, gt=0)
    sft_learning_rate: float = Field(2e-4, gt=0)
    grpo_batch_size: int = Field(32, ge=2, description="completions per step: whole groups")
    grpo_epochs: float = Field(1.0, gt=0)
    grpo_learning_rate: float = Field(1e-5, gt=0)
    group_size: int = Field(4, ge=2, description="answers to one prompt, for the aspects")
    weights_group_size: int = Field(8, ge=2, description="answers to one prompt, for the weights")
    clip: float = Field(0.2, gt=0, lt=1)
    kl_weight: float = Field(0.04, ge=0)
    labels: Path | None = Field(
        None, description="folder of the label files (sgrec_core.judge.training.labels); the simulator can do without"
    )
    simulated_labels: int = Field(2000, ge=10, description="labels that the simulator gives where there are no files")
    grpo_share: float = Field(
        0.3, gt=0, lt=1, description="share of the training labels kept from the supervised stage, for GRPO"
    )
    max_pairs: int = Field(2000, ge=0, description="preference pairs for the weights; 0 trains none")
    max_test_pairs: int = Field(2000, ge=0, description="held-out preference pairs that versions are compared on")
    min_users: int = Field(20, ge=2, description="held-out users whose labels a version must be compared on")
    tolerance: float = Field(
        0.02, ge=0, description="how far below the active judge's PairAUC the interval of the difference may reach"
    )
    candidate: Literal["trained", "settings"] = Field(
        "trained",
        description="what is compared with the judge of nights: the adapter that the day's training made, or the judge"
        " of the settings (the DAG sgrec_judge_comparison), of judge.adapter=active the model without its adapter",
    )
    seed: int = 0

    @model_validator(mode="after")
    def _groups_fill_batches(self) -> Self:
        for name in ("group_size", "weights_group_size"):
            if self.grpo_batch_size % getattr(self, name):
                raise ValueError(
                    f"grpo_batch_size {self.grpo_batch_size} must be a multiple of {name} {getattr(self, name)}"
                )
        return self


class AggregatorSettings(Section):
    engine: Literal["network", "language_model"] = Field(
        "network",
        description="a small network fitted to the night's pairs, or the newest adapter that train_judge_weights made"
        " for judge.model before the night",
    )
    held_out_share: float = Field(0.2, ge=0, lt=1, description="share of the pairs' users that PairAUC is measured on")
    epochs: int = Field(20, ge=0)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(3.0, ge=0)
    seed: int = 0


class FusionSettings(Section):
    objective: Literal["business", "reward_sum", "adv_sum", "a2po", "a2po_centred"] = Field(
        "a2po", description="a2po_centred takes the mean of the group off again after the paper's gate"
    )
    epsilon: float = Field(1e-8, gt=0)


class PolicySettings(Section):
    mode: Literal["stored", "on_policy"] = Field(
        "stored",
        description="A2PO of the night's supervised policy on the stored groups; or of the champion on its own fresh "
        "groups, scored in the same process, before it learns the clicks",
    )
    rollout: Literal["beam", "sampling"] = Field("beam", description="how on_policy makes its groups")
    updates: int = Field(1, ge=1, description="optimiser steps on each batch of fresh groups")
    epochs: int = Field(1, ge=1, description="passes over the rollout groups, or over their prompts")
    batch_size: int = Field(64, ge=1, description="groups per step")
    learning_rate: float = Field(3e-5, gt=0)
    clip: float = Field(0.2, gt=0, lt=1)
    kl_weight: float = Field(1e-3, ge=0)
    loss: Literal["clip"] = "clip"
    weight_limit: float = Field(
        2.0,
        ge=1,
        description="where importance weights of stored groups are cut that another policy than the start has sampled;"
        " groups of beams, as generate_candidates makes them, have none",
    )
    seed: int = 0

    @model_validator(mode="after")
    def _no_fresh_group_of_a_decision_that_was_rewarded(self) -> Self:
        if self.mode == "on_policy" and self.epochs != 1:
            raise ValueError(
                "mode=on_policy needs epochs=1: who rolls out a decision again has learnt from it; valid for more steps"
                " is updates"
            )
        return self


class EvaluationSettings(Section):
    beam: int = Field(50, ge=50)
    batch_size: int = Field(128, ge=1, description="users ranked at once")
    bootstrap_samples: int = Field(1000, ge=100)
    least_users: int = Field(30, ge=1, description="held-out users without whom no champion is replaced")
    ndcg_weight: float = Field(1.0, gt=0, description="of NDCG@10 in the score by which candidates are compared")
    ecpm_weight: float = Field(
        0.25,
        ge=0,
        description="the same of expected eCPM; values count where the source logs propensities, elsewhere they only"
        " refuse",
    )
    gmv_weight: float = Field(0.0, ge=0, description="the same of expected GMV")
    dislikes_weight: float = Field(0.0, ge=0, description="the same of expected dislikes, of which fewer are better")
    weight_limit: float = Field(
        1000.0,
        gt=0,
        description="largest importance weight of a logged impression, one over its propensity; a smaller one leaves"
        " more to the reward model (docs/lab-notes.md)",
    )
    value_tolerance: float = Field(
        0.02,
        ge=0,
        description="share of expected eCPM or GMV that a candidate may surely lose, or by which dislikes may surely"
        " grow",
    )
    tolerance: float = Field(
        0.05,
        ge=0,
        description="how far below the baseline a candidate's interval may reach, as a share of the baseline's NDCG@10",
    )
    start_tolerance: float = Field(
        0.25,
        ge=0,
        description="the same for the optimised policy against its own start, in one night: its users exclude gross"
        " losses only, the nights of its recipe together the rest",
    )
    least_coverage: float = Field(
        0.8, ge=0, description="smallest share of the champion's coverage of the catalogue that a candidate may have"
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="how likely a recipe that is no better than its start may ever be taken for one that is, by chance"
        " among users",
    )
    history: Literal["auto", "kept", "left_out"] = Field(
        "auto",
        description="whether lists may hold items of the history; auto: not where users of the source never repeat one",
    )
    seed: int = 0


class QualitySettings(Section):
    sample_rows: int = Field(5, ge=1, description="rows shown per failed check")
    clip_fraction_limit: float = Field(
        0.3, ge=0, le=1, description="share of tokens outside the clip range above which a night says so"
    )
    kl_limit: float = Field(
        0.05,
        ge=0,
        description="the same for k3 of the optimised policy to its start, nats a token; where `make bench-updates`"
        " loses lists it is .06 and more, in its bounded trainings .02",
    )
    least_signal_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the rollout groups that tell their candidates apart below which a night says so: the"
        " others teach nothing, and below one half most of them are in vain",
    )
    data_docs_nights: int = Field(
        7, ge=1, description="newest nights that the Data Docs cover; they slow down as these grow"
    )


class AirflowSettings(Section):
    retries: int = Field(
        1, ge=0, description="further tries of a job that crashed; one that stopped deliberately has none"
    )
    retry_delay_seconds: float = Field(30.0, ge=0, description="wait before the first retry; doubles with each")
    gpu_slots: int = Field(1, ge=1, description="slots of the pool gpu: stages that may hold a GPU at the same time")
    late_hours: float = Field(
        36.0, gt=0, description="hours after the end of the newest night's day from when `sgrec doctor` misses the next"
    )
    warm: bool = Field(
        True, description="fork the jobs of `sgrec nightly` from one process that has imported the libraries"
    )


class AlertSettings(Section):
    """Whom incidents are told; nobody by default. No file of a home, page or command holds these."""

    webhook: SecretStr | None = Field(None, description="https://..., which takes {'text': ...} as Slack's does")
    smtp_host: str | None = Field(None, description="mail server; needs smtp_from and smtp_to")
    smtp_port: int = Field(587, ge=1, le=65535)
    smtp_encryption: Literal["starttls", "tls", "none"] = "starttls"
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_from: str | None = None
    smtp_to: str | None = Field(None, description="addresses, separated by commas")
    late_hours: float = Field(
        20.0, gt=0, description="hours after a night was queued in Airflow from when it is late unless it has ended"
    )

    @field_serializer("webhook", "smtp_password", when_used="json-unless-none")
    def _for_child_processes(self, secret: SecretStr) -> str:
        return secret.get_secret_value()

    @field_validator("webhook")
    @classmethod
    def _is_a_url(cls, webhook: SecretStr | None) -> SecretStr | None:
        if webhook is not None and not webhook.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("valid is a URL that begins with https://")
        return webhook

    @model_validator(mode="after")
    def _mail_has_sender_and_addresses(self) -> Self:
        if self.smtp_host and not (self.smtp_from and self.smtp_to):
            raise ValueError("smtp_host needs smtp_from and smtp_to: who sends, and who is told")
        return self

    @property
    def destinations(self) -> list[str]:
        """``webhook`` and ``mail``, where they are set."""
        return [name for name, is_set in (("webhook", self.webhook), ("mail", self.smtp_host)) if is_set]

    @property
    def secrets(self) -> list[str]:
        """What no message may hold."""
        return [secret.get_secret_value() for secret in (self.webhook, self.smtp_password) if secret]


MAPPING = "map.yaml"
"""In a home: the mapping of its raw logs, as ``--map`` gave it last."""


class Settings(BaseSettings):
    """All settings; ``Settings()`` reads the environment.

    Raises:
        pydantic.ValidationError: a value is of the wrong type or out of range (the command line words it).
    """

    # A wrong value may be a secret, and Airflow shows the errors of a DAG's import; `read_settings` tells others.
    model_config = SettingsConfigDict(
        env_prefix="SGREC_", env_nested_delimiter="__", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    home: Path = Path(".sgrec")
    lake: str | None = Field(None, description="path or URI of the tables (s3://...); by default SGREC_HOME/lake")
    input: str = Field("simulator", description="simulator, scientific:PATH, beauty:PATH, minionerec:PATH or logs:PATH")
    first_day: str = Field("2026-01-05", description="first day of the simulator and of the public sets")
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    spark_master: str | None = Field(None, description="Spark master; by default local threads")
    spark_memory: str = "3g"
    mlflow_uri: str | None = Field(None, description="MLflow server; by default SQLite under SGREC_HOME/mlflow")

    interpreters: InterpreterSettings = InterpreterSettings()
    simulator: SimulatorSettings = SimulatorSettings()
    adaptor: AdaptorSettings = AdaptorSettings()
    ingest: IngestSettings = IngestSettings()
    states: StateSettings = StateSettings()
    items: ItemSettings = ItemSettings()
    business: BusinessSettings = BusinessSettings()
    supervised: SupervisedSettings = SupervisedSettings()
    rollout: RolloutSettings = RolloutSettings()
    judge: JudgeSettings = JudgeSettings()
    judge_training: JudgeTrainingSettings = JudgeTrainingSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
    fusion: FusionSettings = FusionSettings()
    policy: PolicySettings = PolicySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    quality: QualitySettings = QualitySettings()
    airflow: AirflowSettings = AirflowSettings()
    alerts: AlertSettings = AlertSettings()

    def environment(self) -> dict[str, str]:
        """The environment of a child process that is to have these settings: what is not at its default as variables.

        Children may run in another folder, so all paths are absolute.
        """
        given = {**self.model_dump(mode="json", exclude_unset=True), "home": str(self.home.resolve())}
        if self.lake is not None:
            given["lake"] = self.lake_root
        if self.ingest.mapping is not None:
            given["ingest"]["mapping"] = str(self.ingest.mapping.resolve())
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SGREC_")}
        return {**inherited, **dict(_variables("SGREC", given))}

    def assignments(self) -> dict[str, str | None]:
        """What is not at its default as variables, but home and alerts; None in place of a value that holds a secret.

        For people who paste it into a shell, in whatever folder: all paths are absolute.
        """
        # A number of threads that nobody gave is that of this machine.
        given = {"threads"} - self.model_fields_set
        told = _absolute(self.model_dump(exclude_defaults=True, exclude={"home", "alerts", *given}))
        kind, colon, path = self.input.partition(":")
        told["input"] = f"{kind}:{Path(path).resolve()}" if colon and "://" not in path else self.input
        if self.lake is not None:
            told["lake"] = self.lake_root
        variables = sorted(_variables("SGREC", told))
        return {name: value if without_secrets(value) == value else None for name, value in variables}

    @field_validator("home", mode="before")
    @classmethod
    def _is_a_folder(cls, home: Any) -> Any:
        if "://" in str(home):
            raise ValueError("the home is a folder on this machine; tables alone may lie elsewhere: SGREC_LAKE")
        if Path(home).is_file():
            raise ValueError("a file is there; valid is a folder, or one that does not exist yet")
        return home

    @property
    def mapping(self) -> Path | None:
        """The file that maps the raw logs of this home: what the setting names, else the home's own."""
        own = self.home.resolve() / MAPPING
        return self.ingest.mapping or (own if own.exists() else None)

    @property
    def lake_root(self) -> str:
        """A path, or a URI as it was given."""
        lake = self.lake or str(self.home / "lake")
        return lake if "://" in lake else str(Path(lake).resolve())

    @property
    def source(self) -> str:
        """The kind of input: the part of ``input`` before the colon."""
        return self.input.partition(":")[0]

    def reports(self, day: str, folder: str = "") -> Path:
        """The folder of a day's report, summary, validations and progress; ``folder`` as in `Stage`."""
        return self.home.resolve() / "reports" / day / folder


def _absolute(value: Any) -> Any:
    """Paths as whole ones, in text."""
    if isinstance(value, dict):
        return {name: _absolute(inner) for name, inner in value.items()}
    return str(value.resolve()) if isinstance(value, Path) else value


def _variables(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """``SGREC_JUDGE__ENGINE`` and its like; what is None says nothing."""
    if isinstance(value, dict):
        separator = "_" if name == "SGREC" else "__"
        for inner, content in value.items():
            yield from _variables(f"{name}{separator}{inner.upper()}", content)
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)
