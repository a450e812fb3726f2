"""The fail-fast ladder: everything that can be known before a run costs anything, cheapest first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.observe import static_plan
from eval.generator import Generator, TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm_server import find_vllm
from mosaic.app.config import RunConfig
from mosaic.app.judging import check_judge
from mosaic.app.wiring import Inputs, Reporting, build_generator, open_inputs
from mosaic.errors import UsageError
from mosaic.types import Mixture, Prompt, Response
from training.mixture import curate, write_training_set
from training.servable import check_servable
from training.sft import check_recipe, train
from training.trainer import TrainJob

PROMPTS = 8
FULL_TOKENS = 512


def validate(config: RunConfig, full: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All checks in order; the first that fails raises a UsageError. With `full`, two training steps and eight prompts."""
    say("opening pool, suites and base model")
    inputs = open_inputs(config)
    findings = [
        _pool(config, inputs),
        *_suites(config, inputs),
        _recipe(config),
        _mixture(config, inputs),
        _cost(config),
    ]
    if full:
        say("training two steps and answering eight prompts")
        findings.append(_smoke(config, inputs, serve=True))
    return findings


def check_before_run(config: RunConfig, inputs: Inputs, say: Callable[[str], None], runs: Path | None = None) -> None:
    """What the start of a run checks: the whole ladder, training steps and prompts included. `runs` is the folder of
    the run directories: verdicts on known answers that lie in its cache are not asked for again."""
    say("checking config, pool, suites, verifiers, adapter recipe")
    _pool(config, inputs)
    _suites(config, inputs, runs)
    _recipe(config)
    _mixture(config, inputs)
    _smoke(config, inputs, serve=False)


def _pool(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    stock = inputs.pool.stock(config.limits.min_quality)
    rows = sum(s.rows for per in stock.values() for s in per.values())
    tokens = sum(s.tokens for per in stock.values() for s in per.values())
    if tokens < config.budget.tokens_per_round:
        raise UsageError(
            f"pool: {tokens:,} tokens of quality {config.limits.min_quality} or better cannot fill "
            f"budget.tokens_per_round = {config.budget.tokens_per_round:,}; lower it or limits.min_quality"
        )
    served = {d for o in config.objectives.values() for d in o.datasets}
    unserved = sorted(set(inputs.pool.datasets) - served)
    if unserved:
        raise UsageError(
            f"pool: data sets {unserved} serve no objective; name them in objectives.<name>.datasets, "
            "or build a pool without them"
        )
    return {"check": "pool", "result": f"{rows:,} rows, {tokens:,} tokens after the quality filter"}


def _suites(config: RunConfig, inputs: Inputs, runs: Path | None = None) -> list[dict[str, Any]]:
    return check_judge(config, inputs.objectives, inputs.suites, runs)


def _recipe(config: RunConfig) -> dict[str, Any]:
    check_recipe(Path(config.base_model), config.training)
    served = ""
    if config.generator.kind == "vllm":
        served = f", servable with --max-lora-rank {check_servable(config.training)}"
        if config.generator.base_url is None:
            find_vllm()
    return {"check": "adapter recipe", "result": f"LoRA r {config.training.lora_r}, chat template trainable{served}"}


def _mixture(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    settings = config.settings()
    plan = static_plan(inputs.pool, settings)
    mixture = Mixture(
        ratios=plan.ratios,
        bucket_weights=plan.bucket_weights,
        budget=settings.tokens_per_round,
        seed=config.seed,
        min_quality=config.limits.min_quality,
        max_repeat=config.limits.max_repeat,
    )
    total = curate(inputs.pool, mixture).report.total
    return {
        "check": "dry mixture",
        "result": f"{total.selected:,} of {total.requested:,} tokens in {total.rows:,} rows",
    }


def _cost(config: RunConfig) -> dict[str, Any]:
    trainings = config.rounds + config.calibration.repeats
    text = f"{trainings} trainings of {config.tokens_per_round:,} tokens, {config.tokens_total:,} in all"
    return {"check": "cost", "result": text}


def _answers(config: RunConfig, prompts: list[Prompt], adapter: Path, folder: Path, serve: bool) -> list[Response]:
    """Answers of a freshly trained adapter, by the config's generator. A server is only started where `serve` says so:
    the start of a run leaves that to round 0, which comes next and costs no training either."""
    generator: Generator = build_generator(config, folder, Reporting())
    if config.generator.kind == "vllm" and not serve:
        few = TransformersGeneratorConfig(max_new_tokens=config.generator.max_new_tokens)
        generator = TransformersGenerator(Path(config.base_model), few)
    try:
        return generator.generate(prompts, adapter)
    finally:
        generator.close()


def _smoke(config: RunConfig, inputs: Inputs, serve: bool) -> dict[str, Any]:
    """Two training steps on a scrap of the pool and eight prompts, with the real code."""
    plan = static_plan(inputs.pool, config.settings())
    longest = max(FULL_TOKENS, 2 * inputs.pool.max_length)
    mixture = Mixture(
        ratios=plan.ratios,
        budget=min(longest, config.budget.tokens_per_round),
        seed=config.seed,
        min_quality=config.limits.min_quality,
    )
    base = Path(config.base_model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training_set.parquet"
        write_training_set(inputs.pool, curate(inputs.pool, mixture), path)
        job = TrainJob(
            base_model=str(base),
            base_digest=inputs.base_digest,
            training_set=str(path),
            config=config.training.model_copy(update={"max_steps": 2, "save_every": None, "report_to": "none"}),
            seed=config.seed,
            out=str(Path(folder) / "adapter"),
            work=str(Path(folder) / "work"),
        )
        done = train(job)
        prompts = [roles["steering"].prompts for roles in inputs.suites.values()]
        some = [p for each in prompts for p in each[: max(1, PROMPTS // len(prompts))]]
        answers = _answers(config, some, Path(done.adapter), Path(folder), serve)
    return {
        "check": "smoke",
        "result": f"loss {done.loss:.3f} after {done.steps} steps, {len(answers)} prompts answered",
    }
