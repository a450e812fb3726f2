"""From what has happened to what a planner is told, and whether to stop. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from agent.noise import believed_noise
from agent.pareto import MIN_NOISE, choose, floors_broken
from agent.settings import Settings
from agent.state import RunState
from agent.weights import proportions
from mosaic.core.types.evaluation import FailureProfile, Score
from mosaic.core.types.influence import Influence
from mosaic.core.types.plans import ActionPlan, Forecast, Note, Violation
from mosaic.core.types.runs import Observation, Round, each_trial
from training.data.pool import Pool


def static_plan(pool: Pool, settings: Settings) -> ActionPlan:
    """The plan that spends the budget in the pools' own proportions."""
    ratios, buckets = proportions(pool.stock(settings.limits.min_quality))
    return ActionPlan(
        rationale="The pools' own proportions.", ratios=ratios, bucket_weights=buckets
    )


def observation(
    state: RunState,
    settings: Settings,
    pool: Pool,
    budget_left: int,
    feedback: list[Violation],
    influence: Influence | None = None,
    practice: Mapping[str, int] | None = None,
    notes: Sequence[Note] = (),
) -> Observation:
    """What the planner of the next round is told. `practice` counts the practice prompts by slice."""
    stock = pool.stock(settings.limits.min_quality)
    ratios, buckets = proportions(stock)
    latest = state.latest
    assert latest is not None
    assert state.last_plan is not None
    noise = believed_noise(state.calibration, settings.names)
    return Observation(
        round=state.rounds[-1].round + 1,
        rounds=settings.rounds,
        seed=settings.seed,
        objectives=settings.objectives,
        profile=latest.profile,
        history=list(state.rounds),
        archive=state.archive,
        calibration=state.calibration,
        proportions=ratios,
        bucket_proportions=buckets,
        stock=stock,
        attributes=pool.attribute_values(settings.limits.min_quality),
        last_plan=state.last_plan,
        limits=settings.limits,
        budget_per_round=settings.tokens_per_round,
        cost_per_round=settings.cost_per_round,
        budget_left=budget_left,
        feedback=feedback,
        influence=influence,
        methods=settings.method_shares,
        practice=dict(practice or {}),
        looks=list(state.looks),
        notes=list(notes),
        candidates=settings.candidates,
        below_floor=floors_broken(latest, settings.objectives, noise),
    )


def names_only(
    settings: Settings, pool: Pool, practice: Mapping[str, int] | None = None
) -> Observation:
    """An observation before anything is measured: the names and the stock of a run, no figures."""
    stock = pool.stock(settings.limits.min_quality)
    ratios, buckets = proportions(stock)
    return Observation(
        round=1,
        rounds=settings.rounds,
        seed=settings.seed,
        objectives=settings.objectives,
        profile=FailureProfile(round=0, slices=[]),
        history=[],
        archive=[],
        calibration=None,
        proportions=ratios,
        bucket_proportions=buckets,
        stock=stock,
        attributes=pool.attribute_values(settings.limits.min_quality),
        last_plan=static_plan(pool, settings),
        limits=settings.limits,
        budget_per_round=settings.tokens_per_round,
        cost_per_round=settings.cost_per_round,
        budget_left=0,
        methods=settings.method_shares,
        practice=dict(practice or {}),
    )


def stop_reason(state: RunState, settings: Settings, budget_left: int) -> str | None:
    """Why no further round is planned, or None."""
    planned = [r for r in state.rounds if r.plan]
    if len(planned) >= settings.rounds:
        return f"all {settings.rounds} planned rounds ran"
    cost = settings.cost_of_candidates
    if budget_left < cost:
        return f"budget used: {budget_left:,} tokens left, a round needs {cost:,}"
    if settings.stop.at_targets and any(o.target is not None for o in settings.objectives):
        # The round that would be chosen now, and not any that happens to lie above its targets.
        number = choose(planned, state.archive, settings.traded, state.noise)
        if any(r.round == number and _reaches_targets(r, settings) for r in planned):
            return f"targets reached in round {number}"
    if _stalled(state, settings, planned):
        return f"gain within the noise for {settings.stop.patience} rounds"
    return None


def _reaches_targets(round_: Round, settings: Settings) -> bool:
    """Whether a round reaches every target, those of constraints included."""
    for objective in settings.objectives:
        if objective.target is None:
            continue
        mean = round_.scores[objective.name]["selection"].mean
        if mean is None or mean < objective.target:
            return False
    return True


def _stalled(state: RunState, settings: Settings, planned: Sequence[Round]) -> bool:
    """Whether no trial of the last `patience` rounds gained over an earlier one beyond the noise."""
    patience = settings.stop.patience
    if patience is None or len(planned) <= patience:
        return False
    names = [o.name for o in settings.traded]
    earlier = _accepted_points(planned[:-patience], names)
    late = _accepted_points(planned[-patience:], names)
    noise = [state.noise.get(o.name, MIN_NOISE) for o in settings.traded]

    def within(point: list[float], other: list[float]) -> bool:
        return all(x <= y + n for x, y, n in zip(point, other, noise, strict=True))

    for point in late:
        if not any(within(point, other) for other in earlier):
            return False
    return bool(earlier)


def _accepted_points(rounds: Sequence[Round], names: list[str]) -> list[list[float]]:
    """Selection means of every accepted trial that is scored."""
    points = []
    for one in each_trial(rounds):
        point = one.point(names)
        if one.accepted and point:
            points.append(point)
    return points


def reference_means(state: RunState, settings: Settings) -> dict[str, float | None]:
    """Selection means of the plan executed last: what a forecast's expected change counts from."""
    last = state.executed[-1]
    if last.plan or state.calibration is None:
        return {o: last.scores[o]["selection"].mean for o in settings.names}
    means = {}
    for objective in settings.names:
        each = [
            m for s in state.calibration.scores if (m := s[objective]["selection"].mean) is not None
        ]
        means[objective] = fmean(each) if each else None
    return means


def forecasts(
    plan: ActionPlan, before: dict[str, float | None], scores: dict[str, dict[str, Score]]
) -> list[Forecast]:
    """What the plan expected of each objective against what happened."""
    lines = []
    for objective, expected in plan.expected.items():
        start, end = before.get(objective), scores[objective]["selection"].mean
        actual = None if start is None or end is None else round(end - start, 6)
        lines.append(Forecast(objective=objective, expected=expected, actual=actual))
    return lines
