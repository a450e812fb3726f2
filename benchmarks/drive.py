"""Planners driven over a landscape: a function that says what a mixture would score, noise added.

No model is trained. What a planner is told is built as a run builds it: a base, a calibration in the
pools' own proportions, then its own rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agent.noise import noise_of
from agent.pareto import archive, hypervolume
from agent.planners.base import Planner
from agent.state import mark_dominated
from agent.weights import Cell, Weights, plan_shares, proportions
from mosaic.core.types.data import Stock
from mosaic.core.types.evaluation import FailureProfile, Score, SliceProfile
from mosaic.core.types.plans import ActionPlan, Forecast, Limits, ObjectiveSpec
from mosaic.core.types.runs import Calibration, Observation, Round, Trial, TrialSpec
from tools.planning.toolbox import Toolbox

ROUNDS, REPEATS = 5, 3
# Standard deviations in points: of a training, which moves an objective's slices together, and of a
# slice's mean and an objective's selection mean by their prompts.
TRAINING_NOISE, SLICE_NOISE, SELECTION_NOISE = 0.08, 0.10, 0.06
PROMPTS = 40
BUDGET = 100_000
FREE = Limits(max_ratio_step=None, max_bucket_step=None)

# (objective, slice) -> mean, 1-5
Means = Mapping[tuple[str, str], float]


class Landscape(Protocol):
    """What is asked of a landscape. `objectives` declare data sets, rightly or not."""

    objectives: Sequence[ObjectiveSpec]

    def pool(self, seed: int) -> dict[str, dict[str, float]]:
        """Data set -> bucket -> tokens, as a multiple of the budget of a round."""
        ...

    def means(self, shares: Mapping[Cell, float]) -> Means:
        """The true mean of every slice. No share at all is the base."""
        ...


@dataclass(frozen=True)
class Driven:
    """What came of a run: true points by round, and what was forecast.

    `forecasts` has for each round after the first, and each objective, what was expected, what was
    measured, and the lower and upper end of the 90 % interval if the planner has one.
    """

    points: list[list[float]]
    targets_met: bool
    forecasts: list[tuple[float, float]]

    @property
    def volume(self) -> float:
        return hypervolume(self.points)

    @property
    def volumes(self) -> list[float]:
        """The volume of each round's point alone."""
        return [hypervolume([point]) for point in self.points]


class Drive:
    """One run of one planner on one pool."""

    def __init__(self, landscape: Landscape, seed: int, limits: Limits | None = None) -> None:
        self.landscape = landscape
        self.seed = seed
        self.limits = limits or Limits()
        self.names = [objective.name for objective in landscape.objectives]
        tokens = landscape.pool(seed)
        self.stock: dict[str, dict[str, Stock]] = {}
        for dataset, per_bucket in tokens.items():
            held = {b: Stock(rows=100, tokens=int(t * BUDGET)) for b, t in per_bucket.items()}
            self.stock[dataset] = held
        self.own: Weights = proportions(self.stock)
        self._draws = np.random.default_rng([seed, 40])

    def run(self, planner: Planner, rounds: int = ROUNDS) -> Driven:
        """Base, calibration and so many rounds."""
        static = ActionPlan(rationale="static", ratios=self.own.ratios)
        static = static.model_copy(update={"bucket_weights": self.own.buckets})
        repeats = [self._trial(static, number) for number in range(REPEATS)]
        calibration = Calibration(trials=repeats, noise=noise_of(repeats))
        done = [self._round(0, self._trial(None, 0), [])]
        latest, last_plan = repeats[0], static
        points, forecasts = [], []
        for number in range(1, rounds + 1):
            seen = self.observation(number, rounds, done, calibration, latest.profile, last_plan)
            [plan] = planner.propose(seen, Toolbox(seen, lambda *wanted: [], lambda draft: []))
            trial = self._trial(plan, number)
            before = self._selection(latest if number > 1 else None, repeats)
            lines = []
            for name, expected in plan.expected.items():
                actual = (trial.scores[name]["selection"].mean or 1.0) - before[name]
                lines.append(Forecast(objective=name, expected=expected, actual=actual))
                if number > 1:
                    forecasts.append((expected, actual))
            done = mark_dominated(
                [*done, self._round(number, trial, lines)], self.names, calibration.noise
            )
            latest, last_plan = trial, plan
            points.append(self.true_point(plan))
        return Driven(points, self._met(points), forecasts)

    def observation(
        self,
        number: int,
        rounds: int,
        done: Sequence[Round],
        calibration: Calibration,
        profile: FailureProfile,
        last_plan: ActionPlan,
    ) -> Observation:
        """What the planner of a round is told."""
        return Observation(
            round=number,
            rounds=rounds,
            seed=self.seed,
            objectives=list(self.landscape.objectives),
            profile=profile,
            history=list(done),
            archive=archive(done, self.names, calibration.noise),
            calibration=calibration,
            proportions=self.own.ratios,
            bucket_proportions=self.own.buckets,
            stock=self.stock,
            last_plan=last_plan,
            limits=self.limits,
            budget_per_round=BUDGET,
            cost_per_round=BUDGET,
            budget_left=BUDGET * (rounds - number + 1),
        )

    def true_point(self, plan: ActionPlan) -> list[float]:
        """The true means of the objectives."""
        means = self.landscape.means(plan_shares(plan, self.own.buckets))
        return [_of(means, name) for name in self.names]

    def _met(self, points: Sequence[Sequence[float]]) -> bool:
        """Whether some round reached every target in truth."""
        targets = [objective.target or 1.0 for objective in self.landscape.objectives]
        return any(all(x >= t for x, t in zip(p, targets, strict=True)) for p in points)

    def _trial(self, plan: ActionPlan | None, seed: int) -> Trial:
        """A plan measured: its truth, with the luck of a training and of prompts."""
        shares = plan_shares(plan, self.own.buckets) if plan else {}
        means = self.landscape.means(shares)
        slices, scores = [], {}
        for name in self.names:
            luck = TRAINING_NOISE * self._draws.standard_normal()
            for objective, slice_ in means:
                if objective != name:
                    continue
                drawn = luck + SLICE_NOISE * self._draws.standard_normal()
                mean = float(np.clip(means[objective, slice_] + drawn, 1, 5))
                slices.append(_profile(name, slice_, mean))
            drawn = luck + SELECTION_NOISE * self._draws.standard_normal()
            scores[name] = {"selection": _score(float(np.clip(_of(means, name) + drawn, 1, 5)))}
        slices.sort(key=lambda one: (one.score.mean or 0.0, one.objective, one.slice))
        spec = TrialSpec(plan=plan, tokens=BUDGET if plan else 0, seed=seed, base="base")
        profile = FailureProfile(round=0, slices=slices)
        return Trial(id=f"{seed}-{len(slices)}", spec=spec, scores=scores, profile=profile)

    def _round(self, number: int, trial: Trial, lines: list[Forecast]) -> Round:
        return Round(round=number, trials=[trial], accepted=True, forecast=lines)

    def _selection(self, latest: Trial | None, repeats: Sequence[Trial]) -> dict[str, float]:
        """Selection means of what was executed last; the calibration's mean before the first round."""
        trials = [latest] if latest else repeats
        found = {}
        for name in self.names:
            found[name] = float(np.mean([t.scores[name]["selection"].mean for t in trials]))
        return found


def _of(means: Means, objective: str) -> float:
    """An objective's mean: its slices count alike."""
    return float(np.mean([mean for (name, _), mean in means.items() if name == objective]))


def _score(mean: float) -> Score:
    return Score(mean=mean, low=max(1.0, mean - 0.2), high=min(5.0, mean + 0.2), n_scored=PROMPTS)


def _profile(objective: str, slice_: str, mean: float) -> SliceProfile:
    rate = (5 - mean) / 4
    score = _score(mean)
    return SliceProfile(
        objective=objective, slice=slice_, score=score, failure_rate=rate, reliability="high"
    )


def best_found(landscape: Landscape, seed: int, passes: int = 12, size: int = 60) -> float:
    """The largest volume of one point that a search of the truth finds, limits aside."""
    drive = Drive(landscape, seed, FREE)
    generator = np.random.default_rng(seed)
    best, value = drive.own, -1.0
    for spread in np.linspace(1.2, 0.1, passes):
        for _ in range(size):
            ratios = _moved(best.ratios, spread, generator)
            buckets = {d: _moved(w, spread, generator) for d, w in best.buckets.items()}
            plan = ActionPlan(rationale="", ratios=ratios, bucket_weights=buckets)
            volume = hypervolume([drive.true_point(plan)])
            if volume > value:
                best, value = Weights(ratios, buckets), volume
    return value


def _moved(
    weights: Mapping[str, float], spread: float, generator: np.random.Generator
) -> dict[str, float]:
    drawn = {n: (w + 0.003) * np.exp(spread * generator.normal()) for n, w in weights.items()}
    total = sum(drawn.values())
    return {name: float(weight / total) for name, weight in drawn.items()}
