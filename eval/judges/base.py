"""The seam of judging: an answer becomes atomic items (L3), or an honest `failed`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, Protocol

from pydantic import Field, field_validator

from eval.chat.config import ChatConfig
from eval.chat.prices import Prices
from eval.judges.items import ItemSet
from eval.judges.verdicts import Question, VerdictEntry
from eval.objectives.base import Objective
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.data import Message
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Verdict


class Judge(Protocol):
    """Judges answers for an objective. `digest` names the judge and its rules or prompt."""

    @property
    def digest(self) -> str: ...

    def judge(
        self, objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """One judgment per prompt, in order.

        A judgment that cannot be made is data (`failed`), not an exception.
        """
        ...


class SuiteJudge(Judge, Protocol):
    """A judge as a config names it: it also knows which prompts it could never score."""

    def unscorable(self, objective: Objective, prompt: Prompt) -> str | None:
        """Why no answer to this prompt could be scored, or None. Asks no model.

        What the prompt itself lacks is found: rules, items, parameters, data of a checker. UsageError
        if code of somebody's own fails.
        """
        ...


class SteeringJudgeConfig(FrozenModel):
    """The reward model of the trial before, as the judge of steering suites.

    On each suite the run's own judge scores a `sample` of the answers as well. Where Cohen's kappa
    of the two is below `agreement`, the model is not believed, and the judge scores all.
    """

    kind: Literal["reward_model"] = "reward_model"
    sample: int = Field(default=40, ge=10)
    agreement: float = Field(default=0.6, gt=0, le=1)


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
    `chat.max_attempts`. `prices` are those of the provider. `keep_requests: false` deletes what the
    judge was asked, of a round that is closed; verdicts stay.
    """

    kind: Literal["llm"] = "llm"
    chat: ChatConfig = ChatConfig(max_tokens=512)
    prices: Prices | None = Field(default=None, exclude_if=lambda prices: prices is None)
    revision: str = ""
    cache: str | None = None
    concurrency: int = Field(default=16, ge=1, le=256)
    gold_checks: int = Field(default=20, ge=2, le=256)
    agreement: float = Field(default=0.95, gt=0, le=1)
    max_repairs: int = Field(default=2, ge=0, le=3)
    keep_requests: bool = Field(default=True, exclude_if=lambda keep: keep)

    @field_validator("chat")
    @classmethod
    def _deterministic(cls, chat: ChatConfig) -> ChatConfig:
        if chat.temperature:  # null leaves it to a server that takes none
            raise ValueError(
                f"temperature is {chat.temperature:g}; a judge answers at temperature 0"
            )
        return chat


AnswerQuestions = Callable[[Sequence[Question]], Mapping[str, Verdict]]
"""Questions -> their verdicts, by the key of the question."""


class ModelJudge(SuiteJudge, Protocol):
    """A judge that is asked question by question, so that its verdicts can be kept."""

    config: LlmJudgeConfig

    def judge_with(
        self,
        answer: AnswerQuestions,
        objective: Objective,
        prompts: Sequence[Prompt],
        responses: Sequence[Response],
    ) -> list[Judgment]:
        """One judgment per prompt, the verdicts coming from `answer`."""
        ...

    def ask_about(self, items: ItemSet, messages: Sequence[Message]) -> Question: ...

    def messages(self, question: Question) -> list[dict[str, str]]:
        """What the model is sent."""
        ...

    def ask_afresh(
        self, questions: Sequence[Question], count: Callable[[VerdictEntry], None] = ...
    ) -> dict[str, Verdict]:
        """The verdict of each question by its key, asked of the model now."""
        ...

    def ask_all(
        self, questions: Sequence[Question], stopping: Callable[[], bool] = ...
    ) -> Iterator[list[VerdictEntry]]:
        """Verdicts in the order of completion."""
        ...


JudgeConfig = Annotated[VerifierJudgeConfig | LlmJudgeConfig, Field(discriminator="kind")]
