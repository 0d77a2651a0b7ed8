"""Expected business value of what a policy would have shown held-out users of a night."""

from dataclasses import dataclass

import numpy as np

from sgrec_core.evaluation.value import Logged, Values, estimate
from sgrec_core.generator.dataset import Catalogue
from sgrec_core.lake import Lake
from sgrec_core.night.business import day_context
from sgrec_core.night.held_out import Requests, held_out_requests
from sgrec_core.registry import Registry
from sgrec_core.registry.nights import of_night
from sgrec_core.rewards.business_context import BusinessContext
from sgrec_core.rewards.responses import RESPONSES, ResponseModel, worth
from sgrec_core.runtime.stages import BUSINESS_REWARD
from sgrec_core.settings import Settings


@dataclass(frozen=True)
class Appraiser:
    """A night's requests of held-out users, and what tells the worth of a list for them."""

    requests: Requests
    model: ResponseModel
    context: BusinessContext
    logged: Logged
    clip: float

    @classmethod
    def of_night(
        cls, lake: Lake, registry: Registry, day: str, settings: Settings, share: float = 1.0
    ) -> "Appraiser | None":
        """For the requests of this ``share`` of users; see `held_out_requests`.

        None where the source logs no impressions with bids, or they are too few for a model.
        """
        config = registry.load(of_night(registry, BUSINESS_REWARD, day, stage="fit_business_reward"))[1]
        if not config.get(RESPONSES):
            return None
        requests = held_out_requests(lake, day, settings, share)
        if requests is None:
            return None
        model = ResponseModel(config[RESPONSES])
        # With held-out users' own events: what they did before a request is known when it is served.
        context = day_context(lake, day, settings, everybody=True)
        item = np.array([context.item_index[name] for name in requests.item], dtype=np.int64)
        price = np.where(np.isfinite(requests.price), requests.price, context.item_price[item])
        counts_for = worth(requests.bid, price)
        logged = Logged(
            users=requests.states["user_id"].to_numpy()[requests.row],
            propensities=requests.propensity,
            rewards={name: requests.answered[name] * counts_for[name] for name in model.outcomes},
            predicted=model.expected(requests.states, (requests.row, item, requests.position), context, requests.bid),
            places=int(requests.position.max()) + 1,
        )
        return cls(requests, model, context, logged, settings.evaluation.weight_limit)

    def values(self, lists: np.ndarray, catalogue: Catalogue) -> Values:
        """Of a policy with ranked ``lists`` [R, K] (item indices, -1 for none) for the requests.

        It stands where the impressions stood: a request that was answered with eight items is answered with its best
        eight. A place beyond the list earns nothing.
        """
        requests = self.requests
        inside = requests.position < lists.shape[1]
        ours = np.where(inside, lists[requests.row, np.minimum(requests.position, lists.shape[1] - 1)], -1)
        shown = ours >= 0
        names = catalogue.ids(ours[shown])
        item = np.array([self.context.item_index[name] for name in names], dtype=np.int64)
        found = self.model.expected(
            requests.states, (requests.row[shown], item, requests.position[shown]), self.context
        )
        expected = {}
        for outcome, values in found.items():
            expected[outcome] = np.zeros(len(ours))
            expected[outcome][shown] = values
        same = np.zeros(len(ours), dtype=bool)
        same[shown] = np.array(names, dtype=object) == np.array(requests.item, dtype=object)[shown]
        return estimate(self.logged, same, expected, self.clip)
