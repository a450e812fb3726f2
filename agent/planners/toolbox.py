"""The toolbox that every planning call gets, in a run, in a look ahead and in a replay."""

from __future__ import annotations

from agent.constraints import check_plan
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

    def check(draft: ActionPlan) -> list[Violation]:
        return check_plan(draft, observation, pool)

    return Toolbox(observation, examples, check)
