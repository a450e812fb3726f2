"""The seam of approval: who decides whether a checked plan runs. Approval fails closed: what is not approved waits."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from agent.weights import bucket_weights, distance
from mosaic.core.types.base import FrozenModel, digest_of
from mosaic.core.types.plans import ActionPlan, Decision
from mosaic.core.types.runs import Observation


class AutoApprovalConfig(FrozenModel):
    """Every plan that passes the constraints runs."""

    kind: Literal["auto"] = "auto"


class HumanApprovalConfig(FrozenModel):
    """A person decides on every plan; the run ends its process and waits."""

    kind: Literal["human"] = "human"


class Rule(FrozenModel):
    """Matches a plan that stays within every limit it states; `then` is what happens to such a plan.

    Steps are L1 distances from the plan executed last (0-2); a plan with another focus matches no rule that limits
    them. `max_tokens` is what the round costs, `max_regression`
    the largest fall of a selection mean that the plan itself expects; a plan that leaves an objective's expectation
    out does not match a rule with `max_regression`.
    """

    max_ratio_step: float | None = Field(default=None, ge=0, le=2)
    max_bucket_step: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    max_regression: float | None = Field(default=None, ge=0)
    then: Literal["auto", "human", "reject"]


class PolicyApprovalConfig(FrozenModel):
    """The first rule that matches decides; where none does, a person."""

    kind: Literal["policy"] = "policy"
    rules: list[Rule] = Field(min_length=1)


ApprovalConfig = Annotated[
    AutoApprovalConfig | HumanApprovalConfig | PolicyApprovalConfig, Field(discriminator="kind")
]


class Approver(Protocol):
    """Judges one checked plan: a decision, or None where a person must decide."""

    def decide(self, plan: ActionPlan, observation: Observation) -> Decision | None: ...


class AutoApprover:
    """Approves what the constraints let pass."""

    def decide(self, plan: ActionPlan, observation: Observation) -> Decision | None:
        return Decision(
            kind="approve", by="auto", plan_digest=plan.content_digest, reason="no violations"
        )


class HumanApprover:
    """Leaves every plan to a person."""

    def decide(self, plan: ActionPlan, observation: Observation) -> Decision | None:
        return None


class PolicyApprover:
    """Applies the rules in their order."""

    def __init__(self, rules: list[Rule]) -> None:
        self.rules = rules

    def decide(self, plan: ActionPlan, observation: Observation) -> Decision | None:
        for number, rule in enumerate(self.rules, 1):
            if matches(rule, plan, observation):
                if rule.then == "human":
                    return None
                kind: Literal["approve", "reject"] = "approve" if rule.then == "auto" else "reject"
                return Decision(
                    kind=kind, by="policy", plan_digest=plan.content_digest, reason=f"rule {number}"
                )
        return None


def matches(rule: Rule, plan: ActionPlan, observation: Observation) -> bool:
    """Whether a plan stays within every limit that the rule states."""
    last, proportions = observation.last_plan, observation.bucket_proportions
    limits_steps = rule.max_ratio_step is not None or rule.max_bucket_step is not None
    if limits_steps and plan.focus != last.focus:
        return False  # a change of focus has no distance, so no limit on steps covers it
    if rule.max_ratio_step is not None and distance(plan.ratios, last.ratios) > rule.max_ratio_step:
        return False
    if rule.max_bucket_step is not None:
        for dataset in observation.stock:
            before, after = (bucket_weights(p, dataset, proportions) for p in (last, plan))
            if distance(before, after) > rule.max_bucket_step:
                return False
    if rule.max_tokens is not None and observation.cost_per_round > rule.max_tokens:
        return False
    if rule.max_regression is not None:
        changes = [plan.expected.get(o.name) for o in observation.objectives]
        if any(c is None or c < -rule.max_regression for c in changes):
            return False
    return True


def request_of(
    plan: ActionPlan,
    observation: Observation,
    state_digest: str,
    run: str,
    attempt: int,
    planner: str,
    experiment: str,
) -> dict[str, Any]:
    """What a person is asked: plain JSON, drawn from the plan object; the planner's words stand in `words` alone.

    `request` names the question: a decision on it is bound to this run, round, attempt, plan and observation, and to
    the `experiment`, the digest of what the plan will be trained and measured with.
    """
    digest = plan.content_digest
    identity = {
        "run": run,
        "round": observation.round,
        "attempt": attempt,
        "plan": digest,
        "state": state_digest,
    }
    identity["experiment"] = experiment
    budget, cost, last = (
        observation.budget_per_round,
        observation.cost_per_round,
        observation.last_plan,
    )
    changes, stock = [], []
    for dataset in observation.stock:
        before, after = last.ratios.get(dataset, 0.0), plan.ratios.get(dataset, 0.0)
        changes.append({"path": f"ratios.{dataset}", "before": before, "after": after})
        old = bucket_weights(last, dataset, observation.bucket_proportions)
        new = bucket_weights(plan, dataset, observation.bucket_proportions)
        for bucket in sorted({*old, *new}):
            path = f"bucket_weights.{dataset}.{bucket}"
            changes.append(
                {"path": path, "before": old.get(bucket, 0.0), "after": new.get(bucket, 0.0)}
            )
            here = observation.stock[dataset].get(bucket)
            asked = math.floor(after * new.get(bucket, 0.0) * budget)
            stock.append(
                {
                    "dataset": dataset,
                    "bucket": bucket,
                    "asked": asked,
                    "stock": here.tokens if here else 0,
                }
            )
    if plan.focus != last.focus:
        names = sorted({*plan.focus, *last.focus})
        for dataset in names:
            old_focus, new_focus = last.focus.get(dataset), plan.focus.get(dataset)
            if old_focus != new_focus:
                changes.append(
                    {
                        "path": f"focus.{dataset}",
                        "before": old_focus.json_data() if old_focus else None,
                        "after": new_focus.json_data() if new_focus else None,
                    }
                )
    data = plan.json_data()
    return {
        "request": digest_of(identity),
        "run": run,
        "round": observation.round,
        "attempt": attempt,
        "plan": data,
        "plan_digest": digest,
        "state_digest": state_digest,
        "planner": planner,
        "changes": changes,
        "cost": {
            "tokens": cost,
            "left_before": observation.budget_left,
            "left_after": observation.budget_left - cost,
        },
        "stock": stock,
        "floors": [
            {"objective": o.name, "floor": o.floor, "below": o.name in observation.below_floor}
            for o in observation.objectives
            if o.floor is not None
        ],
        "violations": [],
        "expected": plan.expected,
        "words": plan.rationale,
        "action_requests": [
            {
                "name": "execute_plan",
                "args": data,
                "description": f"plan of round {observation.round}",
            }
        ],
        "review_configs": [
            {"action_name": "execute_plan", "allowed_decisions": ["approve", "edit", "reject"]}
        ],
    }


def check_decision(decision: dict[str, Any], request: dict[str, Any]) -> None:
    """ValueError unless a stored decision is bound to this very request, plan and observation."""
    for name in ("request", "run", "round", "plan_digest", "state_digest"):
        if decision.get(name) != request[name]:
            raise ValueError(
                f"its {name} is {decision.get(name)!r}, the request's is {request[name]!r}"
            )
    if decision.get("kind") not in ("approve", "edit", "reject"):
        raise ValueError(f"its kind is {decision.get('kind')!r}")
