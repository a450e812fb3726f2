"""What `profile` makes of influence: a direction whose weight is learned, and nothing of what is noise."""

import math

import numpy as np
import pytest

from agent.planners.baselines import RandomPlanner
from agent.planners.response_model import fit_responses
from agent.planners.search import Surrogate
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import cell_shares, share_row, weights_of
from benchmarks.directions import landscape_influence
from benchmarks.drive import FREE, Drive
from mosaic.core.types.plans import ActionPlan, ObjectiveSpec
from tests.agent.conftest import influence
from tools.planning.toolbox import Toolbox

SETS, BUCKETS = ("d0", "d1", "d2"), 3


class Served:
    """Three objectives; each of an objective's slices answers to one bucket of the data set that serves it.

    Declared is the data set of the objective's own number; `offset` 0 makes that right, 1 wrong.
    """

    def __init__(self, offset):
        self.offset = offset
        self.objectives = [
            ObjectiveSpec(name=f"o{place}", datasets=[name], target=4.5)
            for place, name in enumerate(SETS)
        ]

    def pool(self, seed):
        drawn = np.exp(np.random.default_rng(seed).normal(0, 0.5, (len(SETS), BUCKETS)))
        drawn = 20 * drawn / drawn.sum()
        return {
            name: {f"{name}_{place}": float(tokens) for place, tokens in enumerate(row)}
            for name, row in zip(SETS, drawn, strict=True)
        }

    def means(self, shares):
        found = {}
        for number, name in enumerate(SETS):
            serves = SETS[(number + self.offset) % len(SETS)]
            for place in range(BUCKETS):
                share = shares.get((serves, f"{serves}_{place}"), 0.0)
                mean = 3.0 + math.log(9 * share + 0.5)
                found[f"o{number}", f"{name}_{place}"] = min(5.0, max(1.0, mean))
        return found


class Watched(RandomPlanner):
    """Random plans, and the observation that the last was made of."""

    def propose(self, observation, toolbox, n=1):
        self.seen = observation
        return super().propose(observation, toolbox, n)


def observed(landscape, seed, rounds):
    drive, planner = Drive(landscape, seed, FREE), Watched()
    drive.run(planner, rounds)
    return drive, planner.seen


def error(drive, seen):
    """Root mean square error of predicted changes from the last plan to random mixtures."""
    draws = np.random.default_rng(0)
    model = fit_responses(seen)
    squares = []
    for _ in range(20):
        ratios = dict(zip(SETS, draws.dirichlet([3] * len(SETS)).tolist(), strict=True))
        plan = ActionPlan(rationale="", ratios=ratios, bucket_weights=seen.bucket_proportions)
        after, before = (
            share_row(model.cells, cell_shares(*weights_of(one, seen.bucket_proportions)))
            for one in (plan, seen.last_plan)
        )
        truth = np.subtract(drive.true_point(plan), drive.true_point(seen.last_plan))
        for name, change in zip(seen.names, truth, strict=True):
            predicted, _ = model.difference(after, before, name)
            squares.append((predicted - change) ** 2)
    return math.sqrt(np.mean(squares))


def told(landscape, seen, what):
    return seen.model_copy(update={"influence": landscape_influence(landscape, seen, what)})


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_influence_that_is_right_foretells_better_where_the_declaration_is_wrong(seed):
    landscape = Served(offset=1)
    drive, seen = observed(landscape, seed, rounds=1)
    assert error(drive, told(landscape, seen, "right")) < error(drive, seen)


def test_rounds_take_its_weight_from_influence_that_is_wrong_and_not_from_what_is_right():
    for seed in (1, 2, 3):
        weights = {}
        for offset, what in ((0, "wrong"), (1, "right")):
            landscape = Served(offset)
            _, seen = observed(landscape, seed, rounds=5)
            weights[what] = Surrogate(told(landscape, seen, what)).influence_weights
        assert max(weights["wrong"].values()) < min(weights["right"].values())


def test_influence_that_is_lost_in_its_errors_changes_no_plan(observe):
    def proposed(found):
        seen = observe(influence=found)
        tools = Toolbox(seen, lambda *wanted: [], lambda plan: [])
        [plan] = SurrogatePlanner().propose(seen, tools)
        return plan, str(tools.trace())

    without, _ = proposed(None)
    drowned, said = proposed(influence(error=5.0))
    clear, _ = proposed(influence((0.9, 0.1, -0.9)))
    assert drowned == without
    assert "over_refusal not used" in said
    assert clear.ratios != without.ratios or clear.bucket_weights != without.bucket_weights
