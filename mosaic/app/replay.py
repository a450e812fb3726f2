"""What another planner would have proposed at each recorded observation."""

from __future__ import annotations

from pathlib import Path

from agent.planners.toolbox import open_toolbox
from agent.state import RunState
from agent.weights import plan_distance
from mosaic.app.runs import run_config
from mosaic.app.views.report_data import load
from mosaic.app.wiring import build_planner
from mosaic.core.store import Store
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.records import Observe
from mosaic.core.types.runs import Observation, Trial
from training.data.pool import Pool


class Replayed(FrozenModel):
    """A plan that was not executed, its distance (L1 over cells, 0-2) from the one that was."""

    round: int
    planner: str
    plan: ActionPlan
    violations: list[Violation]
    distance: float | None
    executed: ActionPlan | None


def replay(folder: Path, kind: str) -> list[Replayed]:
    """Plans of another planner, a line per recorded observation. Executes and records nothing."""
    config = run_config(folder)
    planner = build_planner(kind, config.planner)
    pool, store = Pool.open(Path(config.pool)), Store(folder)
    journal, state = load(folder)
    observed = journal.steps(Observe)
    journal.close()
    lines = []
    for step in observed:
        seen = Observation.model_validate(store.get_json(step.result.observation))
        toolbox = open_toolbox(seen, pool, store, _latest(state, seen.round).files)
        (plan,) = planner.propose(seen, toolbox)
        executed = state.rounds[seen.round].plan if seen.round < len(state.rounds) else None
        distance = None
        if executed is not None:
            distance = round(plan_distance(plan, executed, seen.bucket_proportions), 4)
        lines.append(
            Replayed(
                round=seen.round,
                planner=planner.kind,
                plan=plan,
                violations=toolbox.violations(plan),
                distance=distance,
                executed=executed,
            )
        )
    return lines


def _latest(state: RunState, number: int) -> Trial:
    """The trial that was executed last before a round."""
    planned = [r for r in state.executed if r.plan and r.round < number]
    if planned:
        return planned[-1].trial
    return state.calibration.trials[0] if state.calibration else state.rounds[0].trial
