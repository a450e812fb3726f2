"""Steps of methods that practise: answers drawn and scored, and what is formed of them to train on."""

from __future__ import annotations

from typing import ClassVar, Literal

from mosaic.core.types.base import FrozenModel, JsonObject
from mosaic.core.types.preferences import JudgedReport, PairReport
from mosaic.core.types.runs import Sampling
from mosaic.core.types.step_inputs import Generated, StepInputs


class SamplePractice(StepInputs[Generated]):
    """Answers drawn for practice prompts, given by the digests of what they say; paid for."""

    result_type: ClassVar[type[FrozenModel]] = Generated
    kind: Literal["sample"] = "sample"
    base: str
    generator: JsonObject
    sampling: Sampling
    adapter: str | None
    prompts: list[str]


class PracticeScored(FrozenModel):
    """A filed list with the score of each answer, or null."""

    scores: str


class ScorePractice(StepInputs[PracticeScored]):
    """Answers to practice prompts, judged under one objective."""

    result_type: ClassVar[type[FrozenModel]] = PracticeScored
    kind: Literal["score_practice"] = "score_practice"
    responses: str
    prompts: list[str]
    objective: str
    judge: str
    rules: str


class PairsFiled(FrozenModel):
    """Preference pairs in a filed Parquet file, and what became of the prompts."""

    pairs: str
    report: PairReport


class FormPairs(StepInputs[PairsFiled]):
    """Pairs chosen among filed answers by their scores: `rule` says how, `tokens` what they may cost.

    `base` is the digest of the tokenizer's base.
    """

    result_type: ClassVar[type[FrozenModel]] = PairsFiled
    kind: Literal["pairs"] = "pairs"
    base: str
    responses: list[str]
    scores: list[dict[str, str]]
    prompts: list[str]
    rule: JsonObject
    tokens: int


class JudgedFiled(FrozenModel):
    """A filed list of judged answers, a `JudgedAnswer` a line, and what became of the prompts."""

    answers: str
    report: JudgedReport


class FormJudged(StepInputs[JudgedFiled]):
    """Filed answers with their scores, and pool rows with their qualities, as judged answers.

    `graded` is data set -> the objective that its rows' qualities are levels of; `rows` is what the
    pool's rows may have in tokens.
    """

    result_type: ClassVar[type[FrozenModel]] = JudgedFiled
    kind: Literal["judged"] = "judged"
    base: str
    pool: str
    graded: dict[str, str]
    responses: list[str]
    scores: list[dict[str, str]]
    prompts: list[str]
    max_length: int
    rows: int
    seed: int


class WishesFiled(FrozenModel):
    """Chats that state a wish: `warm` is a training set of judged answers, `chats` are to be answered.

    Either may be None. `tokens` are those of one epoch of `warm`; `prompts` of the prompts of
    `chats`, in the order of the file.
    """

    warm: str | None
    rows: int
    tokens: int
    chats: str | None
    prompts: list[int]


class FormWishes(StepInputs[WishesFiled]):
    """Wishes over judged answers and practice prompts. `classes` is objective -> levels to ask for.

    `graded` is data set -> the objective that its rows' qualities are levels of. `rule` is what of the
    recipe decides how many there are, `tokens` what all of them may cost, of which `warm` for the
    judged answers.
    """

    result_type: ClassVar[type[FrozenModel]] = WishesFiled
    kind: Literal["wishes"] = "wishes"
    base: str
    pool: str
    graded: dict[str, str]
    answers: str
    responses: list[str]
    prompts: list[str]
    classes: dict[str, list[int]]
    rule: JsonObject
    warm: int
    tokens: int
    seed: int
