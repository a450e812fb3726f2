"""Planners driven over a landscape: a function that says what a mixture would score, noise added.

No model is trained. What a planner is told is built as a run builds it: a base, a calibration in the
pools' own proportions, then its own rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from agent.fidelity import ExpertsConfig, affine_weights, corners, groups
from agent.noise import noise_of
from agent.pareto import archive, hypervolume
from agent.planners.base import Planner
from agent.planners.looks import mixtures_to_look_at
from agent.planners.search import Surrogate
from agent.state import mark_dominated
from agent.weights import Cell, Weights, plan_shares, proportions
from mosaic.core.types.data import Stock
from mosaic.core.types.evaluation import FailureProfile, Score, SliceProfile
from mosaic.core.types.plans import ActionPlan, Forecast, Limits, ObjectiveSpec
from mosaic.core.types.runs import Adapter, Calibration, Observation, Round, Trial, TrialSpec
from tools.planning.toolbox import Toolbox

ROUNDS, REPEATS = 5, 3
# Standard deviations in points: of a training, which moves an objective's slices together, and of a
# slice's mean and an objective's selection mean by their prompts.
TRAINING_NOISE, SLICE_NOISE, SELECTION_NOISE = 0.08, 0.10, 0.06
# How far looks that are added up lie off the truth, in points: an objective's all alike, and each by
# itself. No landscape knows it; on the laboratory `python -m benchmarks looks` measures it.
LOOK_BIAS, LOOK_ERROR = 0.3, 0.3
# What a logarithm of a training's tokens adds, in points: a quarter of them cost 1.17 on the laboratory.
TOKENS_EFFECT = 0.84
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

    `forecasts` has the surrogate's, for each round after the first and each objective, whoever
    planned: the expected change, its standard deviation, and the change that was measured.
    """

    points: list[list[float]]
    targets_met: bool
    forecasts: list[tuple[float, float, float]]

    @property
    def volume(self) -> float:
        return hypervolume(self.points)

    @property
    def volumes(self) -> list[float]:
        """The volume of each round's point alone."""
        return [hypervolume([point]) for point in self.points]


class Drive:
    """One run of one planner on one pool."""

    def __init__(
        self,
        landscape: Landscape,
        seed: int,
        limits: Limits | None = None,
        foresee: bool = False,
        fidelity: ExpertsConfig | None = None,
        repeats: int = REPEATS,
    ) -> None:
        """`foresee` asks the surrogate for its forecast of every plan. `fidelity` trains experts after
        the calibration's `repeats`, and takes looks before each round.
        """
        self.foresee = foresee
        self.fidelity = fidelity
        self.repeats = repeats
        self.looks: list[Trial] = []
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
        repeats = [self._trial(static, number) for number in range(self.repeats)]
        calibration = Calibration(trials=repeats, noise=noise_of(repeats))
        done = [self._round(0, self._trial(None, 0), [])]
        latest, last_plan = repeats[0], static
        self._train_experts()
        points, forecasts = [], []
        for number in range(1, rounds + 1):
            seen = self.observation(number, rounds, done, calibration, latest.profile, last_plan)
            seen = self._after_looks(seen)
            [plan] = planner.propose(seen, Toolbox(seen, lambda *wanted: [], lambda draft: []))
            trial = self._trial(plan, number)
            before = self._selection(latest if number > 1 else None, repeats)
            actual = {n: (trial.scores[n]["selection"].mean or 1.0) - before[n] for n in self.names}
            lines = []
            for name, expected in plan.expected.items():
                lines.append(Forecast(objective=name, expected=expected, actual=actual[name]))
            if number > 1 and self.foresee:
                for name, change in Surrogate(seen).changes(plan).items():
                    forecasts.append((change.mean, change.deviation, actual[name]))
            done = mark_dominated(
                [*done, self._round(number, trial, lines, planner.kind)],
                self.names,
                calibration.noise,
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

    def _train_experts(self) -> None:
        if self.fidelity is None:
            return
        grouped = groups(self.landscape.objectives)
        for number, ratios in enumerate(corners(self.fidelity.corner, grouped, self.own.ratios)):
            plan = ActionPlan(rationale="expert", ratios=ratios)
            lost = TOKENS_EFFECT * math.log(self.fidelity.fraction)
            trial = self._trial(plan, number, dict.fromkeys(self.names, lost))
            tokens = int(self.fidelity.fraction * BUDGET)
            spec = trial.spec.model_copy(update={"tokens": tokens})
            adapter = Adapter(
                digest=f"expert {number}",
                base="base",
                tokens=BUDGET,
                supervised=BUDGET,
                steps=1,
                loss=1.0,
                seconds=0.0,
            )
            self.looks.append(trial.model_copy(update={"adapter": adapter, "spec": spec}))
        # All looks of an objective are off by the same in one run.
        self._bias = {name: LOOK_BIAS * self._draws.standard_normal() for name in self.names}

    def _after_looks(self, seen: Observation) -> Observation:
        """The observation with what was seen of the mixtures that the surrogate finds best."""
        if self.fidelity is None:
            return seen
        seen = seen.model_copy(update={"looks": list(self.looks)})
        grouped = groups(self.landscape.objectives)
        experts = [look for look in self.looks if look.adapter]
        points = [expert.plan.ratios for expert in experts if expert.plan]
        for plan in mixtures_to_look_at(seen, self.fidelity, self.fidelity.looks):
            weights = affine_weights(plan.ratios, points, grouped)
            digests = [expert.adapter.digest for expert in experts if expert.adapter]
            off = {
                n: self._bias[n] + LOOK_ERROR * self._draws.standard_normal() for n in self.names
            }
            trial = self._trial(plan, len(self.looks), off)
            spec = trial.spec.model_copy(
                update={"tokens": 0, "merged": dict(zip(digests, weights, strict=True))}
            )
            self.looks.append(trial.model_copy(update={"spec": spec, "scores": {}}))
        return seen.model_copy(update={"looks": list(self.looks)})

    def true_point(self, plan: ActionPlan) -> list[float]:
        """The true means of the objectives."""
        means = self.landscape.means(plan_shares(plan, self.own.buckets))
        return [_of(means, name) for name in self.names]

    def _met(self, points: Sequence[Sequence[float]]) -> bool:
        """Whether some round reached every target in truth."""
        targets = [objective.target or 1.0 for objective in self.landscape.objectives]
        short = np.array(targets) - np.array(points)
        return bool((short.max(axis=1) <= 0).any())

    def _trial(
        self, plan: ActionPlan | None, seed: int, off: Mapping[str, float] | None = None
    ) -> Trial:
        """A plan measured: its truth, with the luck of a training and of prompts.

        `off` is objective -> points that a look lies off.
        """
        shares = plan_shares(plan, self.own.buckets) if plan else {}
        means = self.landscape.means(shares)
        slices, scores = [], {}
        for name in self.names:
            luck = TRAINING_NOISE * self._draws.standard_normal() + (off or {}).get(name, 0.0)
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

    def _round(self, number: int, trial: Trial, lines: list[Forecast], planner: str = "") -> Round:
        return Round(round=number, trials=[trial], accepted=True, forecast=lines, planner=planner)

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
