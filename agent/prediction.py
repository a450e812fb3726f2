"""What the surrogate expects of a plan: our own prediction, whoever proposed the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from agent.methods import shares_of
from agent.planners.response_model import FORECAST_SCALE, ResponseModel, fit_responses
from agent.weights import Cell, cell_shares, share_row, weights_of
from eval.statistics import shrink_noise
from mosaic.core.types.plans import ActionPlan, Prediction
from mosaic.core.types.runs import Observation, each_trial

# One-sided: 95 % of a normal distribution lie above its mean less 1.645 standard deviations.
LOWER_95 = 1.645
# What is believed of the noise of one selection mean from one training to the next, in points, and
# how many repeats of the calibration that is worth.
USUAL_NOISE, USUAL_REPEATS = 0.12, 3
# What is believed of a forecast's error counts as much as so many errors that were seen.
BELIEF_WORTH = 1.0
SURROGATE = "profile"


class Change(NamedTuple):
    """The expected change of a selection mean, and its standard deviation, in points."""

    mean: float
    deviation: float


def predicted_changes(
    plan: ActionPlan, observation: Observation, model: ResponseModel | None = None
) -> list[Prediction]:
    """The predicted change of every objective's selection mean against the plan executed last.

    `model` is what was fitted to the observation, for who asks about several plans.
    An objective that no slice measures is left out, and all are if a plan moves method shares or
    practice weights, which the fit does not see. The lower bound takes off what the fit does
    not know of the result and the noise of one training: a change of +0.20 with a fit that is
    unsure by 0.05 and a noise of 0.10 has its lower bound at

    >>> round(0.20 - LOWER_95 * math.hypot(0.05, 0.10), 3)
    0.016
    """
    if moves_methods(plan, observation):
        return []
    proportions = observation.bucket_proportions
    model = model or fit_responses(observation)
    after, before = (
        share_row(model.cells, cell_shares(*weights_of(one, proportions)))
        for one in (plan, observation.last_plan)
    )
    noise = observation.calibration.noise if observation.calibration else {}
    found = []
    for objective in observation.names:
        difference = model.difference(after, before, objective)
        if difference is None or objective not in noise:
            continue
        change, unsure = difference
        low = change - LOWER_95 * math.hypot(unsure, noise[objective])
        found.append(Prediction(objective=objective, change=round(change, 4), low=round(low, 4)))
    return found


def moves_methods(plan: ActionPlan, observation: Observation) -> bool:
    """Whether a plan has other method shares or practice weights than the plan executed last."""
    last = observation.last_plan
    same_shares = shares_of(plan, observation.methods) == shares_of(last, observation.methods)
    return not same_shares or plan.practice_weights != last.practice_weights


def expected_changes(
    shares: Mapping[Cell, float], observation: Observation, model: ResponseModel
) -> dict[str, Change]:
    """Objective -> change from what was measured last to what a mixture is predicted to have.

    What was measured last is the selection mean of the round executed last, or the mean of the
    calibration. Objectives without slices, or that were not scored, are left out.
    """
    reference = last_means(observation)
    row = np.array([share_row(model.cells, shares)])
    found = {}
    for objective in observation.names:
        if objective not in model.objectives or objective not in reference:
            continue
        mean = float(model.predict(row, objective, 0.0, np.zeros(1))[0, 0])
        unsure = float(model.spread(row, objective, FORECAST_SCALE)[0])
        believed = math.hypot(unsure, selection_noise(observation, objective))
        deviation = _as_it_turned_out(believed, observation, objective)
        found[objective] = Change(mean - reference[objective], deviation)
    return found


def _as_it_turned_out(believed: float, observation: Observation, objective: str) -> float:
    """The standard deviation of a forecast, drawn toward the errors that forecasts had in this run.

    Only the surrogate's own count: those of rounds that `profile` planned.
    """
    squares = []
    for past in each_trial(observation.history):
        if past.planner != SURROGATE:
            continue
        for forecast in past.forecast:
            if forecast.objective == objective and forecast.actual is not None:
                squares.append((forecast.expected - forecast.actual) ** 2)
    total = BELIEF_WORTH * believed**2 + math.fsum(squares)
    return math.sqrt(total / (BELIEF_WORTH + len(squares)))


def selection_noise(observation: Observation, objective: str) -> float:
    """How far a selection mean moves from one training of a mixture to the next, in points."""
    measured, repeats = 0.0, 0
    if observation.calibration is not None:
        measured = observation.calibration.noise.get(objective, 0.0)
        repeats = len(observation.calibration.trials) - 1
    return shrink_noise(measured, repeats, USUAL_NOISE, USUAL_REPEATS).deviation


def last_means(observation: Observation) -> dict[str, float]:
    """Selection means of what was executed last: of the latest round, or over the calibration."""
    trials = observation.calibration.trials if observation.calibration else []
    for past in observation.history:
        if past.plan is not None and not past.failure:
            trials = [past.trial]
    means = {}
    for objective in observation.names:
        scored = []
        for trial in trials:
            score = trial.scores.get(objective, {}).get("selection")
            if score is not None and score.mean is not None:
                scored.append(score.mean)
        if scored:
            means[objective] = math.fsum(scored) / len(scored)
    return means
