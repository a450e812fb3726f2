"""What waits for a person, and the person's answer: one INSERT, made without the lock, checked before it is made."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import Any, Literal

from agent.constraints import check_plan
from mosaic.app.runs import run_config
from mosaic.core.errors import UsageError
from mosaic.core.journal import WAITING, Journal
from mosaic.core.store import Store
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from training.data.pool import Pool

Kind = Literal["approve", "edit", "reject"]


def open_request(journal: Journal) -> dict[str, Any] | None:
    """The question that the run waits on, if it has no answer yet."""
    waiting = journal.meta(WAITING)
    if not waiting:
        return None
    asked = (s.result for s in journal.steps("ask") if s.result and s.result["request"] == waiting)
    request = next(asked, None)
    return request if request and journal.decision(request["round"], waiting) is None else None


def pending(folder: Path) -> dict[str, Any]:
    """What a person is asked: run, round, plan, changes, cost, stock, floors, violations, expected effect.

    UsageError where nothing waits.
    """
    journal = Journal.open(folder)
    try:
        request = open_request(journal)
        if request is None:
            raise UsageError(
                f"nothing in {folder} waits for approval; continue: python -m mosaic resume {folder}"
            )
        return request
    finally:
        journal.close()


def decide(
    folder: Path,
    kind: Kind,
    *,
    plan_digest: str | None = None,
    edited: ActionPlan | None = None,
    reason: str = "",
    by: str | None = None,
) -> dict[str, Any]:
    """Record a decision on what waits. UsageError where nothing waits, where `plan_digest` names another plan, where
    somebody was faster, or where an edited plan breaks a constraint."""
    if kind == "reject" and not reason.strip():
        raise UsageError("a rejection needs a reason; the planner is told")
    request = pending(folder)
    if plan_digest is not None and not _names(request["plan_digest"], plan_digest):
        raise UsageError(
            f"--plan-digest {plan_digest} is not the plan that waits in round {request['round']}, which is "
            f"{request['plan_digest'][:12]}; look again: python -m mosaic pending {folder}"
        )
    if edited is not None:
        broken = violations(folder, request, edited)
        if broken:
            lines = "\n".join(
                f"  {v['path']}: {v['rule']}, {v['value']} against {v['limit']}; {v['hint']}"
                for v in broken
            )
            raise UsageError(f"the edited plan breaks constraints:\n{lines}")
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise UsageError("the reason is no valid UTF-8; write it again") from None
    decision = {
        **{
            name: request[name]
            for name in ("request", "run", "round", "plan_digest", "state_digest")
        },
        "kind": kind,
        "by": by or _who(),
        "reason": reason,
        **({"plan": edited.json_data()} if edited else {}),
    }
    journal = Journal.open(folder)
    try:
        journal.decide(request["round"], request["request"], decision)
    finally:
        journal.close()
    return decision


def _who() -> str:
    """The name of the user, or the number where there is no name (a container)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _names(digest: str, given: str) -> bool:
    return len(given) >= 8 and digest.startswith(given)


def violations(folder: Path, request: dict[str, Any], plan: ActionPlan) -> list[dict[str, Any]]:
    """Every constraint that a plan would break in place of the one that waits."""
    seen = Observation.model_validate(Store(folder).get_json(request["state_digest"]))
    pool = Pool.open(Path(run_config(folder).pool))
    return [v.json_data() for v in check_plan(plan, seen, pool)]
