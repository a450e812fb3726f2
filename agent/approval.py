"""The seam of approval: who decides whether a checked plan runs."""

from __future__ import annotations

from typing import Literal, Protocol

from mosaic.types import ActionPlan, Decision, Noun, Observation


class Approver(Protocol):
    """Decides on one plan. Approval fails closed: whatever is not an `approve` does not run."""

    def decide(self, plan: ActionPlan, observation: Observation) -> Decision: ...


class AutoApprovalConfig(Noun):
    """Every plan that passes the constraints runs."""

    kind: Literal["auto"] = "auto"


class AutoApprover:
    """Approves what the constraints let pass."""

    def decide(self, plan: ActionPlan, observation: Observation) -> Decision:
        return Decision(kind="approve", by="auto", plan_digest=plan.content_digest, reason="no violations")
