"""What would have happened: the surrogate's forecast of plans that ran and of plans that did not.

Before each round the surrogate is asked about the plan of the round and about the plan of the rule
`need`, by what was known then. Whether its intervals deserve belief shows in the same picture: what
ran was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.planners.base import PlannerSettings
from agent.planners.kinds import settings_by_kind
from agent.planners.toolbox import SurrogateTools
from agent.state import RunState
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.evaluation import Score
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import Observe
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

OTHER = "need"
# Each takes one fit of the surrogate.
NEWEST = 12


class Foretold(FrozenModel):
    """A predicted selection mean with its 90 % interval, in 1-5."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Alternative:
    """One round: objective -> forecast of its plan, forecast of the other plan, and what was measured."""

    round: int
    ran: Mapping[str, Foretold]
    other: Mapping[str, Foretold]
    measured: Mapping[str, Score]


def alternatives(journal: Journal, state: RunState) -> list[Alternative]:
    """The newest rounds that were planned and measured, oldest first.

    Rounds whose plan moves tokens between methods are left out: the fit does not see methods.
    """
    store = Store(journal.folder)
    found = []
    for step in journal.steps(Observe)[-NEWEST:]:
        number = step.inputs.round
        if number >= len(state.rounds) or state.rounds[number].failure is not None:
            continue
        round_ = state.rounds[number]
        seen = Observation.model_validate(store.get_json(step.result.observation))
        if round_.plan is None:
            continue
        surrogate = SurrogateTools(seen)
        ran = _foretold(surrogate, round_.plan)
        if ran:
            measured = {name: roles["selection"] for name, roles in round_.scores.items()}
            other = _foretold(surrogate, _plan_of_other(seen))
            found.append(Alternative(number, ran, other, measured))
    return found


def _plan_of_other(seen: Observation) -> ActionPlan:
    """What the rule would have planned, within the limits of that round. It looks at no example."""
    toolbox = Toolbox(seen, examples=lambda *asked: [], check=lambda draft: [])
    settings = settings_by_kind()[OTHER]()
    assert isinstance(settings, PlannerSettings)
    (plan,) = settings.build().propose(seen, toolbox)
    return plan


def _foretold(surrogate: SurrogateTools, plan: ActionPlan) -> dict[str, Foretold]:
    """Objective -> forecast; empty for a plan that moves method shares."""
    selection = surrogate.predict(plan)["selection"]
    assert isinstance(selection, dict)
    found = {}
    for name, told in selection.items():
        assert isinstance(told, dict)
        found[name] = Foretold.model_validate({key: told[key] for key in Foretold.model_fields})
    return found


def inside(found: Sequence[Alternative]) -> tuple[int, int]:
    """Of how many forecasts of what ran the measured mean lies inside the interval, and how many there are."""
    hits = total = 0
    for one in found:
        for objective, foretold in one.ran.items():
            mean = one.measured[objective].mean
            if mean is not None:
                total += 1
                hits += foretold.low <= mean <= foretold.high
    return hits, total


def caption_of(found: Sequence[Alternative]) -> str:
    """What stands below the picture: what is forecast, and how far the forecasts of what ran held."""
    hits, total = inside(found)
    return (
        "What the surrogate foretold before each round, with 90 % intervals: of the plan that ran, and of "
        f"the plan that the planner {OTHER} would have made, which nobody ran. Filled marks were measured. "
        f"Of {total} forecasts of what ran, {hits} lie within their interval: believe the others as much."
    )
