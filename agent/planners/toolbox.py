"""The toolbox that every planning call gets, in a run, in a look ahead and in a replay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from agent.constraints import check_plan
from agent.methods import with_methods_of
from agent.planners.search import HALF_90, Bounds, Surrogate
from agent.prediction import last_means, moves_methods
from mosaic.core.store import Store
from mosaic.core.types.base import JsonObject
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation
from tools.planning.examples import EvaluationFiles, examples_of
from tools.planning.toolbox import Filter, Toolbox
from training.data.pool import Pool


def open_toolbox(
    observation: Observation, pool: Pool, store: Store, files: EvaluationFiles | None
) -> Toolbox:
    """The tools over one observation: examples from what was filed, checks against all limits.

    `files` is objective -> role -> digests of the evaluation that the observation is drawn from.
    """

    def examples(objective: str, slice_: str, filter_: Filter, n: int) -> list[JsonObject]:
        return examples_of(store, files or {}, objective, slice_, filter_, n)

    def check(draft: ActionPlan, siblings: Sequence[ActionPlan] = ()) -> list[Violation]:
        return check_plan(draft, observation, pool, siblings)

    fitted = SurrogateTools(observation)
    return Toolbox(observation, examples, check, fitted.predict, fitted.suggest)


class SurrogateTools:
    """What a planner may ask the surrogate. It is fitted when it is first asked."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation

    @cached_property
    def surrogate(self) -> Surrogate:
        """The fit of the observation."""
        return Surrogate(self._observation)

    def predict(self, plan: ActionPlan) -> JsonObject:
        """Predicted means with 90 % intervals, and whether the plan explores."""
        lag = self.surrogate.lag(plan)
        return {
            "selection": self._predicted(plan),
            "worse_than_best_suggestion": round(lag.mean, 4),
            "interval": round(lag.half_width, 4),
            "explores": lag.clear,
        }

    def suggest(self, n: int, bounds: Bounds) -> list[JsonObject]:
        """The best mixtures within the bounds, each with what is predicted of it."""
        found: list[JsonObject] = []
        for weights in self.surrogate.best(n, bounds):
            plan = ActionPlan(rationale="", ratios=weights.ratios, bucket_weights=weights.buckets)
            plan = with_methods_of(plan, self._observation.last_plan)
            found.append(
                {
                    "ratios": dict(weights.ratios),
                    "bucket_weights": {d: dict(w) for d, w in weights.buckets.items()},
                    "selection": self._predicted(plan),
                }
            )
        return found

    def _predicted(self, plan: ActionPlan) -> JsonObject:
        """Objective -> predicted selection mean, its interval, and the expected change."""
        told: JsonObject = {}
        if moves_methods(plan, self._observation):
            return told
        measured = last_means(self._observation)
        for objective, change in self.surrogate.changes(plan).items():
            mean, half = measured[objective] + change.mean, HALF_90 * change.deviation
            told[objective] = {
                "mean": round(mean, 3),
                "low": round(max(1.0, mean - half), 3),
                "high": round(min(5.0, mean + half), 3),
                "change": round(change.mean, 4),
            }
        return told
