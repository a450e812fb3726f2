"""The fail-fast ladder: what can be known before a run costs anything, cheapest first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent.observe import static_plan
from eval.generators.base import Generator, TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm_server import find_vllm
from eval.suite import Suite
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = 8
# Kinds of stretched positions for which a config names the length that is reached by stretching.
CONTEXT_STRETCHED_TO = ("llama3", "longrope")
# `check`: what was looked at; `result`: what was found; figures beside them, if there are any.
Finding = Mapping[str, object]


def validate(
    config: RunConfig, full: bool, say: Callable[[str], None], given: Given | None = None
) -> list[Finding]:
    """All checks in order; the first that fails raises a UsageError.

    With `full`, also two training steps and eight prompts. `given` are speeds that replace assumed
    or measured ones in the estimate.
    """
    check_budget(config)
    say("opening pool, suites and base model")
    inputs = open_inputs(config)
    findings: list[Finding] = [
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
    return [*findings, *_estimate(config, inputs, given or Given(), measured)]


def check_before_run(
    config: RunConfig, inputs: Inputs, say: Callable[[str], None], runs: Path | None = None
) -> None:
    """What the start of a run checks: the whole ladder, training steps and prompts included.

    `runs` is the folder of the run directories: verdicts on known answers that lie in its cache are
    not asked for again.
    """
    check_budget(config)
    say("checking config, pool, suites, verifiers, adapter recipe")
    _pool(config, inputs)
    _contamination(config, inputs)
    _suites(config, inputs, runs)
    _lengths(config, inputs)
    _recipe(config)
    _mixture(config, inputs)
    _smoke(config, inputs, serve=False)


def _pool(config: RunConfig, inputs: Inputs) -> Finding:
    """Enough rows of every data set, short enough, counted as the base model counts."""
    rows, tokens = _stock(config, inputs)
    _check_lengths(config, inputs)
    counted = inputs.pool.manifest.get("tokenizer")
    if counted and counted != TokenCounter(Path(config.base_model)).digest:
        raise UsageError(
            "pool: its tokens were counted with another tokenizer or chat template than base_model "
            f"has; build the pool again with --model {config.base_model}"
        )
    served: set[str] = set()
    for objective in config.objectives.values():
        served.update(objective.datasets)
    unserved = sorted(set(inputs.pool.datasets) - served)
    if unserved:
        raise UsageError(
            f"pool: data sets {unserved} serve no objective; name them in "
            "objectives.<name>.datasets, or build a pool without them"
        )
    return {"check": "pool", "result": f"{rows:,} rows, {tokens:,} tokens after the quality filter"}


def _stock(config: RunConfig, inputs: Inputs) -> tuple[int, int]:
    """Rows and tokens of the pool after the quality filter, which must be enough for a round."""
    limits = config.limits
    rows = tokens = 0
    empty = []
    for dataset, buckets in sorted(inputs.pool.stock(limits.min_quality).items()):
        held = sum(stock.tokens for stock in buckets.values())
        rows += sum(stock.rows for stock in buckets.values())
        tokens += held
        if not held:
            empty.append(dataset)
    if tokens * limits.max_repeat < config.budget.tokens_per_round:
        raise UsageError(
            f"pool: {tokens:,} tokens of quality {limits.min_quality} or better, limits.max_repeat "
            f"= {limits.max_repeat}, cannot fill budget.tokens_per_round = "
            f"{config.budget.tokens_per_round:,}; lower it or limits.min_quality"
        )
    if empty:
        raise UsageError(
            f"pool: no row of {empty} has quality {limits.min_quality} or better; lower "
            "limits.min_quality, grade the rows anew (`python -m mosaic pool label`), or build a "
            "pool without them"
        )
    return rows, tokens


def _check_lengths(config: RunConfig, inputs: Inputs) -> None:
    """Raise UsageError if a row is longer than training takes."""
    usable = inputs.pool.column("quality") >= config.limits.min_quality
    longest = int(inputs.pool.column("n_tokens")[usable].max())
    limit = config.methods.sft.max_length
    if longest <= limit:
        return
    how = ""
    if not inputs.pool.manifest.get("tokenizer"):
        how = "--model DIR, so that long chats are cut, and "
    raise UsageError(
        f"pool: a row has {longest:,} tokens, methods.sft.max_length is {limit:,}; raise it, or "
        f"build the pool again with {how}--max-length {limit}"
    )


def _all_suites(inputs: Inputs) -> list[Suite]:
    found: list[Suite] = []
    for roles in inputs.suites.values():
        found += roles.values()
    return found


def _suites(config: RunConfig, inputs: Inputs, runs: Path | None = None) -> Sequence[Finding]:
    """No prompt holds a control token, and the judge is right on known answers."""
    control_token = TokenCounter(Path(config.base_model)).control_token
    for suite in _all_suites(inputs):
        for prompt in suite.prompts:
            token = control_token([prompt.system or "", *prompt.turns])
            if token:
                raise UsageError(
                    f"suites: {suite.objective}/{suite.role}: the prompt {prompt.id!r} holds "
                    f"{token}, a control token of base_model, which would end a turn or begin "
                    "another's; write it otherwise"
                )
    return check_judge(config, inputs.objectives, inputs.suites, runs)


def model_length(base: Path) -> int | None:
    """How many tokens a model folder's config allows in one chat.

    None if it does not say, or if it stretches positions in a way that does not name the length.
    """
    config = json.loads((base / "config.json").read_text())
    config = {**config, **(config.get("text_config") or {})}
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if "factor" in rope and rope.get("rope_type") not in CONTEXT_STRETCHED_TO:
        return None
    length: int | None = config.get("max_position_embeddings")
    return length


def _lengths(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Raise UsageError if a suite's conversation may not fit into vLLM's context.

    Answers are counted as long as they may be.
    """
    if config.generator.kind != "vllm":
        return []
    base, answer = Path(config.base_model), config.generator.max_new_tokens
    limit = config.generator.max_model_len or model_length(base)
    if limit is None:
        return []
    prompts: list[Prompt] = []
    for suite in _all_suites(inputs):
        prompts += suite.prompts
    needs = chat_lengths(load_tokenizer(base), prompts, answer)
    need, prompt = max(zip(needs, prompts, strict=True), key=lambda pair: pair[0])
    if need > limit:
        turns = f"{len(prompt.turns)} answers of generator.max_new_tokens = {answer}"
        allowed = ""
        if not config.generator.max_model_len:
            allowed = " (the base's max_position_embeddings, since it is null)"
        too_long = sum(length > limit for length in needs)
        raise UsageError(
            f"generator.max_model_len: {limit:,}{allowed} is too short for {too_long:,} of "
            f"{len(prompts):,} prompts; the longest, {prompt.id}, needs {need:,} tokens with "
            f"{turns}; raise it, lower generator.max_new_tokens, or take the prompts out of the "
            "suites"
        )
    result = f"longest prompt {prompt.id}: {need:,} of {limit:,} tokens with its answers"
    return [{"check": "context", "result": result}]


def chat_lengths(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], answer: int
) -> list[int]:
    """Tokens of each whole conversation: its turns in the chat template, and `answer` tokens per turn."""
    chats: list[list[dict[str, str]]] = []
    for prompt in prompts:
        chat = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for text in prompt.turns:
            chat += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        chats.append(chat[:-1])
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = []
    for ids, prompt in zip(rows, prompts, strict=True):
        lengths.append(len(ids) + answer * len(prompt.turns))
    return lengths


def _recipe(config: RunConfig) -> Finding:
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


def _mixture(config: RunConfig, inputs: Inputs) -> Finding:
    settings = config.settings()
    plan = static_plan(inputs.pool, settings)
    mixture = mixture_of(plan, settings.tokens_per_round, config.seed, config.limits)
    total = curate(inputs.pool, mixture).report.total
    if total.rows == 0:
        raise UsageError(
            "budget.tokens_per_round: not one row of the pools' own mixture fits into "
            f"{mixture.budget:,} tokens; raise it"
        )
    return {
        "check": "dry mixture",
        "result": f"{total.selected:,} of {total.requested:,} tokens in {total.rows:,} rows",
    }


def _estimate(
    config: RunConfig, inputs: Inputs, given: Given, measured: Given | None
) -> Sequence[Finding]:
    """What the run takes, from speeds that are given, measured or assumed."""
    base = Path(config.base_model)
    tokenizer = load_tokenizer(base)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    speed = speeds(config, model_size(base), has_gpu(), given, measured)
    return estimate(config, loads(_prompts(inputs), count), speed).findings()


def _prompts(inputs: Inputs) -> dict[str, dict[str, list[Prompt]]]:
    """Objective -> role -> prompts."""
    found = {}
    for name, roles in inputs.suites.items():
        found[name] = {role: suite.prompts for role, suite in roles.items()}
    return found


def contaminated(config: RunConfig, inputs: Inputs) -> list[SuiteOverlap]:
    """What of each suite stands in the pool."""
    return contamination(_prompts(inputs), pool_requests(inputs.pool.path))


def refuse_contaminated(config: RunConfig, found: list[SuiteOverlap]) -> None:
    """Raise UsageError if more of a suite stands in the pool than its limit allows."""
    lines = []
    for overlap in found:
        limit = config.contamination.limit(overlap.role)
        if overlap.share > limit:
            hit = overlap.hits[0]
            lines.append(
                f"  {overlap.objective} {overlap.role}: {len(overlap.hits)} of {overlap.prompts} "
                f"prompts ({overlap.share:.1%}), at most {limit:.1%}; such as {hit.prompt} in row "
                f"{hit.row}"
            )
    if lines:
        raise UsageError(
            "contamination: suites stand in the pool word for word:\n" + "\n".join(lines) + "\n"
            "import the pool's rows again with --without SUITE_FOLDER, or raise "
            "contamination.max_share.<role>; `python -m mosaic pool contamination CONFIG --json` "
            "names the rows"
        )


def _contamination(config: RunConfig, inputs: Inputs) -> Finding:
    found = contaminated(config, inputs)
    refuse_contaminated(config, found)
    shares = []
    for role in ROLES:
        worst = max(overlap.share for overlap in found if overlap.role == role)
        shares.append(f"{role} {worst:.1%} (at most {config.contamination.limit(role):.1%})")
    return {
        "check": "contamination",
        "result": f"share of prompts in the pool, worst objective: {', '.join(shares)}",
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


def _smoke(config: RunConfig, inputs: Inputs, serve: bool) -> tuple[Finding, Given]:
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
