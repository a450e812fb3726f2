"""Who was right: what plans said of their rounds, what the surrogate said then, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from agent.planners.search import Surrogate
from mosaic.core.types.runs import Observation, Round, each_trial

# So many of the latest rounds are told.
MAX_ROUNDS = 5


@dataclass(frozen=True)
class Scored:
    """One past round: changes of selection means, by objective, expected and measured.

    `nearer` says whose error is smaller on average, the planner's or the surrogate's.
    """

    round: int
    rationale: str
    expected: dict[str, float]
    predicted: dict[str, float]
    measured: dict[str, float]
    nearer: Literal["planner", "surrogate"] | None


def track_record(observation: Observation) -> list[Scored]:
    """The latest rounds that were planned and measured, oldest first.

    The surrogate is asked what it would have said then: it is fitted to what was known before the
    round. Where a plan decides more than the mixture, it says nothing.
    """
    found = []
    history = each_trial(observation.history)
    planned = [past for past in history if past.plan is not None and not past.failure]
    for past in planned[-MAX_ROUNDS:]:
        assert past.plan is not None
        predicted = {}
        if not observation.methods:
            then = Surrogate(known_before(past.round, observation))
            predicted = {o: round(c.mean, 4) for o, c in then.changes(past.plan).items()}
        measured = {f.objective: f.actual for f in past.forecast if f.actual is not None}
        expected = {f.objective: f.expected for f in past.forecast}
        found.append(
            Scored(
                round=past.round,
                rationale=past.plan.rationale,
                expected=expected,
                predicted=predicted,
                measured=measured,
                nearer=_nearer(expected, predicted, measured),
            )
        )
    return found


def known_before(number: int, observation: Observation) -> Observation:
    """What was known when a past round was planned, but for refusals and floors."""
    history = [past for past in observation.history if past.round < number]
    last: Round | None = None
    for past in history:
        if past.plan is not None and not past.failure:
            last = past
    calibration = observation.calibration
    changes: dict[str, object] = {
        "round": number,
        "history": history,
        "feedback": [],
        "below_floor": [],
        "influence": None,
        "looks": [look for look in observation.looks if look.profile.round <= number],
    }
    if last is not None:
        changes |= {"last_plan": last.plan, "profile": last.profile}
    elif calibration is not None:
        changes |= {"last_plan": calibration.mixture, "profile": calibration.trials[0].profile}
    return observation.model_copy(update=changes)


def _nearer(
    expected: Mapping[str, float], predicted: Mapping[str, float], measured: Mapping[str, float]
) -> Literal["planner", "surrogate"] | None:
    """Whose mean error is smaller, over objectives that both foretold; None if nobody's is."""
    both = [name for name in measured if name in expected and name in predicted]
    if not both:
        return None
    planner = fmean(abs(expected[name] - measured[name]) for name in both)
    surrogate = fmean(abs(predicted[name] - measured[name]) for name in both)
    if planner == surrogate:
        return None
    return "planner" if planner < surrogate else "surrogate"
