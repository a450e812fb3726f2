"""The seam of judging: an answer becomes atomic items (L3), or an honest `failed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field, field_validator

from eval.chat.config import ChatConfig
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.evaluation import Judgment, Prompt, Response


class Judge(Protocol):
    """Judges answers for an objective. `digest` names the judge and its rules or prompt."""

    digest: str

    def judge(
        self, objective: str, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """One judgment per prompt, in order.

        A judgment that cannot be made is data (`failed`), not an exception.
        """
        ...


class VerifierJudgeConfig(FrozenModel):
    """Deterministic rules that travel with the suite."""

    kind: Literal["verifier"] = "verifier"


class LlmJudgeConfig(FrozenModel):
    """A language model that answers the items of an objective with yes or no.

    Instruction following stays with code.

    `cache` is a folder of verdicts that runs share, by default `judge-cache` beside the run
    directories. `revision` tells this model from others of the same name; without one, the address
    stands in for it in the judge's identity. `gold_checks` is how many answers with known verdicts,
    good and bad ones, are asked about before each batch of questions. The run pauses if fewer than
    the fraction `agreement` of them are judged right. `max_repairs` is how often a well-formed but
    invalid verdict is asked for again; other bad replies are asked for again within
    `chat.max_attempts`.
    """

    kind: Literal["llm"] = "llm"
    chat: ChatConfig = ChatConfig(max_tokens=512)
    revision: str = ""
    cache: str | None = None
    concurrency: int = Field(default=16, ge=1, le=256)
    gold_checks: int = Field(default=20, ge=2, le=256)
    agreement: float = Field(default=0.95, gt=0, le=1)
    max_repairs: int = Field(default=2, ge=0, le=3)

    @field_validator("chat")
    @classmethod
    def _deterministic(cls, chat: ChatConfig) -> ChatConfig:
        if chat.temperature != 0:
            raise ValueError(
                f"temperature is {chat.temperature:g}; a judge answers at temperature 0"
            )
        return chat


JudgeConfig = Annotated[VerifierJudgeConfig | LlmJudgeConfig, Field(discriminator="kind")]
