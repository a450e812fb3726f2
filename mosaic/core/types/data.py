"""What is trained on: pool rows, mixtures, and what curation delivered."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from mosaic.core.types.base import Attribute, FrozenModel, Scalar, StrictInt, check_weights


def _is_true(value: object) -> bool:
    return value is True


class Message(FrozenModel):
    """One turn. `learn` is False for an answer that is context only: its tokens have no labels."""

    role: Literal["system", "user", "assistant"]
    content: str
    # Left out of what is written if it is True: the digests of pools without marks stay.
    learn: StrictBool = Field(default=True, exclude_if=_is_true)


class Example(FrozenModel):
    """A pool row: one chat that can be trained on. `bucket` is the slice its objective's prompt-side rules give it."""

    id: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    bucket: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    quality: StrictInt = Field(ge=1, le=5)
    attributes: dict[str, Attribute] = {}
    n_tokens: StrictInt | None = Field(default=None, ge=1)


class JudgedAnswer(FrozenModel):
    """A chat that ends with an answer, and the level from 1 to 5 that it was given by objective.

    An objective under which it was not judged is left out of `levels`.
    """

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    levels: dict[str, StrictInt]

    @model_validator(mode="after")
    def _answered_and_on_the_scale(self) -> JudgedAnswer:
        if self.messages[-1].role != "assistant":
            raise ValueError(f"{self.id}: the last message is not an answer")
        if not self.levels:
            raise ValueError(f"{self.id}: no objective gives it a level")
        for objective, level in self.levels.items():
            if level not in range(1, 6):
                raise ValueError(f"{self.id}: {objective}: {level} is not a level from 1 to 5")
        return self


class WishedChat(FrozenModel):
    """A chat up to the question to be answered. Its system message begins with a wish.

    `objectives` are those of the wish that an answer is rewarded for; the wish may state others,
    which say nothing about this question. Empty: all that it states.
    """

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=2)
    objectives: list[str] = []

    @model_validator(mode="after")
    def _asks(self) -> WishedChat:
        if self.messages[-1].role != "user":
            raise ValueError(f"{self.id}: the last message is not a question")
        if self.messages[0].role != "system":
            raise ValueError(f"{self.id}: no system message states a wish")
        return self


class Range(FrozenModel):
    """A numeric criterion, both ends included; at least one end is given."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_end(self) -> Range:
        if self.min is None and self.max is None:
            raise ValueError("a range needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


Criterion = list[Scalar] | Range


class Focus(FrozenModel):
    """Preference inside a data set. Include: any value of any attribute matches. Exclude: any match removes the row.

    `share` is the least fraction of each bucket's quota that included rows should fill.
    """

    include: dict[str, Criterion] = {}
    exclude: dict[str, Criterion] = {}
    share: float = Field(default=0.5, ge=0, le=1)

    @field_validator("include", "exclude")
    @classmethod
    def _storable(cls, criteria: dict[str, Criterion]) -> dict[str, Criterion]:
        """No value that a pool could not hold: text is UTF-8, a number has 64 bits."""
        for criterion in criteria.values():
            for value in criterion if isinstance(criterion, list) else ():
                if (
                    isinstance(value, str)
                    and not value.isascii()
                    and value != value.encode("utf-8", "ignore").decode()
                ):
                    raise ValueError("half of a character (a lone surrogate) in a text")
                if isinstance(value, int) and abs(value) >= 2**63:
                    raise ValueError("a number of more than 64 bits")
        return criteria


class Mixture(FrozenModel):
    """What the curator needs: shares, focus, integer token budget, selection seed."""

    ratios: dict[str, float]
    bucket_weights: dict[str, dict[str, float]] = {}
    focus: dict[str, Focus] = {}
    budget: int = Field(ge=1)
    seed: int
    min_quality: int = Field(default=4, ge=1, le=5)
    max_repeat: int = Field(default=1, ge=1)
    topup: bool = True

    @model_validator(mode="after")
    def _weights(self) -> Mixture:
        check_weights("ratios", self.ratios)
        for dataset, weights in self.bucket_weights.items():
            check_weights(f"bucket_weights.{dataset}", weights)
        return self


class BucketReport(FrozenModel):
    """Asked against delivered, in tokens; `rows` and `focus_rows` count rows."""

    requested: int = 0
    selected: int = 0
    short: int = 0
    rows: int = 0
    focus_rows: int = 0


class DatasetReport(BucketReport):
    buckets: dict[str, BucketReport] = {}


class CurationReport(FrozenModel):
    """What `curate --json` prints. `digest` is over the ordered (id, window) pairs of the training set."""

    datasets: dict[str, DatasetReport]
    total: BucketReport
    digest: str


class Stock(FrozenModel):
    """What a bucket holds after the quality filter."""

    rows: int
    tokens: int
