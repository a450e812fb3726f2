"""What has happened: adapters, rounds, calibration, and the observation that a planner is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from mosaic.core.types.base import Attribute, FrozenModel, StrictInt
from mosaic.core.types.data import CurationReport, Stock
from mosaic.core.types.evaluation import (
    Difference,
    FailureProfile,
    LevelAgreement,
    Score,
    SuiteFiles,
)
from mosaic.core.types.influence import Influence
from mosaic.core.types.plans import ActionPlan, Forecast, Limits, Note, ObjectiveSpec, Violation
from mosaic.core.types.preferences import LevelReport, PairReport
from mosaic.core.types.spending import Usage
from mosaic.core.types.verdicts import TrialVerdict

ALL_LINEAR = "all-linear"


def _is_default(value: object) -> bool:
    """Whether a field that earlier releases did not have is as it was then.

    Such a field is not written: recipes of those releases keep their digests.
    """
    return value in (None, False, ALL_LINEAR)


class LoraRecipe(FrozenModel):
    """How a LoRA adapter is trained: what every method has. A subclass names its `kind`.

    `batch_size` is in rows. `report_to` is passed on to TRL. A checkpoint is written every
    `save_every` steps, and an interrupted training continues from the last one.

    `target_modules` are ends of layers' names, such as `q_proj`; `all-linear` takes the linear
    layers of the language model without its head, in a mixture of experts those of its attention.
    `attn_implementation` is one of transformers'; null takes its default for the model.
    `load_in_4bit` quantises the frozen base while it is loaded (QLoRA), for training and answers.
    """

    # What its rows are: selected from the pool, or made of answers to practice prompts.
    trains_on: ClassVar[Literal["mixture", "practice"]] = "mixture"

    kind: str
    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    lora_r: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    max_length: int = Field(default=4096, ge=8)
    packing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    report_to: str = "none"
    max_steps: int | None = Field(default=None, ge=1)
    save_every: int | None = Field(default=None, ge=1)
    target_modules: Literal["all-linear"] | list[str] = Field(
        default="all-linear", exclude_if=_is_default
    )
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = Field(default=None, exclude_if=_is_default)
    load_in_4bit: bool = Field(default=False, exclude_if=_is_default)

    @model_validator(mode="after")
    def _flash_in_16_bits(self) -> LoraRecipe:
        if (self.attn_implementation or "").startswith("flash") and self.dtype == "float32":
            raise ValueError(
                f"attn_implementation {self.attn_implementation} computes in 16 bits; set dtype: "
                "bfloat16"
            )
        return self

    @field_validator("target_modules")
    @classmethod
    def _named_once(cls, modules: str | list[str]) -> str | list[str]:
        if isinstance(modules, list) and (not modules or len(set(modules)) < len(modules)):
            raise ValueError(f"names layers, each once, or is {ALL_LINEAR}")
        return sorted(modules) if isinstance(modules, list) else modules

    def usage(self, selected: int) -> Usage:
        """What training on `selected` tokens takes.

        >>> SftRecipe(epochs=2).usage(12_000).cost
        24000
        """
        return Usage(trained=selected * self.epochs)

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: object) -> None:
        """A recipe is known by its kind as soon as its module is imported."""
        RECIPES[str(cls.model_fields["kind"].default)] = cls


# What the adapter itself is made of, and how its base is loaded: the same in every stage.
SHARED = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "attn_implementation",
    "load_in_4bit",
    "dtype",
    "max_length",
)

RECIPES: dict[str, type[LoraRecipe]] = {}
"""Kind -> recipe, of the methods that are imported (`training.methods.kinds` imports all)."""


class SftRecipe(LoraRecipe):
    """Supervised fine-tuning of a LoRA adapter."""

    kind: Literal["sft"] = "sft"


class DpoRecipe(LoraRecipe):
    """Direct preference optimisation on pairs of answers that the model gave to practice prompts.

    `n` answers are drawn per prompt at `temperature` and `top_p`. `rule` says which two make a pair:
    `consistent`, one is better by more than `margin` points under every objective that applies
    (reward consistency); `objective`, under the one that `objective` names; `weighted`, by the mean
    of all. With `sufficient` the better one must also lie above the prompt's mean and the worse one
    below it, under every objective. Of several pairs the one with the largest gap is taken: the
    `sum` of the objectives' gaps in standard deviations, or their `minimum`.

    `beta` is DPO's, how strongly the policy is held to where it began. `sft_weight` adds the mean
    negative log-likelihood of the chosen answers' tokens, so many times: DPO alone may make both
    answers of a pair less likely, and a third one likely. A learning rate for LoRA.
    """

    trains_on: ClassVar[Literal["mixture", "practice"]] = "practice"

    kind: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=5e-5, gt=0)
    beta: float = Field(default=0.1, gt=0)
    # Left out where it is 0: jobs of earlier releases stay.
    sft_weight: float = Field(default=0.0, ge=0, exclude_if=lambda weight: weight == 0)
    n: int = Field(default=8, ge=2, le=64)
    temperature: float = Field(default=1.0, gt=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    rule: Literal["consistent", "objective", "weighted"] = "consistent"
    objective: str | None = None
    gap: Literal["sum", "minimum"] = "sum"
    margin: float = Field(default=0.0, ge=0, lt=4)
    sufficient: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> DpoRecipe:
        if (self.rule == "objective") != (self.objective is not None):
            raise ValueError("objective is given with rule: objective, and only with it")
        if self.packing:
            raise ValueError("packing: pairs of answers are never packed; leave it out")
        return self


def _of_its_kind(value: object) -> object:
    """The recipe that plain data describe. Anything else is handed on."""
    if not isinstance(value, dict):
        return value
    kind = value.get("kind", "sft")
    if not isinstance(kind, str) or kind not in RECIPES:
        raise ValueError(f"kind {kind!r} is not a recipe; there are {', '.join(RECIPES)}")
    return RECIPES[kind].model_validate(value, strict=True)


# How a stage trains: one of `RECIPES`, told apart by `kind`.
Recipe = Annotated[SerializeAsAny[LoraRecipe], BeforeValidator(_of_its_kind)]
BASE = "base"
TEMPLATE = "chat_template"
TRAINING_SET = "training_set"
PAIRS = "pairs"
# Of a reward model: judged answers. Of a policy: the chats it answers, and what rewards its answers.
JUDGED_ANSWERS = "judged_answers"
WISHED_CHATS = "wished_chats"
REWARD_MODEL = "reward_model"
START = "start_from"


class TrainJob(FrozenModel):
    """Everything that decides what a training yields: the same job gives the same adapter.

    `inputs` is name -> digest: `base`, for supervised fine-tuning `training_set`, for preference
    optimisation `pairs`, and `chat_template` if a file replaces the base's own.
    `start_from` is the digest of the adapter to continue from; None starts a fresh one.
    """

    recipe: Recipe
    inputs: dict[str, str]
    start_from: str | None = None
    seed: int


class Workplace(FrozenModel):
    """Where one machine holds what a job names, and where it writes.

    `paths` is input name -> path, `start_from` among them if the job continues from an adapter.
    `out` must not exist yet; checkpoints live in `work`.
    """

    paths: dict[str, str]
    out: str
    work: str


class TrainResult(FrozenModel):
    """What a training yields. `adapter` is the folder it was written to; tokens count all epochs.

    `sampled` are the tokens that the training itself drew from the model.

    `seconds` run from the trainer's construction to the saved adapter, `train_seconds` over the
    optimiser steps alone. `real_token_share` is tokens over batch positions, 0-1: the rest is
    padding.
    """

    adapter: str
    tokens: int
    supervised: int
    steps: int
    loss: float
    seconds: float
    train_seconds: float
    real_token_share: float
    sampled: int = 0


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


class Adapter(FrozenModel):
    """A trained LoRA adapter, filed in the store under `digest`. `sampled` tokens it drew itself."""

    digest: str
    base: str
    tokens: int
    supervised: int
    steps: int
    loss: float
    seconds: float
    sampled: int = Field(default=0, exclude_if=lambda count: count == 0)

    @property
    def usage(self) -> Usage:
        """What its training took."""
        return Usage(trained=self.tokens, sampled=self.sampled)


class StageSpec(FrozenModel):
    """A stage of a trial after its mixture: how it trains, and the tokens that it may be charged."""

    recipe: Recipe
    tokens: int = Field(ge=1)


class TrialSpec(FrozenModel):
    """Everything that decides what a trial measures. A trial of nothing measures the base.

    `tokens` is the budget that its mixture selects, 0 if its plan gives the
    mixture nothing; `start_from` the adapter that its training continues from; `stages` what follows, each
    beginning with the adapter of the one before; `base`, `pool` and `practice` are digests.
    """

    plan: ActionPlan | None = None
    tokens: int = Field(default=0, ge=0)
    recipe: Recipe | None = None
    seed: int = 0
    start_from: str | None = None
    base: str
    pool: str | None = None
    stages: list[StageSpec] = Field(default=[], exclude_if=lambda stages: not stages)
    practice: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    # Adapter -> weight of a look that adds them up and trains nothing.
    merged: dict[str, float] = Field(default={}, exclude_if=lambda merged: not merged)

    @property
    def id(self) -> str:
        """The trial's name: the digest of all this."""
        return self.content_digest


class Stage(FrozenModel):
    """What one stage of a trial cost and brought.

    `adapter` is None if it trained nothing, and `note` says why. `pairs` is filed under `pairs_file`.
    `levels` is what a stage did that trains for stated wishes, its reward model filed under
    `reward_model`.
    `steering` is objective -> score of the stage's adapter, if the config asks for it and another
    stage follows.
    """

    method: str
    tokens: int
    usage: Usage
    adapter: Adapter | None = None
    note: str = ""
    pairs: PairReport | None = None
    pairs_file: str | None = None
    levels: LevelReport | None = Field(default=None, exclude_if=_is_default)
    reward_model: str | None = Field(default=None, exclude_if=_is_default)
    steering: dict[str, Score] = {}


def wish_of(stages: Sequence[Stage]) -> dict[str, int]:
    """What the adapter of the last of some stages is asked for; empty if none trained for wishes."""
    for stage in reversed(stages):
        if stage.levels is not None and stage.adapter is not None:
            return stage.levels.wish
    return {}


class Trial(FrozenModel):
    """One plan, trained by its methods with one seed, and measured.

    `scores` and `files` are objective -> role; a trial whose training failed has neither, and says
    why. `profile` is measured on the steering suites. `adapter` is that of the last stage; `stages`
    are all of them if there are several methods. `against_base` is objective -> by how much it is
    ahead of the base, over equal selection prompts; the base has none.
    """

    id: str
    spec: TrialSpec
    curation: CurationReport | None = None
    adapter: Adapter | None = None
    usage: Usage = Usage()
    scores: dict[str, dict[str, Score]]
    profile: FailureProfile
    files: dict[str, dict[str, SuiteFiles]] = {}
    failure: str | None = None
    stages: list[Stage] = Field(default=[], exclude_if=lambda stages: not stages)
    against_base: dict[str, Difference] = Field(default={}, exclude_if=lambda found: not found)

    @property
    def plan(self) -> ActionPlan | None:
        return self.spec.plan

    @property
    def mixture_adapter(self) -> Adapter | None:
        """The adapter that was trained on the mixture, before any other method; None if none was."""
        if self.curation is None:
            return None
        return self.stages[0].adapter if self.stages else self.adapter

    @property
    def agreement(self) -> list[LevelAgreement]:
        """How far a reward model agreed with the judge on each steering suite that it was asked about."""
        found = [roles["steering"].agreement for roles in self.files.values()]
        return [one for one in found if one is not None]

    @property
    def wish(self) -> dict[str, int]:
        """Objective -> level that is stated wherever the trial's adapter is measured."""
        return wish_of(self.stages)

    @property
    def supervised(self) -> int:
        """Tokens of one epoch of the mixture that the loss counts."""
        adapter = self.mixture_adapter
        if adapter is None or self.curation is None:
            return 0
        selected = self.curation.total.selected
        return adapter.supervised * selected // max(1, adapter.tokens)

    def point(self, objectives: list[str]) -> list[float] | None:
        """Selection means in the given order, or None if one is not scored."""
        means = []
        for objective in objectives:
            mean = self.scores[objective]["selection"].mean
            if mean is None:
                return None
            means.append(mean)
        return means


class Round(FrozenModel):
    """One finished round. Round 0 is the base.

    `counts` is the id of the trial that stands for the round; None if none could be measured.
    `fallback` says why another planner planned it, `accepted` whether it may enter the archive.
    `accepted`, `reason`, `dominated` and `forecast` are those of the trial that counts; `siblings`
    has those of the others, by id.
    """

    round: int
    trials: list[Trial] = Field(min_length=1)
    counts: str | None = None
    planner: str = ""
    fallback: str | None = None
    accepted: bool = False
    reason: str = ""
    dominated: bool = False
    forecast: list[Forecast] = []
    siblings: dict[str, TrialVerdict] = Field(default={}, exclude_if=lambda found: not found)

    @cached_property
    def by_trial(self) -> list[Round]:
        """The round once for each of its trials, as if that one were alone: itself if it has one."""
        if len(self.trials) == 1:
            return [self]
        found = []
        for trial in self.trials:
            counts = None if trial.failure else trial.id
            update: dict[str, object] = {"trials": [trial], "counts": counts, "siblings": {}}
            update |= dict(self.siblings.get(trial.id, ()))
            found.append(self.model_copy(update=update))
        return found

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Round:
        """A copy with other values, which says anew what it is by trial."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("by_trial", None)
        return copied

    @property
    def trial(self) -> Trial:
        """The trial that counts, or the first if none does."""
        for trial in self.trials:
            if trial.id == self.counts:
                return trial
        return self.trials[0]

    @property
    def plan(self) -> ActionPlan | None:
        return self.trial.plan

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        return self.trial.scores

    @property
    def profile(self) -> FailureProfile:
        return self.trial.profile

    @property
    def curation(self) -> CurationReport | None:
        return self.trial.curation

    @property
    def adapter(self) -> str | None:
        """Digest of the adapter, None for the base or a failed training."""
        return self.trial.adapter.digest if self.trial.adapter else None

    @property
    def failure(self) -> str | None:
        """Why nothing was trained; such a round scores nothing."""
        return self.trial.failure

    def point(self, objectives: list[str]) -> list[float] | None:
        """Selection means of the trial that counts."""
        return self.trial.point(objectives)


def each_trial(rounds: Iterable[Round]) -> list[Round]:
    """Rounds of one trial each, in order: `Round.by_trial` of every round."""
    return [one for round_ in rounds for one in round_.by_trial]


class Calibration(FrozenModel):
    """The static mixture trained with several seeds, and the noise that follows.

    `noise` is objective -> standard deviation of one selection mean, in points.
    """

    trials: list[Trial] = Field(min_length=1)
    noise: dict[str, float]

    @property
    def mixture(self) -> ActionPlan:
        """The plan that all trials share."""
        plan = self.trials[0].plan
        if plan is None:
            raise ValueError("a calibration without a plan")
        return plan

    @property
    def scores(self) -> list[dict[str, dict[str, Score]]]:
        return [trial.scores for trial in self.trials]


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
    cost_per_round: int = Field(description="tokens a trial is charged, epochs counted")
    budget_left: int
    feedback: list[Violation] = []
    # Left out of what is written if there is none: the digests of other observations stay.
    influence: Influence | None = Field(default=None, exclude_if=lambda value: value is None)
    below_floor: list[str] = []
    methods: dict[str, float] = Field(
        default={},
        exclude_if=lambda methods: not methods,
        description="method -> share of a plan that names none; empty if there is one method",
    )
    practice: dict[str, int] = Field(
        default={},
        exclude_if=lambda practice: not practice,
        description="objective/slice -> practice prompts",
    )
    looks: list[Trial] = Field(
        default=[],
        exclude_if=lambda looks: not looks,
        description="mixtures that were tried cheaply, oldest first",
    )
    notes: list[Note] = Field(
        default=[],
        exclude_if=lambda notes: not notes,
        description="what people asked of the planner, oldest first",
    )
    candidates: int = Field(
        default=1,
        exclude_if=lambda candidates: candidates == 1,
        description="plans that the round wants, each trained and measured",
    )

    @property
    def cost_of_candidates(self) -> int:
        """Tokens that the whole round is charged."""
        return self.cost_per_round * self.candidates

    @property
    def names(self) -> list[str]:
        """The objectives' names, in their order."""
        return [objective.name for objective in self.objectives]

    @property
    def traded(self) -> list[str]:
        """Names of the objectives that have data: those that are weighed against each other."""
        return [objective.name for objective in self.objectives if objective.traded]
