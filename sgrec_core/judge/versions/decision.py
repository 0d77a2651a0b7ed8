"""What the decision of a comparison changes: which judge, and which adapter, nights after the day may use."""

from sgrec_core.evaluation.gate import Verdict
from sgrec_core.judge.calls.ledger import has_judged_nights
from sgrec_core.judge.versions.accepted import accept, take_back
from sgrec_core.judge.versions.adapters import Adapter, activate, activated
from sgrec_core.judge.versions.comparison import trained_candidate
from sgrec_core.lake import Lake
from sgrec_core.settings import Settings


def carry_out(
    found: Verdict, lake: Lake, settings: Settings, day: str, *, candidate: Settings, version: str
) -> Adapter | None:
    """Let nights use the candidate, or not; returns its adapter where the day's training made it.

    ``candidate`` are the settings whose judge the candidate is, ``version`` its judge version.
    """
    adapter = trained_candidate(settings, day)
    if found.passed:
        accept(candidate, day, "gate", found.reason)
        if adapter is not None:
            activate(settings, day, adapter)
        return adapter
    # The same candidate, judged again by other rules; what another comparison of the day let pass stays, and nights
    # that have judged with it must be able to run again.
    if not has_judged_nights(lake, version):
        take_back(settings, day, version)
    if adapter is not None and activated(settings, day) == adapter:
        activate(settings, day, None)
    return adapter
