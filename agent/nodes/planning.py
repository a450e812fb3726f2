"""Observe, plan, check: how a plan comes about, and who plans if the planner fails."""

from __future__ import annotations

from typing import cast

from agent.constraints import check_plan
from agent.context import RunContext
from agent.nodes.state import State, feedback_of
from agent.observe import observation, stop_reason
from agent.planners.base import Planner
from agent.planners.toolbox import open_toolbox
from mosaic.core.errors import BoundaryError, PausedError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import JsonObject, digest_of
from mosaic.core.types.events import (
    TRACE,
    CheckedEvent,
    NotedEvent,
    ObservedEvent,
    PlannedEvent,
    ReplacedEvent,
)
from mosaic.core.types.influence import Influence
from mosaic.core.types.plans import Note, Violation
from mosaic.core.types.records import (
    CheckPlan,
    Observe,
    Observed,
    PlanChecked,
    PlannerReplaced,
    PlanProposed,
    ProposePlan,
    ReplacePlanner,
)
from mosaic.core.types.runs import Observation
from training.influence.ideal import settled

NO_PLAN = "no planner found an allowed plan"


def observe(context: RunContext, state: State) -> State:
    """File what the planner will be told, or decide to stop.

    What was filed once is read again after a restart, so that nothing which happened meanwhile
    changes the plan.
    """
    settings = context.settings
    inputs = Observe(
        run=context.run,
        round=state["round"],
        settings=digest_of(settings.json_data()),
        pool=context.pool.digest,
    )
    reason = stop_reason(context.state, settings, context.budget_left())
    # A round that was begun goes on: its own training may have used the budget up.
    if reason and not context.steps.finished(inputs):
        return {"stop": reason}
    steps = context.begin(state["round"])
    influence = None
    if not steps.finished(inputs):
        influence = estimate_influence(context, steps)
        if influence and settings.stop.at_equilibrium and settled(influence):
            return {"stop": "at equilibrium: the influence of buckets is lost in the noise"}

    def effect() -> Outcome[Observed]:
        seen = observation(
            context.state,
            settings,
            context.pool,
            context.budget_left(),
            [],
            influence,
            context.practice.slices if context.practice else None,
            notes_of(steps.journal),
        )
        digest = context.file_observation(seen)
        return Outcome(Observed(observation=digest), [ObservedEvent(observation=digest)])

    return {"observation": steps.run(inputs, effect).observation}


def notes_of(journal: Journal) -> list[Note]:
    """What people told the planner, oldest first."""
    notes = []
    for event in journal.events(kind="noted"):
        if isinstance(event.record, NotedEvent):
            notes.append(event.record.note)
    return notes


def estimate_influence(context: RunContext, steps: Steps) -> Influence | None:
    """The influence of every bucket around the plan executed last, if the config asks for it.

    Right after the calibration two of its adapters are at hand, so that the error covers the seed.
    """
    if context.influence is None:
        return None
    if context.state.latest is None or context.state.latest.mixture_adapter is None:
        context.notify(f"round {steps.place.round}: no influence: the last plan trained no mixture")
        return None
    context.notify(f"round {steps.place.round}: estimating the influence of every bucket")
    state = context.state
    found = context.influence.influence(steps, state.latest_repeats, state.first_trials)
    if found.unread:
        context.notify(
            f"round {steps.place.round}: no influence on {', '.join(found.unread)}: too few steering "
            "prompts have a good and a bad answer that differ"
        )
    return found


def plan(context: RunContext, state: State) -> State:
    """Ask the planner, or its replacement; every attempt is a step and leaves its trace."""
    feedback = feedback_of(state)
    seen = context.observation(state["observation"], feedback)
    planner = planner_of(context, state)
    steps = context.steps.at(seen.round)
    inputs = ProposePlan(
        run=context.run,
        round=seen.round,
        attempt=state["attempt"],
        observation=state["observation"],
        planner=planner.kind,
        feedback=feedback,
    )
    if not state.get("fallback") and not steps.finished(inputs):
        # Before a restart this very attempt may have failed and been replaced: what came of that
        # may be paid for.
        replaced = _replaced(context, state)
        if replaced:
            return replace_planner(context, state, replaced, planner)

    def effect() -> Outcome[PlanProposed]:
        latest = context.state.latest
        files = latest.files if latest else None
        toolbox = open_toolbox(seen, context.pool, steps.store, files)
        try:
            proposed = planner.propose(seen, toolbox, seen.candidates)
        except (BoundaryError, UsageError, PausedError) as error:
            error.details = {"planner": planner.kind, "calls": toolbox.trace()}
            raise
        # How the plans came about is told once, with the first.
        calls = TRACE.validate_python(toolbox.trace())
        events: list[PlannedEvent] = []
        for plan in proposed:
            digest = context.file_plan(plan)
            event = PlannedEvent(
                planner=planner.kind,
                plan=plan,
                plan_digest=digest,
                calls=calls if not events else [],
            )
            events.append(event)
        first, *siblings = [event.plan_digest for event in events]
        return Outcome(PlanProposed(plan=first, siblings=siblings), events)

    try:
        digests = steps.run(inputs, effect).plans
    except (BoundaryError, UsageError) as error:
        return replace_planner(context, state, f"{planner.kind} failed: {error}", planner)
    return {
        "plans": digests,
        "planner": planner.kind,
        "violations": [],
        "decided": None,
        "attempt": state["attempt"] + 1,
    }


def check(context: RunContext, state: State) -> State:
    """Hold every plan against all constraints, and against those of the round before it.

    Violations go back to the planner a bounded number of times.
    """
    plans = state["plans"]
    # What was decided on is held against the limits, not against the plans refused before.
    feedback = [] if state.get("decided") == plans else feedback_of(state)
    seen = context.observation(state["observation"], feedback)
    violations = []
    for place, digest in enumerate(plans):
        for found in _checked(context, state, seen, digest, plans[:place]):
            path = f"plans.{place + 1}.{found.path}" if len(plans) > 1 else found.path
            violations.append(found.model_copy(update={"path": path}))
    if not violations:
        return {"violations": [], "repairs": 0}
    repairs = state["repairs"] + 1
    if repairs <= context.settings.max_repairs:
        return {"violations": [plain(v) for v in violations], "repairs": repairs}
    first = violations[0]
    text = f"{first.path}: {first.rule}, {first.value} against {first.limit}"
    planner = planner_of(context, state)
    reason = f"{planner.kind} kept violating constraints ({text})"
    return replace_planner(context, state, reason, planner)


def _checked(
    context: RunContext, state: State, seen: Observation, digest: str, siblings: list[str]
) -> list[Violation]:
    """What one plan breaks; `siblings` are the plans of the round before it."""

    def effect() -> Outcome[PlanChecked]:
        earlier = [context.plan(sibling) for sibling in siblings]
        found = check_plan(context.plan(digest), seen, context.pool, earlier)
        return Outcome(PlanChecked(violations=found), [CheckedEvent(plan=digest, violations=found)])

    refused = [v.value for v in seen.feedback if v.rule == "rejected"]
    inputs = CheckPlan(
        plan=digest,
        observation=state["observation"],
        pool=context.pool.digest,
        rejected=digest_of(refused),
        siblings=siblings,
    )
    return context.steps.at(seen.round).run(inputs, effect).violations


def plain(violation: Violation) -> JsonObject:
    """A violation as the state holds it."""
    return cast(JsonObject, violation.json_data())


def planner_of(context: RunContext, state: State) -> Planner:
    """Who plans in this round now."""
    planner = context.fallback if state.get("fallback") else context.planner
    assert planner is not None
    return planner


def replace_planner(
    context: RunContext, state: State, reason: str, planner: Planner | None
) -> State:
    """Put the fallback planner in, visibly; a fallback that fails ends the planning."""
    number = state["round"]
    if context.fallback is None:
        kind, word = (PausedError, "pause") if context.pause else (BoundaryError, "stop")
        raise kind(f"round {number}: {reason} (planner.on_failure: {word})")
    if state.get("fallback"):
        return {"stop": f"{NO_PLAN}: {reason}", "violations": []}
    by = context.fallback.kind
    context.notify(f"round {number}: {reason}; {by} plans this round")
    inputs = ReplacePlanner(run=context.run, round=number, attempt=state["attempt"], reason=reason)
    whom = planner.kind if planner else state["planner"]
    result = PlannerReplaced(planner=whom, by=by, reason=reason)
    event = ReplacedEvent(planner=whom, by=by, reason=reason)
    context.steps.at(number).run(inputs, lambda: Outcome(result, [event]))
    entry = Violation(path="plan", rule="replaced", hint=reason)
    return {"fallback": reason, "repairs": 0, "violations": [plain(entry)]}


def _replaced(context: RunContext, state: State) -> str | None:
    """Why this attempt's planner was replaced already by whom it would be replaced now; or None."""
    if context.fallback is None:
        return None
    for step in context.steps.journal.steps(ReplacePlanner, state["round"]):
        inputs, result = step.inputs, step.result
        same_attempt = (inputs.run, inputs.attempt) == (context.run, state["attempt"])
        same_planners = (result.planner, result.by) == (
            context.planner.kind,
            context.fallback.kind,
        )
        if same_attempt and same_planners:
            return inputs.reason
    return None
