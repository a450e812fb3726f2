"""The default planner where no model is configured: deterministic, works through the tools, learns from this run.

It looks at the slices that hold the result back, asks for examples and for the pool's stock, fits how slices answered
to tokens so far (`response`), and searches mixtures inside the limits for the best result to be expected: dominated
volume, less a price for each target missed, averaged over luck. A mixture whose mean lies just at the top of the scale
or at a target is therefore worth less than one with room to spare. What it predicts is written down as the plan's
expected effect, and the next round's fit starts from what happened instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

import numpy as np

from agent.constraints import refused_plans
from agent.feasible import project
from agent.planners.base import require_one_plan
from agent.planners.response_model import Cell, MeasuredMixture, ResponseModel
from agent.weights import Floats, Weights, cell_shares, plan_shares, share_row, weights_of
from mosaic.core.types.evaluation import FailureProfile, SliceProfile
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

LOOKS = 4
EXAMPLES = 3
CANDIDATES = 96
SPREADS = (0.9, 0.6, 0.35, 0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.07, 0.07, 0.05)
# A point below a target costs four times the whole volume: targets come first, as when the result is chosen.
SHORTFALL_COST = 16.0
# A mixture nearer than this (L1 over cells) to one that was trained would teach next to nothing.
MIN_NEWS = 0.12
# Luck, standard normal: nodes and weights of Gauss and Hermite's quadrature.
NOISE_NODES, NOISE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
NOISE_WEIGHTS = NOISE_WEIGHTS / NOISE_WEIGHTS.sum()
# Its standard deviation in points (1-5), the luck of a training and that of prompts which no decision sees together,
# and how many repeats of the calibration, which tells of the first alone, that belief is worth.
USUAL_NOISE, USUAL_NOISE_REPEATS = 0.5, 8


class SurrogatePlanner:
    """Searches the mixture with the best predicted result given the failure profiles so far."""

    kind = "profile"

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        require_one_plan(self.kind, n)
        toolbox.past_rounds()
        worst = self._look(observation, toolbox)
        trials = trials_of(observation)
        cells = [(d, b) for d, per in observation.bucket_proportions.items() for b in per]
        model = ResponseModel(cells, {o.name: o.datasets for o in observation.objectives}, trials)
        start = self._best_past(observation)
        ratios, buckets, value = self._search(observation, model, start)
        last = weights_of(observation.last_plan, observation.bucket_proportions)
        rows = np.array(
            [share_row(cells, cell_shares(ratios, buckets)), share_row(cells, cell_shares(*last))]
        )
        means = {o: each @ NOISE_WEIGHTS for o, each in outcomes(model, rows, observation).items()}
        expected = {o: round(float(then - now), 4) for o, (then, now) in means.items()}
        rationale = self._rationale(observation, worst, model, ratios, buckets, expected)
        toolbox.conclude(f"of the mixtures searched this one is predicted best (value {value:.3f})")
        plan = ActionPlan(
            rationale=rationale, ratios=ratios, bucket_weights=buckets, expected=expected
        )
        toolbox.check_plan(plan)
        return [plan]

    def _look(self, observation: Observation, toolbox: Toolbox) -> list[SliceProfile]:
        """Ask about the slices that cost most, see what fails in the worst, and what the pool can give."""
        worst = [
            s for s in observation.profile.slices if s.score.mean is not None and s.score.mean < 4.9
        ][:LOOKS]
        for slice_ in worst:
            toolbox.diagnose_slice(slice_.objective, slice_.slice)
        for slice_ in worst[:1]:
            toolbox.show_examples(slice_.objective, slice_.slice, "failed", EXAMPLES)
        for objective in observation.objectives:
            for dataset in objective.datasets:
                toolbox.pool_stock(dataset)
        for slice_ in worst:
            toolbox.conclude(
                f"{slice_.objective} {slice_.slice}: mean {slice_.score.mean:.2f}, "
                f"{100 * (slice_.failure_rate or 0):.0f} % fail, reliability {slice_.reliability}"
            )
        return worst

    def _best_past(self, observation: Observation) -> ActionPlan:
        """The executed plan with the best selection result; the calibration's counts by its mean."""
        scored: list[tuple[float, int, ActionPlan]] = []
        names = [o.name for o in observation.objectives]
        for past in observation.history:
            point = past.point(names)
            if past.plan and point:
                scored.append(
                    (
                        value_of_point(dict(zip(names, point, strict=True)), observation),
                        -past.round,
                        past.plan,
                    )
                )
        if observation.calibration:
            means = {
                o: fmean(
                    m
                    for s in observation.calibration.scores
                    if (m := s[o]["selection"].mean) is not None
                )
                for o in names
                if any(s[o]["selection"].mean is not None for s in observation.calibration.scores)
            }
            if means:
                scored.append(
                    (value_of_point(means, observation), 0, observation.calibration.mixture)
                )
        return max(scored, key=lambda item: item[:2])[2] if scored else observation.last_plan

    def _search(
        self, observation: Observation, model: ResponseModel, start: ActionPlan
    ) -> tuple[dict[str, float], dict[str, dict[str, float]], float]:
        """Random moves in log-ratios, narrower each time, around the best point so far; all inside the limits."""
        generator = np.random.default_rng([observation.seed, observation.round, 17])
        centre = project(*weights_of(start, observation.bucket_proportions), observation)
        best, best_value = centre, self._values([centre], observation, model)[0]
        for spread in SPREADS:
            points = [
                project(*_moved(best, spread, generator), observation) for _ in range(CANDIDATES)
            ]
            values = self._values(points, observation, model)
            top = int(np.argmax(values))
            if values[top] > best_value:
                best, best_value = points[top], values[top]
        return best[0], best[1], float(best_value)

    def _values(
        self, points: list[Weights], observation: Observation, model: ResponseModel
    ) -> list[float]:
        rows = np.array([share_row(model.cells, cell_shares(*point)) for point in points])
        worth = np.broadcast_to(
            values_of(outcomes(model, rows, observation), observation), len(rows)
        )
        plans = [r.plan for r in observation.history if r.plan] + refused_plans(observation)
        tried = [
            share_row(model.cells, cell_shares(*weights_of(plan, observation.bucket_proportions)))
            for plan in plans
        ]
        stale = [any(np.abs(row - past).sum() < MIN_NEWS for past in tried) for row in rows]
        return [float(w) - s for w, s in zip(worth, stale, strict=True)]

    def _rationale(
        self,
        observation: Observation,
        worst: list[SliceProfile],
        model: ResponseModel,
        ratios: Mapping[str, float],
        buckets: Mapping[str, Mapping[str, float]],
        expected: Mapping[str, float],
    ) -> str:
        last_ratios, last_buckets = weights_of(
            observation.last_plan, observation.bucket_proportions
        )
        parts = []
        if worst:
            named = ", ".join(f"{s.objective} {s.slice} ({s.score.mean:.2f})" for s in worst)
            parts.append(f"The slices furthest from the top are {named}.")
        moves = []
        for (dataset, bucket), share in cell_shares(ratios, buckets).items():
            before = last_ratios.get(dataset, 0.0) * last_buckets.get(dataset, {}).get(bucket, 0.0)
            moves.append((share - before, dataset, bucket, before, share))
        moves.sort()
        for change, dataset, bucket, before, share in [*moves[-3:][::-1], *moves[:2]]:
            word = "more" if change > 0 else "less"
            parts.append(
                f"{dataset} {bucket} gets {word}: {100 * before:.1f} % to {100 * share:.1f} % of the tokens."
            )
        for slice_ in worst[:2]:
            effect = model.effect((slice_.objective, slice_.slice))
            parts.append(
                f"Doubling {slice_.objective}'s tokens is believed to add {effect:.2f} to {slice_.slice}."
            )
        changes = ", ".join(f"{o} {c:+.2f}" for o, c in expected.items())
        parts.append(f"Expected against the plan executed last: {changes}.")
        return " ".join(parts)


def _moved(point: Weights, spread: float, generator: np.random.Generator) -> Weights:
    """A log-normal move of every ratio and bucket weight; a little is added so that nothing stays at zero."""
    ratios, buckets = point

    def move(weights: Mapping[str, float]) -> dict[str, float]:
        return {
            n: (w + 0.003) * math.exp(spread * generator.standard_normal())
            for n, w in sorted(weights.items())
        }

    return Weights(move(ratios), {d: move(per) for d, per in sorted(buckets.items())})


def slice_means(profile: FailureProfile) -> dict[Cell, float]:
    return {
        (s.objective, s.slice): s.score.mean for s in profile.slices if s.score.mean is not None
    }


def trials_of(observation: Observation) -> list[MeasuredMixture]:
    """Everything that was trained in this run, with the base as the trial of no tokens."""
    trials = []
    for past in observation.history:
        if past.failure:
            continue
        shares = plan_shares(past.plan, observation.bucket_proportions) if past.plan else {}
        trials.append(MeasuredMixture(shares, slice_means(past.profile)))
    if observation.calibration:
        shares = plan_shares(observation.calibration.mixture, observation.bucket_proportions)
        trials += [
            MeasuredMixture(shares, slice_means(profile))
            for profile in observation.calibration.profiles
        ]
    return trials


def usual_luck(observation: Observation) -> dict[str, float]:
    """Standard deviation of luck per objective: the calibration's, drawn toward what is usual, since three repeats say
    little, and nothing of other prompts."""
    calibration = observation.calibration
    repeats = len(calibration.scores) - 1 if calibration else 0
    noise = {}
    for objective in observation.objectives:
        seen = calibration.noise.get(objective.name, 0.0) if calibration else 0.0
        total = USUAL_NOISE_REPEATS * USUAL_NOISE**2 + repeats * seen**2
        noise[objective.name] = math.sqrt(total / (USUAL_NOISE_REPEATS + repeats))
    return noise


def outcomes(model: ResponseModel, rows: Floats, observation: Observation) -> dict[str, Floats]:
    """Objective -> predicted means (n, k) of each mixture under each luck; objectives without slices are left out."""
    noise = usual_luck(observation)
    found = {o: model.predict(rows, o, sd, NOISE_NODES) for o, sd in noise.items()}
    return {o: means for o, means in found.items() if not np.isnan(means).any()}


def values_of(
    means: Mapping[str, Floats], observation: Observation, chance: Floats = NOISE_WEIGHTS
) -> Floats:
    """What is maximised (n): the volume a mixture is expected to dominate alone, less a price for what it is expected
    to fall short of targets. The luck of objectives is independent."""
    volume = math.prod(np.clip((m - 1) / 4, 0, None) @ chance for m in means.values())
    targets = {o.name: o.target for o in observation.objectives if o.target and o.name in means}
    short = sum(np.clip(t - means[o], 0, None) @ chance for o, t in targets.items())
    return np.asarray(volume - SHORTFALL_COST * short / 4)


def value_of_point(means: Mapping[str, float], observation: Observation) -> float:
    """The value of a result that was measured."""
    return float(
        values_of({o: np.array([[m]]) for o, m in means.items()}, observation, np.ones(1))[0]
    )
