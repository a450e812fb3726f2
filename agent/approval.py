"""The seam of approval: who decides whether a checked plan runs. Approval fails closed: what is not approved waits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field

from agent.methods import differ_in_weights_only, mixture_tokens, shares_of
from agent.planners.response_model import ResponseModel, fit_responses
from agent.prediction import predicted_changes
from agent.weights import bucket_weights, distance
from mosaic.core.types.base import FrozenModel, digest_of
from mosaic.core.types.plans import (
    ActionPlan,
    ApprovalRequest,
    Change,
    Cost,
    Decision,
    Demand,
    FloorState,
    ProposedPlan,
)
from mosaic.core.types.runs import Observation


class AutoApprovalConfig(FrozenModel):
    """Every plan that passes the constraints runs."""

    kind: Literal["auto"] = "auto"


def _is_false(value: object) -> bool:
    return value is False


class HumanApprovalConfig(FrozenModel):
    """A person decides on every plan; the run ends its process and waits.

    With `calibration` the trainings of the static mixture, which come before any plan, are asked
    for as well.
    """

    kind: Literal["human"] = "human"
    calibration: bool = Field(default=False, exclude_if=_is_false)


class Rule(FrozenModel):
    """Matches a plan that stays within every limit it states; `then` is what happens to such a plan.

    Steps are L1 distances from the plan executed last (0-2). `max_tokens` is what the round costs,
    all of its trials together. Of several plans each must match.
    `max_regression` is the largest fall of a selection mean, in points, that our own prediction
    allows: its lower bound counts, and a plan that cannot be predicted does not match. What the
    plan claims of itself is not read. A plan with another focus, other method shares or other
    practice weights matches no rule that limits steps or regressions: neither the distance nor the
    prediction sees them.
    """

    max_ratio_step: float | None = Field(default=None, ge=0, le=2)
    max_bucket_step: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    max_regression: float | None = Field(default=None, ge=0)
    then: Literal["auto", "human", "reject"]


class PolicyApprovalConfig(FrozenModel):
    """The first rule that matches decides; where none does, a person.

    With `calibration` a person is asked for the trainings of the static mixture as well.
    """

    kind: Literal["policy"] = "policy"
    rules: list[Rule] = Field(min_length=1)
    calibration: bool = Field(default=False, exclude_if=_is_false)


ApprovalConfig = Annotated[
    AutoApprovalConfig | HumanApprovalConfig | PolicyApprovalConfig, Field(discriminator="kind")
]


class Approver(Protocol):
    """Answers a request by rule, or leaves it to a person (None)."""

    def decide(self, request: ApprovalRequest, observation: Observation) -> Decision | None: ...


def answer(
    request: ApprovalRequest, kind: Literal["approve", "reject"], by: str, reason: str
) -> Decision:
    """A decision on all plans of a request, as they are."""
    return Decision(
        request=request.request,
        run=request.run,
        round=request.round,
        kind=kind,
        by=by,
        reason=reason,
        plans=[shown.plan_digest for shown in request.plans],
    )


class AutoApprover:
    """Approves what the constraints let pass."""

    def decide(self, request: ApprovalRequest, observation: Observation) -> Decision | None:
        return answer(request, "approve", "auto", "no violations")


class HumanApprover:
    """Leaves every plan to a person."""

    def decide(self, request: ApprovalRequest, observation: Observation) -> Decision | None:
        return None


class PolicyApprover:
    """Applies the rules in their order; all plans of a request must match."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules

    def decide(self, request: ApprovalRequest, observation: Observation) -> Decision | None:
        for number, rule in enumerate(self.rules, 1):
            if not all(matches(rule, shown, observation) for shown in request.plans):
                continue
            if rule.then == "human":
                return None
            kind: Literal["approve", "reject"] = "approve" if rule.then == "auto" else "reject"
            return answer(request, kind, "policy", f"rule {number}")
        return None


def matches(rule: Rule, shown: ProposedPlan, observation: Observation) -> bool:
    """Whether a plan stays within every limit that the rule states."""
    plan, last = shown.plan, observation.last_plan
    measures = (rule.max_ratio_step, rule.max_bucket_step, rule.max_regression)
    blind = any(limit is not None for limit in measures)
    if blind and not differ_in_weights_only(plan, last, observation.methods):
        return False
    if rule.max_ratio_step is not None:
        if distance(plan.ratios, last.ratios) > rule.max_ratio_step:
            return False
    if rule.max_bucket_step is not None:
        if _bucket_step(plan, observation) > rule.max_bucket_step:
            return False
    if rule.max_tokens is not None and observation.cost_of_candidates > rule.max_tokens:
        return False
    if rule.max_regression is not None:
        return _regresses_at_most(rule.max_regression, shown, observation)
    return True


def _bucket_step(plan: ActionPlan, observation: Observation) -> float:
    """The longest step of any data set's bucket weights from the plan executed last."""
    steps = [0.0]
    for dataset in observation.stock:
        before = bucket_weights(observation.last_plan, dataset, observation.bucket_proportions)
        after = bucket_weights(plan, dataset, observation.bucket_proportions)
        steps.append(distance(before, after))
    return max(steps)


def _regresses_at_most(limit: float, shown: ProposedPlan, observation: Observation) -> bool:
    """Whether no objective is predicted to fall by more than the limit, on the lower bound."""
    low = {p.objective: p.low for p in shown.predicted}
    for objective in observation.objectives:
        if objective.name not in low or low[objective.name] < -limit:
            return False
    return True


def request_of(
    plans: Sequence[ActionPlan],
    observation: Observation,
    *,
    observation_digest: str,
    run: str,
    attempt: int,
    planner: str,
    experiment: str,
) -> ApprovalRequest:
    """What a person is asked, drawn from the plan objects.

    The planner's words stand in `rationale` and `expected` alone. `request` names the question: a
    decision on it is bound to this run, round, attempt, plans and observation, and to the
    `experiment`, the digest of what the plans will be trained and measured with.
    """
    identity = {
        "run": run,
        "round": observation.round,
        "attempt": attempt,
        "plans": [plan.content_digest for plan in plans],
        "observation": observation_digest,
        "experiment": experiment,
    }
    cost = observation.cost_per_round * len(plans)
    left = observation.budget_left
    model = fit_responses(observation) if len(plans) > 1 else None
    floors = []
    for objective in observation.objectives:
        if objective.floor is not None:
            below = objective.name in observation.below_floor
            state = FloorState(objective=objective.name, floor=objective.floor, below=below)
            floors.append(state)
    return ApprovalRequest(
        request=digest_of(identity),
        run=run,
        round=observation.round,
        attempt=attempt,
        experiment=experiment,
        observation=observation_digest,
        planner=planner,
        plans=[shown_plan(plan, observation, model) for plan in plans],
        cost=Cost(tokens=cost, left_before=left, left_after=left - cost),
        floors=floors,
    )


def calibration_request(
    plan: ActionPlan,
    observation: Observation,
    *,
    repeats: int,
    looks: int,
    run: str,
    experiment: str,
    digest: str,
) -> ApprovalRequest:
    """What a person is asked before the calibration: the pools' own proportions, trained `repeats`
    times, and the tokens that `looks` take over the whole run. It stands in round 0, and `digest` is
    that of the observation."""
    asked = request_of(
        [plan],
        observation,
        observation_digest=digest,
        run=run,
        attempt=0,
        planner="calibration",
        experiment=experiment,
    )
    cost = observation.cost_per_round * repeats + looks
    left = observation.budget_left
    identity = {"calibration": asked.request, "repeats": repeats}
    if looks:
        identity["looks"] = looks
    changed = {
        "request": digest_of(identity),
        "round": 0,
        "cost": Cost(tokens=cost, left_before=left, left_after=left - cost),
    }
    return asked.model_copy(update=changed)


def shown_plan(
    plan: ActionPlan, observation: Observation, model: ResponseModel | None = None
) -> ProposedPlan:
    """A plan with its changes against the plan executed last, and what it asks of the pool.

    `model` is as for `predicted_changes`.
    """
    last = observation.last_plan
    budget = mixture_tokens(plan, observation.methods, observation.budget_per_round)
    changes, demands = [], []
    for dataset, stock in observation.stock.items():
        before, after = last.ratios.get(dataset, 0.0), plan.ratios.get(dataset, 0.0)
        changes.append(Change(path=f"ratios.{dataset}", before=before, after=after))
        old = bucket_weights(last, dataset, observation.bucket_proportions)
        new = bucket_weights(plan, dataset, observation.bucket_proportions)
        for bucket in sorted({*old, *new}):
            weight = new.get(bucket, 0.0)
            path = f"bucket_weights.{dataset}.{bucket}"
            changes.append(Change(path=path, before=old.get(bucket, 0.0), after=weight))
            held = stock[bucket].tokens if bucket in stock else 0
            asked = math.floor(after * weight * budget)
            demands.append(Demand(dataset=dataset, bucket=bucket, asked=asked, stock=held))
    for dataset in sorted({*plan.focus, *last.focus}):
        old_focus, new_focus = last.focus.get(dataset), plan.focus.get(dataset)
        if old_focus != new_focus:
            changes.append(Change(path=f"focus.{dataset}", before=old_focus, after=new_focus))
    old_shares, new_shares = (shares_of(p, observation.methods) for p in (last, plan))
    for method, share in new_shares.items():
        path = f"method_shares.{method}"
        changes.append(Change(path=path, before=old_shares[method], after=share))
    for slice_ in sorted({*plan.practice_weights, *last.practice_weights}):
        path = f"practice_weights.{slice_}"
        was, will = last.practice_weights.get(slice_), plan.practice_weights.get(slice_)
        changes.append(Change(path=path, before=was, after=will))
    return ProposedPlan(
        plan=plan,
        plan_digest=plan.content_digest,
        changes=changes,
        stock=demands,
        expected=plan.expected,
        rationale=plan.rationale,
        predicted=predicted_changes(plan, observation, model),
    )


def check_decision(decision: Decision, request: ApprovalRequest) -> None:
    """Raise ValueError unless a stored decision answers this very request and shows its plans."""
    shown = [plan.plan_digest for plan in request.plans]
    for name, given, asked in (
        ("request", decision.request, request.request),
        ("run", decision.run, request.run),
        ("round", decision.round, request.round),
        ("plans", decision.plans, shown),
    ):
        if given != asked:
            raise ValueError(f"its {name} is {given!r}, the request's is {asked!r}")
