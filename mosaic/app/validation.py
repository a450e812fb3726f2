"""The fail-fast ladder: everything that can be known before a run costs anything, cheapest first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from agent.observe import static_plan
from eval.generators.base import Generator, TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm_server import find_vllm
from mosaic.app.config import RunConfig
from mosaic.app.estimate import Given, estimate, has_gpu, loads, model_size, speeds
from mosaic.app.judging import check_judge
from mosaic.app.runs import check_budget
from mosaic.app.wiring import Inputs, Reporting, build_executor, build_generator, open_inputs
from mosaic.core.errors import UsageError
from mosaic.core.store import file_digest
from mosaic.core.types.evaluation import ROLES, Prompt, Response
from mosaic.core.types.runs import BASE, TRAINING_SET, SftRecipe, TrainJob, Workplace
from training.data.contamination import SuiteOverlap, contamination, pool_requests
from training.data.curate import Curated, curate, mixture_of, write_training_set
from training.methods.base import never
from training.methods.batches import largest_batch
from training.methods.sft import check_recipe
from training.methods.vllm_limits import check_servable
from training.models.tokenizer import TokenCounter, load_tokenizer

PROMPTS = 8


def validate(
    config: RunConfig, full: bool, say: Callable[[str], None], given: Given | None = None
) -> list[dict[str, Any]]:
    """All checks in order; the first that fails raises a UsageError. With `full`, two training steps and eight prompts.

    `given` are speeds that replace assumed or measured ones in the estimate.
    """
    check_budget(config)
    say("opening pool, suites and base model")
    inputs = open_inputs(config)
    findings = [
        _pool(config, inputs),
        _contamination(config, inputs),
        *_suites(config, inputs),
        *_lengths(config, inputs),
        _recipe(config),
        _mixture(config, inputs),
    ]
    measured = None
    if full:
        say("training two steps and answering eight prompts")
        finding, measured = _smoke(config, inputs, serve=True)
        findings.append(finding)
    return findings + _estimate(config, inputs, given or Given(), measured)


def check_before_run(
    config: RunConfig, inputs: Inputs, say: Callable[[str], None], runs: Path | None = None
) -> None:
    """What the start of a run checks: the whole ladder, training steps and prompts included. `runs` is the folder of
    the run directories: verdicts on known answers that lie in its cache are not asked for again."""
    check_budget(config)
    say("checking config, pool, suites, verifiers, adapter recipe")
    _pool(config, inputs)
    _contamination(config, inputs)
    _suites(config, inputs, runs)
    _lengths(config, inputs)
    _recipe(config)
    _mixture(config, inputs)
    _smoke(config, inputs, serve=False)


def _pool(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    limits = config.limits
    stock = inputs.pool.stock(limits.min_quality)
    rows = sum(s.rows for per in stock.values() for s in per.values())
    tokens = sum(s.tokens for per in stock.values() for s in per.values())
    if tokens * limits.max_repeat < config.budget.tokens_per_round:
        raise UsageError(
            f"pool: {tokens:,} tokens of quality {limits.min_quality} or better, limits.max_repeat = {limits.max_repeat}, "
            f"cannot fill budget.tokens_per_round = {config.budget.tokens_per_round:,}; lower it or limits.min_quality"
        )
    empty = sorted(d for d, per in stock.items() if not any(s.tokens for s in per.values()))
    if empty:
        raise UsageError(
            f"pool: no row of {empty} has quality {limits.min_quality} or better; lower limits.min_quality, grade the rows "
            "anew (`python -m mosaic pool label`), or build a pool without them"
        )
    counted = inputs.pool.manifest.get("tokenizer")
    usable = inputs.pool.column("quality") >= limits.min_quality
    longest = int(inputs.pool.column("n_tokens")[usable].max())
    if longest > config.methods.sft.max_length:
        how = "" if counted else "--model DIR, so that long chats are cut, and "
        raise UsageError(
            f"pool: a row has {longest:,} tokens, methods.sft.max_length is {config.methods.sft.max_length:,}; raise it, or build "
            f"the pool again with {how}--max-length {config.methods.sft.max_length}"
        )
    if counted and counted != TokenCounter(Path(config.base_model)).digest:
        raise UsageError(
            "pool: its tokens were counted with another tokenizer or chat template than base_model has; "
            f"build the pool again with --model {config.base_model}"
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
    control_token = TokenCounter(Path(config.base_model)).control_token
    for suite in (s for per in inputs.suites.values() for s in per.values()):
        for prompt in suite.prompts:
            if token := control_token([prompt.system or "", *prompt.turns]):
                raise UsageError(
                    f"suites: {suite.objective}/{suite.role}: the prompt {prompt.id!r} holds {token}, a control token of "
                    "base_model, which would end a turn or begin another's; write it otherwise"
                )
    return check_judge(config, inputs.objectives, inputs.suites, runs)


def model_length(base: Path) -> int | None:
    """How many tokens a model folder's config allows in one chat; None where it does not say, or stretches positions."""
    config = json.loads((base / "config.json").read_text())
    config = {**config, **(config.get("text_config") or {})}
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    # These two name the length that is reached by stretching.
    plain = "factor" not in rope or rope.get("rope_type") in ("llama3", "longrope")
    return config.get("max_position_embeddings") if plain else None


def _lengths(config: RunConfig, inputs: Inputs) -> list[dict[str, Any]]:
    """UsageError where a suite's conversation, with answers as long as they may be, does not fit into vLLM's context."""
    if config.generator.kind != "vllm":
        return []
    base, answer = Path(config.base_model), config.generator.max_new_tokens
    limit = config.generator.max_model_len or model_length(base)
    if limit is None:
        return []
    prompts = [
        p for roles in inputs.suites.values() for suite in roles.values() for p in suite.prompts
    ]
    needs = chat_lengths(load_tokenizer(base), prompts, answer)
    need, prompt = max(zip(needs, prompts, strict=True), key=lambda pair: pair[0])
    if need > limit:
        turns = f"{len(prompt.turns)} answers of generator.max_new_tokens = {answer}"
        allowed = (
            ""
            if config.generator.max_model_len
            else " (the base's max_position_embeddings, since it is null)"
        )
        raise UsageError(
            f"generator.max_model_len: {limit:,}{allowed} is too short for {sum(n > limit for n in needs):,} of "
            f"{len(prompts):,} prompts; the longest, {prompt.id}, needs {need:,} tokens with {turns}; raise it, "
            "lower generator.max_new_tokens, or take the prompts out of the suites"
        )
    return [
        {
            "check": "context",
            "result": f"longest prompt {prompt.id}: {need:,} of {limit:,} tokens with its answers",
        }
    ]


def chat_lengths(tokenizer: Any, prompts: Sequence[Prompt], answer: int) -> list[int]:
    """Tokens of each whole conversation: its turns in the chat template, and `answer` tokens per turn."""
    chats: list[list[dict[str, str]]] = []
    for prompt in prompts:
        chat = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for text in prompt.turns:
            chat += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        chats.append(chat[:-1])
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(ids) + answer * len(p.turns) for ids, p in zip(rows, prompts, strict=True)]


def _recipe(config: RunConfig) -> dict[str, Any]:
    check_recipe(Path(config.base_model), config.methods.sft)
    served = ""
    if config.generator.kind == "vllm":
        served = f", servable with --max-lora-rank {check_servable(config.methods.sft)}"
        if config.generator.base_url is None:
            find_vllm()
    return {
        "check": "adapter recipe",
        "result": f"LoRA r {config.methods.sft.lora_r}, chat template trainable{served}",
    }


def _mixture(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    settings = config.settings()
    plan = static_plan(inputs.pool, settings)
    mixture = mixture_of(plan, settings.tokens_per_round, config.seed, config.limits)
    total = curate(inputs.pool, mixture).report.total
    if total.rows == 0:
        raise UsageError(
            f"budget.tokens_per_round: not one row of the pools' own mixture fits into {mixture.budget:,} tokens; raise it"
        )
    return {
        "check": "dry mixture",
        "result": f"{total.selected:,} of {total.requested:,} tokens in {total.rows:,} rows",
    }


def _estimate(
    config: RunConfig, inputs: Inputs, given: Given, measured: Given | None
) -> list[dict[str, Any]]:
    """What the run takes, from speeds that are given, measured or assumed."""
    base = Path(config.base_model)
    tokenizer = load_tokenizer(base)
    suites = {
        name: {role: s.prompts for role, s in roles.items()}
        for name, roles in inputs.suites.items()
    }
    sizes = loads(suites, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return estimate(
        config, sizes, speeds(config, model_size(base), has_gpu(), given, measured)
    ).findings()


def contaminated(config: RunConfig, inputs: Inputs) -> list[SuiteOverlap]:
    """What of each suite stands in the pool."""
    suites = {
        name: {role: s.prompts for role, s in roles.items()}
        for name, roles in inputs.suites.items()
    }
    return contamination(suites, pool_requests(inputs.pool.path))


def refuse_contaminated(config: RunConfig, found: list[SuiteOverlap]) -> None:
    """UsageError where a suite stands in the pool to more than its limit."""
    over = [f for f in found if f.share > config.contamination.limit(f.role)]
    if over:
        lines = [
            f"  {f.objective} {f.role}: {len(f.hits)} of {f.prompts} prompts ({f.share:.1%}), at most "
            f"{config.contamination.limit(f.role):.1%}; such as {f.hits[0].prompt} in row {f.hits[0].row}"
            for f in over
        ]
        raise UsageError(
            "contamination: suites stand in the pool word for word:\n" + "\n".join(lines) + "\n"
            "import the pool's rows again with --without SUITE_FOLDER, or raise contamination.max_share.<role>; "
            "`python -m mosaic pool contamination CONFIG --json` names the rows"
        )


def _contamination(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    found = contaminated(config, inputs)
    refuse_contaminated(config, found)
    worst = {role: max(f.share for f in found if f.role == role) for role in ROLES}
    text = ", ".join(
        f"{role} {share:.1%} (at most {config.contamination.limit(role):.1%})"
        for role, share in worst.items()
    )
    return {
        "check": "contamination",
        "result": f"share of prompts in the pool, worst objective: {text}",
    }


def _answers(
    config: RunConfig, prompts: list[Prompt], adapter: Path, folder: Path, serve: bool
) -> list[Response]:
    """Answers of a freshly trained adapter, by the config's generator.

    A vLLM server is started only with `serve`: the start of a run leaves that to round 0, which
    comes next and costs no training either. Without it the base answers in this process, in the
    type that the server would use.
    """
    generator: Generator = build_generator(config, folder, Reporting())
    if config.generator.kind == "vllm" and not serve:
        dtype: Literal["float32", "bfloat16"] = "bfloat16"
        if config.generator.dtype == "float32":
            dtype = "float32"
        few = TransformersGeneratorConfig(
            max_new_tokens=config.generator.max_new_tokens, dtype=dtype, batch_size=PROMPTS
        )
        generator = TransformersGenerator(Path(config.base_model), few)
    try:
        return generator.generate(prompts, adapter)
    finally:
        generator.close()


def _smoke(config: RunConfig, inputs: Inputs, serve: bool) -> tuple[dict[str, Any], Given]:
    """Two training steps on the largest batch to come, and eight prompts; how fast the steps were.

    Training runs in the config's executor. A batch that does not fit into memory fails here, not
    hours into the first round. The second step is the larger one: the optimiser then has its
    moments.
    """
    curated = _first_training_set(config, inputs)
    lengths = inputs.pool.column("n_tokens")[curated.indices].tolist()
    largest = largest_batch(lengths, config.methods.sft)
    base = Path(config.base_model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training_set.parquet"
        write_training_set(inputs.pool, curated.part(largest), path)
        job = TrainJob(
            recipe=_two_steps(config.methods.sft, len(largest)),
            inputs={BASE: inputs.base_digest, TRAINING_SET: file_digest(path)},
            seed=config.seed,
        )
        place = Workplace(
            paths={BASE: str(base), TRAINING_SET: str(path)},
            out=str(Path(folder) / "adapter"),
            work=str(Path(folder) / "work"),
        )
        executor = build_executor(config, Path(folder))
        (done,) = executor.wait([executor.submit(job, place)], never)
        prompts = _few_prompts(inputs)
        answers = _answers(config, prompts, Path(done.adapter), Path(folder), serve)
    measured = Given(training=done.tokens / done.train_seconds if done.train_seconds else None)
    finding = {
        "check": "smoke",
        "result": f"loss {done.loss:.3f} after {done.steps} steps on the largest batch, "
        f"{len(answers)} prompts answered",
    }
    return finding, measured


def _first_training_set(config: RunConfig, inputs: Inputs) -> Curated:
    """The rows of the pools' own mixture at the full budget of a round."""
    plan = static_plan(inputs.pool, config.settings())
    tokens = config.budget.tokens_per_round
    mixture = mixture_of(plan, tokens, config.seed, config.limits)
    return curate(inputs.pool, mixture)


def _two_steps(recipe: SftRecipe, rows: int) -> SftRecipe:
    """The recipe, but for two steps on one micro-batch that holds all rows of the training set.

    With packing the rows make as many packs as a micro-batch has.
    """
    changes: dict[str, object] = {
        "epochs": 2,
        "max_steps": 2,
        "gradient_accumulation": 1,
        "save_every": None,
        "report_to": "none",
    }
    if not recipe.packing:
        changes["batch_size"] = max(1, rows)
    return recipe.model_copy(update=changes)


def _few_prompts(inputs: Inputs) -> list[Prompt]:
    """About eight prompts, the first ones of each objective's steering suite."""
    each = max(1, PROMPTS // len(inputs.suites))
    few: list[Prompt] = []
    for roles in inputs.suites.values():
        few += roles["steering"].prompts[:each]
    return few
