"""Steering items behind a slice: their labels and, for a person, the end of the conversation."""

from __future__ import annotations

from collections.abc import Mapping

from mosaic.core.store import Store
from mosaic.core.types.base import JsonObject
from mosaic.core.types.evaluation import Scored, SuiteFiles
from tools.planning.toolbox import Filter

# Objective -> role -> digests of what an evaluation filed.
EvaluationFiles = Mapping[str, Mapping[str, SuiteFiles]]

BORDERLINE = (2.0, 3.0)
MAX_TEXT = 300


def examples_of(
    store: Store, files: EvaluationFiles, objective: str, slice: str, filter: Filter, n: int
) -> list[JsonObject]:
    """Up to `n` scored steering items of a slice, worst first.

    Each has its label, its score, and the first 300 characters of the last answer; no ids and no
    prompts. The toolbox hands on the answer only if it is asked for.
    """
    steering = files[objective]["steering"]
    kept = []
    for line in store.get_json(steering.scored):
        scored = Scored.model_validate(line)
        if scored.slice == slice and scored.score is not None and _passes(scored, filter):
            kept.append(scored)
    kept.sort(key=lambda scored: (scored.score or 0.0, scored.id))
    last_answers = {}
    for response in store.get_json(steering.responses):
        last_answers[response["id"]] = (response.get("answers") or [""])[-1]
    examples: list[JsonObject] = []
    for scored in kept[:n]:
        examples.append(
            {
                "label": scored.label,
                "score": scored.score,
                "failed": scored.failed,
                "answer": last_answers.get(scored.id, "")[:MAX_TEXT],
            }
        )
    return examples


def _passes(scored: Scored, filter: Filter) -> bool:
    if filter == "failed":
        return bool(scored.failed)
    if filter == "passed":
        return scored.failed is False
    if filter == "borderline":
        return scored.score is not None and BORDERLINE[0] <= scored.score <= BORDERLINE[1]
    return True
