"""What waits for a person, and the person's answer: one INSERT, made without the lock.

Constraints and the pool are imported when an edited plan is checked: to look at what waits, or to
decide on it as it is, takes neither.
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from pydantic import ValidationError

from mosaic.app.runs import run_config
from mosaic.core.errors import UsageError
from mosaic.core.journal import WAITING, Journal
from mosaic.core.store import Store
from mosaic.core.types.events import NotedEvent
from mosaic.core.types.plans import ActionPlan, ApprovalRequest, Decision, Violation
from mosaic.core.types.records import AskApproval
from mosaic.core.types.runs import Note, Observation

MIN_PREFIX = 8


class AnotherQuestion(UsageError):
    """A decision on a question that does not wait: nothing was recorded. `asked` waits instead."""

    def __init__(self, message: str, asked: ApprovalRequest) -> None:
        super().__init__(message)
        self.asked = asked


def open_request(journal: Journal) -> ApprovalRequest | None:
    """The question that the run waits on, if it has no answer yet."""
    waiting = journal.meta(WAITING)
    if not waiting:
        return None
    for step in reversed(journal.steps(AskApproval)):
        request = step.result
        if request.request == waiting:
            return request if journal.decision(request.round, waiting) is None else None
    return None


def pending(folder: Path) -> ApprovalRequest:
    """The question that waits for a person. Raises UsageError if nothing waits."""
    journal = Journal.open(folder)
    try:
        request = open_request(journal)
    finally:
        journal.close()
    if request is None:
        raise UsageError(
            f"nothing in {folder} waits for approval; continue: python -m mosaic resume {folder}"
        )
    return request


def approve(
    folder: Path,
    request: str,
    *,
    edited: ActionPlan | None = None,
    reason: str = "",
    by: str | None = None,
) -> Decision:
    """Approve the question that was seen, or give a plan to run in place of its own.

    `request` is the question's id, or at least its first 8 characters. Raises UsageError if another
    question or none waits, if somebody was faster, or if the edited plan breaks a constraint.
    """
    asked = seen(folder, request, "approve")
    if edited is None:
        return _record(folder, asked, "approve", [], reason, by)
    edited = _own_words(edited, asked)
    broken = violations(folder, asked, edited)
    if broken:
        lines = [f"  {v.path}: {v.rule}, {v.value} against {v.limit}; {v.hint}" for v in broken]
        raise UsageError("the edited plan breaks constraints:\n" + "\n".join(lines))
    return _record(folder, asked, "edit", [edited], reason, by)


def reject(folder: Path, request: str, *, reason: str, by: str | None = None) -> Decision:
    """Refuse the plans of the question that was seen; the planner is told the reason."""
    if not reason.strip():
        raise UsageError("a rejection needs a reason; the planner is told")
    return _record(folder, seen(folder, request, "reject"), "reject", [], reason, by)


def seen(folder: Path, request: str, verb: str = "approve") -> ApprovalRequest:
    """The question that waits, if it is the one that the person saw.

    Raises AnotherQuestion if `request` is not its id, UsageError if nothing waits.
    """
    asked = pending(folder)
    if len(request) < MIN_PREFIX or not asked.request.startswith(request):
        raise AnotherQuestion(
            f"--request {request!r} is not the question that waits: round {asked.round} asks "
            f"{asked.request[:12]}. Look at it with `python -m mosaic pending {folder}`, then: "
            f"python -m mosaic {verb} {folder} --request {asked.request[:12]}",
            asked,
        )
    return asked


def _own_words(edited: ActionPlan, asked: ApprovalRequest) -> ActionPlan:
    """The edited plan without the proposer's forecast, which was made for another plan."""
    for shown in asked.plans:
        if edited.expected == shown.plan.expected:
            return edited.model_copy(update={"expected": {}})
    return edited


def _record(
    folder: Path,
    asked: ApprovalRequest,
    kind: str,
    edited: list[ActionPlan],
    reason: str,
    by: str | None,
) -> Decision:
    try:
        reason.encode()
    except UnicodeEncodeError:
        raise UsageError("the reason is not valid UTF-8; write it again") from None
    decision = Decision.model_validate(
        {
            "request": asked.request,
            "run": asked.run,
            "round": asked.round,
            "kind": kind,
            "by": by or _who(),
            "reason": reason,
            "plans": [shown.plan_digest for shown in asked.plans],
            "edited": edited,
        }
    )
    journal = Journal.open(folder)
    try:
        journal.decide(decision)
    finally:
        journal.close()
    return decision


def note(folder: Path, text: str, by: str | None = None) -> tuple[Note, int]:
    """Leave a note to the planner, told from the next observation on, and the round it stands in.

    Raises UsageError for a note without words, of more than 4,000 characters, or in broken UTF-8.
    """
    try:
        text.encode()
        left = Note(by=by or _who(), text=text.strip())
    except (UnicodeEncodeError, ValidationError):
        raise UsageError(
            "a note has 1 to 4,000 characters of valid text, and names who gives it"
        ) from None
    journal = Journal.open(folder)
    try:
        return left, journal.tell(NotedEvent(note=left))
    finally:
        journal.close()


def _who() -> str:
    """The name of the user, or the number if there is no name (a container)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def violations(folder: Path, request: ApprovalRequest, plan: ActionPlan) -> list[Violation]:
    """Every constraint that a plan would break in place of one that waits."""
    from agent.constraints import check_plan
    from training.data.pool import Pool

    seen = Observation.model_validate(Store(folder).get_json(request.observation))
    pool = Pool.open(Path(run_config(folder).pool))
    return check_plan(plan, seen, pool)
