"""Steering items behind a slice: their labels and, for a person, the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mosaic.core.store import Store
from mosaic.core.types.evaluation import Scored, SuiteFiles
from tools.planning.toolbox import Filter

# Objective -> role -> digests of what an evaluation filed.
EvaluationFiles = Mapping[str, Mapping[str, SuiteFiles]]

BORDERLINE = (2.0, 3.0)
MAX_TEXT = 300


def examples_of(
    store: Store, files: EvaluationFiles, objective: str, slice: str, filter: Filter, n: int
) -> list[dict[str, Any]]:
    """Up to `n` scored steering items of a slice, worst first: label, score, and the first 300 characters of the last
    answer. No ids and no prompts; the toolbox hands on the answer only where it is asked for.

    """
    scored = [Scored.model_validate(s) for s in store.get_json(files[objective]["steering"].scored)]
    kept = [s for s in scored if s.slice == slice and s.score is not None and _passes(s, filter)]
    kept.sort(key=lambda s: (s.score or 0.0, s.id))
    answers = {
        r["id"]: (r.get("answers") or [""])[-1]
        for r in store.get_json(files[objective]["steering"].responses)
    }
    return [
        {
            "label": s.label,
            "score": s.score,
            "failed": s.failed,
            "answer": answers.get(s.id, "")[:MAX_TEXT],
        }
        for s in kept[:n]
    ]


def _passes(scored: Scored, filter: Filter) -> bool:
    if filter == "failed":
        return bool(scored.failed)
    if filter == "passed":
        return scored.failed is False
    if filter == "borderline":
        return scored.score is not None and BORDERLINE[0] <= scored.score <= BORDERLINE[1]
    return True
