"""Every noun that is ever written down. Frozen, strict about names and numbers, with no heavy imports.

Scores are on the 1-5 scale of the published method (higher is better). Tokens are training tokens after
templating and truncation, prompts included. Digests are lower-case SHA-256 hex.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

SCHEMA_VERSION = 1
SCALE = (1.0, 5.0)
ROLES = ("steering", "selection", "audit")
SuiteRole = Literal["steering", "selection", "audit"]
SUM_TOLERANCE = 1e-6
# What binary fractions add to a sum of decimals: three times 0.333333 is within the tolerance.
ROUNDING = 1e-12
# A name that may stand in a prompt as it is: short, and without the signs that could close an envelope.
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,39}")
NAMES = "1 to 40 letters, digits and _ . : -, a letter or digit first"


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. Raises ValueError on non-finite numbers."""
    return _canonical.encode(value)


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class Noun(BaseModel):
    """What all nouns share: frozen, no unknown fields, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def json_data(self) -> dict[str, Any]:
        """Plain JSON data, for the journal and for digests."""
        return self.model_dump(mode="json")

    @property
    def content_digest(self) -> str:
        return digest_of(self.json_data())


class Message(Noun):
    role: Literal["system", "user", "assistant"]
    content: str


def _no_lookalike(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("a number is wanted")
    return value


Whole = Annotated[int, BeforeValidator(_no_lookalike)]
Scalar = str | int | float | bool


def _one_message(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:  # one for each kind that it is not
        raise ValueError("a text, a number, a boolean or a list of these is wanted") from None


Attribute = Annotated[Scalar | list[Scalar], WrapValidator(_one_message)]


class Example(Noun):
    """A pool row: one chat that can be trained on. `bucket` is the slice its objective's prompt-side rules give it."""

    id: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    bucket: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    quality: Whole = Field(ge=1, le=5)
    attributes: dict[str, Attribute] = {}
    n_tokens: Whole | None = Field(default=None, ge=1)


class Prompt(Noun):
    """An item of an evaluation suite: what the model is asked, with prompt-side labels fixed when it was built.

    `turns` are the user turns; the model's own answers stand between them. `prompt_items` are prompt-side L3
    items by channel. `rules` is data for the verifier judge: channel -> item -> rule (see
    `eval/judges/verifier.py`). `constraints` (instruction following only) are `{"id", "params"}`.
    `good` and `bad` are reference answers, one list of assistant turns each: the judge must give `good` the
    best score and `bad` a worse one before a run may start; one that is a model must see `bad` fail.
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


class Response(Noun):
    """What a generator answered to one prompt: one assistant turn per user turn, each with its finish reason."""

    id: str
    answers: list[str]
    finish_reasons: list[Literal["stop", "length"]]
    n_tokens: int = Field(ge=0)


class Judgment(Noun):
    """L3: atomic items of one response. `items` has the shape that `mosaic score OBJECTIVE` reads, less the id."""

    id: str
    status: Literal["ok", "abstained", "failed"]
    reason: str | None = None
    items: dict[str, Any] = {}
    judge: str = Field(description="digest of judge and rules or prompt")


class Scored(Noun):
    """L2 and L1 of one response. `unscored` items have no score and a reason; `valid: 0` ones are not averaged."""

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


class Score(Noun):
    """L1 mean over prompts with its 95 % interval; None where nothing was scored."""

    mean: float | None
    low: float | None
    high: float | None
    n_scored: int = Field(ge=0)
    n_unscored: int = Field(default=0, ge=0)
    n_invalid: int = Field(default=0, ge=0)


Reliability = Literal["unknown", "low", "medium", "high"]


class SliceProfile(Noun):
    """One slice of one objective, as measured in one round on the steering suite.

    `failure_rate` is in 0-1. `change` is the paired difference of means against the previous round, with its
    permutation p-value; `significant` is decided over all slices under false-discovery control at 10 %.
    `breakdown` counts labels (dimension -> value -> count).
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


class FailureProfile(Noun):
    """All slices of one evaluated model, worst first."""

    round: int
    slices: list[SliceProfile]

    def of(self, objective: str) -> list[SliceProfile]:
        return [s for s in self.slices if s.objective == objective]

    def find(self, objective: str, slice_: str) -> SliceProfile | None:
        return next((s for s in self.slices if s.objective == objective and s.slice == slice_), None)


class Range(Noun):
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


class Focus(Noun):
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
                if isinstance(value, str) and not value.isascii() and value != value.encode("utf-8", "ignore").decode():
                    raise ValueError("half of a character (a lone surrogate) in a text")
                if isinstance(value, int) and abs(value) >= 2**63:
                    raise ValueError("a number of more than 64 bits")
        return criteria


class Mixture(Noun):
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


def check_weights(path: str, weights: dict[str, float]) -> None:
    """Raise ValueError naming the path unless the weights are finite, not negative and sum to 1 within 1e-6."""
    for name, weight in weights.items():
        if isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{path}.{name}: {weight!r} is not a finite weight of at least 0")
    total = math.fsum(weights.values())
    if abs(total - 1) > SUM_TOLERANCE + ROUNDING:
        raise ValueError(f"{path}: weights sum to {total:.6f}, not to 1")


class ActionPlan(Noun):
    """A planner's proposal. Rationale first, so that a model reasons before it commits to numbers."""

    rationale: str = Field(max_length=8000)
    ratios: dict[str, float]
    bucket_weights: dict[str, dict[str, float]] = {}
    focus: dict[str, Focus] = {}
    expected: dict[str, float] = Field(default={}, description="objective -> expected change of the selection mean")

    @model_validator(mode="after")
    def _weights(self) -> ActionPlan:
        check_weights("ratios", self.ratios)
        for dataset, weights in self.bucket_weights.items():
            check_weights(f"bucket_weights.{dataset}", weights)
        return self


class BucketReport(Noun):
    """Asked against delivered, in tokens; `rows` and `focus_rows` count rows."""

    requested: int = 0
    selected: int = 0
    short: int = 0
    rows: int = 0
    focus_rows: int = 0


class DatasetReport(BucketReport):
    buckets: dict[str, BucketReport] = {}


class CurationReport(Noun):
    """What `curate --json` prints. `digest` is over the ordered (id, window) pairs of the training set."""

    datasets: dict[str, DatasetReport]
    total: BucketReport
    digest: str


class Adapter(Noun):
    """A trained LoRA adapter, filed in the store under `digest`."""

    digest: str
    base: str
    tokens: int
    supervised: int
    steps: int
    loss: float
    seconds: float


class Violation(Noun):
    """Why a plan may not run: where, which rule, what was there, what is allowed, what to do."""

    path: str
    rule: str
    value: Any = None
    limit: Any = None
    hint: str = ""


class Decision(Noun):
    """What the approver said about one plan. `executes` is the digest of an edited plan that runs instead."""

    kind: Literal["approve", "edit", "reject"]
    by: str
    plan_digest: str
    reason: str = ""
    executes: str | None = None


class Stock(Noun):
    """What a bucket holds after the quality filter."""

    rows: int
    tokens: int


class Limits(Noun):
    """Bounds every plan must respect. Steps are L1 distances between weight vectors (0-2); None is no limit."""

    max_ratio_step: float | None = Field(default=0.6, gt=0, le=2)
    max_bucket_step: float | None = Field(default=1.0, gt=0, le=2)
    near_repeat: float = Field(default=0.02, ge=0, lt=2)
    min_quality: int = Field(default=4, ge=1, le=5)
    max_repeat: int = Field(default=1, ge=1)


class ObjectiveSpec(Noun):
    """An objective as the agent sees it."""

    name: str
    datasets: list[str]
    floor: float | None = None
    target: float | None = None


class Forecast(Noun):
    """What a plan expected of one objective and what was measured."""

    objective: str
    expected: float
    actual: float | None


class Round(Noun):
    """One finished round, folded from the journal. Round 0 is the base; `scores` is objective -> role -> Score."""

    round: int
    plan: ActionPlan | None = None
    planner: str = ""
    fallback: str | None = None
    scores: dict[str, dict[str, Score]]
    profile: FailureProfile
    curation: CurationReport | None = None
    tokens: dict[str, int] = {}
    adapter: str | None = None
    accepted: bool = False
    reason: str = ""
    dominated: bool = False
    forecast: list[Forecast] = []
    failure: str | None = Field(default=None, description="why nothing was trained; such a round scores nothing")

    def point(self, objectives: list[str]) -> list[float] | None:
        """Selection means in the given order, or None where one is not scored."""
        means = [self.scores[o]["selection"].mean for o in objectives]
        return None if any(m is None for m in means) else [float(m) for m in means if m is not None]


class Calibration(Noun):
    """The static mixture trained several times: means per repeat, and the noise that follows from them.

    `noise` is objective -> standard deviation of one selection mean.
    """

    scores: list[dict[str, dict[str, Score]]]
    noise: dict[str, float]
    profiles: list[FailureProfile] = []
    mixture: ActionPlan


class Observation(Noun):
    """All that a planner is told. A planner is a function of this and of what the tools answer."""

    round: int = Field(ge=1, description="the round to be planned")
    rounds: int
    seed: int
    objectives: list[ObjectiveSpec]
    profile: FailureProfile
    history: list[Round]
    archive: list[int]
    calibration: Calibration | None
    proportions: dict[str, float]
    bucket_proportions: dict[str, dict[str, float]]
    stock: dict[str, dict[str, Stock]]
    attributes: dict[str, dict[str, list[Attribute]]] = {}
    last_plan: ActionPlan
    limits: Limits
    budget_per_round: int = Field(description="tokens a mixture selects")
    cost_per_round: int = Field(description="tokens a round is charged: those selected, times epochs")
    budget_left: int
    feedback: list[Violation] = []
    below_floor: list[str] = []
