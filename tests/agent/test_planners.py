"""Every planner proposes legal plans, by construction, and leaves a trace; the profile planner acts on what fails."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from agent.constraints import check_amounts, check_plan
from agent.feasible import feasible_plan
from agent.pareto import expected_shortfall, hypervolume
from agent.planners.acquisition import (
    Acquisition,
    ball_part,
    expected_shortfalls,
    noise_prior,
    scalarized,
)
from agent.planners.baselines import NeedPlanner, RandomPlanner, StaticPlanner
from agent.planners.ideal import IdealPlanner
from agent.planners.response_model import MeasuredMixture, ResponseModel
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import cell_shares, distance, proportions
from mosaic.core.errors import UsageError
from mosaic.core.types.data import Stock
from mosaic.core.types.evaluation import Score
from mosaic.core.types.plans import ActionPlan, Limits, ObjectiveSpec
from tests.agent.conftest import influence
from tools.planning.toolbox import Toolbox

STEPS = ("max_ratio_step", "max_bucket_step")


def toolbox(seen, pool):
    return Toolbox(
        seen,
        lambda *wanted: [{"label": {}, "score": 1.0, "failed": True}],
        lambda p: check_plan(p, seen, pool),
    )


@pytest.mark.parametrize(
    "planner", [StaticPlanner(), RandomPlanner(), RandomPlanner(3.0), SurrogatePlanner()]
)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limits", [{}, {"max_ratio_step": 0.1, "max_bucket_step": 0.15}])
def test_plans_are_legal_by_construction(observe, small_pool, planner, seed, limits):
    seen = observe(seed=seed, limits=Limits(min_quality=2, **limits), below_floor=["safety"])
    box = toolbox(seen, small_pool)
    [plan] = planner.propose(seen, box)
    assert check_plan(plan, seen, small_pool) == []
    assert box.trace()
    assert [plan] == planner.propose(seen, toolbox(seen, small_pool))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tokens=st.lists(st.integers(0, 500), min_size=6, max_size=6),
    below=st.sets(st.sampled_from(["safety", "over_refusal"])),
    weak=st.sets(
        st.sampled_from([(o, b) for o in ("safety", "over_refusal") for b in "xyz"]), max_size=4
    ),
    unmeasured=st.booleans(),
    kind=st.sampled_from(
        [RandomPlanner, lambda: RandomPlanner(3.0), NeedPlanner, NeedPlanner, SurrogatePlanner]
    ),
    limits=st.sampled_from(
        [{}, {"max_ratio_step": 0.1, "max_bucket_step": 0.15}, dict.fromkeys(STEPS)]
    ),
    seed=st.integers(0, 99),
)
def test_plans_are_legal_whatever_is_scarce_weak_or_below_its_floor(
    observe, tokens, below, weak, unmeasured, kind, limits, seed
):
    cells = [(d, b) for d in "ab" for b in "xyz"]
    stock = {
        d: {b: Stock(rows=1, tokens=t) for (e, b), t in zip(cells, tokens, strict=True) if e == d}
        for d in "ab"
    }
    assume(
        all(sum(s.tokens for s in per.values()) for per in stock.values()) and sum(tokens) >= 400
    )
    seen = observe(stock=stock, below_floor=sorted(below), limits=Limits(**limits), seed=seed)
    ratios, buckets = proportions(stock)
    last = ActionPlan(rationale="static", ratios=ratios, bucket_weights=buckets)
    slices = [
        s.model_copy(update={"reliability": "low"} if (s.objective, s.slice) in weak else {})
        for s in seen.profile.slices
        if not (unmeasured and (s.objective, s.slice) == ("safety", "y"))
    ]
    changes = {
        "proportions": ratios,
        "bucket_proportions": buckets,
        "profile": seen.profile.model_copy(update={"slices": slices}),
    }
    for round_ in (1, 2):
        seen = seen.model_copy(update={**changes, "round": round_, "last_plan": last})
        [last] = kind().propose(
            seen,
            Toolbox(seen, lambda *wanted: [], lambda plan, seen=seen: check_amounts(plan, seen)),
        )
        assert check_amounts(last, seen) == []


def test_a_wish_for_more_than_there_is_comes_as_near_as_stock_allows(observe):
    stock = {d: {b: Stock(rows=9, tokens=t) for b in "xyz"} for d, t in (("a", 60), ("b", 900))}
    ratios, buckets = proportions(stock)
    free = Limits(max_ratio_step=None, max_bucket_step=None)
    static = ActionPlan(rationale="static", ratios=ratios, bucket_weights=buckets)
    changes = {
        "stock": stock,
        "proportions": ratios,
        "bucket_proportions": buckets,
        "last_plan": static,
        "limits": free,
    }
    seen = observe(**changes)
    plan = feasible_plan("r", {"a": 0.9, "b": 0.1}, {"a": {"x": 0.8, "y": 0.1, "z": 0.1}}, seen)
    assert check_amounts(plan, seen) == []
    assert plan.ratios["a"] == pytest.approx(180 / 400, abs=1e-5)
    held = feasible_plan(
        "r", {"a": 0.9, "b": 0.1}, {}, observe(**changes, below_floor=["over_refusal"])
    )
    assert held.ratios["b"] == pytest.approx(ratios["b"], abs=1e-5)


def test_a_mixture_that_gets_part_of_a_round_is_held_to_the_stock_by_that_part_alone(observe):
    stock = {d: {"x": Stock(rows=9, tokens=t)} for d, t in (("a", 100), ("b", 900))}
    ratios, buckets = proportions(stock)
    last = ActionPlan(rationale="", ratios=ratios, method_shares={"sft": 0.5, "dpo": 0.5})
    seen = observe(
        stock=stock,
        proportions=ratios,
        bucket_proportions=buckets,
        last_plan=last,
        methods={"sft": 1.0, "dpo": 0.0},
        limits=Limits(max_ratio_step=None, max_bucket_step=None),
    )
    plan = feasible_plan("r", {"a": 0.9, "b": 0.1}, {}, seen)
    assert plan.ratios["a"] == pytest.approx(100 / 200, abs=1e-5)
    assert check_amounts(plan, seen) == []


def test_floors_hold_together(observe):
    stock = {d: {"x": Stock(rows=9, tokens=4000)} for d in "abc"}
    buckets = {d: {"x": 1.0} for d in "abc"}
    last = ActionPlan(
        rationale="last", ratios={"a": 0.2, "b": 0.3, "c": 0.5}, bucket_weights=buckets
    )
    objectives = [
        ObjectiveSpec(name=n, datasets=[d], floor=4.5)
        for n, d in zip(("o", "p", "q"), "abc", strict=True)
    ]
    values = {
        "stock": stock,
        "bucket_proportions": buckets,
        "last_plan": last,
        "objectives": objectives,
    }
    free = Limits(max_ratio_step=None)
    # Raising `a` takes from `b`, which thereby falls below what it had: both keep their share, `c` pays.
    seen = observe(**values, limits=free, below_floor=["o", "p"])
    assert feasible_plan("r", {"a": 0.1, "b": 0.31, "c": 0.59}, {}, seen).ratios == pytest.approx(
        last.ratios, abs=1e-6
    )
    seen = observe(**values, limits=free, below_floor=["o", "p", "q"])
    assert feasible_plan("r", {"a": 0.0, "b": 0.0, "c": 1.0}, {}, seen).ratios == pytest.approx(
        last.ratios, abs=1e-6
    )
    seen = observe(**values, limits=free, below_floor=["o"])
    assert feasible_plan("r", {"b": 0.5, "c": 0.5}, {}, seen).ratios == pytest.approx(
        {"a": 0.2, "b": 0.4, "c": 0.4}
    )
    # Where one data set of an objective cannot hold its share, the other one keeps it.
    scarce = {**stock, "a": {"x": Stock(rows=9, tokens=120)}}
    pair = [ObjectiveSpec(name="o", datasets=["a", "b"], floor=4.5), objectives[2]]
    seen = observe(
        **{**values, "stock": scarce, "objectives": pair}, limits=free, below_floor=["o"]
    )
    plan = feasible_plan("r", {"a": 0.6, "c": 0.4}, {}, seen)
    assert check_amounts(plan, seen) == []
    assert plan.ratios == pytest.approx({"a": 0.3, "b": 0.2, "c": 0.5}, abs=1e-5)


def test_where_nothing_is_scored_need_moves_nothing(observe, small_pool):
    seen = observe()
    nothing = Score(mean=None, low=None, high=None, n_scored=0)
    slices = [s.model_copy(update={"score": nothing}) for s in seen.profile.slices]
    seen = seen.model_copy(update={"profile": seen.profile.model_copy(update={"slices": slices})})
    [plan] = NeedPlanner().propose(seen, toolbox(seen, small_pool))
    assert plan.ratios == pytest.approx(seen.last_plan.ratios, abs=1e-6)
    assert "no need is known" in plan.rationale


def settled(plan):
    return sum(ratio * plan.bucket_weights[d]["x"] for d, ratio in plan.ratios.items())


def since(seen, means):
    """The observation with these means (slice -> mean) of the base."""
    base = seen.history[0].trial
    slices = []
    for one in base.profile.slices:
        score = one.score.model_copy(update={"mean": means[one.slice]})
        slices.append(one.model_copy(update={"score": score}))
    profile = base.profile.model_copy(update={"slices": slices})
    trials = [base.model_copy(update={"profile": profile})]
    return seen.model_copy(
        update={"history": [seen.history[0].model_copy(update={"trials": trials})]}
    )


def test_the_profile_planner_moves_no_tokens_to_data_that_did_nothing(observe, small_pool):
    """Slice z is where the base was, or lower, although a third of the tokens were its own."""
    plans = []
    for base in ({"x": 1.5, "y": 1.5, "z": 1.0}, {"x": 1.5, "y": 1.5, "z": 2.0}):
        seen = since(observe(), base)
        plans += SurrogatePlanner().propose(seen, toolbox(seen, small_pool))
    gained, lost = (plan.ratios["a"] * plan.bucket_weights["a"]["z"] for plan in plans)
    assert gained > lost


def test_the_profile_planner_moves_tokens_from_settled_slices_to_failing_ones(observe, small_pool):
    seen = since(observe(influence=None), {"x": 3.5, "y": 1.5, "z": 1.0})
    box = toolbox(seen, small_pool)
    [plan] = SurrogatePlanner().propose(seen, box)
    assert settled(plan) < 0.9 * settled(seen.last_plan)
    assert set(plan.expected) == {"safety", "over_refusal"}
    tools = [c["tool"] for c in box.trace() if "tool" in c]
    assert {
        "past_rounds",
        "diagnose_slice",
        "show_examples",
        "pool_stock",
        "fit_responses",
        "search_mixtures",
        "check_plan",
    } == set(tools)


def test_the_profile_planner_tells_what_it_searched_and_why_the_winner_won(observe, small_pool):
    seen = observe()
    box = toolbox(seen, small_pool)
    [plan] = SurrogatePlanner().propose(seen, box)
    told = {c["tool"]: c["result"] for c in box.trace() if "tool" in c}
    fitted, searched = told["fit_responses"], told["search_mixtures"]
    assert fitted["mixtures"] == 2  # the base, and the one repeat of the calibration
    assert len(fitted["slices"]) == len(seen.profile.slices)
    best = searched["best"]
    assert searched["valued"] > 1000
    assert 2 <= len(best) <= 10
    assert best[0]["ratios"] == plan.ratios
    assert best[0]["bucket_weights"] == plan.bucket_weights
    assert [b["value"] for b in best] == sorted((b["value"] for b in best), reverse=True)
    # The change that the plan expects counts from what was measured last.
    for objective, change in plan.expected.items():
        measured = seen.calibration.scores[0][objective]["selection"].mean
        # The trace's prediction is averaged over a training's noise, cut off at the scale's ends.
        predicted = best[0]["predicted"][objective] - measured
        assert predicted == pytest.approx(change, abs=0.25)
    for found in [*best, searched["last"]]:
        parts = found["volume"] + found["targets"] - found["price"]
        assert found["value"] == pytest.approx(parts, abs=2e-4)
    points = [cell_shares(b["ratios"], b["bucket_weights"]) for b in best]
    for number, point in enumerate(points):
        assert all(distance(point, other) > 0.05 for other in points[:number])
    why = [c["conclusion"] for c in box.trace() if "conclusion" in c][-1]
    assert f"value {best[0]['value']:.3f}" in why
    assert f"({best[1]['value']:.3f})" in why


def test_a_planner_of_one_plan_a_round_says_so_when_more_are_asked_for(observe, small_pool):
    seen = observe()
    with pytest.raises(UsageError, match="proposes one plan a round, not 2"):
        StaticPlanner().propose(seen, toolbox(seen, small_pool), n=2)


@pytest.mark.parametrize("planner", [RandomPlanner(), NeedPlanner(), IdealPlanner()])
def test_other_planners_draw_siblings_that_are_legal_and_differ(observe, small_pool, planner):
    seen = observe(influence=influence())
    alone = planner.propose(seen, toolbox(seen, small_pool))
    plans = planner.propose(seen, toolbox(seen, small_pool), n=4)
    assert plans == planner.propose(seen, toolbox(seen, small_pool), n=4)
    assert plans[:1] == alone
    for number, plan in enumerate(plans):
        assert check_plan(plan, seen, small_pool, plans[:number]) == []


def test_a_plan_near_a_sibling_is_refused_even_if_the_limit_is_zero(observe, small_pool):
    seen = observe(limits=Limits(min_quality=2, near_repeat=0.0))
    [plan] = NeedPlanner().propose(seen, toolbox(seen, small_pool))
    other = plan.model_copy(update={"rationale": "in other words"})
    (found,) = check_plan(other, seen, small_pool, [plan])
    assert (found.rule, found.path) == ("near_repeat", "ratios")
    assert "plan 1 of this round" in found.hint


def test_the_profile_planner_proposes_several_legal_plans_that_differ(observe, small_pool):
    seen = observe(limits=Limits(min_quality=2, max_ratio_step=None, max_bucket_step=None))
    alone = SurrogatePlanner().propose(seen, toolbox(seen, small_pool))
    plans = SurrogatePlanner().propose(seen, toolbox(seen, small_pool), n=3)
    assert plans[:1] == alone
    for number, plan in enumerate(plans):
        assert check_plan(plan, seen, small_pool) == []
        shares = cell_shares(plan.ratios, plan.bucket_weights)
        for other in plans[:number]:
            assert distance(shares, cell_shares(other.ratios, other.bucket_weights)) >= 0.12


def test_more_plans_than_the_limits_leave_room_for_are_refused(observe, small_pool):
    tight = Limits(min_quality=2, max_ratio_step=0.02, max_bucket_step=0.02)
    seen = observe(limits=tight)
    with pytest.raises(UsageError, match="plans that differ, not 5"):
        SurrogatePlanner().propose(seen, toolbox(seen, small_pool), n=5)
    apart = observe(limits=tight.model_copy(update={"near_repeat": 1.0}))
    with pytest.raises(UsageError, match="planner need: the limits leave 1 plans that differ"):
        NeedPlanner().propose(apart, toolbox(apart, small_pool), n=2)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_directions_measure_the_dominated_volume(size):
    points = np.random.default_rng(size).uniform(2, 5, (4, size))
    reached = scalarized(points).max(axis=0)
    found = ball_part(size) * (reached**size).mean()
    assert found == pytest.approx(hypervolume(points.tolist()), rel=0.12)


def test_expected_shortfalls_are_those_that_the_result_is_chosen_by():
    below = np.array([-0.5, -0.1, 0.0, 0.3])
    wanted = [expected_shortfall(float(one), 0.1) for one in below]
    assert expected_shortfalls(below, 0.1) == pytest.approx(wanted)


def test_a_slice_at_the_top_of_the_scale_says_at_least():
    cells = [("a", "x"), ("b", "x")]
    names = {"safety": ["a"], "over_refusal": ["b"]}
    key = ("over_refusal", "x")
    little, much = {("a", "x"): 0.9, ("b", "x"): 0.1}, {("a", "x"): 0.1, ("b", "x"): 0.9}
    rows = np.array([[0.1, 0.9]])
    none = np.zeros(1)

    def latent(trials):
        model = ResponseModel(cells, names, trials)
        return model.latent(rows, "over_refusal")[0, 0]

    # A prior that promises more than the top of the scale is not told otherwise by a result at the top,
    assert latent([MeasuredMixture(little, {key: 4.9}), MeasuredMixture(much, {key: 5.0})]) > 5.5
    # but it is by one just below.
    assert latent([MeasuredMixture(little, {key: 4.9}), MeasuredMixture(much, {key: 4.8})]) < 5.2
    model = ResponseModel(
        cells, names, [MeasuredMixture(little, {key: 1.0}), MeasuredMixture(much, {key: 1.0})]
    )
    assert model.predict(rows, "over_refusal", 0.0, none)[0, 0] == 1.0


def test_harder_buckets_are_believed_to_teach_easier_slices():
    cells = [("a", name) for name in "vwxyz"]
    even = dict.fromkeys(cells, 0.2)
    measured = [MeasuredMixture(even, {("safety", b): 3.0 for _, b in cells})]
    hardness = {name: float(level) for level, name in enumerate("vwxyz", start=1)}
    rows = np.array([[0.1, 0.15, 0.2, 0.25, 0.3], [0.3, 0.25, 0.2, 0.15, 0.1]])

    def ahead(**options):
        model = ResponseModel(cells, {"safety": ["a"]}, measured, **options)
        harder, easier = model.predict(rows, "safety", 0.0, np.zeros(1))[:, 0]
        return harder - easier

    assert ahead() == pytest.approx(0, abs=1e-9)
    assert ahead(hardness=hardness) > 0.05


def test_a_declaration_that_is_wrong_is_unlearned():
    cells = [("a", "x"), ("b", "x"), ("c", "x")]
    named = {"safety": ["a"], "over_refusal": ["b"]}
    key = ("safety", "p")
    # What was declared does nothing; the data of another objective do all.
    measured = []
    for share in (0.1, 0.3, 0.5, 0.7):
        shares = {cells[0]: 0.8 - share, cells[1]: share, cells[2]: 0.2}
        measured.append(MeasuredMixture(shares, {key: 4.0 + np.log(share)}))
    rows = np.array([[0.7, 0.1, 0.2], [0.1, 0.7, 0.2]])
    declared, other = ResponseModel(cells, named, measured).predict(
        rows, "safety", 0.0, np.zeros(1)
    )[:, 0]
    assert other > declared + 1.0
    declared, other = ResponseModel(cells, named, measured[:1]).predict(
        rows, "safety", 0.0, np.zeros(1)
    )[:, 0]
    assert declared > other + 0.5


def test_what_was_never_tried_is_less_certain():
    cells = [("a", "x"), ("b", "x")]
    tried = {("a", "x"): 0.5, ("b", "x"): 0.5}
    model = ResponseModel(
        cells,
        {"safety": ["a"], "over_refusal": ["b"]},
        [MeasuredMixture(tried, {("safety", "x"): 3.0})] * 3,
    )
    rows = np.array([[0.5, 0.5], [0.95, 0.05]])
    spread = np.ptp(model.predict(rows, "safety", 0.1, np.array([-1.0, 1.0])), axis=1)
    assert spread[1] > 1.5 * spread[0] > 0.3
    noisy = np.ptp(model.predict(rows, "safety", 0.5, np.array([-1.0, 1.0])), axis=1)
    assert noisy == pytest.approx(np.sqrt(spread**2 + 4 * (0.5**2 - 0.1**2)))


def test_an_objective_answers_to_its_tokens_alike_however_many_buckets_they_lie_in():
    for names in ("x", "xy", "vwxyz"):
        cells = [("a", b) for b in names] + [("b", "x")]
        share = {c: 0.4 / len(names) if c[0] == "a" else 0.6 for c in cells}
        model = ResponseModel(
            cells,
            {"safety": ["a"], "over_refusal": ["b"]},
            [MeasuredMixture(share, {("safety", b): 3.0 for b in names})],
        )
        rows = np.array([[s / len(names)] * len(names) + [1 - s] for s in (0.2, 0.4, 0.8)])
        little, same, much = model.predict(rows, "safety", 0.0, np.zeros(1))[:, 0]
        assert same == pytest.approx(3.0, abs=0.1)
        assert same - little == pytest.approx(np.log(2), abs=0.25)
        assert much - same == pytest.approx(np.log(2), abs=0.25)
        assert model.doubling_effect(("safety", "x")) == pytest.approx(np.log(2), abs=0.25)


def test_a_fit_to_bounds_is_not_drawn_back_by_more_of_them():
    cells = [("a", "x"), ("b", "x")]
    little, much = {("a", "x"): 0.9, ("b", "x"): 0.1}, {("a", "x"): 0.1, ("b", "x"): 0.9}
    key = ("over_refusal", "x")
    effects = []
    for repeats in (1, 20):
        trials = [
            MeasuredMixture(little, {key: 4.7}),
            *[MeasuredMixture(much, {key: 5.0})] * repeats,
        ]
        effects.append(
            ResponseModel(cells, {"safety": ["a"], "over_refusal": ["b"]}, trials).doubling_effect(
                key
            )
        )
    assert effects[1] == pytest.approx(effects[0], abs=0.01)


def test_need_weighs_slices_by_their_weight_in_the_suites(observe, small_pool):
    def bare(observation):
        [plan] = NeedPlanner().propose(observation, toolbox(observation, small_pool))
        assert check_plan(plan, observation, small_pool) == []
        return plan

    assert (
        bare(observe(limits=Limits(min_quality=2, max_bucket_step=None))).bucket_weights["a"]["z"]
        > 0.5
    )
    seen = observe()
    renamed = {"x": "x_1", "y": "y_2", "z": "z_3"}
    slices = [
        s.model_copy(
            update={
                "slice": renamed[s.slice],
                "score": s.score.model_copy(update={"mean": 3.0}),
                "weight": 1.0 + "xyz".index(s.slice),
            }
        )
        for s in seen.profile.slices
    ]
    changes = {
        "profile": seen.profile.model_copy(update={"slices": slices}),
        "bucket_proportions": {
            d: {renamed[b]: w for b, w in per.items()} for d, per in seen.bucket_proportions.items()
        },
        "stock": {d: {renamed[b]: s for b, s in per.items()} for d, per in seen.stock.items()},
        "limits": Limits(min_quality=2, max_bucket_step=None, max_repeat=9),
    }
    leveled = observe(**changes, last_plan=seen.last_plan.model_copy(update={"bucket_weights": {}}))
    box = Toolbox(leveled, lambda *wanted: [], lambda plan: [])
    [plan] = NeedPlanner().propose(leveled, box)
    weights = plan.bucket_weights["a"]
    assert weights["z_3"] == pytest.approx(3 * weights["x_1"], rel=0.01)


def test_noise_of_few_repeats_is_drawn_toward_the_usual(observe):
    calibration = observe().calibration
    once = observe(
        calibration=calibration.model_copy(update={"noise": {"safety": 0.9, "over_refusal": 0.01}})
    )
    assert noise_prior(once) == noise_prior(observe(calibration=None))
    thrice = observe(
        calibration=once.calibration.model_copy(update={"trials": calibration.trials * 3})
    )
    noise = noise_prior(thrice)
    assert 0.01 < noise["over_refusal"] < 0.5 < noise["safety"] < 0.9
    assert noise["safety"] == pytest.approx(math.sqrt((8 * 0.5**2 + 2 * 0.9**2) / 10))


def test_a_run_without_any_scored_slice_still_gets_a_plan(observe, small_pool):
    nothing = observe(
        history=[], calibration=None, profile=observe().profile.model_copy(update={"slices": []})
    )
    [plan] = SurrogatePlanner().propose(nothing, toolbox(nothing, small_pool))
    assert check_plan(plan, nothing, small_pool) == []
    assert plan.expected == {}


def test_without_scored_slices_no_mixture_is_worth_more_than_another(observe):
    model = ResponseModel([("a", "x")], {}, [])
    worth = Acquisition(observe(), model, np.ones((1, 1))).parts(np.ones((2, 1)))
    assert worth["volume"].tolist() == worth["targets"].tolist() == [0, 0]
