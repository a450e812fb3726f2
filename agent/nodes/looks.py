"""Cheap looks: mixtures that are tried for less before a round is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.context import RunContext
from agent.fidelity import (
    ExpertsConfig,
    FidelityConfig,
    Group,
    affine_weights,
    corners,
    groups,
)
from agent.nodes.state import State
from agent.observe import observation, static_plan, stop_reason
from agent.planners.looks import mixtures_to_look_at
from agent.trial import ROUND_ROLES, plan_spec, run_trial
from agent.weights import fill, normalize
from mosaic.core.errors import TrainingError
from mosaic.core.steps import Outcome
from mosaic.core.types.base import digest_of
from mosaic.core.types.events import LookedEvent
from mosaic.core.types.look_records import ChooseLooks, LooksChosen, LooksTaken, TakeLooks, look_of
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Trial, TrialSpec


def look(context: RunContext, state: State) -> State:
    """Look at the mixtures that the surrogate finds best, if the config asks for looks.

    Experts are trained once, before the first round. A round that will not be planned has no looks.
    """
    settings = context.settings.fidelity
    if settings is None:
        return {}
    number = state["round"]
    if context.steps.journal.steps(TakeLooks, number):
        return {}  # taken before a restart
    inputs = ChooseLooks(
        run=context.run,
        round=number,
        settings=digest_of(context.settings.json_data()),
        pool=context.pool.digest,
    )
    begun = context.steps.finished(inputs)
    if not begun and stop_reason(context.state, context.settings, context.budget_left()):
        return {}
    context.begin(number)
    if isinstance(settings, ExpertsConfig):
        _train_experts(context, settings)
    if not settings.looks:
        return {}

    def effect() -> Outcome[LooksChosen]:
        return Outcome(_choice(context, settings))

    chosen = context.steps.at(number).run(inputs, effect)
    # As they are filed: rows are drawn in the order of names that a restart would read.
    filed = [context.plan(context.file_plan(plan)) for plan in chosen.plans]
    specs = [_spec(context, plan) for plan in filed]
    _take(context, number, specs, ("steering",), chosen.note)
    return {}


def _train_experts(context: RunContext, settings: ExpertsConfig) -> None:
    """One adapter at each corner, measured like any training. They are looks taken in round 0.

    What was taken stands, an expert that could not be trained included.
    """
    if context.steps.journal.steps(TakeLooks, 0):
        return
    own = static_plan(context.pool, context.settings).ratios
    specs = []
    for ratios in corners(settings.corner, groups(context.settings.objectives), own):
        plan = ActionPlan(rationale="An expert.", ratios=_in_stock(context, ratios))
        specs.append(_part(context, plan))
    _take(context, 0, specs, ROUND_ROLES, "")


def _in_stock(context: RunContext, ratios: Mapping[str, float]) -> dict[str, float]:
    """The ratios, with what a data set cannot give spread over the others."""
    limits, tokens = context.settings.limits, context.settings.look_tokens
    room = {}
    for dataset, held in context.pool.stock(limits.min_quality).items():
        whole = sum(stock.tokens for stock in held.values())
        room[dataset] = whole * limits.max_repeat / tokens
    return normalize(fill(1.0, dict(ratios), room))


def _part(context: RunContext, plan: ActionPlan) -> TrialSpec:
    """The trial of a plan on the part of a round's tokens that looks are trained on."""
    spec = plan_spec(context, plan, context.settings.seed)
    return spec.model_copy(update={"tokens": context.settings.look_tokens})


def _choice(context: RunContext, settings: FidelityConfig) -> LooksChosen:
    """The best mixtures that differ from those looked at before, as many as the budget pays for."""
    state, note = context.state, ""
    count, cost = settings.looks, context.settings.cost_of_look
    if cost:
        spare = context.budget_left() - context.settings.cost_of_candidates
        count = min(count, max(0, spare // cost))
        if count < settings.looks:
            note = f"the budget pays for {count} of {settings.looks} looks"
    if isinstance(settings, ExpertsConfig) and len(state.experts) < context.settings.summed:
        return LooksChosen(plans=[], note="an expert is missing, so that nothing can be added up")
    seen = observation(state, context.settings, context.pool, context.budget_left(), [])
    plans = mixtures_to_look_at(seen, settings, count)
    if len(plans) < count:
        note = f"the limits leave {len(plans)} of {settings.looks} looks that differ"
    return LooksChosen(plans=plans, note=note)


def _spec(context: RunContext, plan: ActionPlan) -> TrialSpec:
    """The trial of a look: trained on a part of the tokens, or added up of experts."""
    if not isinstance(context.settings.fidelity, ExpertsConfig):
        return _part(context, plan)
    weights = _weights_of_experts(plan, context.state.experts, groups(context.settings.objectives))
    spec = plan_spec(context, plan, context.settings.seed)
    return spec.model_copy(update={"tokens": 0, "merged": weights})


def _weights_of_experts(
    plan: ActionPlan, experts: Sequence[Trial], grouped: Sequence[Group]
) -> dict[str, float]:
    """Adapter of an expert -> its weight in the sum that stands for a plan."""
    points = [expert.plan.ratios for expert in experts if expert.plan]
    weights = affine_weights(plan.ratios, points, grouped)
    adapters = [expert.adapter.digest for expert in experts if expert.adapter]
    return dict(zip(adapters, weights, strict=True))


def _take(
    context: RunContext,
    number: int,
    specs: Sequence[TrialSpec],
    roles: Sequence[str],
    note: str,
) -> None:
    """Run looks and record them. One whose training keeps failing is left out, or fails the run."""
    trials: list[Trial] = []
    notes = [note] if note else []
    what = "look" if number else "expert"
    for place, spec in enumerate(specs, start=1):
        saying = f", {what} {place} of {len(specs)}"
        try:
            trials.append(run_trial(context, spec, number, None, saying, roles))
        except TrainingError as error:
            if context.settings.failures.failed_round == "stop":
                raise
            notes.append(f"{what} {place} failed: {error.failure}")
    said = "; ".join(notes)
    if said:
        context.notify(f"round {number}: {said}")
    inputs = TakeLooks(run=context.run, round=number, trials=[trial.id for trial in trials])
    event = LookedEvent(looks=[look_of(trial) for trial in trials], note=said)
    result = LooksTaken(trials=trials, note=said)
    context.steps.at(number).run(inputs, lambda: Outcome(result, [event]))
    context.state = context.state.looked(trials)
