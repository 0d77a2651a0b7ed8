"""Fit the calibrated click model behind eCPM, or declare the ranking reward where there are no bids.

With impressions and bids the business reward of a candidate is 1000 x calibrated click probability x last bid; the
click models learn from a window of days up to the night's, each from one half of the users for the rewards of the
other, and read nothing of validation users; beside them stand models of clicks, purchases and dislikes of all training
users, by which candidates are evaluated. Without them it is the next-item ranking reward (MiniOneRec, arXiv
2510.24431), which needs no fit.
"""

from sgrec_core.lake.queries import days_until
from sgrec_core.night.business import day_context
from sgrec_core.registry import CODE_TAG, ModelVersion, Registry
from sgrec_core.registry.nights import mark_of_night
from sgrec_core.rewards.business import EcpmModel
from sgrec_core.rewards.responses import RESPONSES, ResponseModel
from sgrec_core.runtime.job import Job, stage_command
from sgrec_core.runtime.stages import BUSINESS_REWARD

RANKING_RULE = (
    "the logs have no impressions with bids: the business reward is the next-item ranking reward (1 for the item "
    "chosen; in a group that has it, each other candidate loses by its rank; 0 for all in a group without it)"
)


def run(job: Job) -> None:
    settings = job.settings.business
    window = days_until(job.day, settings.window_days)
    fingerprint = job.inputs_fingerprint(
        {
            "settings": settings.model_dump(),
            "validation_share": job.settings.states.validation_share,
            "events": {day: job.lake.fingerprint("events", {"day": day}) for day in window},
        }
    )
    registry = Registry(job.settings)
    version = registry.find(BUSINESS_REWARD, fingerprint)
    if version is not None and not job.force:
        job.keep_facts()
    else:
        version = _fit(job, registry, fingerprint)
    mark_of_night(registry, version)


def _fit(job: Job, registry: Registry, fingerprint: str) -> ModelVersion:
    settings = job.settings.business
    context = day_context(job.lake, job.day, job.settings)
    tables = {table: job.lake.version(table) for table in job.stage.reads}
    if not context.has_impressions_with_bids:
        job.fact("business_reward", "next-item ranking")
        job.note(RANKING_RULE)
        return registry.register(
            BUSINESS_REWARD,
            day=job.day,
            fingerprint=fingerprint,
            tensors={},
            config={"kind": "ranking", "rule": RANKING_RULE},
            tables=tables,
            tags={CODE_TAG: job.code_digest},
        )
    fitting = settings.model_dump(include={"seed", "trees", "learning_rate"}) | {"threads": job.settings.threads}
    model = EcpmModel.fit(context, **fitting)
    responses = ResponseModel.fit(context, **fitting)
    job.fact("business_reward", "eCPM")
    job.fact("values_told", ", ".join(responses.outcomes) or "none")
    for name, value in model.metrics.items():
        job.fact(name, value)
    job.note(
        "eCPM = 1000 x calibrated click probability x the item's last bid before the decision; the probability is of a "
        "click model fitted on the half of the users that the decision's is not in, and so are calibration error and "
        f"AUC. On the half that it was fitted on a model has an AUC of {model.metrics['auc_in_fold']:.3f} instead of "
        f"{model.metrics['auc']:.3f}: rewards from that one would teach what it remembers"
    )
    return registry.register(
        BUSINESS_REWARD,
        day=job.day,
        fingerprint=fingerprint,
        tensors={},
        config={**model.to_config(), RESPONSES: responses.to_config()},
        metrics=model.metrics,
        parameters=settings.model_dump(),
        tables=tables,
        tags={CODE_TAG: job.code_digest},
    )


main = stage_command("fit_business_reward", run)

if __name__ == "__main__":
    main()
