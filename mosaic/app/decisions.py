"""What waits for a person, and the person's answer: one INSERT, made without the lock.

Constraints and the pool are imported when an edited plan is checked: to look at what waits, or to
decide on it as it is, takes neither.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mosaic.app.runs import run_config
from mosaic.core.errors import UsageError
from mosaic.core.journal import WAITING, Journal
from mosaic.core.store import Store
from mosaic.core.types.events import NotedEvent
from mosaic.core.types.plans import (
    ActionPlan,
    ApprovalRequest,
    Decision,
    Note,
    ProposedPlan,
    Violation,
)
from mosaic.core.types.records import AskApproval, RecordDecision
from mosaic.core.types.runs import Observation

MIN_PREFIX = 8
NO_EDITS: Mapping[int, ActionPlan] = {}


class AnotherQuestion(UsageError):
    """A decision on a question that does not wait: nothing was recorded. `asked` waits instead."""

    def __init__(self, message: str, asked: ApprovalRequest) -> None:
        super().__init__(message)
        self.asked = asked


@dataclass(frozen=True)
class Question:
    """What a run asked a person last, and the answer, if there is one by now."""

    request: ApprovalRequest
    decision: Decision | None


def waiting_question(journal: Journal) -> Question | None:
    """The question that a run waits on, whether it has an answer yet or not.

    A decision stands here from the moment it is recorded until a controller takes it up.
    """
    waiting = journal.meta(WAITING)
    if not waiting:
        return None
    for step in reversed(journal.steps(AskApproval)):
        request = step.result
        if request.request == waiting:
            decision = journal.decision(request.round, waiting)
            taken = decision is not None and _taken_up(journal, decision)
            return None if taken else Question(request, decision)
    return None


def _taken_up(journal: Journal, decision: Decision) -> bool:
    """Whether a controller has journalled a decision as the step that it goes on from."""
    steps = journal.steps(RecordDecision, decision.round)
    return any(step.result.request == decision.request for step in steps)


def open_request(journal: Journal) -> ApprovalRequest | None:
    """The question that the run waits on, if it has no answer yet."""
    question = waiting_question(journal)
    return question.request if question is not None and question.decision is None else None


def pending(folder: Path) -> ApprovalRequest:
    """The question that waits for a person. Raises UsageError if nothing waits."""
    journal = Journal.open(folder)
    try:
        question = waiting_question(journal)
    finally:
        journal.close()
    if question is not None and question.decision is not None:
        made = question.decision
        said = f" ({made.reason})" if made.reason else ""
        raise UsageError(
            f"round {made.round} was decided: {made.kind} by {made.by}{said}; a controller takes it "
            f"up with: python -m mosaic resume {folder}"
        )
    request = question.request if question else None
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
    edits: Mapping[int, ActionPlan] = NO_EDITS,
    only: Collection[int] = (),
    reason: str = "",
    by: str | None = None,
) -> Decision:
    """Approve the question that was seen, or give plans to run in place of its own.

    `request` is the question's id, or at least its first 8 characters. `edits` is the number of a
    plan, as the question shows them from 1, -> what runs in its place; `edited` is that of the only
    one. `only` are the numbers of the plans that run, all if it is empty: the others are dropped.
    Raises UsageError if another question or none waits, if somebody was faster, if there is no plan
    of such a number, or if an edited plan breaks a constraint.
    """
    asked = seen(folder, request, "approve")
    edits = dict(edits)
    if edited is not None:
        if len(asked.plans) > 1:
            raise UsageError(
                f"the question shows {len(asked.plans)} plans; say which one is edited: 2=PLAN"
            )
        edits[1] = edited
    run = _to_run(asked, edits, only)
    if edits and asked.round == 0:
        raise UsageError("the calibration trains the pools' own proportions and cannot be edited")
    plans = {number: asked.plans[number - 1].plan for number in run}
    for number, plan in sorted(edits.items()):
        plans[number] = _own_words(plan, asked)
    _check_edited(folder, asked, plans, edits)
    kept = [asked.plans[number - 1].plan_digest for number in run if number not in edits]
    new = [plans[number] for number in sorted(edits)]
    if len(kept) == len(asked.plans):
        kept = []
    return _record(folder, asked, "edit" if new else "approve", new, reason, by, kept)


def _to_run(asked: ApprovalRequest, edits: Collection[int], only: Collection[int]) -> list[int]:
    """Numbers of the plans that are to run. Raises UsageError for one that the question lacks."""
    count = len(asked.plans)
    for number in (*edits, *only):
        if not 1 <= number <= count:
            raise UsageError(f"plan {number}: the question shows plans 1 to {count}")
    run = sorted({*only}) or list(range(1, count + 1))
    for number in edits:
        if number not in run:
            raise UsageError(f"plan {number} is edited, but is not among those that run")
    return run


def _check_edited(
    folder: Path,
    asked: ApprovalRequest,
    plans: Mapping[int, ActionPlan],
    edits: Collection[int],
) -> None:
    """Raise UsageError if an edited plan breaks a constraint beside the others that run."""
    lines = []
    for number in sorted(edits):
        others = [plan for other, plan in plans.items() if other != number]
        name = f"plan {number}, " if len(asked.plans) > 1 else ""
        for v in violations(folder, asked, plans[number], others):
            lines.append(f"  {name}{v.path}: {v.rule}, {v.value} against {v.limit}; {v.hint}")
    if lines:
        raise UsageError("the edited plan breaks constraints:\n" + "\n".join(lines))


def reject(folder: Path, request: str, *, reason: str, by: str | None = None) -> Decision:
    """Refuse the plans of the question that was seen; the planner is told the reason."""
    if not reason.strip():
        raise UsageError("a rejection needs a reason; the planner is told")
    return _record(folder, seen(folder, request, "reject"), "reject", [], reason, by)


def respond(folder: Path, request: str, *, comment: str, by: str | None = None) -> Decision:
    """Send a comment on the plans of the question that was seen, and ask for another plan.

    Nothing is refused: a planner that reads no comments may propose the same plan again.
    """
    if not comment.strip():
        raise UsageError("a response needs a comment; the planner is told")
    asked = seen(folder, request, "respond")
    if asked.round == 0:
        raise UsageError("no planner proposed the calibration; approve it or reject it")
    return _record(folder, asked, "respond", [], comment, by)


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
    kept: Sequence[str] = (),
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
            "by": by or user_name(),
            "reason": reason,
            "plans": [shown.plan_digest for shown in asked.plans],
            "edited": edited,
            "kept": list(kept),
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
        left = Note(by=by or user_name(), text=text.strip())
    except (UnicodeEncodeError, ValidationError):
        raise UsageError(
            "a note has 1 to 4,000 characters of valid text, and names who gives it"
        ) from None
    journal = Journal.open(folder)
    try:
        return left, journal.tell(NotedEvent(note=left))
    finally:
        journal.close()


def user_name() -> str:
    """The name of the user, or the number of one without a name (a container)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def edited_view(
    folder: Path,
    request: ApprovalRequest,
    plan: ActionPlan,
    siblings: Sequence[ActionPlan] = (),
) -> ProposedPlan:
    """A plan as the question would show it in place of one that waits.

    It has the changes, what is asked of the stock, what the surrogate predicts, and every
    constraint that the plan would break beside its siblings.
    """
    from agent.approval import shown_plan
    from agent.constraints import check_plan
    from training.data.pool import Pool

    observed = Observation.model_validate(Store(folder).get_json(request.observation))
    pool = Pool.open(Path(run_config(folder).pool))
    broken = check_plan(plan, observed, pool, siblings)
    return shown_plan(plan, observed).model_copy(update={"violations": broken})


def violations(
    folder: Path,
    request: ApprovalRequest,
    plan: ActionPlan,
    siblings: Sequence[ActionPlan] = (),
) -> list[Violation]:
    """Every constraint that a plan would break in place of one that waits, beside its siblings."""
    return edited_view(folder, request, plan, siblings).violations
