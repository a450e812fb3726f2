"""From what has happened to what a planner is told, and whether to stop. Pure."""

from __future__ import annotations

from statistics import fmean, stdev

from agent.pareto import MIN_NOISE, choose, floors_broken
from agent.state import RunState, Settings
from agent.weights import proportions
from mosaic.core.types.evaluation import FailureProfile, Score
from mosaic.core.types.plans import ActionPlan, Forecast, Violation
from mosaic.core.types.runs import Calibration, Observation
from training.data.pool import Pool


def static_plan(pool: Pool, settings: Settings) -> ActionPlan:
    """The plan that spends the budget in the pools' own proportions."""
    ratios, buckets = proportions(pool.stock(settings.limits.min_quality))
    return ActionPlan(
        rationale="The pools' own proportions.", ratios=ratios, bucket_weights=buckets
    )


def calibrate(
    scores: list[dict[str, dict[str, Score]]], profiles: list[FailureProfile], mixture: ActionPlan
) -> Calibration:
    """Noise of one selection mean from repeats of one mixture: their standard deviation, at least 0.01.

    With a single repeat the noise is taken from the bootstrap interval, which is then the only evidence.
    """
    noise = {}
    for objective in scores[0]:
        each = [s[objective]["selection"] for s in scores]
        means = [s.mean for s in each if s.mean is not None]
        if len(means) > 1:
            spread = stdev(means)
        else:
            spread = (
                max(
                    (s.high - s.low) / 3.92
                    for s in each
                    if s.high is not None and s.low is not None
                )
                if means
                else 0
            )
        noise[objective] = max(MIN_NOISE, spread)
    return Calibration(scores=scores, noise=noise, profiles=profiles, mixture=mixture)


def observation(
    state: RunState, settings: Settings, pool: Pool, budget_left: int, feedback: list[Violation]
) -> Observation:
    """What the planner of the next round is told."""
    stock = pool.stock(settings.limits.min_quality)
    ratios, buckets = proportions(stock)
    last = state.executed[-1]
    assert state.last_plan is not None
    measured = (
        last.scores if last.plan or state.calibration is None else state.calibration.scores[0]
    )
    profile = last.profile
    if last.plan is None and state.calibration and state.calibration.profiles:
        profile = state.calibration.profiles[0]
    return Observation(
        round=state.rounds[-1].round + 1,
        rounds=settings.rounds,
        seed=settings.seed,
        objectives=settings.objectives,
        profile=profile,
        history=state.rounds,
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
        below_floor=floors_broken(measured, settings.objectives),
    )


def stop_reason(state: RunState, settings: Settings, budget_left: int) -> str | None:
    """Why no further round is planned, or None."""
    planned = [r for r in state.rounds if r.plan]
    if len(planned) >= settings.rounds:
        return f"all {settings.rounds} planned rounds ran"
    if budget_left < settings.cost_per_round:
        return (
            f"budget used: {budget_left:,} tokens left, a round needs {settings.cost_per_round:,}"
        )
    points = {r.round: p for r in planned if r.accepted and (p := r.point(settings.names))}
    targets = [o.target for o in settings.objectives]
    if settings.stop.at_targets and any(t is not None for t in targets):
        # The round that would be chosen now, and not any that happens to lie above its targets.
        number = choose(planned, state.archive, settings.objectives, state.noise)
        point = points.get(number) if number is not None else None
        if point and all(x >= t for x, t in zip(point, targets, strict=True) if t is not None):
            return f"targets reached in round {number}"
    patience = settings.stop.patience
    if patience is not None and len(planned) > patience:
        earlier = [p for r in planned[:-patience] if (p := points.get(r.round))]
        late = [p for r in planned[-patience:] if (p := points.get(r.round))]
        noise = [state.noise.get(o, MIN_NOISE) for o in settings.names]

        def within(point: list[float]) -> bool:
            return any(
                all(x <= y + n for x, y, n in zip(point, q, noise, strict=True)) for q in earlier
            )

        if earlier and all(within(p) for p in late):
            return f"gain within the noise for {patience} rounds"
    return None


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
