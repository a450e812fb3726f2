"""Instruction following: verifiable constraints, strict and loose, after IFEval (arXiv 2311.07911).

Rules after MOSAIC's IFEval aggregation (arXiv 2603.18637, methods 1b), in integers. A prompt
without constraints is `unscored`: there is nothing to verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeGuard

from pydantic import Field

from eval import ifeval
from eval.objectives.base import (
    Channel,
    Channels,
    Constraints,
    Line,
    Malformed,
    Side,
    Unchecked,
    count_labels,
    need,
    unscored,
)
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Prompt, Response, Scored
from prompts.load import Prompt as PromptFile

VERSION = 2


class InstructionFollowing:
    """5 to 1, by how many of the constraints an answer meets strictly and loosely (`score_of`)."""

    name = "instruction_following"
    evidence: Literal["answers", "likelihood"] = "answers"
    answers: tuple[Channel, ...] = ()
    request: tuple[Channel, ...] = ()
    fields: Mapping[str, object] = {
        "instruction_ids": Annotated[list[str], Field(min_length=1)],
        "strict": list[bool],
        "loose": list[bool],
    }
    rules = digest_of({"objective": name, "version": VERSION})

    def words(self, side: Side) -> PromptFile:
        raise ValueError("instruction following is checked by code: no model is asked")

    def stored(self, prompt: Prompt, items: Channels) -> dict[str, object]:
        return {"items": dict(items)}

    def check(self, prompt: Prompt, response: Response) -> dict[str, object]:
        """Every constraint against the last answer, strictly and loosely (`eval.ifeval`)."""
        for constraint in prompt.constraints:
            reason = ifeval.verifiable(constraint)
            if reason:
                raise Unchecked(reason)
        try:
            strict, loose = ifeval.check(prompt.constraints, response.answers[-1])
        except ifeval.CannotRead as error:  # the item is lost, not the run
            raise Unchecked(str(error)) from None
        ids = [str(c["id"]) for c in prompt.constraints]
        return {"instruction_ids": ids, "strict": strict, "loose": loose}

    def prompt_side(
        self,
        prompt_items: Channels,
        turns: int,
        constraints: Constraints,
    ) -> tuple[str, int, int]:
        """Complexity 1-5 from the number of constraints and of their distinct groups."""
        ids = [str(c.get("id", "")) for c in constraints]
        level = ifeval.complexity(ids) if ids else 1
        return f"complexity_{level}", level, 1

    def score(self, line: Line) -> Scored:
        try:
            ids = _checker_ids(line)
            strict = _booleans(line, "strict", len(ids))
            loose = _booleans(line, "loose", len(ids))
            for identifier, strictly, loosely in zip(ids, strict, loose, strict=True):
                if strictly and not loosely:
                    raise Malformed(
                        f"{identifier} passed strictly but not loosely, which cannot be"
                    )
        except Malformed as error:
            return unscored(line, str(error))
        weight = ifeval.complexity(ids)
        score = score_of(strict, loose)
        failed = [identifier for identifier, passed in zip(ids, strict, strict=True) if not passed]
        return Scored(
            id=str(line["id"]),
            status="ok",
            slice=f"complexity_{weight}",
            weight=weight,
            label={"failed_constraint": failed, "constraints": len(ids)},
            score=score,
            need=need(score, weight, 1),
            failed=score < 3,
        )

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        return count_labels(scored, ("failed_constraint",))


def score_of(strict: Sequence[bool], loose: Sequence[bool]) -> int:
    """5 if all constraints pass strictly, 4 if all pass loosely, else by how many fail loosely.

    3 up to a third, 2 up to two thirds, 1 above. Of three constraints, one or two fail loosely:

    >>> score_of([True, False, False], [True, True, False])
    3
    >>> score_of([True, False, False], [True, False, False])
    2
    """
    count = len(loose)
    failed = count - sum(loose)
    if all(strict):
        return 5
    if failed == 0:
        return 4
    if 3 * failed <= count:
        return 3
    return 2 if 3 * failed <= 2 * count else 1


def _checker_ids(line: Line) -> list[str]:
    ids = line.get("instruction_ids")
    if not _is_list(ids) or not all(isinstance(i, str) and i for i in ids):
        raise Malformed("instruction_ids is not a list of checker ids")
    if not ids:
        raise Malformed("no constraint to verify")
    return list(map(str, ids))


def _booleans(line: Line, name: str, length: int) -> list[bool]:
    values = line.get(name)
    if not _is_list(values) or not all(isinstance(v, bool) for v in values):
        raise Malformed(f"{name} is not a list of booleans")
    if len(values) != length:
        raise Malformed(f"{name} has {len(values)} entries for {length} constraints")
    return list(map(bool, values))


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
