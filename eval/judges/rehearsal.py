"""Which prompts could never be scored, whatever is answered: known before a model is asked.

Plain answers are judged in a rehearsal. Where none of them can be scored, and always for the same
reason, the reason lies in the prompt: rules are missing, a constraint cannot be verified, an item
is unknown. A reason that changes with the answer is the answer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eval.objectives.base import Objective
from eval.scoring import score_judgments
from mosaic.core.types.evaluation import Judgment, Prompt, Response

# What an objective may want to read: words, a number, an option, JSON, several paragraphs.
ANSWERS = (
    "Yes, here it is.",
    "1",
    "A",
    "{}",
    "[]",
    "one two , three .\n\nfour\n\n* five\n\nsix",
)


@dataclass(frozen=True)
class _One:
    """A suite of one prompt."""

    objective: str
    prompts: list[Prompt]


def rehearse(
    objective: Objective, prompt: Prompt, judge: Callable[[Response], Judgment]
) -> str | None:
    """Why no answer to a prompt can be scored, or None. `judge` asks no model.

    The known answers of the prompt are tried first. A UsageError that code of somebody's own raises
    goes through.
    """
    if objective.evidence != "answers":
        return None
    reason = None
    for answers in _tries(prompt):
        found = _unscored(objective, prompt, judge(_response(prompt, answers)))
        if found is None or (reason is not None and found != reason):
            return None
        reason = found
    return reason


def _tries(prompt: Prompt) -> list[list[str]]:
    """Answers to every turn of a prompt: its known ones, then plain ones."""
    tries = [known for known in (prompt.good, prompt.bad) if known]
    for answer in ANSWERS:
        tries.append([answer] * len(prompt.turns))
    return tries


def _response(prompt: Prompt, answers: list[str]) -> Response:
    reasons = ["stop"] * len(answers)
    data = {"id": prompt.id, "answers": answers, "finish_reasons": reasons, "n_tokens": 0}
    return Response.model_validate(data)


def _unscored(objective: Objective, prompt: Prompt, judgment: Judgment) -> str | None:
    """Why a judgment has no score, or None."""
    try:
        (scored,) = score_judgments(objective, _One(objective.name, [prompt]), [judgment])
    except ValueError as error:  # the rules and the suite disagree about the slice
        return str(error)
    return None if scored.status == "ok" else scored.reason or scored.status
