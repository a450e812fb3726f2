"""Measure the base, calibrate, and run the trials of approved plans."""

from __future__ import annotations

from collections.abc import Sequence

from agent.context import RunContext
from agent.nodes.scored import require_scores
from agent.nodes.state import State, fresh
from agent.noise import believed_noise, noise_of
from agent.observe import forecasts, reference_means, static_plan
from agent.pareto import one_round, verdict
from agent.trial import (
    base_spec,
    failed_trial,
    plan_spec,
    profiled,
    run_trial,
    run_trials,
    steering_scores,
)
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
    close(context, [Round(round=0, trials=[trial], counts=trial.id)])
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
    """Run the trials of the plans that were approved, and of no others, and close the round.

    A training that keeps failing fails the run, once the others are measured, or only its trial if
    the config says so.
    """
    number, plans = state["round"], state["plans"]
    approval = context.approval
    if approval is None or approval.round != number or not {*plans} <= {*approval.plans}:
        digests = ", ".join(digest[:12] for digest in plans)
        raise BoundaryError(f"round {number}: not all plans were approved: {digests}")
    context.begin(number)
    context.notify(f"round {number}: {state['planner']} planned; curating")
    seed, before = context.settings.seed, context.state
    specs = [plan_spec(context, context.plan(digest), seed) for digest in plans]
    ones = []
    for spec, outcome in zip(specs, run_trials(context, specs, number, before.latest), strict=True):
        counts: str | None = spec.id
        if isinstance(outcome, TrainingError):
            if context.settings.failures.failed_round == "stop":
                raise outcome
            trial, counts = failed_trial(context, spec, number, outcome), None
        else:
            trial = outcome
        expected = []
        if counts is not None and spec.plan is not None:
            reference = reference_means(before, context.settings)
            expected = forecasts(spec.plan, reference, trial.scores)
        one = Round(
            round=number,
            trials=[trial],
            counts=counts,
            planner=state["planner"],
            fallback=state.get("fallback"),
            forecast=expected,
        )
        ones.append(one)
    close(context, ones)
    return fresh(number + 1)


def close(context: RunContext, ones: Sequence[Round]) -> None:
    """Give the trials of a round, each a round of its own, their verdicts, and record the round."""
    noise = believed_noise(context.state.calibration, context.settings.names)
    judged = []
    for one in ones:
        accepted, reason = False, f"training failed: {one.failure}"
        if one.failure is None:
            accepted, reason = verdict(one, context.settings.objectives, noise)
        judged.append(one.model_copy(update={"accepted": accepted, "reason": reason}))
    closed = one_round(judged, context.settings.traded, context.state.noise)
    number = closed.round
    inputs = CloseRound(round=number, content=digest_of(closed.json_data()))
    seconds = context.seconds(number)
    outcome = Outcome(RoundClosed(round=closed), _measured(closed), seconds=seconds)
    context.steps.at(number).run(inputs, lambda: outcome)
    context.state = context.state.closed(closed)
    for line in _news(context, closed):
        context.notify(line)


def _measured(closed: Round) -> list[MeasuredEvent]:
    """An event for each trial of a round; the one that counts is told first."""
    several = len(closed.trials) > 1
    events = []
    for one in sorted(closed.by_trial, key=lambda one: one.trial.id != closed.trial.id):
        trial = one.trial.id if several else ""
        event = MeasuredEvent(
            accepted=one.accepted, reason=one.reason, forecast=one.forecast, trial=trial
        )
        events.append(event)
    return events


def _news(context: RunContext, round_: Round) -> list[str]:
    """What a round came to, a line for each of its trials."""
    lines = []
    for number, one in enumerate(round_.by_trial, 1):
        name, counts = f"round {round_.round}", ""
        if len(round_.trials) > 1:
            name += f", candidate {number}"
            counts = " (counts)" if one.trial.id == round_.counts else ""
        lines.append(f"{name}: {_came_to(context, one)}{counts}")
    return lines


def _came_to(context: RunContext, one: Round) -> str:
    """The means of a trial, and why it is not accepted if it is not."""
    if one.failure is not None:
        return f"failed, {len(context.state.executed) - 1} rounds stand"
    means = []
    for objective in context.settings.names:
        mean = one.scores[objective]["selection"].mean
        if mean is not None:
            means.append(f"{objective} {mean:.2f}")
    refused = "" if one.accepted else f" (not accepted: {one.reason})"
    return f"{', '.join(means)}{refused}"
