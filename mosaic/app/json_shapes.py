"""The shapes of what commands print with `--json`, where the code behind them has plain data.

They are read by `python -m mosaic schema` and held against what the commands print.
"""

from __future__ import annotations

from mosaic.core.types.base import FrozenModel, JsonObject
from mosaic.core.types.plans import ActionPlan, Violation


class Imported(FrozenModel):
    """`pool import --json`: rows read, kept, bad and left out."""

    read: int
    rows: int
    bad: int
    bad_rows: list[str]
    left_out: dict[str, int]
    notes: dict[str, int]


class Hit(FrozenModel):
    """A prompt that stands in a row of the pool."""

    prompt: str
    row: str
    covered: float


class Contaminated(FrozenModel):
    """One suite of `pool contamination --json`."""

    objective: str
    role: str
    prompts: int
    contaminated: int
    share: float
    worst: list[Hit]
    max_share: float


class ItemRow(FrozenModel):
    """How often one item holds, as text such as `3 of 4`."""

    item: str
    good: str
    bad: str
    missed: str


class KnownAnswers(FrozenModel):
    """One objective of `judge check --json`."""

    objective: str
    judge: str
    starter: bool
    known: int
    right: int
    items: list[ItemRow]
    missed: list[str]


class ItemAgreement(FrozenModel):
    """How two judges agree on one item."""

    item: str
    n: int
    agreement: float
    kappa: float | None
    prevalence: list[float]


class ComparedObjective(FrozenModel):
    """Two judges on the answers under one objective."""

    conversations: int
    unscored: list[int]
    items: list[ItemAgreement]


class Compared(FrozenModel):
    """`judge compare --json`."""

    run: str
    judges: list[str]
    objectives: dict[str, ComparedObjective]


class ProposedSibling(FrozenModel):
    """Another plan of the round, and what is wrong with it."""

    plan: ActionPlan
    plan_digest: str
    violations: list[Violation]


class Proposed(FrozenModel):
    """`plan`: the next plan and what is wrong with it, or the rule that would end the run.

    `siblings` are the others of a round that has several.
    """

    plan: ActionPlan | None
    stop: str | None = None
    round: int | None = None
    planner: str | None = None
    plan_digest: str | None = None
    violations: list[Violation] = []
    siblings: list[ProposedSibling] = []
    trace: list[JsonObject] = []


class BucketStats(FrozenModel):
    """Rows and tokens of a bucket, in all and by quality."""

    rows: int
    tokens: int
    by_quality: dict[str, dict[str, int]]


class DatasetStats(FrozenModel):
    """Rows and tokens of a data set, in all and by bucket."""

    rows: int
    tokens: int
    buckets: dict[str, BucketStats]


class PoolStats(FrozenModel):
    """`pool build --json`, `pool stats --json`."""

    rows: int
    tokens: int
    digest: str
    max_length: int
    too_long: int
    attributes: dict[str, str]
    turns_left_out: int
    turns_cut: int
    origins: list[JsonObject]
    datasets: dict[str, DatasetStats]


class Piece(FrozenModel):
    """Neighbouring tokens of a row."""

    learnt: bool
    text: str
    tokens: list[str]
    ids: list[int]


class Shown(FrozenModel):
    """A row of `pool show --json`."""

    id: str
    tokens: int
    learnt: int
    pieces: list[Piece]
