"""Config -> objects. The one place that knows every implementation (planners: by their kinds)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import prompts
from agent.approval import Approver, AutoApprover, HumanApprover, PolicyApprover
from agent.context import RunContext
from agent.planners.base import LlmPlannerConfig, Planner, PlannerSettings
from agent.planners.kinds import PlannerConfig, settings_by_kind
from agent.planners.llm import LlmPlanner
from eval.chat.client import ChatModel
from eval.chat.metering import UNLIMITED, Meter
from eval.chat.prices import Prices, micros
from eval.generators.base import Generator, TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm import VllmGenerator
from eval.generators.vllm_server import find_vllm
from eval.judges.base import LlmJudgeConfig, ModelJudge, SuiteJudge
from eval.judges.llm import LlmJudge
from eval.judges.reward_model import RewardModelJudge
from eval.judges.verifier import VerifierJudge
from eval.model_folder import model_faults
from eval.objectives.base import Objective
from eval.practice import PRACTICE, load_practice
from eval.reward_model import RewardModel
from eval.suite import IndependentSuite, Suite, check_disjoint, load_suite
from mosaic.app.base_check import check_base
from mosaic.app.bases import base_folder
from mosaic.app.config import RunConfig
from mosaic.app.faults import FaultList
from mosaic.app.independent import Objectives, Suites, open_tests, with_tests
from mosaic.app.objectives import open_objective
from mosaic.app.rendering import base_identity, rendering_identity
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.steps import Steps
from mosaic.core.store import Store, file_digest
from mosaic.core.types.base import JsonObject, digest_of
from mosaic.core.types.evaluation import ROLES
from mosaic.core.types.inputs import InputDigests
from mosaic.core.types.recipes import RlRecipe
from mosaic.core.types.spending import Payer
from tools.effects.evaluate import Evaluator, GeneratorIdentity, PlainJudge, RunJudge
from tools.effects.evaluate import Progress as EvaluationProgress
from tools.effects.influence import InfluenceTool
from tools.effects.judge import GoldChecks, RecordedJudge
from tools.effects.model_calls import journaled, uncached
from tools.effects.practice import PracticeTool, practice_prompts
from tools.effects.spending import Limits, Purse
from tools.effects.steering_judge import SteeringJudge
from tools.effects.train import TrainTool
from tools.effects.verdict_cache import FOLDER as CACHE
from tools.effects.verdict_cache import VerdictCache
from tools.executors.answering import WorkersGenerator
from tools.executors.base import Executor
from tools.executors.inline import InlineExecutor
from tools.executors.ray import RayEngine
from tools.executors.remote import RemoteExecutor
from tools.executors.slurm import SlurmEngine
from tools.executors.subprocess import SubprocessExecutor
from training.data.pool import Pool
from training.methods.base import Progress as TrainingProgress
from training.methods.hf import loading_of
from training.methods.kinds import METHODS
from training.methods.vllm_limits import check_servable
from training.models.adapter import adapter_bytes

PROMPTS = Path(prompts.__file__).parent
# Goes up where the same settings give other answers: 2 no longer obeys what a model folder wants for decoding.
GENERATION = 2


@dataclass
class Reporting:
    """Where progress goes; the defaults say nothing."""

    notify: Callable[[str], None] = lambda text: None
    evaluating: EvaluationProgress | None = None
    training: TrainingProgress | None = None
    generating: Callable[[int, int], None] | None = None
    stopping: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Inputs:
    """What a config names, opened and digested."""

    pool: Pool
    objectives: Objectives
    suites: Suites
    base_digest: str
    practice: dict[str, Suite]
    independent: dict[str, IndependentSuite]

    @property
    def all_objectives(self) -> Objectives:
        """Those of the config, then those that independent suites bring, by name."""
        return with_tests(self.objectives, self.suites, self.independent)[0]

    @property
    def all_suites(self) -> Suites:
        """Objective -> role, or name of an independent suite that it judges -> suite."""
        return with_tests(self.objectives, self.suites, self.independent)[1]


def run_digests(config: RunConfig, inputs: Inputs) -> InputDigests:
    """Digests of what a run depends on: pool, base, suites, judge, and prompts that a model reads."""
    suites = {}
    for objective, roles in inputs.suites.items():
        suites[objective] = {role: suite.digest for role, suite in roles.items()}
        if config.later_recipes and objective in inputs.practice:
            suites[objective][PRACTICE] = inputs.practice[objective].digest
    read = {}
    if "llm" in (config.planner.kind, config.judge.kind):
        read = {path.stem: file_digest(path) for path in sorted(PROMPTS.glob("*.md"))}
    return InputDigests(
        pool=inputs.pool.digest,
        base_model=inputs.base_digest,
        suites=suites,
        judge=build_judge(config).digest,
        prompts=read,
        objectives={name: objective.rules for name, objective in inputs.all_objectives.items()},
        independent={name: test.suite.digest for name, test in inputs.independent.items()},
    )


def open_suites(
    config: RunConfig, notify: Callable[[str], None] = lambda text: None
) -> tuple[Objectives, Suites]:
    """Objectives of a config and their suites by role.

    Raises UsageError with all that are missing or broken. `notify` is told of foreign code.
    """
    objectives: Objectives = {}
    suites: Suites = {}
    faults = FaultList()
    for name, settings in config.objectives.items():
        folder = Path(settings.suite)
        with faults.kept():
            objectives[name] = open_objective(name, settings, notify)
        if name not in objectives:
            continue
        suites[name] = {}
        for role in ROLES:
            with faults.kept():
                suites[name][role] = load_suite(folder, objectives[name], role)
        with faults.kept():
            check_disjoint(folder, list(suites[name].values()))
    faults.tell()
    return objectives, suites


def open_practice(
    config: RunConfig,
    objectives: Mapping[str, Objective],
    suites: Mapping[str, Mapping[str, Suite]],
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Suite]:
    """The practice prompts of the suite folders that have some, by objective.

    `notify` is told how many are left out, and why. Raises UsageError if some are broken, or if one
    asks what a prompt of any suite asks.
    """
    found = {}
    for name, settings in config.objectives.items():
        folder = Path(settings.suite)
        practice = load_practice(folder, objectives[name], objectives)
        if practice is None:
            continue
        if practice.left_out:
            first, reason = next(iter(practice.left_out.items()))
            count = len(practice.left_out)
            notify(f"{folder}/practice.jsonl: {count} prompts left out, such as {first}: {reason}")
        for roles in suites.values():
            check_disjoint(folder, [*roles.values(), practice.suite])
        found[name] = practice.suite
    return found


def open_inputs(config: RunConfig, notify: Callable[[str], None] = lambda text: None) -> Inputs:
    """Open pool, suites and base model of a config. `notify` is told of foreign code.

    Raises UsageError with all that are missing or broken, or if the pool is not as it was built.
    """
    faults = FaultList()
    opened: list[Pool] = []
    practice: dict[str, Suite] = {}
    independent: dict[str, IndependentSuite] = {}
    base = Path(config.base_model)
    with faults.kept():
        base = base_folder(config.base_model)
        if model_faults(base):
            check_base(base, config.template)  # names the faults of its template too
    with faults.kept():
        pool = Pool.open(Path(config.pool))
        pool.check()
        opened.append(pool)
    for pool in opened:
        for fault in _unknown_datasets(config, pool):
            faults.add(fault)
    with faults.kept():
        objectives, suites = open_suites(config, notify)
        with faults.kept():
            practice = open_practice(config, objectives, suites, notify)
            _check_practice(config, practice)
        independent = open_tests(config, objectives, suites, practice)
    faults.tell()
    identity = base_identity(base, config.template)
    return Inputs(opened[0], objectives, suites, identity, practice, independent)


def _unknown_datasets(config: RunConfig, pool: Pool) -> list[UsageError]:
    """A fault for every data set that the config names and the pool has not."""
    named = []
    for name, objective in config.objectives.items():
        named += [(f"objectives.{name}.datasets", dataset) for dataset in objective.datasets]
    for recipe in config.later_recipes.values():
        graded = recipe.graded if isinstance(recipe, RlRecipe) else ()
        named += [("methods.rl.graded", dataset) for dataset in graded]
    known = ", ".join(pool.datasets)
    return [
        UsageError(f"{field}: {dataset!r} is not in the pool; it has {known}")
        for field, dataset in named
        if dataset not in pool.datasets
    ]


def _check_practice(config: RunConfig, practice: Mapping[str, Suite]) -> None:
    """Raise UsageError if a method draws answers to practice prompts, and there are none."""
    for method in config.later_recipes:
        if not practice_prompts(practice):
            raise UsageError(
                f"methods.{method}: draws answers to practice prompts, and no suite folder has a "
                "practice.jsonl with prompts for the objectives of this config"
            )


def build_planner(
    kind: str, config: PlannerConfig, steps: Steps | None = None, meter: Meter = UNLIMITED
) -> Planner:
    """A planner by its kind.

    `config` gives a planner of its own kind its settings, and a model its endpoint; a model's
    answers are filed in the journal of `steps`, and `meter` counts them. Raises UsageError for an
    unknown kind, or a model without an endpoint.
    """
    if kind == "llm":
        if not isinstance(config, LlmPlannerConfig):
            raise UsageError(
                f"planner llm: the config's planner is {config.kind}, so no model and endpoint are named"
            )
        chat = ChatModel(config.chat, meter=meter)
        return LlmPlanner(config, chat, journaled(steps) if steps else uncached)
    known = settings_by_kind()
    if kind not in known:
        *others, last = known
        raise UsageError(f"planner {kind}: there are {', '.join(others)} and {last}")
    settings = config if kind == config.kind else known[kind]()
    assert isinstance(settings, PlannerSettings)
    return settings.build()


def build_approver(config: RunConfig) -> Approver:
    if config.approval.kind == "policy":
        return PolicyApprover(config.approval.rules)
    return HumanApprover() if config.approval.kind == "human" else AutoApprover()


def build_judge(config: RunConfig, meter: Meter = UNLIMITED) -> SuiteJudge:
    """The judge by itself: it remembers nothing. `meter` counts what a model is asked."""
    return model_judge(config, meter) or VerifierJudge()


def model_judge(config: RunConfig, meter: Meter = UNLIMITED) -> ModelJudge | None:
    """The configured judge if it is a model. `meter` counts what it is asked."""
    if not isinstance(config.judge, LlmJudgeConfig):
        return None
    return LlmJudge(config.judge, ChatModel(config.judge.chat, meter=meter))


def open_purse(config: RunConfig, journal: Journal) -> Purse | None:
    """What models may take over the whole run; None if nothing is limited and no price is known.

    Whoever only looks ahead holds no lock, and counts nothing.
    """
    budget = config.budget
    prices: dict[Payer, Prices | None] = {"planner": None, "judge": None}
    if isinstance(config.planner, LlmPlannerConfig):
        prices["planner"] = config.planner.prices
    if isinstance(config.judge, LlmJudgeConfig):
        prices["judge"] = config.judge.prices
    limits = Limits(
        money=None if budget.money is None else micros(budget.money),
        tokens={"planner": budget.planner_tokens, "judge": budget.judge_tokens},
    )
    counted = [limits.money, *limits.tokens.values(), *prices.values()]
    if not journal.fence or all(each is None for each in counted):
        return None
    return Purse(journal, limits, prices)


@dataclass(frozen=True)
class Meters:
    """Who counts what planner and judge take; by default nobody does."""

    planner: Meter = UNLIMITED
    judge: Meter = UNLIMITED


def open_meters(config: RunConfig, journal: Journal) -> Meters:
    """What counts for a run, by the limits of `config`."""
    purse = open_purse(config, journal)
    return Meters() if purse is None else Meters(purse.meter("planner"), purse.meter("judge"))


def judge_cache(config: RunConfig, runs: Path) -> Path:
    """The folder of verdicts that runs share: `judge.cache`, or one beside the run directories."""
    chosen = config.judge.cache if isinstance(config.judge, LlmJudgeConfig) else None
    return Path(chosen) if chosen else runs / CACHE


def build_run_judge(
    config: RunConfig,
    folder: Path,
    steps: Steps,
    inputs: Inputs,
    reporting: Reporting,
    meter: Meter = UNLIMITED,
) -> RunJudge:
    """The judge of a run. A model's verdicts are filed, and gold checks go before each batch."""
    judge = model_judge(config, meter)
    if judge is None:
        return PlainJudge(build_judge(config))
    # Independent suites are asked about only where their objective has no suite of the run's own.
    suites = {**inputs.all_suites, **inputs.suites}
    known = {name: list(roles.values()) for name, roles in suites.items()}
    gold = GoldChecks(
        judge,
        inputs.all_objectives,
        known,
        command=f"python -m mosaic resume {folder}",
        check=f"python -m mosaic judge check {folder / 'config.json'}",
    )
    cache = VerdictCache(judge_cache(config, folder.resolve().parent))
    return RecordedJudge(judge, steps, cache, gold, reporting.evaluating)


def build_generator(
    config: RunConfig,
    folder: Path,
    reporting: Reporting,
    executor: Executor[Any],
    identity: GeneratorIdentity,
) -> Generator:
    """The generator of a run directory; close it when the run ends.

    Workers of Ray that train answer too: with `identity`, which says what answers depend on.
    """
    base, loading = base_folder(config.base_model), loading_of(config.recipe)
    if isinstance(executor, RemoteExecutor) and _workers_answer(config):
        return WorkersGenerator(
            executor,
            folder,
            base,
            identity.base,
            identity.settings,
            reporting.stopping,
            config.template,
        )
    if config.generator.kind == "vllm":
        rank = check_servable(config.recipe, config.settings().summed)
        logs = folder / "logs" / "vllm"
        return VllmGenerator(
            base,
            config.generator,
            rank,
            logs,
            reporting.generating,
            reporting.notify,
            config.template,
            loading,
        )
    return TransformersGenerator(
        base, config.generator, reporting.generating, config.template, loading
    )


def _workers_answer(config: RunConfig) -> bool:
    """Whether answers are drawn where trainings run.

    A job of Slurm would wait in the queue for each shard, and a vLLM server is one process.
    """
    return config.executor.kind == "ray" and config.generator.kind == "transformers"


def build_smoke_generator(
    config: RunConfig,
    folder: Path,
    serve: bool,
    batch_size: int,
    executor: Executor[Any],
    base_digest: str,
) -> Generator:
    """The generator of the smoke test.

    Without `serve` no vLLM server is started: the base answers in this process, in the type that
    the server would use.
    """
    if config.generator.kind != "vllm" or serve:
        identity = generator_identity(config, base_digest)
        return build_generator(config, folder, Reporting(), executor, identity)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    if config.generator.dtype == "float32":
        dtype = "float32"
    few = TransformersGeneratorConfig(
        max_new_tokens=config.generator.max_new_tokens, dtype=dtype, batch_size=batch_size
    )
    return TransformersGenerator(
        base_folder(config.base_model),
        few,
        template=config.template,
        loading=loading_of(config.recipe),
    )


def check_recipe(config: RunConfig) -> None:
    """Raise UsageError if the base model cannot be trained by the configured recipe."""
    for kind, recipe in config.methods.recipes.items():
        METHODS[kind].check_recipe(base_folder(config.base_model), recipe, config.template)


def check_server(config: RunConfig) -> int | None:
    """The `--max-lora-rank` of the run's vLLM server; None if it has none.

    Raises UsageError if no server could serve the recipe's adapters, or vLLM is not installed.
    """
    if config.generator.kind != "vllm":
        return None
    rank = check_servable(config.recipe, config.settings().summed)
    if config.generator.base_url is None:
        find_vllm()
    return rank


def generation_settings(config: RunConfig) -> JsonObject:
    """What answers depend on beside the base: the generator's settings, and how it loads the base.

    Ways of loading that are the default are left out: answers of earlier releases keep their keys.
    """
    settings = {**config.generator.json_data(), "version": GENERATION}
    recipe = config.recipe
    if recipe.attn_implementation and config.generator.kind == "transformers":
        settings["attn_implementation"] = recipe.attn_implementation
    if recipe.load_in_4bit:
        settings["load_in_4bit"] = True
    return settings


def generator_identity(config: RunConfig, base_digest: str) -> GeneratorIdentity:
    """What the answers of a config depend on beside prompts and adapter."""
    rendering = rendering_identity(base_folder(config.base_model), config.template)
    return GeneratorIdentity(base_digest, {**generation_settings(config), **rendering})


def build_executor(
    config: RunConfig, folder: Path, notify: Callable[[str], None] = lambda text: None
) -> Executor[Any]:
    """What runs the trainings of a run directory. `notify` is told what may keep them waiting."""
    executor, logs = config.executor, folder / "logs"
    if executor.kind == "subprocess":
        return SubprocessExecutor(executor, logs)
    if executor.kind == "ray":
        return RemoteExecutor(RayEngine(executor, folder, notify=notify), executor, logs)
    if executor.kind == "slurm":
        return RemoteExecutor(SlurmEngine(executor), executor, logs)
    return InlineExecutor()


def build_steering_judge(config: RunConfig) -> SteeringJudge | None:
    """What judges steering suites by a reward model, if the config asks for it."""
    if config.steering_judge is None:
        return None
    base, loading = base_folder(config.base_model), loading_of(config.recipe)

    def open_model(folder: Path) -> RewardModelJudge:
        return RewardModelJudge(RewardModel(folder, base, config.template, loading))

    return SteeringJudge(config.steering_judge, open_model)


def build_practice(config: RunConfig, inputs: Inputs, evaluator: Evaluator) -> PracticeTool | None:
    """What draws and pairs answers, if a method is enabled that trains on them."""
    if not config.later_recipes:
        return None
    base = base_folder(config.base_model)
    return PracticeTool(evaluator, inputs.practice, base, inputs.base_digest, config.template)


def build_influence(config: RunConfig, inputs: Inputs) -> InfluenceTool | None:
    """What estimates the influence of buckets, if the config asks for it."""
    if config.influence is None:
        return None
    return InfluenceTool(
        base_folder(config.base_model),
        inputs.base_digest,
        inputs.pool,
        {name: roles["steering"] for name, roles in inputs.suites.items()},
        [objective.name for objective in config.settings().traded],
        config.limits.min_quality,
        config.influence,
        config.template,
    )


def build_context(
    config: RunConfig,
    folder: Path,
    journal: Journal,
    inputs: Inputs,
    reporting: Reporting | None = None,
) -> RunContext:
    """Everything that the nodes of a run may touch."""
    reporting = reporting or Reporting()
    steps = Steps(journal, Store(folder), reporting.stopping)
    base = base_folder(config.base_model)
    identity = generator_identity(config, inputs.base_digest)
    executor = build_executor(config, folder, reporting.notify)
    meters = open_meters(config, journal)
    evaluator = Evaluator(
        build_generator(config, folder, reporting, executor, identity),
        build_run_judge(config, folder, steps, inputs, reporting, meters.judge),
        inputs.objectives,
        inputs.suites,
        identity,
        reporting.evaluating,
        build_steering_judge(config),
        inputs.independent,
    )
    trainer = TrainTool(
        executor,
        base,
        inputs.base_digest,
        config.recipe,
        reporting.training,
        adapter_bytes(base, config.recipe),
        config.template,
    )
    fallback = None
    if config.planner.on_failure not in ("stop", "pause"):
        fallback = build_planner(config.planner.on_failure, config.planner)
    experiment = {
        "base": inputs.base_digest,
        "generator": identity.settings,
        "recipe": config.recipe.json_data(),
        **({"methods": config.methods.json_data()} if config.later_recipes else {}),
        **run_digests(config, inputs).json_data(),
    }
    return RunContext(
        steps=steps,
        pool=inputs.pool,
        evaluator=evaluator,
        trainer=trainer,
        planner=build_planner(config.planner.kind, config.planner, steps, meters.planner),
        fallback=fallback,
        approver=build_approver(config),
        settings=config.settings(),
        experiment=digest_of(experiment),
        pause=config.planner.on_failure == "pause",
        influence=build_influence(config, inputs),
        practice=build_practice(config, inputs, evaluator),
        notify=reporting.notify,
    )
