"""Config -> objects. The one place that knows every implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.approval import AutoApprover
from agent.nodes import Services
from agent.planner import Planner, PlannerConfig, RandomPlannerConfig
from agent.planners.baselines import NeedPlanner, RandomPlanner, StaticPlanner
from agent.planners.profile import ProfilePlanner
from eval.generator import Generator
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm import VllmGenerator
from eval.judge import Judge
from eval.judges.verifier import VerifierJudge
from eval.objective import Objective
from eval.objectives.instruction_following import InstructionFollowing
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from eval.suite import Suite, load_suite
from mosaic.app.config import RunConfig
from mosaic.errors import UsageError
from mosaic.journal import Journal
from mosaic.store import Store
from mosaic.types import ROLES
from tools.evaluate import Evaluator
from tools.evaluate import Progress as EvaluationProgress
from tools.executor import Executor, InlineExecutor, SubprocessExecutor
from tools.step import Steps
from tools.train import TrainTool
from training.adapter import model_digest
from training.pool import Pool
from training.servable import check_servable
from training.trainer import Progress as TrainingProgress

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "safety": Safety,
    "over_refusal": OverRefusal,
    "instruction_following": InstructionFollowing,
}


@dataclass
class Reporting:
    """Where progress goes; the defaults say nothing."""

    notify: Callable[[str], None] = lambda text: None
    evaluating: EvaluationProgress | None = None
    training: TrainingProgress | None = None
    generating: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Inputs:
    """What a config names, opened and digested."""

    pool: Pool
    objectives: dict[str, Objective]
    suites: dict[str, dict[str, Suite]]
    base_digest: str

    def digests(self) -> dict[str, object]:
        suites = {o: {role: s.digest for role, s in roles.items()} for o, roles in self.suites.items()}
        return {"pool": self.pool.digest, "base_model": self.base_digest, "suites": suites}


def open_objective(name: str) -> Objective:
    if name not in OBJECTIVES:
        raise UsageError(f"objectives.{name}: no such objective; there are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]()


def open_inputs(config: RunConfig) -> Inputs:
    """Open pool, suites and base model of a config. UsageError where one is missing or broken."""
    base = Path(config.base_model)
    if not (base / "config.json").is_file():
        raise UsageError(f"base_model: {base} is no model folder (no config.json); give a Hugging Face model folder")
    pool = Pool.open(Path(config.pool))
    objectives = {name: open_objective(name) for name in config.objectives}
    for name, objective in config.objectives.items():
        for dataset in objective.datasets:
            if dataset not in pool.datasets:
                known = ", ".join(pool.datasets)
                raise UsageError(f"objectives.{name}.datasets: {dataset!r} is not in the pool; it has {known}")
    suites = {
        name: {role: load_suite(Path(config.objectives[name].suite), objective, role) for role in ROLES}
        for name, objective in objectives.items()
    }
    return Inputs(pool, objectives, suites, model_digest(base))


def build_planner(kind: str, config: PlannerConfig) -> Planner:
    """A planner by its kind; `config` gives a random planner its spread."""
    if kind == "static":
        return StaticPlanner()
    if kind == "random":
        return RandomPlanner(config.spread) if isinstance(config, RandomPlannerConfig) else RandomPlanner()
    if kind == "need":
        return NeedPlanner()
    return ProfilePlanner()


def build_judge(config: RunConfig) -> Judge:
    return VerifierJudge()


def build_generator(config: RunConfig, folder: Path, reporting: Reporting) -> Generator:
    """The generator of a run directory; close it when the run ends."""
    base = Path(config.base_model)
    if config.generator.kind == "vllm":
        rank = check_servable(config.training)
        logs = folder / "logs" / "vllm"
        return VllmGenerator(base, config.generator, rank, logs, reporting.generating, reporting.notify)
    return TransformersGenerator(base, config.generator, reporting.generating)


def build_executor(config: RunConfig, folder: Path) -> Executor:
    if config.executor.kind == "subprocess":
        return SubprocessExecutor(config.executor, folder / "logs")
    return InlineExecutor()


def build_services(
    config: RunConfig, folder: Path, journal: Journal, inputs: Inputs, reporting: Reporting | None = None
) -> Services:
    """Everything that the nodes of a run may touch."""
    reporting = reporting or Reporting()
    steps = Steps(journal, Store(folder))
    base = Path(config.base_model)
    identity = {"base": inputs.base_digest, "generator": config.generator.json_data()}
    generator = build_generator(config, folder, reporting)
    return Services(
        steps=steps,
        pool=inputs.pool,
        evaluator=Evaluator(
            steps, generator, build_judge(config), inputs.objectives, inputs.suites, identity, reporting.evaluating
        ),
        trainer=TrainTool(
            steps, build_executor(config, folder), base, inputs.base_digest, config.training, reporting.training
        ),
        planner=build_planner(config.planner.kind, config.planner),
        fallback=None
        if config.planner.on_failure == "stop"
        else build_planner(config.planner.on_failure, config.planner),
        approver=AutoApprover(),
        settings=config.settings(),
        notify=reporting.notify,
    )
