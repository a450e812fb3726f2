"""The fail-fast ladder: everything that can be known before a run costs anything, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from eval.suite import Suite
from mosaic.app.config import RunConfig
from mosaic.app.estimate import KnownSpeeds, estimate, has_gpu, model_size, speeds, suite_sizes
from mosaic.app.judging import check_judge
from mosaic.app.lengths import chat_lengths, model_length
from mosaic.app.runs import check_budget
from mosaic.app.shapes import Finding
from mosaic.app.smoke import first_training_set, smoke_test
from mosaic.app.wiring import Inputs, build_influence, check_recipe, check_server, open_inputs
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import ROLES, Prompt
from training.data.contamination import SuiteOverlap, contamination, pool_requests
from training.models.tokenizer import TokenCounter, load_tokenizer


def validate(
    config: RunConfig,
    full: bool,
    say: Callable[[str], None],
    given: KnownSpeeds | None = None,
) -> list[Finding]:
    """All checks in order; the first that fails raises a UsageError.

    With `full` also two training steps and eight prompts. `given` are speeds that replace assumed
    or measured ones in the estimate.
    """
    check_budget(config)
    say("opening pool, suites and base model")
    inputs = open_inputs(config, say)
    findings = _checks(config, inputs)
    measured = None
    if full:
        say("training two steps and answering eight prompts")
        finding, measured = smoke_test(config, inputs, serve=True)
        findings.append(finding)
    return findings + _cost(config, inputs, given or KnownSpeeds(), measured)


def check_before_run(
    config: RunConfig, inputs: Inputs, say: Callable[[str], None], runs: Path | None = None
) -> None:
    """What the start of a run, and of a changed run, checks: the whole ladder.

    Training steps and prompts are part of it. `runs` is the folder of the run directories: verdicts
    on known answers that lie in its cache are not asked for again.
    """
    check_budget(config)
    say("checking config, pool, suites, verifiers, adapter recipe")
    _checks(config, inputs, runs)
    smoke_test(config, inputs, serve=False)


def _checks(config: RunConfig, inputs: Inputs, runs: Path | None = None) -> list[Finding]:
    """Everything but trying, in order."""
    return [
        check_pool(config, inputs),
        _contamination(config, inputs),
        *_suites(config, inputs, runs),
        *_lengths(config, inputs),
        _recipe(config),
        _mixture(config, inputs),
        *_influence(config, inputs),
    ]


def check_pool(config: RunConfig, inputs: Inputs) -> Finding:
    """Whether the pool can fill a round with rows that this base can be trained on."""
    quality, repeat = config.limits.min_quality, config.limits.max_repeat
    rows = tokens = 0
    empty = []
    for dataset, stock in sorted(inputs.pool.stock(quality).items()):
        held = sum(bucket.tokens for bucket in stock.values())
        tokens += held
        rows += sum(bucket.rows for bucket in stock.values())
        if not held:
            empty.append(dataset)
    wanted = config.budget.tokens_per_round
    if tokens * repeat < wanted:
        raise UsageError(
            f"pool: {tokens:,} tokens of quality {quality} or better, limits.max_repeat = {repeat},"
            f" cannot fill budget.tokens_per_round = {wanted:,}; lower it or limits.min_quality"
        )
    if empty:
        raise UsageError(
            f"pool: no row of {empty} has quality {quality} or better; lower limits.min_quality, "
            "grade the rows anew (`python -m mosaic pool label`), or build a pool without them"
        )
    _check_tokens(config, inputs)
    served = {dataset for o in config.objectives.values() for dataset in o.datasets}
    general = sorted(set(inputs.pool.datasets) - served)
    named = f"; general data, which no objective names: {', '.join(general)}" if general else ""
    result = f"{rows:,} rows, {tokens:,} tokens after the quality filter{named}"
    return Finding(check="pool", result=result)


def _check_tokens(config: RunConfig, inputs: Inputs) -> None:
    """Raise UsageError if rows are too long, or were counted with another tokenizer."""
    pool, allowed = inputs.pool, config.recipe.max_length
    counted = pool.manifest.get("tokenizer")
    usable = pool.column("quality") >= config.limits.min_quality
    longest = int(pool.column("n_tokens")[usable].max())
    if longest > allowed:
        how = "" if counted else "--model DIR, so that long chats are cut, and "
        raise UsageError(
            f"pool: a row has {longest:,} tokens, methods.sft.max_length is {allowed:,}; raise it, "
            f"or build the pool again with {how}--max-length {allowed}"
        )
    if counted and counted != TokenCounter(Path(config.base_model)).digest:
        raise UsageError(
            "pool: its tokens were counted with another tokenizer or chat template than base_model "
            f"has; build the pool again with --model {config.base_model}"
        )


def all_suites(inputs: Inputs) -> Iterator[Suite]:
    """Every suite of every objective."""
    for roles in inputs.suites.values():
        yield from roles.values()


def _suites(config: RunConfig, inputs: Inputs, runs: Path | None = None) -> list[Finding]:
    control_token = TokenCounter(Path(config.base_model)).control_token
    for suite in all_suites(inputs):
        for prompt in suite.prompts:
            token = control_token([prompt.system or "", *prompt.turns])
            if token:
                raise UsageError(
                    f"suites: {suite.objective}/{suite.role}: the prompt {prompt.id!r} holds "
                    f"{token}, a control token of base_model, which would end a turn or begin "
                    "another's; write it otherwise"
                )
    return check_judge(config, inputs.objectives, inputs.suites, runs)


def _lengths(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Raise UsageError if a conversation of a suite does not fit into vLLM's context.

    Answers count with their greatest length.
    """
    if config.generator.kind != "vllm":
        return []
    base, answer = Path(config.base_model), config.generator.max_new_tokens
    limit = config.generator.max_model_len or model_length(base)
    if limit is None:
        return []
    prompts: list[Prompt] = []
    for suite in all_suites(inputs):
        prompts += suite.prompts
    needs = chat_lengths(load_tokenizer(base), prompts, answer)
    need, prompt = max(zip(needs, prompts, strict=True), key=lambda pair: pair[0])
    if need > limit:
        given = config.generator.max_model_len is not None
        allowed = "" if given else " (the base's max_position_embeddings, since it is null)"
        too_long = sum(n > limit for n in needs)
        raise UsageError(
            f"generator.max_model_len: {limit:,}{allowed} is too short for {too_long:,} of "
            f"{len(prompts):,} prompts; the longest, {prompt.id}, needs {need:,} tokens with "
            f"{len(prompt.turns)} answers of generator.max_new_tokens = {answer}; raise it, lower "
            "generator.max_new_tokens, or take the prompts out of the suites"
        )
    result = f"longest prompt {prompt.id}: {need:,} of {limit:,} tokens with its answers"
    return [Finding(check="context", result=result)]


def _recipe(config: RunConfig) -> Finding:
    check_recipe(config)
    rank = check_server(config)
    served = "" if rank is None else f", servable with --max-lora-rank {rank}"
    result = f"LoRA r {config.recipe.lora_r}, chat template trainable{served}"
    return Finding(check="adapter recipe", result=result)


def _mixture(config: RunConfig, inputs: Inputs) -> Finding:
    total = first_training_set(config, inputs).report.total
    if total.rows == 0:
        raise UsageError(
            "budget.tokens_per_round: not one row of the pools' own mixture fits into "
            f"{config.budget.tokens_per_round:,} tokens; raise it"
        )
    result = f"{total.selected:,} of {total.requested:,} tokens in {total.rows:,} rows"
    return Finding(check="dry mixture", result=result)


def _influence(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """How many steering prompts an estimate can read; UsageError if they are too few."""
    tool = build_influence(config, inputs)
    if tool is None:
        return []
    told = []
    for name, made in tool.steering().items():
        told.append(f"{name} {len(made.usable)} of {len(tool.suites[name].prompts)}")
    result = f"steering prompts with reference answers: {', '.join(told)}"
    return [Finding(check="influence", result=result)]


def _cost(
    config: RunConfig, inputs: Inputs, given: KnownSpeeds, measured: KnownSpeeds | None
) -> list[Finding]:
    """What the run takes, from speeds that are given, measured or assumed."""
    base = Path(config.base_model)
    tokenizer = load_tokenizer(base)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    sizes = suite_sizes(inputs.objectives, all_suites(inputs), count)
    known = speeds(config, model_size(base), has_gpu(), given, measured)
    return estimate(config, sizes, known).findings()


def contaminated(config: RunConfig, inputs: Inputs) -> list[SuiteOverlap]:
    """What of each suite stands in the pool."""
    suites: dict[str, dict[str, Sequence[Prompt]]] = {}
    for suite in all_suites(inputs):
        suites.setdefault(suite.objective, {})[suite.role] = suite.prompts
    return contamination(suites, pool_requests(inputs.pool.path))


def refuse_contaminated(config: RunConfig, found: Sequence[SuiteOverlap]) -> None:
    """Raise UsageError if more of a suite stands in the pool than its limit allows."""
    lines = []
    for overlap in found:
        limit = config.contamination.limit(overlap.role)
        if overlap.share > limit:
            first = overlap.hits[0]
            lines.append(
                f"  {overlap.objective} {overlap.role}: {len(overlap.hits)} of {overlap.prompts} "
                f"prompts ({overlap.share:.1%}), at most {limit:.1%}; such as {first.prompt} in "
                f"row {first.row}"
            )
    if lines:
        raise UsageError(
            "contamination: suites stand in the pool word for word:\n" + "\n".join(lines) + "\n"
            "import the pool's rows again with --without SUITE_FOLDER, or raise "
            "contamination.max_share.<role>; "
            "`python -m mosaic pool contamination CONFIG --json` names the rows"
        )


def _contamination(config: RunConfig, inputs: Inputs) -> Finding:
    found = contaminated(config, inputs)
    refuse_contaminated(config, found)
    shares = []
    for role in ROLES:
        worst = max(overlap.share for overlap in found if overlap.role == role)
        shares.append(f"{role} {worst:.1%} (at most {config.contamination.limit(role):.1%})")
    result = f"share of prompts in the pool, worst objective: {', '.join(shares)}"
    return Finding(check="contamination", result=result)
