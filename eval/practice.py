"""Prompts to practise on: the optional `practice.jsonl` of a suite folder.

A practice prompt may be sampled from and trained on, which no other role allows. Its `objectives`
name everything that its answers are judged under, so that one answer can be good in one and bad in
another. It asks what no prompt of the other roles asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from eval.objectives.base import Objective, by_code
from eval.suite import Suite, load_suite
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt

PRACTICE = "practice"


@dataclass(frozen=True)
class Practice:
    """Practice prompts of a folder, and the ids of those left out with the reason."""

    suite: Suite
    left_out: dict[str, str]


def load_practice(
    folder: Path, own: Objective, objectives: Mapping[str, Objective]
) -> Practice | None:
    """The practice prompts of a suite folder, or None if it has none.

    A prompt that names an objective which the config lacks is left out: it cannot be judged as it
    asks. UsageError for a broken line, and for a prompt that does not name the folder's own
    objective, names one twice, or lacks what one of them reads.
    """
    if not (folder / f"{PRACTICE}.jsonl").exists():
        return None
    suite = load_suite(folder, own, PRACTICE)
    kept, left_out = [], {}
    for prompt in suite.prompts:
        where = f"{folder / PRACTICE}.jsonl: the prompt {prompt.id!r}"
        _check_names(prompt, own, where)
        unknown = [name for name in prompt.objectives or () if name not in objectives]
        if unknown:
            left_out[prompt.id] = f"objectives {unknown} are not in the config"
            continue
        for name in prompt.objectives or ():
            _check_readable(prompt, objectives[name], where)
        kept.append(prompt)
    return Practice(replace(suite, prompts=kept), left_out)


def _check_names(prompt: Prompt, own: Objective, where: str) -> None:
    named = prompt.objectives or []
    if own.name not in named:
        raise UsageError(
            f"{where} has objectives {named}; a practice prompt names what it is judged under, "
            f"and that includes {own.name!r}, whose folder it is in"
        )
    if len(set(named)) != len(named):
        raise UsageError(f"{where}: objectives {named} name one of them twice")


def _check_readable(prompt: Prompt, objective: Objective, where: str) -> None:
    """UsageError if an objective reads no answers, or the prompt lacks constraints to check."""
    if objective.evidence != "answers":
        raise UsageError(
            f"{where}: {objective.name} reads texts, not answers; take it out of objectives"
        )
    if by_code(objective) and objective.name == "instruction_following" and not prompt.constraints:
        raise UsageError(
            f"{where} has no constraints for {objective.name} to check; add some, "
            "or take it out of objectives"
        )
