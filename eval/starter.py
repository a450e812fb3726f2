"""A starter set of known answers for the published objectives that a model judges.

A judge can be checked by them before anybody has written known answers for suites of their own.
The harm in them is fictional. They are used where the suites of an objective have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files

from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from eval.references import Reference, references
from eval.suite import Suite
from mosaic.core.types.evaluation import Prompt

STARTERS = {Safety.name: "safety.jsonl", OverRefusal.name: "over_refusal.jsonl"}


def starter(objective: str) -> list[Reference]:
    """The known answers that ship for an objective; none for one of somebody's own."""
    if objective not in STARTERS:
        return []
    text = files("eval.objectives.known").joinpath(STARTERS[objective]).read_text(encoding="utf-8")
    prompts = [Prompt.model_validate(json.loads(line)) for line in text.splitlines()]
    return references([Suite(objective, "starter", prompts, "")])


def known_answers(objective: str, suites: Iterable[Suite]) -> tuple[list[Reference], bool]:
    """(known answers, whether they are the starter's).

    Those of the suites, if there are good and bad ones among them; otherwise the starter's, if it
    has any.
    """
    own = references(suites)
    if {reference.kind for reference in own} == {"good", "bad"}:
        return own, False
    shipped = starter(objective)
    return (shipped, True) if shipped else (own, False)
