"""Instruction following: verifiable constraints, strict and loose, after IFEval (arXiv 2311.07911).

Rules after MOSAIC's IFEval aggregation (arXiv 2603.18637, methods 1b), in integers. A prompt without constraints is
`unscored`: there is nothing to verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eval.objectives.base import Malformed, count_labels, need, unscored
from mosaic.core.types.evaluation import Scored


class InstructionFollowing:
    """5: all strict; 4: all loose; 3, 2, 1: at most a third, two thirds, more of the constraints fail loosely."""

    name = "instruction_following"
    evidence: Literal["answers", "likelihood"] = "answers"

    def prompt_side(
        self,
        prompt_items: Mapping[str, Mapping[str, int]],
        turns: int,
        constraints: Sequence[Mapping[str, Any]],
    ) -> tuple[str, int, int]:
        """Complexity 1-5 from the number of constraints and of their distinct groups."""
        ids = [str(c.get("id", "")) for c in constraints]
        level = complexity(ids) if ids else 1
        return f"complexity_{level}", level, 1

    def score(self, line: Mapping[str, Any]) -> Scored:
        try:
            ids = line.get("instruction_ids")
            if (
                not isinstance(ids, Sequence)
                or isinstance(ids, str)
                or not all(isinstance(i, str) and i for i in ids)
            ):
                raise Malformed("instruction_ids is not a list of checker ids")
            if not ids:
                raise Malformed("no constraint to verify")
            strict, loose = (_booleans(line, name, len(ids)) for name in ("strict", "loose"))
            for identifier, s, lo in zip(ids, strict, loose, strict=True):
                if s and not lo:
                    raise Malformed(
                        f"{identifier} passed strictly but not loosely, which cannot be"
                    )
        except Malformed as error:
            return unscored(line, str(error))
        weight = complexity(ids)
        count = len(ids)
        failed = count - sum(loose)
        if all(strict):
            score = 5
        elif failed == 0:
            score = 4
        else:
            score = 3 if 3 * failed <= count else 2 if 3 * failed <= 2 * count else 1
        return Scored(
            id=str(line["id"]),
            status="ok",
            slice=f"complexity_{weight}",
            weight=weight,
            label={
                "failed_constraint": [i for i, s in zip(ids, strict, strict=True) if not s],
                "constraints": count,
            },
            score=score,
            need=need(score, weight, 1),
            failed=score < 3,
        )

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        return count_labels(scored, ("failed_constraint",))


def complexity(ids: Sequence[str]) -> int:
    """1-5 from the number M of constraints and the number K of their groups (the part before the colon)."""
    count, groups = len(ids), len({i.split(":", 1)[0] for i in ids})
    return min(5, 1 + (count >= 2) + (count >= 3) + (groups >= 2) + (groups >= 3))


def _booleans(line: Mapping[str, Any], name: str, length: int) -> list[bool]:
    values = line.get(name)
    if (
        not isinstance(values, Sequence)
        or isinstance(values, str)
        or not all(isinstance(v, bool) for v in values)
    ):
        raise Malformed(f"{name} is not a list of booleans")
    if len(values) != length:
        raise Malformed(f"{name} has {len(values)} entries for {length} constraints")
    return list(values)
