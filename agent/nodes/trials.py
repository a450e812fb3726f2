"""Measure the base, calibrate, and run the trial of an approved plan."""

from __future__ import annotations

from agent.context import RunContext
from agent.nodes.scored import require_scores
from agent.nodes.state import State, fresh
from agent.noise import believed_noise, noise_of
from agent.observe import forecasts, reference_means, static_plan
from agent.pareto import verdict
from agent.trial import base_spec, failed_trial, plan_spec, profiled, run_trial, steering_scores
from mosaic.core.errors import BoundaryError, TrainingError
from mosaic.core.steps import Outcome
from mosaic.core.types.base import digest_of
from mosaic.core.types.events import CalibratedEvent, MeasuredEvent
from mosaic.core.types.records import Calibrate, Calibrated, CloseRound, RoundClosed
from mosaic.core.types.runs import Calibration, Round, Trial

CALIBRATION_SEEDS = 7919


def measure_base(context: RunContext, state: State) -> State:
    """Round 0: the base as it is, a trial of nothing.

    Raises BoundaryError if an objective with data could hardly be scored.
    """
    context.begin(0)
    trial = run_trial(context, base_spec(context), 0, None)
    require_scores(context, trial)
    close(context, Round(round=0, trials=[trial], counts=trial.id))
    return fresh(1)


def calibrate(context: RunContext, state: State) -> State:
    """Train the static mixture several times with other seeds.

    Every planner sees the noise that follows; each repeat is charged like a round.
    """
    settings = context.settings
    plan = static_plan(context.pool, settings)
    base = context.state.rounds[0].trial
    trials: list[Trial] = []
    for repeat in range(settings.calibration.repeats):
        saying = f", calibration {repeat + 1} of {settings.calibration.repeats}"
        seed = settings.seed + CALIBRATION_SEEDS * (repeat + 1)
        spec = plan_spec(context, plan, seed)
        trials.append(run_trial(context, spec, 0, base, saying))
    # Only now it is known how far a training moves a slice by luck.
    trials = [_profiled_again(context, trial, base, trials) for trial in trials]
    calibration = Calibration(trials=trials, noise=noise_of(trials))
    adapters = [t.adapter.digest for t in trials if t.adapter]
    inputs = Calibrate(trials=[t.id for t in trials], mixture=plan)
    event = CalibratedEvent(noise=calibration.noise, adapters=adapters)
    result = Calibrated(calibration=calibration)
    context.steps.at(0).run(inputs, lambda: Outcome(result, [event]))
    context.state = context.state.calibrated(calibration)
    return {}


def _profiled_again(context: RunContext, trial: Trial, base: Trial, repeats: list[Trial]) -> Trial:
    measured = steering_scores(context.steps.at(0, trial.id), trial)
    return profiled(context, trial, measured, base, repeats)


def run(context: RunContext, state: State) -> State:
    """Run the trial of the plan that was approved, and of no other, and close the round.

    A training that keeps failing fails the run, or only the round if the config says so.
    """
    number, digest = state["round"], state["plan"]
    approval = context.approval
    if approval is None or approval.round != number or digest not in approval.plans:
        raise BoundaryError(f"round {number}: the plan {digest[:12]} was not approved")
    plan = context.plan(digest)
    context.begin(number)
    context.notify(f"round {number}: {state['planner']} planned; curating")
    spec = plan_spec(context, plan, context.settings.seed)
    before = context.state
    counts: str | None = spec.id
    try:
        trial = run_trial(context, spec, number, before.latest)
    except TrainingError as error:
        if context.settings.failures.failed_round == "stop":
            raise
        trial, counts = failed_trial(context, spec, number, error), None
    expected = []
    if counts is not None:
        expected = forecasts(plan, reference_means(before, context.settings), trial.scores)
    round_ = Round(
        round=number,
        trials=[trial],
        counts=counts,
        planner=state["planner"],
        fallback=state.get("fallback"),
        forecast=expected,
    )
    close(context, round_)
    return fresh(number + 1)


def close(context: RunContext, round_: Round) -> None:
    """Give a round its verdict and record it."""
    number = round_.round
    if round_.failure is None:
        noise = believed_noise(context.state.calibration, context.settings.names)
        accepted, reason = verdict(round_, context.settings.objectives, noise)
    else:
        accepted, reason = False, f"training failed: {round_.failure}"
    closed = round_.model_copy(update={"accepted": accepted, "reason": reason})
    inputs = CloseRound(round=number, content=digest_of(closed.json_data()))
    event = MeasuredEvent(accepted=accepted, reason=reason, forecast=closed.forecast)
    seconds = context.seconds(number)
    outcome = Outcome(RoundClosed(round=closed), [event], seconds=seconds)
    context.steps.at(number).run(inputs, lambda: outcome)
    context.state = context.state.closed(closed)
    context.notify(_news(context, closed))


def _news(context: RunContext, round_: Round) -> str:
    """What a round came to, in a line."""
    if round_.failure is not None:
        stands = len(context.state.executed) - 1
        return f"round {round_.round}: failed, {stands} rounds stand"
    means = []
    for objective in context.settings.names:
        mean = round_.scores[objective]["selection"].mean
        if mean is not None:
            means.append(f"{objective} {mean:.2f}")
    refused = "" if round_.accepted else f" (not accepted: {round_.reason})"
    return f"round {round_.round}: {', '.join(means)}{refused}"
