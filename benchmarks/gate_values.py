"""Expected business value on the market's requests, joined as a night joins it (`sgrec_core.night.value.Appraiser`).

Each half of the users is told by models that were fitted on the other half's impressions, of the days before the
evaluation: held-out users are in no fit. Propensities are those of the simulator's logging policy.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.simulated import Log
from sgrec_core import simulator
from sgrec_core.hashing import hash_share
from sgrec_core.rewards.business_context import BusinessContext
from sgrec_core.rewards.responses import ResponseModel, worth
from sgrec_core.settings import BusinessSettings


class Appraisal:
    """What R requests of a log were answered with, S items each, and what other lists would have earned there."""

    def __init__(self, log: Log, rows: np.ndarray) -> None:
        self.log, self.rows, self.states = log, rows, log.states(rows)
        catalogue = pa.Table.from_pylist(simulator.catalogue_rows(log.items))
        catalogue = catalogue.select(["item_id", "price", "category", "brand"])
        users = pa.table({"user_id": log.users.ids, "profile": log.profiles})
        settings = BusinessSettings()
        fitted_on = pa.concat_tables(log.events[: log.market.supervised_days + 1])
        fitting = {"seed": settings.seed, "trees": settings.trees, "learning_rate": settings.learning_rate}
        self.half = self._half(log.users.ids)[log.user[rows]]
        self.models = [
            ResponseModel.fit(
                BusinessContext(fitted_on, catalogue, users, keep_user=lambda ids, half=half: self._half(ids) != half),
                **fitting,
            )
            for half in (0, 1)
        ]
        # Features count what lies strictly before a request.
        self.context = BusinessContext(pa.concat_tables(log.events), catalogue, users)
        self.item = np.array([self.context.item_index[name] for name in log.items.ids])

    @staticmethod
    def _half(users: object) -> np.ndarray:
        """0 or 1 for each user id."""
        return (hash_share(users, "gate-halves") < 0.5).astype(int)  # type: ignore[arg-type]

    @property
    def outcomes(self) -> list[str]:
        """Those that both halves have a model of."""
        return [name for name in self.models[0].outcomes if name in self.models[1].outcomes]

    def expected(self, lists: np.ndarray, bids: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """By outcome [R, S] float32, of lists [R, S] of items; ``bids`` [R, S] are by default the items' last ones."""
        found = {name: np.zeros(lists.shape, dtype=np.float32) for name in self.outcomes}
        places = np.tile(np.arange(lists.shape[1]), (len(lists), 1))
        for half, model in enumerate(self.models):
            mine = np.flatnonzero(self.half == half)
            row = np.repeat(np.arange(len(mine)), lists.shape[1])
            shown = (row, self.item[lists[mine]].reshape(-1), places[mine].reshape(-1))
            of_half = None if bids is None else bids[mine].reshape(-1)
            values = model.expected(self.states.take(pa.array(mine)), shown, self.context, of_half)
            for name in found:
                found[name][mine] = values[name].reshape(len(mine), -1)
        return found

    def logged(self) -> dict[str, np.ndarray]:
        """What was shown, its propensity, what came of it (``reward:...``) and was expected (``predicted:...``)."""
        log, rows = self.log, self.rows
        bids, converted = self._of_events()
        shown = log.shown[rows]
        counts_for = worth(bids[rows], log.items.price[shown])
        came = {"ecpm": log.clicked[rows], "gmv": converted[rows], "dislikes": log.disliked[rows]}
        assert log.propensity is not None
        found = {"shown": shown, "propensity": log.propensity[rows]}
        for name, values in self.expected(shown, bids[rows]).items():
            found |= {f"reward:{name}": came[name] * counts_for[name], f"predicted:{name}": values}
        return found

    def _of_events(self) -> tuple[np.ndarray, np.ndarray]:
        """Bids and whether it was bought, of every request of the log [requests, S]."""
        bids, converted = np.zeros(self.log.shown.shape), np.zeros(self.log.shown.shape, dtype=bool)
        start = 0
        for number, table in enumerate(self.log.events):
            for kind, into in (("impression", bids), ("conversion", converted)):
                events = table.filter(pc.equal(table["event_type"], kind))
                # A request's id ends with the number of its slate.
                slate = [start + int(request.rsplit("-", 1)[1]) for request in events["request_id"].to_pylist()]
                place = events["position"].to_numpy()
                into[slate, place] = events["bid"].to_numpy() if kind == "impression" else True
            start += int((self.log.day == number).sum())
        return bids, converted
