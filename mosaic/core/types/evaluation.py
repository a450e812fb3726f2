"""What is measured: prompts, responses, judgments (L3), labels (L2), scores (L1), profiles."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field, JsonValue

from mosaic.core.types.base import Attribute, FrozenModel

ROLES = ("steering", "selection", "audit")
SuiteRole = Literal["steering", "selection", "audit"]


def _is_none(value: object) -> bool:
    return value is None


class Prompt(FrozenModel):
    """An item of an evaluation suite: what the model is asked.

    Its prompt-side labels are fixed when the suite is built.

    `turns` are the user turns; the model's own answers stand between them. `prompt_items` are
    prompt-side L3 items by channel. `rules` is data for the verifier judge: channel -> item -> rule
    (see `eval/judges/verifier.py`). `constraints` (instruction following only) are `{"id",
    "params"}`. `good` and `bad` are reference answers, one list of assistant turns each: the judge
    must give `good` the best score and `bad` a worse one before a run may start; one that is a
    model must see `bad` fail. `answer` is the known answer of an objective that compares with one:
    a text, a number, a list of parts or a JSON schema (see `eval/objectives/reference.py`).
    `objectives` (practice only) name what its answers are judged under. `group` names the cluster
    of prompts that rise and fall together, such as variants of one seed prompt; without it a prompt
    stands alone.
    """

    id: str = Field(min_length=1)
    system: str | None = None
    turns: list[str] = Field(min_length=1)
    slice: str
    weight: int = Field(ge=1)
    valid: Literal[0, 1] = 1
    prompt_items: dict[str, dict[str, int]] = {}
    rules: dict[str, dict[str, Any]] = {}
    constraints: list[dict[str, Any]] = []
    attributes: dict[str, Attribute] = {}
    good: list[str] | None = None
    bad: list[str] | None = None
    # Left out of what is written if there is none: digests of suites without known answers stay.
    answer: JsonValue | None = Field(default=None, exclude_if=_is_none)
    objectives: list[str] | None = Field(default=None, exclude_if=_is_none)
    group: str | None = Field(default=None, min_length=1, exclude_if=_is_none)


class Response(FrozenModel):
    """What a generator answered to one prompt: a turn per user turn, and why each ended."""

    id: str
    answers: list[str]
    finish_reasons: list[Literal["stop", "length"]]
    n_tokens: int = Field(ge=0)


class Judgment(FrozenModel):
    """L3: atomic items of one response.

    `items` has the shape that `mosaic score OBJECTIVE` reads, less the id.
    """

    id: str
    status: Literal["ok", "abstained", "failed"]
    reason: str | None = None
    items: dict[str, Any] = {}
    judge: str = Field(description="digest of judge and rules or prompt")


class Verdict(FrozenModel):
    """What a judge said of one conversation.

    `items` is channel -> item -> value, empty unless `status` is ok. `reason` is ours;
    `explanation` is the model's own and is shown to people only. `attempts` are requests that
    reached a server; `charged` is in model tokens, failed attempts included.
    """

    status: Literal["ok", "abstained", "failed"]
    reason: str = ""
    # Kept verdicts of earlier versions call it `words`.
    explanation: str = Field(default="", validation_alias=AliasChoices("explanation", "words"))
    items: dict[str, dict[str, int]] = {}
    attempts: int = 0
    charged: int = 0


class LevelAgreement(FrozenModel):
    """How far the reward model's levels agree with a judge's scores, over `n` answers.

    `equal` is the share of equal levels, `near` of those at most one apart; `difference` the mean
    of the model's level less the judge's; `kappa` Cohen's, None where it is not defined. `unread`
    answers were scored by one of the two only. Without any answer the shares are 0. `used` says
    whether the model's levels stand as scores: they do if the two agree well enough.
    """

    objective: str
    n: int
    equal: float
    near: float
    difference: float
    kappa: float | None
    unread: int
    used: bool = False


class SuiteFiles(FrozenModel):
    """Digests under which the evaluation of one suite is filed.

    `agreement` is how far a reward model agreed with the judge, if one was asked first.
    """

    responses: str
    judgments: str
    scored: str
    agreement: LevelAgreement | None = Field(default=None, exclude_if=_is_none)


class Scored(FrozenModel):
    """L2 and L1 of one response.

    `unscored` items have no score and a reason; `valid: 0` ones are not averaged.

    `group` is the prompt's.
    """

    id: str
    status: Literal["ok", "unscored"]
    reason: str | None = None
    valid: Literal[0, 1] = 1
    slice: str | None = None
    weight: int | None = None
    label: dict[str, Any] = {}
    score: float | None = Field(default=None, ge=1, le=5)
    need: float | None = None
    failed: bool | None = None
    group: str | None = Field(default=None, exclude_if=_is_none)


# Fewer clusters than this say too little of how much clusters differ: intervals may not cover.
MIN_CLUSTERS = 15


class Score(FrozenModel):
    """L1 mean over prompts with its 95 % interval; None if nothing was scored.

    `n_clusters` counts the clusters of the scored prompts, if the suite groups any.
    """

    mean: float | None
    low: float | None
    high: float | None
    n_scored: int = Field(ge=0)
    n_unscored: int = Field(default=0, ge=0)
    n_invalid: int = Field(default=0, ge=0)
    n_clusters: int | None = Field(default=None, ge=0, exclude_if=_is_none)

    @property
    def clusters(self) -> int:
        """How many clusters were scored; a prompt without a group is one."""
        return self.n_scored if self.n_clusters is None else self.n_clusters

    @property
    def few(self) -> bool:
        """Whether there are too few clusters to rely on the interval: no floor holds on it."""
        return self.clusters < MIN_CLUSTERS


class Difference(FrozenModel):
    """A mean difference of scores over the same prompts, with its 95 % interval.

    `clusters` are those of the prompts that were scored both times.
    """

    mean: float
    low: float
    high: float
    clusters: int = 0

    @property
    def few(self) -> bool:
        """Whether there are too few clusters to rely on the interval."""
        return self.clusters < MIN_CLUSTERS

    def fell(self, noise: float) -> bool:
        """Whether it fell: the whole interval is below 0, or the mean by more than the noise.

        >>> Difference(mean=-0.2, low=-0.3, high=-0.1).fell(noise=0.5)
        True
        >>> Difference(mean=-0.2, low=-0.5, high=0.1).fell(noise=0.5)
        False
        """
        return self.high < 0 or self.mean < -noise


class IndependentScores(FrozenModel):
    """Scores on an independent suite: of the base, the static mixture and the chosen trial.

    `objective` names what judged it. `static` and `chosen` are None where the audit measured no such
    model. `gain` is by how much the chosen trial is ahead of the static mixture, `against_base` of
    the base, over equal prompts.
    """

    objective: str
    base: Score
    static: Score | None = None
    chosen: Score | None = None
    gain: Difference | None = None
    against_base: Difference | None = None


Reliability = Literal["unknown", "low", "medium", "high"]


class SliceProfile(FrozenModel):
    """One slice of one objective, as measured in one round on the steering suite.

    `failure_rate` is in 0-1. `change` is the paired difference of means against the previous round,
    with its permutation p-value; `significant` is decided over all slices under false-discovery
    control at 10 %. `breakdown` counts labels (dimension -> value -> count). `weight` is how hard
    the suite says the slice is: the mean weight of its prompts, 1 or more.
    """

    objective: str
    slice: str
    score: Score
    failure_rate: float | None = Field(default=None, ge=0, le=1)
    reliability: Reliability
    breakdown: dict[str, dict[str, int]] = {}
    change: float | None = None
    p_value: float | None = None
    significant: bool = False
    weight: float = Field(default=1.0, ge=1)


class FailureProfile(FrozenModel):
    """All slices of one evaluated model, worst first."""

    round: int
    slices: list[SliceProfile]

    def of(self, objective: str) -> list[SliceProfile]:
        return [s for s in self.slices if s.objective == objective]

    def find(self, objective: str, slice_: str) -> SliceProfile | None:
        return next(
            (s for s in self.slices if s.objective == objective and s.slice == slice_), None
        )
