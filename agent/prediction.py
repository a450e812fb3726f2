"""What the surrogate expects of a plan: our own prediction, whoever proposed the plan."""

from __future__ import annotations

import math

from agent.methods import shares_of
from agent.planners.response_model import fit_responses
from agent.weights import Floats, Weights, cell_shares, share_row, weights_of
from mosaic.core.types.plans import ActionPlan, Prediction
from mosaic.core.types.runs import Observation

# One-sided: 95 % of a normal distribution lie above its mean less 1.645 standard deviations.
LOWER_95 = 1.645


def predicted_changes(plan: ActionPlan, observation: Observation) -> list[Prediction]:
    """The predicted change of every objective's selection mean against the plan executed last.

    An objective that no slice measures is left out, and all are if a plan moves method shares or
    practice weights, which the fit does not see. The lower bound takes off what the fit does
    not know of the difference and the noise of one training: a change of +0.20 with a fit that is
    unsure by 0.05 and a noise of 0.10 has its lower bound at

    >>> round(0.20 - LOWER_95 * math.hypot(0.05, 0.10), 3)
    0.016
    """
    last = observation.last_plan
    same_shares = shares_of(plan, observation.methods) == shares_of(last, observation.methods)
    if not same_shares or plan.practice_weights != last.practice_weights:
        return []
    proportions = observation.bucket_proportions
    model = fit_responses(observation)

    def row(weights: Weights) -> Floats:
        return share_row(model.cells, cell_shares(*weights))

    after = row(weights_of(plan, proportions))
    before = row(weights_of(observation.last_plan, proportions))
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
