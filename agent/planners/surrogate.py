"""The default planner if no model is configured: deterministic, works through the tools, learns.

It looks at the slices that hold the result back, and asks for examples and for the pool's stock. It
fits how slices answered to tokens so far (`response_model`), and searches mixtures inside the
limits for the best value to be expected (`acquisition`). What it predicts is written down as the
plan's expected effect, and the next round's fit starts from what happened instead.

A run tries too few mixtures to tell whose data made a score fall. The data of an objective that
fell below the base are therefore not starved on the fit's word alone (`fallen`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from agent.constraints import refused_plans
from agent.feasible import FeasibleSpace
from agent.methods import with_methods_of
from agent.planners.acquisition import (
    NOISE_WEIGHTS,
    calibration_means,
    expected_values,
    measured_value,
    predicted_means,
    targets_of,
)
from agent.planners.base import Planner, PlannerSettings, require_one_plan
from agent.planners.fallen import missing_share, raised_ratios, shares_to_reach
from agent.planners.response_model import ResponseModel, fit_responses, measured_mixtures
from agent.weights import (
    Floats,
    Weights,
    cell_shares,
    perturb,
    share_row,
    weights_of,
)
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

# The slices that are looked at, and the examples that are asked for of the worst one.
MAX_SLICES, MAX_EXAMPLES = 4, 3
NEAR_TOP = 4.9
# The search: so many mixtures in each pass, moved by a spread that narrows from pass to pass.
CANDIDATES = 96
SPREADS = (0.9, 0.6, 0.35, 0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.07, 0.07, 0.05)
# What a move adds to every weight, so that none stays at zero.
MOVE_FLOOR = 0.003
# A mixture nearer than this (L1 over cells) to one that was trained would teach next to nothing,
# and is worth so much less.
MIN_NEWS, STALE_COST = 0.12, 1.0
# What a share costs that an objective which fell below the base would need and does not get: a
# hundredth of all tokens costs as much as 16 hundredths of the volume.
MISSING_COST = 16.0
# The trace is told of so many mixtures, which lie further apart than this (L1 over cells); of what
# sets the first apart from the next, what is worth at least so much.
SHOWN, APART, MENTIONED = 10, 0.05, 0.0005


class SurrogatePlanner:
    """Searches the mixture with the best predicted result given the failure profiles so far."""

    kind = "profile"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        toolbox.past_rounds()
        worst = _look(observation, toolbox)
        model = fit_responses(observation)
        _tell_fit(observation, model, toolbox)
        best = _search(observation, model, toolbox)
        expected = _expected_changes(best, observation, model)
        rationale = _rationale(observation, worst, model, best, expected)
        plan = ActionPlan(
            rationale=rationale,
            ratios=best.ratios,
            bucket_weights=best.buckets,
            expected=expected,
        )
        plan = with_methods_of(plan, observation.last_plan)
        toolbox.check_plan(plan)
        return [plan]


class SurrogatePlannerConfig(PlannerSettings):
    """Deterministic: reads the failure profile and learns from the rounds of this run."""

    kind: Literal["profile"] = "profile"

    def build(self) -> Planner:
        return SurrogatePlanner()


def _look(observation: Observation, toolbox: Toolbox) -> list[SliceProfile]:
    """Ask about the slices that cost most: how they fail, and what the pool can give."""
    worst = []
    for slice_ in observation.profile.slices:
        if slice_.score.mean is not None and slice_.score.mean < NEAR_TOP:
            worst.append(slice_)
    worst = worst[:MAX_SLICES]
    for slice_ in worst:
        toolbox.diagnose_slice(slice_.objective, slice_.slice)
    for slice_ in worst[:1]:
        toolbox.show_examples(slice_.objective, slice_.slice, "failed", MAX_EXAMPLES)
    for objective in observation.objectives:
        for dataset in objective.datasets:
            toolbox.pool_stock(dataset)
    for slice_ in worst:
        toolbox.conclude(
            f"{slice_.objective} {slice_.slice}: mean {slice_.score.mean:.2f}, "
            f"{100 * (slice_.failure_rate or 0):.0f} % fail, reliability {slice_.reliability}"
        )
    return worst


# -- the search -----------------------------------------------------------------------------------


def _search(observation: Observation, model: ResponseModel, toolbox: Toolbox) -> Weights:
    """The best mixture found; the trace is told of the ten best.

    Random moves in log-ratios around the best point so far, narrower each time. Every point is
    drawn back inside the limits before it is valued.
    """
    generator = np.random.default_rng([observation.seed, observation.round, 17])
    space = FeasibleSpace(observation)
    start = weights_of(_best_measured_plan(observation), observation.bucket_proportions)
    ratios = raised_ratios(start.ratios, shares_to_reach(observation))
    best = space.project(ratios, start.buckets)
    worth = _Worth(observation, model)
    best_value = worth.of([best])[0]
    valued = [(float(best_value), best)]
    for spread in SPREADS:
        points = []
        for _ in range(CANDIDATES):
            points.append(space.project(*_moved(best, spread, generator)))
        values = worth.of(points)
        valued += zip(values.tolist(), points, strict=True)
        top = int(np.argmax(values))
        if values[top] > best_value:
            best, best_value = points[top], values[top]
    _tell_search(valued, worth, observation, model, toolbox)
    return best


def _moved(point: Weights, spread: float, generator: np.random.Generator) -> Weights:
    ratios = perturb(point.ratios, spread, generator, MOVE_FLOOR)
    buckets = {}
    for dataset, weights in sorted(point.buckets.items()):
        buckets[dataset] = perturb(weights, spread, generator, MOVE_FLOOR)
    return Weights(ratios, buckets)


class _Worth:
    """Values points: expected value, less a price if a point was tried or refused before.

    What it leaves an objective that fell below the base has a price too (`fallen`).
    """

    def __init__(self, observation: Observation, model: ResponseModel) -> None:
        self._observation = observation
        self._model = model
        self._targets = targets_of(observation)
        self._needed = shares_to_reach(observation)
        plans = [past.plan for past in observation.history if past.plan]
        plans += refused_plans(observation)
        tried = [weights_of(plan, observation.bucket_proportions) for plan in plans]
        self._tried = _rows(tried, model).reshape(len(plans), len(model.cells))

    def of(self, points: Sequence[Weights]) -> Floats:
        """The value of each point, shape (points,)."""
        rows = _rows(points, self._model)
        means = predicted_means(self._model, rows, self._observation)
        worth = np.broadcast_to(expected_values(means, self._targets), len(rows))
        stale, missing = self._prices(points, rows)
        return worth - stale - missing

    def parts(self, points: Sequence[Weights]) -> list[dict[str, float]]:
        """What each value is made of: value = volume - missed targets - price."""
        rows = _rows(points, self._model)
        means = predicted_means(self._model, rows, self._observation)
        volumes = np.broadcast_to(expected_values(means, {}), len(rows))
        worth = np.broadcast_to(expected_values(means, self._targets), len(rows))
        stale, missing = self._prices(points, rows)
        found = []
        for volume, value, price in zip(volumes, worth, stale + missing, strict=True):
            parts = {
                "value": value - price,
                "volume": volume,
                "missed_targets": volume - value,
                "price": price,
            }
            found.append({name: round(float(part), 4) for name, part in parts.items()})
        return found

    def _prices(self, points: Sequence[Weights], rows: Floats) -> tuple[Floats, Floats]:
        """What is taken off for points that teach nothing new, and for those that starve what fell."""
        news = np.abs(rows[:, None, :] - self._tried[None, :, :]).sum(axis=2)
        stale = (news < MIN_NEWS).any(axis=1)
        missing = np.array([missing_share(point.ratios, self._needed) for point in points])
        return STALE_COST * stale, MISSING_COST * missing


def _rows(points: Sequence[Weights], model: ResponseModel) -> Floats:
    """Cell shares of each point, shape (points, cells)."""
    return np.array([share_row(model.cells, cell_shares(*point)) for point in points])


def _best_measured_plan(observation: Observation) -> ActionPlan:
    """The executed plan with the best selection result, the earliest of equals.

    The calibration's plan counts by the mean of its repeats. Without any result it is the plan
    executed last.
    """
    targets = targets_of(observation)
    names = observation.traded
    measured: list[tuple[float, int, ActionPlan]] = []
    for past in observation.history:
        point = past.point(names)
        if past.plan and point:
            value = measured_value(dict(zip(names, point, strict=True)), targets)
            measured.append((value, -past.round, past.plan))
    if observation.calibration:
        means = calibration_means(observation.calibration, names)
        if means:
            value = measured_value(means, targets)
            measured.append((value, 0, observation.calibration.mixture))
    if not measured:
        return observation.last_plan
    return max(measured, key=lambda result: result[:2])[2]


# -- what the trace is told of it ------------------------------------------------------------------


def _tell_fit(observation: Observation, model: ResponseModel, toolbox: Toolbox) -> None:
    """What was fitted, and to how much."""
    slices: list[dict[str, object]] = []
    for groups in model.slices:
        objective, name = groups.key
        effect = round(model.doubling_effect(groups.key), 4)
        slices.append({"objective": objective, "slice": name, "doubling": effect})
    fitted = {"mixtures": len(measured_mixtures(observation)), "slices": slices}
    toolbox.record("fit_responses", {}, fitted)


def _tell_search(
    valued: Sequence[tuple[float, Weights]],
    worth: _Worth,
    observation: Observation,
    model: ResponseModel,
    toolbox: Toolbox,
) -> None:
    """The best mixtures that differ from each other, the one executed last, and why the first won."""
    best = _different([point for _, point in sorted(valued, key=lambda one: -one[0])], model)
    last = weights_of(observation.last_plan, observation.bucket_proportions)
    found: list[dict[str, object]] = []
    means = predicted_means(model, _rows([*best, last], model), observation)
    for number, (point, parts) in enumerate(
        zip([*best, last], worth.parts([*best, last]), strict=True)
    ):
        predicted = {
            name: round(float(mean[number] @ NOISE_WEIGHTS), 4) for name, mean in means.items()
        }
        found.append(
            {
                "ratios": point.ratios,
                "bucket_weights": point.buckets,
                "predicted": predicted,
                **parts,
            }
        )
    toolbox.record(
        "search_mixtures",
        {"passes": len(SPREADS), "candidates": CANDIDATES},
        {"valued": len(valued), "apart": APART, "best": found[:-1], "last": found[-1]},
    )
    toolbox.conclude(_why_it_won(found))


def _different(points: Sequence[Weights], model: ResponseModel) -> list[Weights]:
    """The first `SHOWN` of some points that lie further than `APART` from all before them."""
    kept: list[Weights] = []
    rows = _rows(points, model)
    taken: list[Floats] = []
    for point, row in zip(points, rows, strict=True):
        if all(np.abs(row - other).sum() > APART for other in taken):
            kept.append(point)
            taken.append(row)
        if len(kept) == SHOWN:
            break
    return kept


def _why_it_won(found: Sequence[Mapping[str, object]]) -> str:
    """The winner beside the next that differs from it; the last entry is the plan executed last."""
    first, *others, last = found
    said = f"of the mixtures searched this one is predicted best (value {first['value']:.3f}"
    said += f", the plan executed last {last['value']:.3f})"
    if not others:
        return said
    reasons = []
    for name, words in (
        ("volume", "more expected volume"),
        ("missed_targets", "less expected shortfall from targets"),
        ("price", "a lower price for what was tried or is starved"),
    ):
        ahead = float(str(first[name])) - float(str(others[0][name]))
        if name != "volume":
            ahead = -ahead
        if ahead >= MENTIONED:
            reasons.append(f"{words} ({ahead:.3f})")
    why = f" by {', '.join(reasons)}" if reasons else ", by next to nothing"
    return f"{said}; it is ahead of the next that differs ({others[0]['value']:.3f}){why}"


# -- what is said about the plan ------------------------------------------------------------------


def _expected_changes(
    point: Weights, observation: Observation, model: ResponseModel
) -> dict[str, float]:
    """Objective -> predicted change of its mean against the plan executed last."""
    last = weights_of(observation.last_plan, observation.bucket_proportions)
    rows = _rows([point, last], model)
    changes = {}
    for objective, means in predicted_means(model, rows, observation).items():
        then, now = means @ NOISE_WEIGHTS
        changes[objective] = round(float(then - now), 4)
    return changes


def _rationale(
    observation: Observation,
    worst: Sequence[SliceProfile],
    model: ResponseModel,
    point: Weights,
    expected: Mapping[str, float],
) -> str:
    sentences = []
    if worst:
        named = ", ".join(f"{s.objective} {s.slice} ({s.score.mean:.2f})" for s in worst)
        sentences.append(f"The slices furthest from the top are {named}.")
    sentences += _largest_moves(observation, point)
    for slice_ in worst[:2]:
        effect = model.doubling_effect((slice_.objective, slice_.slice))
        sentences.append(
            f"Doubling {slice_.objective}'s tokens "
            f"is believed to add {effect:.2f} to {slice_.slice}."
        )
    changes = ", ".join(f"{objective} {change:+.2f}" for objective, change in expected.items())
    sentences.append(f"Expected against the plan executed last: {changes}.")
    return " ".join(sentences)


def _largest_moves(observation: Observation, point: Weights) -> list[str]:
    """The three cells that gain most and the two that lose most, as sentences."""
    last = weights_of(observation.last_plan, observation.bucket_proportions)
    last_shares = cell_shares(*last)
    moves = []
    for (dataset, bucket), share in cell_shares(*point).items():
        before = last_shares.get((dataset, bucket), 0.0)
        moves.append((share - before, dataset, bucket, before, share))
    moves.sort()
    sentences = []
    for change, dataset, bucket, before, share in [*moves[-3:][::-1], *moves[:2]]:
        word = "more" if change > 0 else "less"
        sentences.append(
            f"{dataset} {bucket} gets {word}: "
            f"{100 * before:.1f} % to {100 * share:.1f} % of the tokens."
        )
    return sentences
