"""Ask and approve: no plan runs that was not approved, by a rule or by a person."""

from __future__ import annotations

from agent.approval import calibration_request, check_decision, request_of
from agent.context import Approval, RunContext
from agent.nodes.planning import plain, replace_planner
from agent.nodes.state import State, feedback_of
from agent.observe import names_only, static_plan
from mosaic.core.errors import BoundaryError, DamageError, StopRequested
from mosaic.core.steps import Outcome
from mosaic.core.types.events import AskedEvent, DecidedEvent
from mosaic.core.types.plans import ActionPlan, ApprovalRequest, Decision, Violation
from mosaic.core.types.records import AskApproval, RecordDecision


def ask(context: RunContext, state: State) -> State:
    """Decide by rule, or file the question that a person must answer.

    A person's answer to this very question counts, even if the rules changed after it was given.
    """
    seen = context.observation(state["observation"], feedback_of(state))
    journal = context.steps.journal
    request = request_of(
        [context.plan(digest) for digest in state["plans"]],
        seen,
        observation_digest=state["observation"],
        run=context.run,
        attempt=state["attempt"],
        planner=state["planner"],
        experiment=context.experiment,
    )
    decision = context.approver.decide(request, seen)
    if decision is not None:
        journal.wait_for("")  # from here on nobody can answer any more
        if journal.decision(seen.round, request.request) is None:
            update: State = {"request": None, **_decided(context, state, decision)}
            decided = journal.steps(RecordDecision, seen.round)
            refused = sum(step.result.kind == "reject" for step in decided)
            if decision.kind == "reject" and refused > context.settings.max_repairs:
                reason = f"{decision.by} kept refusing plans ({decision.reason})"
                update |= replace_planner(context, state, reason, None)
            return update
    inputs = AskApproval(run=context.run, round=seen.round, request=request.request)
    digests = [shown.plan_digest for shown in request.plans]
    event = AskedEvent(request=request.request, plan_digests=digests)
    context.steps.at(seen.round).run(inputs, lambda: Outcome(request, [event]))
    return {"request": request.request}


def permit(context: RunContext, state: State) -> State:
    """Ask a person before the calibration trains, if the config says so.

    Raises StopRequested if it was refused: without calibration nothing can be planned.
    """
    settings = context.settings
    if not settings.ask_calibration:
        return {}
    plan = static_plan(context.pool, settings)
    context.file_plan(plan)
    practice = context.practice.slices if context.practice else None
    seen = names_only(settings, context.pool, practice)
    seen = seen.model_copy(update={"budget_left": context.budget_left()})
    request = calibration_request(
        plan,
        seen,
        repeats=settings.calibration.repeats,
        looks=settings.cost_of_looks,
        run=context.run,
        experiment=context.experiment,
        digest=context.file_observation(seen),
    )
    inputs = AskApproval(run=context.run, round=0, request=request.request)
    event = AskedEvent(request=request.request, plan_digests=[plan.content_digest])
    steps = context.steps.at(0)
    steps.run(inputs, lambda: Outcome(request, [event]))
    decision = _given(context, 0, request.request)
    taken = RecordDecision(run=context.run, round=0, attempt=0, decision=decision)
    steps.run(taken, lambda: Outcome(decision, [DecidedEvent(decision=decision)]))
    if decision.kind != "approve":
        raise StopRequested(
            f"{decision.by} refused the calibration: {decision.reason}; nothing was trained. Start "
            "another run, or change this one with resume --set ... --accept-changes"
        )
    return {}


def approve(context: RunContext, state: State) -> State:
    """Wait for a person at an interrupt, and take up the decision."""
    return _decided(context, state, _given(context, state["round"], str(state["request"])))


def _given(context: RunContext, number: int, request_id: str) -> Decision:
    """The person's decision; without one the graph is interrupted.

    Whatever does not answer this very question is refused (DamageError).
    """
    journal = context.steps.journal
    stored = journal.decision(number, request_id)
    if stored is None:
        from langgraph.types import interrupt

        journal.wait_for(request_id)
        interrupt({"round": number, "request": request_id})
        raise BoundaryError(f"round {number}: the run was woken without a decision")
    inputs = AskApproval(run=context.run, round=number, request=request_id)
    request = context.steps.at(number).run(inputs, _never_asked)
    try:
        check_decision(stored, request)
    except ValueError as error:
        raise DamageError(
            f"the stored decision of round {number} does not fit its request: {error}"
        ) from None
    return stored


def _never_asked() -> Outcome[ApprovalRequest]:
    raise DamageError("a decision stands on a request that was never made")


def _decided(context: RunContext, state: State, decision: Decision) -> State:
    """Journal a decision: approved plans run, edited ones are checked first, refused ones go back,
    and so do those that somebody only commented on. Dropped ones are left out."""
    inputs = RecordDecision(
        run=context.run,
        round=state["round"],
        attempt=state["attempt"],
        decision=decision,
    )
    steps = context.steps.at(state["round"])
    stands = steps.run(inputs, lambda: Outcome(decision, [DecidedEvent(decision=decision)]))
    if stands.kind == "reject":
        rejected = list(state["rejected"])
        for digest in stands.plans:
            rejected.append(plain(refusal(context.plan(digest), stands.reason)))
        return {"violations": [], "rejected": rejected, "decided": None, "plans": []}
    if stands.kind == "respond":
        told = [*state["rejected"], plain(comment(stands))]
        return {"violations": [], "rejected": told, "decided": None, "plans": []}
    for plan in stands.edited:
        context.file_plan(plan)
    runs = stands.executes
    context.approval = Approval(state["round"], stands.request, tuple(runs))
    return {"plans": runs, "decided": runs, "violations": []}


def refusal(plan: ActionPlan, reason: str) -> Violation:
    """What the planner is told of a plan that was refused."""
    return Violation(path="plan", rule="rejected", value=plan.json_data(), hint=reason)


def comment(decision: Decision) -> Violation:
    """What the planner is told of a comment; the plan that it is about may be proposed again."""
    hint = f"{decision.by} asks for another plan: {decision.reason}"
    return Violation(path="plan", rule="comment", hint=hint)
