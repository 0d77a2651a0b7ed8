"""Which candidate serves: planted better and worse ones, and what a hostile candidate would try."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sgrec_core.evaluation.gate import Choice, Comparison, Evidence, Margins, against, compare, decide
from sgrec_core.evaluation.metrics import NOVELTY_BUCKETS
from sgrec_core.evaluation.ranking import Ranking, Resampling
from sgrec_core.evaluation.roles import CHAMPION, OPTIMISED, POPULARITY, SUPERVISED
from sgrec_core.evaluation.score import Weights
from sgrec_core.evaluation.significance import Interval
from sgrec_core.evaluation.value import DIRECT, DOUBLY_ROBUST, Values
from sgrec_core.generator.dataset import Catalogue

USERS, ITEMS, LIST = 400, 125, 50
DRAWS = Resampling(seed=0, resamples=200)
MARGINS = Margins(baseline=0.05, start=0.25, coverage=0.8, value=0.02)
WEIGHTS = Weights(ndcg=1, ecpm=0.5, gmv=0, dislikes=0)
SHOWN, NOT_SHOWN, TURNED = (
    Evidence(nights=nights, users=400, mean=0.01, value=value, against=against, needed=20)
    for nights, value, against in ((9, 31.4, 0.1), (12, 1.2, 0.1), (60, 31.4, 25.0))
)
CODES = np.stack(np.unravel_index(np.arange(ITEMS), (5, 5, 5)), axis=1)


def ranking(ranks: np.ndarray, *, model: str = "m", kinds: int = 40, seed: int = 0) -> Ranking:
    """User u's target stands at ``ranks[u]``, nowhere where that is LIST or more; lists use ``kinds`` other items."""
    draws = np.random.default_rng(seed)
    targets = np.arange(USERS) % ITEMS
    items = np.full((USERS, LIST), -1)
    for user, rank in enumerate(ranks):
        others = [item for item in draws.permutation(kinds + 1) if item != targets[user]]
        items[user, : len(others)] = others[:LIST]
        if rank < LIST:
            items[user, rank] = targets[user]
    # A third of the targets share no code with the history, the others mostly two.
    histories = ((targets + np.where(targets % 3, 1, 25)) % ITEMS)[:, None]
    catalogue = Catalogue(pa.array([f"i{item:03d}" for item in range(ITEMS)]), CODES, 5, "t")
    return Ranking(
        model, "1", items, targets, histories, catalogue, np.array([f"u{user:03d}" for user in range(USERS)])
    )


def hits(share: float, *, rank: int = 3, seed: int = 1) -> np.ndarray:
    """The target stands at ``rank`` for about ``share`` of the users, for all others nowhere."""
    return np.where(np.random.default_rng(seed).random(USERS) < share, rank, LIST)


def choose(
    rankings: Mapping[str, Ranking],
    evidence: Evidence | None = SHOWN,
    of_champion: Mapping[tuple[str, str], Evidence] = {},
) -> Choice:
    """As a night does."""
    pairs = [(OPTIMISED, SUPERVISED)] if OPTIMISED in rankings else []
    pairs += [
        (one, other)
        for one in (OPTIMISED, SUPERVISED)
        for other in (CHAMPION, POPULARITY)
        if one in rankings and other in rankings
    ]
    return decide(
        {(one, other): compare(rankings[one], rankings[other], DRAWS, WEIGHTS) for one, other in pairs},
        MARGINS,
        {} if evidence is None else {(OPTIMISED, SUPERVISED): evidence, **of_champion},
    )


FLOOR = ranking(hits(0.1), model=POPULARITY)


def test_an_optimised_policy_below_its_own_start_is_never_promoted_whatever_its_recipe_has_shown() -> None:
    """The night that this gate was made for: far above popularity, below the policy that it was made of."""
    found = choose({SUPERVISED: ranking(hits(0.6)), OPTIMISED: ranking(hits(0.4)), POPULARITY: FLOOR})
    assert found.serves == SUPERVISED
    assert "surely worse than its start" in found.reason


def test_one_that_is_surely_below_its_start_is_refused_however_little_it_lacks() -> None:
    """Within the tolerance, above champion and popularity, and with a shown recipe: it used to be promoted."""
    start = np.where(np.arange(USERS) % 2, LIST, 1)
    optimised = ranking(np.where(np.arange(USERS) % 2, 14, 2))
    found = choose({SUPERVISED: ranking(start), OPTIMISED: optimised, CHAMPION: ranking(hits(0.25)), POPULARITY: FLOOR})
    assert found.serves == SUPERVISED
    assert "surely worse than its start" in found.reason


def test_one_that_may_have_lost_more_than_the_tolerance_is_refused() -> None:
    draws = np.random.default_rng(5)
    few = np.where(np.arange(USERS) < 12, 0, LIST)
    rankings = {
        SUPERVISED: ranking(few),
        OPTIMISED: ranking(draws.permutation(few)),
        POPULARITY: ranking(hits(0), model=POPULARITY),
    }
    found = choose(rankings)
    assert found.serves != OPTIMISED
    assert "it may have lost what its start had" in found.reason or "surely worse" in found.reason


def test_a_recipe_that_has_turned_serves_no_longer() -> None:
    rankings = {SUPERVISED: ranking(hits(0.4)), OPTIMISED: ranking(hits(0.6)), POPULARITY: FLOOR}
    found = choose(rankings, TURNED)
    assert found.serves == SUPERVISED
    assert "and 25 that it is worse" in found.reason


def test_an_optimised_policy_has_to_keep_the_deep_lists_of_its_start_and_the_floor() -> None:
    deep = np.where(np.random.default_rng(1).random(USERS) < 0.9, 30, LIST)
    found = choose({SUPERVISED: ranking(deep), OPTIMISED: ranking(hits(0.5, rank=0)), POPULARITY: FLOOR})
    assert found.serves != OPTIMISED
    assert "hit_rate@50 surely worse" in found.reason
    above = {SUPERVISED: ranking(hits(0.2)), OPTIMISED: ranking(hits(0.3)), CHAMPION: ranking(hits(0.1))}
    assert choose({**above, POPULARITY: ranking(hits(0.5), model=POPULARITY)}).serves is None


def test_a_few_users_of_a_bucket_veto_nothing_and_a_chance_difference_is_not_sure() -> None:
    before, after = hits(0.25, rank=9), hits(0.75, rank=0)
    after[5], before[5] = 30, 9
    found = choose({SUPERVISED: ranking(after), CHAMPION: ranking(before), POPULARITY: FLOOR}, None)
    assert found.serves == SUPERVISED
    noise = np.where(np.arange(USERS) % 40 == 0, 49, np.where(np.arange(USERS) % 40 == 1, LIST, hits(0.6, rank=5)))
    other = np.where(np.arange(USERS) % 40 == 1, 49, np.where(np.arange(USERS) % 40 == 0, LIST, hits(0.6, rank=5)))
    other[79], noise[79] = 49, LIST
    better = np.where(noise == 5, 0, noise)
    assert choose({SUPERVISED: ranking(better), CHAMPION: ranking(other), POPULARITY: FLOOR}, None).serves == SUPERVISED


def test_a_better_optimised_policy_serves_only_when_its_recipe_is_shown() -> None:
    rankings = {SUPERVISED: ranking(hits(0.4)), OPTIMISED: ranking(hits(0.6)), POPULARITY: FLOOR}
    assert choose(rankings, SHOWN).serves == OPTIMISED
    for evidence in (NOT_SHOWN, None):
        found = choose(rankings, evidence)
        assert found.serves == SUPERVISED
        assert "not shown to be better than its start" in found.reason
    assert "evidence 1.2 of 20 after 12 nights; 400 users can show 0.0100 or more" in choose(rankings, NOT_SHOWN).reason


def test_what_follows_a_shown_recipe_has_to_be_shown_against_it() -> None:
    rankings = {SUPERVISED: ranking(hits(0.6)), OPTIMISED: ranking(hits(0.65)), CHAMPION: ranking(hits(0.4))}
    rankings[POPULARITY] = FLOOR
    both = {(role, CHAMPION): NOT_SHOWN for role in (SUPERVISED, OPTIMISED)}
    found = choose(rankings, SHOWN, both)
    assert found.serves is None
    assert found.reason.count("its recipe is not shown to be better than the champion's") == 2
    assert choose(rankings, SHOWN, {**both, (SUPERVISED, CHAMPION): SHOWN}).serves == SUPERVISED
    assert choose(rankings, SHOWN, {(OPTIMISED, CHAMPION): SHOWN}).serves == OPTIMISED


def test_nothing_serves_that_is_not_above_the_champion() -> None:
    champion = ranking(hits(0.6))
    rankings = {SUPERVISED: ranking(hits(0.5)), OPTIMISED: ranking(hits(0.55)), CHAMPION: champion, POPULARITY: FLOOR}
    found = choose(rankings)
    assert found.serves is None
    assert "supervised policy not: not better" in found.reason
    assert "optimised policy not: not better" in found.reason


def test_the_same_model_again_is_not_better() -> None:
    same = ranking(hits(0.5))
    assert choose({SUPERVISED: same, CHAMPION: same, POPULARITY: FLOOR}, None).serves is None


def test_popularity_is_the_floor_beside_a_bad_champion_too() -> None:
    rankings = {
        SUPERVISED: ranking(hits(0.3)),
        CHAMPION: ranking(hits(0.1)),
        POPULARITY: ranking(hits(0.5), model=POPULARITY),
    }
    found = choose(rankings, None)
    assert found.serves is None
    assert "of popularity" in found.reason


def test_a_better_top_does_not_excuse_a_lost_deep_list() -> None:
    """Half of the users get their target first; before, nine tenths had it somewhere in the list of fifty."""
    deep = np.where(np.random.default_rng(1).random(USERS) < 0.9, 30, LIST)
    found = choose({SUPERVISED: ranking(hits(0.5, rank=0)), CHAMPION: ranking(deep), POPULARITY: FLOOR}, None)
    assert found.serves is None
    assert "hit_rate@50 surely worse" in found.reason


def test_a_kind_of_target_that_is_surely_lost_is_named() -> None:
    """All the gain is among targets that share two codes with the history, and those that share none are lost."""
    before, after = ranking(hits(0.5, rank=9)), None
    novel = before.buckets() == 3
    assert 20 < novel.sum() < USERS / 2
    after = ranking(np.where(novel, LIST, 0))
    found = choose({SUPERVISED: after, CHAMPION: before, POPULARITY: FLOOR}, None)
    assert found.serves is None
    assert "of targets in bucket shares_none surely worse" in found.reason


def test_a_policy_that_forgets_half_of_the_catalogue_is_refused() -> None:
    rankings = {
        SUPERVISED: ranking(np.full(USERS, LIST), kinds=52),
        CHAMPION: ranking(hits(0.2), kinds=124),
        POPULARITY: FLOOR,
    }
    rankings[SUPERVISED] = ranking(np.where(np.arange(USERS) % ITEMS < 50, 0, LIST), kinds=52)
    found = choose(rankings, None)
    assert found.serves is None
    assert "coverage" in found.reason


def test_every_verdict_says_what_a_night_of_these_users_can_show() -> None:
    found = choose({SUPERVISED: ranking(hits(0.6)), POPULARITY: FLOOR}, None)
    assert found.serves == SUPERVISED
    assert "one night shows 0.0" in found.reason


@pytest.mark.parametrize("swapped", range(3))
def test_identical_candidates_are_promoted_by_chance_alone(swapped: int) -> None:
    """Results of users swapped by coin, models that hit other users: of thirty such nights few are promoted."""
    draws = np.random.default_rng(swapped)
    one, other = hits(0.5, seed=2), hits(0.5, seed=3)
    promoted = 0
    for _ in range(30):
        coin = draws.random(USERS) < 0.5
        ours, theirs = np.where(coin, one, other), np.where(coin, other, one)
        rankings = {SUPERVISED: ranking(ours), CHAMPION: ranking(theirs), POPULARITY: FLOOR}
        promoted += choose(rankings, None).serves is not None
    assert promoted <= 6


def worth(model: Ranking, effective: float = 0.0, **means: float) -> Ranking:
    """``model`` with these expected values, a tenth of them to and fro between users."""
    users = np.unique(model.users)
    spread = np.random.default_rng(7).normal(1, 0.1, len(users))
    estimators = [DIRECT, DOUBLY_ROBUST] if effective else [DIRECT]
    told = {(outcome, estimator): mean * spread for outcome, mean in means.items() for estimator in estimators}
    return replace(model, worth=Values(users, told, effective, 1.0, 8))


@pytest.mark.parametrize("effective", [0.0, 5000.0])
@pytest.mark.parametrize(
    ("before", "after"),
    [({"ecpm": 200}, {"ecpm": 180}), ({"gmv": 900}, {"gmv": 800}), ({"dislikes": 0.01}, {"dislikes": 0.02})],
)
def test_a_better_top_does_not_excuse_lost_value_however_it_is_told(
    before: dict[str, float], after: dict[str, float], effective: float
) -> None:
    rankings = {SUPERVISED: worth(ranking(hits(0.9)), effective, **after), POPULARITY: FLOOR}
    rankings[CHAMPION] = worth(ranking(hits(0.3)), effective, **before)
    found = choose(rankings, None)
    assert found.serves is None
    assert f"{next(iter(before))} surely worse" in found.reason
    assert choose({**rankings, SUPERVISED: worth(ranking(hits(0.9)), effective, **before)}, None).serves == SUPERVISED


def test_value_told_by_a_reward_model_alone_promotes_nobody_and_logged_answers_do() -> None:
    """Next items the same but for a user; eCPM half as much again."""
    same, one_less = hits(0.5), hits(0.5)
    one_less[np.flatnonzero(one_less < LIST)[0]] = LIST
    for effective, serves in ((0.0, None), (5000.0, SUPERVISED)):
        rankings = {
            SUPERVISED: worth(ranking(one_less), effective, ecpm=300),
            CHAMPION: worth(ranking(same), effective, ecpm=200),
            POPULARITY: FLOOR,
        }
        found = choose(rankings, None)
        assert found.serves == serves, found.reason
        assert ("eCPM 296.8 against 197.9 (doubly robust)" in found.reason) == (effective > 0)
        assert ("it can only refuse" in found.reason) == (not effective)


def test_a_model_alone_does_not_defend_what_was_optimised_for_it() -> None:
    """The champion was optimised for the reward model, which finds it better by a fifth; next items say otherwise."""
    flattered = replace(worth(ranking(hits(0.3)), ecpm=250), optimised=True)
    rankings = {SUPERVISED: worth(ranking(hits(0.9)), ecpm=200), CHAMPION: flattered, POPULARITY: FLOOR}
    assert choose(rankings, None).serves == SUPERVISED
    answered = replace(worth(ranking(hits(0.3)), 5000, ecpm=250), optimised=True)
    rankings |= {SUPERVISED: worth(ranking(hits(0.9)), 5000, ecpm=200), CHAMPION: answered}
    assert "ecpm surely worse" in choose(rankings, None).reason


def test_a_worthless_champion_gives_way_whatever_its_values_are() -> None:
    """It hits one target or none: an NDCG@10 that is not surely above 0 used to be left out of the score."""
    one = hits(0)
    one[3] = 3
    for champion in (hits(0), one):
        rankings = {
            SUPERVISED: worth(ranking(hits(0.6)), 5000, ecpm=199),
            CHAMPION: worth(ranking(champion), 5000, ecpm=200),
            POPULARITY: FLOOR,
        }
        assert choose(rankings, None).serves == SUPERVISED


def test_values_do_not_carry_a_candidate_without_any_hit_over_a_floor_of_one() -> None:
    one = hits(0)
    one[3] = 3
    rankings = {
        SUPERVISED: worth(ranking(hits(0)), 5000, ecpm=150),
        POPULARITY: worth(ranking(one, model=POPULARITY), 5000, ecpm=100),
    }
    assert choose(rankings, None).serves is None


def test_what_is_no_number_passes_nothing() -> None:
    found = compare(ranking(hits(0.6)), ranking(hits(0.3)), DRAWS, WEIGHTS)
    assert not against(found, MARGINS)
    for wrong in (Interval(np.nan, 0.1, 0.2), Interval(0.2, np.nan, 0.3)):
        assert against(replace(found, score=wrong), MARGINS)
        start = {(OPTIMISED, SUPERVISED): replace(found, score=wrong), (OPTIMISED, POPULARITY): found}
        served = decide(start, MARGINS, {(OPTIMISED, SUPERVISED): SHOWN}).serves
        assert served is None or not np.isnan(wrong.lower)


def test_coverage_is_counted_in_items_where_catalogues_differ() -> None:
    """The champion reads another tokenizer's ids, which cover half of the day's items: its share is of these."""
    few = np.where(np.arange(USERS) % ITEMS < 60, 0, LIST)
    champion, candidate = ranking(np.where(hits(0.5) < LIST, few, LIST), kinds=60), ranking(few, kinds=80)
    half = Catalogue(champion.catalogue.item_ids[:60], CODES[:60], 5, "before")
    champion = replace(champion, catalogue=half, targets=np.where(champion.targets < 60, champion.targets, -2))
    champion = replace(champion, items=np.where(champion.items < 60, champion.items, -1))
    assert candidate.coverage() < 0.8 * champion.coverage()
    assert choose({SUPERVISED: candidate, CHAMPION: champion, POPULARITY: FLOOR}, None).serves == SUPERVISED


def test_rows_of_differences_count_the_users_that_they_are_of() -> None:
    before, after = worth(ranking(hits(0.3)), ecpm=200), worth(ranking(hits(0.6)), ecpm=200)
    rows = compare(after, before, DRAWS, WEIGHTS).rows(SUPERVISED, "validation", "difference")
    of = {(row["metric"], row["cutoff"], row["bucket"]): row["users"] for row in rows}
    assert of["difference_hit_rate", 10, "shares_none"] == (after.buckets() == 3).sum() < USERS
    assert of["difference_hit_rate", 10, "all"] == of["difference_ecpm_direct", 8, "all"] == USERS


def shifted(model: Ranking, **means: float) -> Ranking:
    """``model`` with values that scatter by a fifth of the mean, drawn by the mean: differences have an interval."""
    users = np.unique(model.users)
    told = {
        (outcome, DIRECT): np.random.default_rng(int(1e6 * mean)).normal(mean, abs(mean) / 5, len(users))
        for outcome, mean in means.items()
    }
    return replace(model, worth=Values(users, told, 0.0, 1.0, 8))


@pytest.mark.parametrize(("outcome", "worse"), [("ecpm", 0.965), ("dislikes", 1.035)])
def test_value_that_is_not_surely_lost_by_more_than_the_margin_refuses_nothing(outcome: str, worse: float) -> None:
    """3.5% are lost, give or take 2.8%: more than the 2% that may be, but not surely."""
    before = {outcome: 200.0}
    after = {outcome: 200.0 * worse}
    rankings = {
        SUPERVISED: shifted(ranking(hits(0.9)), **after),
        CHAMPION: shifted(ranking(hits(0.3)), **before),
        POPULARITY: FLOOR,
    }
    assert choose(rankings, None).serves == SUPERVISED
    surely = 1 + 3 * (worse - 1)
    rankings[SUPERVISED] = shifted(ranking(hits(0.9)), **{outcome: 200.0 * surely})
    assert f"{outcome} surely worse" in choose(rankings, None).reason


def test_a_model_alone_compares_what_was_optimised_for_it_with_what_was_too() -> None:
    """Both are flattered alike, so that what one lacks is lost."""
    rankings = {
        OPTIMISED: replace(worth(ranking(hits(0.9)), ecpm=200), optimised=True),
        SUPERVISED: worth(ranking(hits(0.5)), ecpm=200),
        CHAMPION: replace(worth(ranking(hits(0.3)), ecpm=250), optimised=True),
        POPULARITY: FLOOR,
    }
    found = choose(rankings)
    assert found.serves == SUPERVISED
    assert "ecpm surely worse" in found.reason


def test_coverage_may_shrink_by_a_fifth_and_popularity_has_no_say_in_it() -> None:
    less = ranking(np.where(np.arange(USERS) % ITEMS < 50, 0, LIST), kinds=100)
    champion = ranking(np.where(hits(0.2) < LIST, np.where(np.arange(USERS) % ITEMS < 50, 9, LIST), LIST), kinds=112)
    assert less.coverage() < champion.coverage() < less.coverage() / 0.8
    assert choose({SUPERVISED: less, CHAMPION: champion, POPULARITY: FLOOR}, None).serves == SUPERVISED
    wide = replace(ranking(hits(0.02, rank=9), kinds=124), model=POPULARITY)
    narrow = ranking(np.where(np.arange(USERS) % ITEMS < 50, 0, LIST), kinds=52)
    assert narrow.coverage() < 0.8 * wide.coverage()
    assert choose({SUPERVISED: narrow, POPULARITY: wide}, None).serves == SUPERVISED


def test_a_shown_recipe_that_has_turned_against_the_champions_is_refused() -> None:
    rankings = {SUPERVISED: ranking(hits(0.6)), CHAMPION: ranking(hits(0.4)), POPULARITY: FLOOR}
    pair = (SUPERVISED, CHAMPION)
    assert choose(rankings, SHOWN, {pair: SHOWN}).serves == SUPERVISED
    assert choose(rankings, SHOWN, {pair: TURNED}).serves is None


def test_exactly_as_much_evidence_as_is_needed_is_enough() -> None:
    assert replace(SHOWN, value=20.0).is_enough
    assert not replace(SHOWN, against=20.0).is_enough
    assert not replace(SHOWN, mean=0.0).is_enough


def test_few_users_replace_no_champion() -> None:
    found = compare(ranking(hits(0.9)), ranking(hits(0.3, seed=2)), DRAWS, WEIGHTS)
    (why,) = against(found, replace(MARGINS, users=USERS + 1))
    assert why.startswith("400 users are too few to replace a champion, 401 are needed: NDCG@10")
    assert against(found, replace(MARGINS, users=USERS)) == []
    floor = compare(ranking(hits(0.9)), FLOOR, DRAWS, WEIGHTS)
    assert against(floor, replace(MARGINS, users=USERS + 1)) == [], "a home's first champion has no other to replace"


def with_score(found: Comparison, value: float, lower: float, upper: float) -> Comparison:
    """The comparison with another score; nothing beside it is surely worse."""
    return replace(found, score=Interval(value, lower, upper), differences={}, values={})


def test_margins_are_shares_of_the_others_figure_each_its_own() -> None:
    weak, strong = ranking(hits(0.3)), ranking(hits(0.9, seed=2))
    against_strong = compare(weak, strong, DRAWS, WEIGHTS)
    unit = against_strong.unit
    assert unit == pytest.approx(float(strong.per_user("ndcg").mean()))
    for below, passes in ((0.04, True), (0.06, False)):
        found = with_score(against_strong, 0.01, -below * unit, 0.05)
        assert (against(found, replace(MARGINS, coverage=0.0)) == []) is passes, below
    for below, passes in ((0.06, True), (0.24, True), (0.26, False)):
        comparisons = {
            (OPTIMISED, SUPERVISED): with_score(against_strong, 0.01, -below * unit, 0.05),
            (OPTIMISED, POPULARITY): with_score(compare(strong, FLOOR, DRAWS, WEIGHTS), 0.1, 0.05, 0.2),
        }
        choice = decide(comparisons, replace(MARGINS, coverage=0.0), {(OPTIMISED, SUPERVISED): SHOWN})
        assert (choice.serves == OPTIMISED) is passes, below


def test_the_top_of_the_list_is_in_the_score_and_refuses_nothing_besides() -> None:
    found = compare(ranking(hits(0.5)), ranking(hits(0.5)), DRAWS, WEIGHTS)
    worse = Interval(-0.2, -0.3, -0.1)
    assert replace(found, differences={("ndcg", 10, "all"): worse}, values={}).surely_worse(MARGINS) == []
    for metric, cutoff, bucket in (("hit_rate", 50, "all"), ("hit_rate", 10, "new")):
        lost = replace(found, differences={(metric, cutoff, bucket): worse}, values={}).surely_worse(MARGINS)
        assert len(lost) == 1


def test_a_bucket_of_few_users_has_no_say() -> None:
    whole = ranking(hits(0.5))
    of_sixty = ("items", "targets", "histories", "users")
    few = [
        replace(one, **{name: getattr(one, name)[:60] for name in of_sixty})
        for one in (whole, ranking(hits(0.1, seed=3)))
    ]
    found = compare(*few, DRAWS, WEIGHTS)
    sizes = {bucket: int((few[0].buckets() == number).sum()) for number, bucket in enumerate(NOVELTY_BUCKETS)}
    assert {bucket for _, _, bucket in found.differences} == {"all", *(b for b, size in sizes.items() if size >= 30)}
    assert any(0 < size < 30 for size in sizes.values())
