"""What has happened: adapters, rounds, calibration, and the observation that a planner is given."""

from __future__ import annotations

from pydantic import Field, model_validator

from mosaic.core.types.base import Attribute, FrozenModel, StrictInt
from mosaic.core.types.data import CurationReport, Stock
from mosaic.core.types.evaluation import FailureProfile, Score
from mosaic.core.types.plans import ActionPlan, Forecast, Limits, ObjectiveSpec, Violation


class Sampling(FrozenModel):
    """How answers are drawn. The default is greedy: one answer, always the same.

    `n` answers per prompt; `temperature` 0 is greedy; `top_p` in (0, 1]; `seed` fixes the draw.
    """

    n: StrictInt = Field(default=1, ge=1, le=1024)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: StrictInt = Field(default=0, ge=0, lt=2**63)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @model_validator(mode="after")
    def _worth_repeating(self) -> Sampling:
        if self.greedy and self.n > 1:
            raise ValueError(
                f"n {self.n} at temperature 0 would draw the same answer {self.n} times"
            )
        return self


GREEDY = Sampling()


class Usage(FrozenModel):
    """Tokens that something took: trained on, sampled from the model under training, charged by judges.

    The training budget pays for `trained` and `sampled`; judges have limits of their own.

    >>> (Usage(trained=24_000) + Usage(trained=24_000, sampled=500)).cost
    48500
    """

    trained: int = Field(default=0, ge=0)
    sampled: int = Field(default=0, ge=0)
    judged: int = Field(default=0, ge=0)

    @property
    def cost(self) -> int:
        """What the training budget is charged."""
        return self.trained + self.sampled

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            trained=self.trained + other.trained,
            sampled=self.sampled + other.sampled,
            judged=self.judged + other.judged,
        )


class Adapter(FrozenModel):
    """A trained LoRA adapter, filed in the store under `digest`."""

    digest: str
    base: str
    tokens: int
    supervised: int
    steps: int
    loss: float
    seconds: float


class Round(FrozenModel):
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
    failure: str | None = Field(
        default=None, description="why nothing was trained; such a round scores nothing"
    )

    def point(self, objectives: list[str]) -> list[float] | None:
        """Selection means in the given order, or None where one is not scored."""
        means = [self.scores[o]["selection"].mean for o in objectives]
        return None if any(m is None for m in means) else [float(m) for m in means if m is not None]


class Calibration(FrozenModel):
    """The static mixture trained several times: means per repeat, and the noise that follows from them.

    `noise` is objective -> standard deviation of one selection mean.
    """

    scores: list[dict[str, dict[str, Score]]]
    noise: dict[str, float]
    profiles: list[FailureProfile] = []
    mixture: ActionPlan


class Observation(FrozenModel):
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
    cost_per_round: int = Field(
        description="tokens a round is charged: those selected, times epochs"
    )
    budget_left: int
    feedback: list[Violation] = []
    below_floor: list[str] = []

    @property
    def names(self) -> list[str]:
        """The objectives' names, in their order."""
        return [objective.name for objective in self.objectives]
