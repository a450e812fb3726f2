"""The seam of judging: an answer becomes atomic items (L3), or an honest `failed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from mosaic.types import Judgment, Noun, Prompt, Response


class Judge(Protocol):
    """Judges answers for an objective. `digest` names the judge and its rules or prompt."""

    digest: str

    def judge(self, objective: str, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Judgment]:
        """One judgment per prompt, in order. A judgment that cannot be made is data (`failed`), not an exception."""
        ...


class VerifierJudgeConfig(Noun):
    """Deterministic rules that travel with the suite."""

    kind: Literal["verifier"] = "verifier"
