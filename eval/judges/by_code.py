"""Answers that code checks, whatever judge is configured."""

from __future__ import annotations

from collections.abc import Sequence

from eval.objectives.base import Objective, Unchecked
from mosaic.core.types.evaluation import Judgment, Prompt, Response


def check_answers(
    objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> list[Judgment]:
    """One judgment per prompt, by the objective's own check.

    Raises ValueError if a response does not answer its prompt.
    """
    judgments = []
    for prompt, response in zip(prompts, responses, strict=True):
        if prompt.id != response.id:
            raise ValueError(f"response {response.id} does not answer prompt {prompt.id}")
        judgments.append(_checked(objective, prompt, response))
    return judgments


def _checked(objective: Objective, prompt: Prompt, response: Response) -> Judgment:
    try:
        items = objective.check(prompt, response)
    except Unchecked as error:
        return Judgment(id=prompt.id, status="failed", reason=str(error), judge=objective.rules)
    return Judgment(id=prompt.id, status="ok", items=items, judge=objective.rules)
