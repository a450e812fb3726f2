"""RunConfig: all settings of a run as data, composed of each folder's own config.

How a config is read from a file stands in `mosaic.app.config_file`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)

from agent.approval import ApprovalConfig, AutoApprovalConfig
from agent.fidelity import FidelityConfig, groups
from agent.planners.kinds import DEFAULT_PLANNER, PlannerConfig
from agent.settings import CalibrationConfig, FailureConfig, Settings, StopConfig
from eval.generators.base import GeneratorConfig, TransformersGeneratorConfig
from eval.judges.base import JudgeConfig, SteeringJudgeConfig, VerifierJudgeConfig
from eval.objectives.config import (
    PublishedConfig,
    PythonConfig,
    ReferenceConfig,
    RetentionConfig,
    RubricConfig,
)
from mosaic.app.notices import NotifyConfig
from mosaic.app.telemetry.config import TelemetryConfig
from mosaic.core.types.base import LABEL, NAMES, FrozenModel, check_weights
from mosaic.core.types.evaluation import ROLES
from mosaic.core.types.plans import Floor, Limits, ObjectiveSpec
from mosaic.core.types.recipes import RlRecipe
from mosaic.core.types.runs import RECIPES, SHARED, LoraRecipe
from tools.executors.base import ExecutorConfig, InlineExecutorConfig
from training.influence.settings import InfluenceConfig
from training.methods.kinds import METHODS

PUBLISHED = "published"
KINDS = (PUBLISHED, "rubric", "reference", "retention", "python")


class Measured(FrozenModel):
    """What every objective has: its suites' folder, the data sets that serve it, floor and target.

    Floor and target are selection means, 1-5. The floor `base` is the base's mean, less the noise of
    a training.
    """

    suite: str
    datasets: list[str] = []
    floor: Floor | None = None
    target: float | None = Field(default=None, ge=1, le=5)


class PublishedObjectiveConfig(Measured, PublishedConfig):
    """An objective that MOSAIC ships."""


class RubricObjectiveConfig(Measured, RubricConfig):
    """An objective in a YAML file."""


class ReferenceObjectiveConfig(Measured, ReferenceConfig):
    """An objective of known answers."""


class RetentionObjectiveConfig(Measured, RetentionConfig):
    """An objective that guards against forgetting."""


class PythonObjectiveConfig(Measured, PythonConfig):
    """An objective in somebody's own Python file."""


def _kind_of(objective: object) -> str:
    """The kind of an objective in a config; one that does not say is a published one."""
    if isinstance(objective, dict):
        return str(objective.get("kind", PUBLISHED))
    return str(getattr(objective, "kind", PUBLISHED))


ObjectiveConfig = Annotated[
    Annotated[PublishedObjectiveConfig, Tag(PUBLISHED)]
    | Annotated[RubricObjectiveConfig, Tag("rubric")]
    | Annotated[ReferenceObjectiveConfig, Tag("reference")]
    | Annotated[RetentionObjectiveConfig, Tag("retention")]
    | Annotated[PythonObjectiveConfig, Tag("python")],
    Discriminator(
        _kind_of,
        custom_error_type="objective_kind",
        custom_error_message=f"kind is one of {', '.join(KINDS)}",
    ),
]


def _is_none(value: object) -> bool:
    return value is None


class BudgetConfig(FrozenModel):
    """Training tokens. `tokens_total` covers calibration and rounds; left out, it is just enough.

    The others limit what models behind an endpoint may take over the whole run, pauses and resumes
    included: `money` in the currency of their `prices`, `judge_tokens` and `planner_tokens` in
    charged tokens.
    """

    tokens_per_round: int = Field(ge=1)
    tokens_total: int | None = Field(default=None, ge=1)
    money: float | None = Field(default=None, gt=0, exclude_if=_is_none)
    judge_tokens: int | None = Field(default=None, ge=1, exclude_if=_is_none)
    planner_tokens: int | None = Field(default=None, ge=1, exclude_if=_is_none)


MIXTURE = "mixture"
# Planners that are told of looks by the surrogate.
READ_LOOKS = ("profile", "llm")


class MethodConfigs(FrozenModel):
    """How models are trained. Without any method, by supervised fine-tuning.

    One method trains on the mixture. Those that train on answers to practice prompts go on from its
    adapter, one after the other; what that adapter is made of is said once, in the first.
    """

    @model_validator(mode="before")
    @classmethod
    def _said_once(cls, data: object) -> object:
        if data == {}:
            return {"sft": {}}
        if not isinstance(data, dict):
            return data
        first = next((k for k in METHODS if isinstance(data.get(k), dict)), None)
        if first is None or RECIPES[first].trains_on != MIXTURE:
            return data
        filled = dict(data)
        for kind in METHODS:
            if isinstance(data.get(kind), dict) and RECIPES[kind].trains_on != MIXTURE:
                shared = {name: data[first][name] for name in SHARED if name in data[first]}
                filled[kind] = {**shared, **data[kind]}
        return filled

    @model_validator(mode="after")
    def _one_adapter(self) -> MethodConfigs:
        mixtures = [kind for kind, r in self.recipes.items() if r.trains_on == MIXTURE]
        if len(mixtures) != 1:
            raise ValueError(
                f"names {' and '.join(mixtures) or 'no method'} to train on the mixture; a run has "
                "one such method"
            )
        for kind, recipe in self.recipes.items():
            for name in SHARED:
                if getattr(recipe, name) != getattr(self.recipe, name):
                    raise ValueError(
                        f"{kind}.{name} differs from {mixtures[0]}.{name}: the stages of a trial "
                        f"train one adapter; leave it out of {kind}"
                    )
        return self

    @property
    def recipes(self) -> dict[str, LoraRecipe]:
        """The methods that are enabled, in the order in which they run: the mixture's is first."""
        enabled = {kind: r for kind in METHODS if (r := getattr(self, kind)) is not None}
        return dict(sorted(enabled.items(), key=lambda item: item[1].trains_on != MIXTURE))

    @property
    def recipe(self) -> LoraRecipe:
        """That of the mixture: what the adapter is made of, and what a round is charged by."""
        return next(iter(self.recipes.values()))


if TYPE_CHECKING:
    MethodsConfig = MethodConfigs
else:
    # A field per method, left out of what is written where it is not the one.
    MethodsConfig = create_model(
        "MethodsConfig",
        __base__=MethodConfigs,
        **{
            kind: (method.RECIPE | None, Field(default=None, exclude_if=lambda r: r is None))
            for kind, method in METHODS.items()
        },
    )


class ShareConfig(FrozenModel):
    """Shares of prompts, 0-1, by suite role."""

    steering: float = Field(default=0.5, ge=0, le=1)
    selection: float = Field(default=0.2, ge=0, le=1)
    audit: float = Field(default=0.01, ge=0, le=1)


class ContaminationConfig(FrozenModel):
    """The largest share of a suite that may stand in the pool (`training.data.contamination`).

    Strictest for audit, whose scores are reported, and as strict for independent suites; steering only
    guides and may resemble what is trained on.
    """

    max_share: ShareConfig = ShareConfig()

    def limit(self, role: str) -> float:
        return float(getattr(self.max_share, role if role in ROLES else "audit"))


class RunConfig(FrozenModel):
    """Everything a run depends on.

    `chat_template` is a Jinja file that replaces the one of `base_model`, everywhere.
    `base_model` is a folder, or `org/name@revision` of the hub. `base_model_name` is how exports
    call a base that lies in a folder: the name under which its owner published it.
    `audit_also` is name -> folder of an independent suite, which is opened at the end alone.
    `method_shares` is method -> share of a round's tokens in plans that name none; left out, all go
    to the first method. `evaluate_stages` scores the adapter between two methods on steering.
    A round tries `candidates` plans that differ, each of which is trained and measured.
    """

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$")
    seed: int = Field(default=1, ge=0, lt=2**31)
    rounds: int = Field(default=5, ge=1, le=1000)
    # Left out of what is written if there is one: the digests of other configs stay.
    candidates: int = Field(default=1, ge=1, le=16, exclude_if=lambda candidates: candidates == 1)
    base_model: str
    chat_template: str | None = None
    base_model_name: str | None = Field(
        default=None, min_length=1, max_length=300, exclude_if=lambda name: name is None
    )
    pool: str
    objectives: dict[str, ObjectiveConfig] = Field(min_length=1)
    # Left out of what is written if there are none: the digests of other configs stay.
    audit_also: dict[str, str] = Field(default={}, exclude_if=lambda suites: not suites)
    budget: BudgetConfig
    limits: Limits = Limits()
    contamination: ContaminationConfig = ContaminationConfig()
    planner: PlannerConfig = DEFAULT_PLANNER
    approval: ApprovalConfig = AutoApprovalConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    stop: StopConfig = StopConfig()
    failures: FailureConfig = FailureConfig()
    keep: Literal["archive", "all"] = "archive"
    methods: MethodsConfig = MethodsConfig()
    # Left out of what is written if there are none: the digests of other configs stay.
    method_shares: dict[str, float] = Field(default={}, exclude_if=lambda shares: not shares)
    evaluate_stages: bool = Field(default=False, exclude_if=lambda value: not value)
    generator: GeneratorConfig = TransformersGeneratorConfig()
    judge: JudgeConfig = VerifierJudgeConfig()
    # Left out of what is written if there is none: the digests of other configs stay.
    steering_judge: SteeringJudgeConfig | None = Field(default=None, exclude_if=_is_none)
    executor: ExecutorConfig = InlineExecutorConfig()
    # Left out of what is written if there is none: the digests of other configs stay.
    influence: InfluenceConfig | None = Field(default=None, exclude_if=lambda value: value is None)
    fidelity: FidelityConfig | None = Field(default=None, exclude_if=_is_none)
    telemetry: TelemetryConfig | None = Field(default=None, exclude_if=lambda value: value is None)
    notify: NotifyConfig | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        """Raise ValueError with a line for every check that finds a contradiction."""
        faults = []
        checks = (
            self._check_objectives,
            self._check_generator,
            self._check_candidates,
            self._check_tests,
            self._check_methods,
            self._check_influence,
            self._check_fidelity,
            self._check_prices,
        )
        for check in checks:
            try:
                check()
            except ValueError as fault:
                faults.append(str(fault))
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _check_objectives(self) -> None:
        """Raise ValueError for objectives that contradict themselves, or serve nothing."""
        served: set[str] = set()
        for name, objective in self.objectives.items():
            if not LABEL.fullmatch(name):
                raise ValueError(f"objectives: {name!r} is not a name; a name is {NAMES}")
            if len(set(objective.datasets)) < len(objective.datasets):
                raise ValueError(f"objectives.{name}.datasets: names a data set twice")
            served |= set(objective.datasets)
            floor, target = objective.floor, objective.target
            if objective.kind == "retention" and objective.datasets:
                raise ValueError(
                    f"objectives.{name}.datasets: retention guards against forgetting; no data set "
                    "serves it"
                )
            if isinstance(floor, float) and target is not None and floor > target:
                raise ValueError(f"objectives.{name}: floor {floor} is above target {target}")
        if self.stop.at_targets and not any(o.target for o in self.objectives.values()):
            raise ValueError("stop.at_targets: no objective has a target")
        if not served:
            raise ValueError(
                "objectives: no objective has a data set, so there is nothing to train on"
            )

    def _check_generator(self) -> None:
        """Raise ValueError if the generator cannot answer with the attention that is trained with."""
        attention = self.recipe.attn_implementation or ""
        if self.generator.kind == "transformers" and self.generator.dtype == "float32":
            if attention.startswith("flash"):
                raise ValueError(
                    f"generator.dtype: {attention} (methods.sft.attn_implementation) answers too, "
                    "and computes in 16 bits; set it to bfloat16"
                )

    def _check_candidates(self) -> None:
        """Raise ValueError for a planner that has one plan a round where several are wanted."""
        if self.candidates == 1:
            return
        for field, kind in (
            ("kind", self.planner.kind),
            ("on_failure", self.planner.on_failure),
        ):
            if kind == "static":
                raise ValueError(
                    f"planner.{field}: static has one plan, and candidates asks for "
                    f"{self.candidates} that differ; take need, random or profile"
                )

    def _check_tests(self) -> None:
        """Raise ValueError for names under which independent suites could not be told from others."""
        for name in self.audit_also:
            if not LABEL.fullmatch(name):
                raise ValueError(f"audit_also: {name!r} is not a name; a name is {NAMES}")
            if name in (*self.objectives, *ROLES):
                raise ValueError(
                    f"audit_also.{name}: an objective or a role has this name; choose another"
                )

    def _check_methods(self) -> None:
        """Raise ValueError for shares or pairs that the enabled methods and objectives do not allow."""
        enabled = self.methods.recipes
        if self.method_shares:
            check_weights("method_shares", self.method_shares)
        for method in self.method_shares:
            if method not in enabled:
                raise ValueError(
                    f"method_shares.{method}: not enabled; `methods` has {', '.join(enabled)}"
                )
        if self.steering_judge is not None and "rl" not in enabled:
            raise ValueError(
                "steering_judge: a reward model is trained by methods.rl, which is not enabled"
            )
        if self.evaluate_stages and len(enabled) < 2:
            raise ValueError("evaluate_stages: there is one method, so nothing lies between stages")
        for method, recipe in enabled.items():
            named = {"objective": getattr(recipe, "objective", None)}
            if isinstance(recipe, RlRecipe):
                named = {f"graded.{dataset}": name for dataset, name in recipe.graded.items()}
                named |= {f"wish.{name}": name for name in recipe.wish}
            for field, objective in named.items():
                if objective is None:
                    continue
                if objective in self.objectives and self.objectives[objective].kind == "retention":
                    raise ValueError(
                        f"methods.{method}.{field}: {objective} reads likelihoods, and no answer"
                    )
                if objective not in self.objectives:
                    raise ValueError(
                        f"methods.{method}.{field}: {objective!r} is none of "
                        f"{', '.join(self.objectives)}"
                    )

    def _check_influence(self) -> None:
        """Raise ValueError if what reads the influence of buckets is on and no estimate is."""
        if self.influence is not None:
            return
        if self.stop.at_equilibrium:
            raise ValueError(
                "stop.at_equilibrium: no influence is estimated; add `influence: {}` to the config"
            )
        if self.planner.kind == "ideal":
            raise ValueError(
                "planner: ideal moves by the influence of buckets; add `influence: {}` to the config"
            )

    def _check_fidelity(self) -> None:
        """Raise ValueError for looks that nobody reads, or that cannot be taken."""
        if self.fidelity is None:
            return
        if self.planner.kind not in READ_LOOKS:
            raise ValueError(
                f"fidelity: planner.kind {self.planner.kind} reads no looks; leave fidelity out, or "
                f"take {' or '.join(READ_LOOKS)}"
            )
        if self.later_recipes:
            raise ValueError(
                "fidelity: a look is trained on its mixture alone, and says little of what "
                f"methods.{next(iter(self.later_recipes))} makes of it; leave one of them out"
            )
        if self.fidelity.kind == "experts" and len(groups(self._specs)) < 2:
            raise ValueError(
                "fidelity: experts are trained where one objective's data have most of the tokens, "
                "and all data sets here serve the same; take kind: fraction"
            )
        if round(self.fidelity.fraction * self.budget.tokens_per_round) < 1:
            raise ValueError(
                f"fidelity.fraction: {self.fidelity.fraction:g} of budget.tokens_per_round is less "
                "than a token"
            )

    def _check_prices(self) -> None:
        """Raise ValueError for a limit on what no model takes, or on money without a price."""
        for name, model in (("planner", self.planner), ("judge", self.judge)):
            key = f"{name}_tokens"
            if getattr(self.budget, key) is not None and model.kind != "llm":
                raise ValueError(
                    f"budget.{key}: {name}.kind is {model.kind}, which asks no model; leave it out "
                    f"(--set budget.{key}=null) or set {name}.kind: llm"
                )
        if self.budget.money is None:
            return
        models = {"planner": self.planner, "judge": self.judge}
        asked = {name: model for name, model in models.items() if model.kind == "llm"}
        if not asked:
            raise ValueError("budget.money: neither planner nor judge is a model that costs money")
        for name, model in asked.items():
            if getattr(model, "prices", None) is None:
                raise ValueError(
                    f"budget.money: {name}.prices is not set; write `prices: {{input: ..., "
                    f"output: ...}}`, money per million tokens, beside {name}.chat"
                )

    @property
    def template(self) -> Path | None:
        """The file of `chat_template`."""
        return Path(self.chat_template) if self.chat_template else None

    @property
    def tokens_per_round(self) -> int:
        """What one trial is charged."""
        return self.recipe.usage(self.budget.tokens_per_round).cost

    @property
    def recipe(self) -> LoraRecipe:
        """How trials are trained on their mixture."""
        return self.methods.recipe

    @property
    def later_recipes(self) -> dict[str, LoraRecipe]:
        """Methods that draw answers and train on them, by name."""
        return {kind: r for kind, r in self.methods.recipes.items() if r.trains_on != MIXTURE}

    @property
    def default_shares(self) -> dict[str, float]:
        """Every enabled method with its share of a plan that names none; empty if there is one."""
        if not self.later_recipes:
            return {}
        enabled = list(self.methods.recipes)
        shares = self.method_shares or {enabled[0]: 1.0}
        return {method: shares.get(method, 0.0) for method in enabled}

    @property
    def tokens_total(self) -> int:
        trials = self.tokens_per_round * self.trained_trials
        return self.budget.tokens_total or trials + self.settings().cost_of_looks

    @property
    def trained_trials(self) -> int:
        """Trials that are trained if all rounds run: the calibration's, and those of each round."""
        return self.rounds * self.candidates + self.calibration.repeats

    @property
    def _specs(self) -> list[ObjectiveSpec]:
        return [
            ObjectiveSpec(name=name, datasets=o.datasets, floor=o.floor, target=o.target)
            for name, o in self.objectives.items()
        ]

    def settings(self) -> Settings:
        """What of this the agent works under."""
        return Settings(
            rounds=self.rounds,
            seed=self.seed,
            objectives=self._specs,
            limits=self.limits,
            tokens_per_round=self.budget.tokens_per_round,
            recipe=self.recipe,
            calibration=self.calibration,
            stop=self.stop,
            max_repairs=self.planner.max_repairs,
            failures=self.failures,
            keep=self.keep,
            method_shares=self.default_shares,
            stages=self.later_recipes,
            evaluate_stages=self.evaluate_stages,
            candidates=self.candidates,
            keep_judge_requests=getattr(self.judge, "keep_requests", True),
            ask_calibration=getattr(self.approval, "calibration", False),
            fidelity=self.fidelity,
        )
