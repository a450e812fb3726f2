"""The fail-fast ladder: everything that can be known before a run costs anything, cheapest first.

A rung is a group of checks that do not depend on each other. All that a rung finds is told at once,
and the next rung is not tried: what follows from a fault is not told as another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.observe import names_only
from agent.planners.base import LlmPlannerConfig
from agent.planners.endpoint import check_endpoint
from eval.chat.client import ChatModel
from eval.suite import Suite
from mosaic.app.base_check import MAX_SHOWN, check_base
from mosaic.app.bases import base_folder
from mosaic.app.config import RunConfig
from mosaic.app.estimate import KnownSpeeds, estimate, has_gpu, model_size, speeds, suite_sizes
from mosaic.app.faults import FaultList
from mosaic.app.judging import check_judge
from mosaic.app.lengths import chat_lengths, model_length
from mosaic.app.practice_check import method_findings, practice_sizes
from mosaic.app.runs import RUNS, check_budget
from mosaic.app.sample_size import check_floors, sample_size
from mosaic.app.scorable import check_scorable, check_valid
from mosaic.app.shapes import Finding
from mosaic.app.smoke import first_training_set, smoke_test
from mosaic.app.telemetry.deliver import check_telemetry
from mosaic.app.training_plan import WARNING, training_findings
from mosaic.app.wiring import (
    Inputs,
    Meters,
    build_influence,
    build_judge,
    check_recipe,
    check_server,
    open_inputs,
)
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import ROLES, Prompt
from training.data.contamination import SuiteOverlap, contamination, pool_requests
from training.models.tokenizer import TokenCounter, load_tokenizer

# What is asked before a run counts against no run's limits.
NOT_COUNTED = Meters()

Check = Callable[[RunConfig, Inputs], Sequence[Finding]]
Show = Callable[[str, Sequence[Finding]], None]
"""Is given findings as soon as they are known, with a title."""


def validate(
    config: RunConfig,
    full: bool,
    say: Callable[[str], None],
    given: KnownSpeeds | None = None,
    show: Show = lambda title, findings: None,
) -> list[Finding]:
    """All checks in order. Raises a UsageError with all faults that do not follow from each other.

    What a run takes is known before any server is asked, and given to `show` then. With `full`
    also two training steps and eight prompts; the cost follows once more, at the speed that was
    measured. `given` are speeds that replace assumed or measured ones.
    """
    faults = FaultList()
    opened: list[Inputs] = []
    with faults.kept():
        check_budget(config)
    with faults.kept():
        check_telemetry(config.telemetry)
    say("opening pool, suites and base model")
    with faults.kept():
        opened.append(open_inputs(config, say))
    checks: list[Finding] = []
    for inputs in opened:
        with faults.kept():
            checks = _checks(config, inputs)
    faults.tell()
    (inputs,) = opened
    given = given or KnownSpeeds()
    show("checks", checks)
    cost = _cost(config, inputs, given, None)
    show("cost", cost)
    asked = _asked(config, inputs, say)
    show("known answers", asked)
    if full:
        say("training two steps and answering eight prompts")
        finding, measured = smoke_test(config, inputs, serve=True, say=say)
        asked.append(finding)
        cost = _cost(config, inputs, given, measured)
        show("measured", [finding, *cost])
    return [*checks, *asked, *cost]


def check_before_run(
    config: RunConfig,
    inputs: Inputs,
    say: Callable[[str], None],
    runs: Path | None = None,
    meters: Meters = NOT_COUNTED,
) -> None:
    """What the start of a run, and of a changed run, checks: the whole ladder.

    Training steps and prompts are part of it. `runs` is the folder of the run directories: verdicts
    on known answers that lie in its cache are not asked for again. `meters` count what judge and
    planner take. Said last is what the run is expected to take, at the speed of these steps.
    """
    check_budget(config)
    check_telemetry(config.telemetry)
    say("checking config, pool, suites, verifiers, adapter recipe")
    for finding in _checks(config, inputs):
        if finding.check == WARNING:
            say(f"warning: {finding.result}")
    _asked(config, inputs, say, runs, meters)
    _, measured = smoke_test(config, inputs, serve=False, runs=runs or RUNS, say=say)
    *_, whole = _cost(config, inputs, KnownSpeeds(), measured)
    say(f"the whole run is expected to take {whole.result}")


def _checks(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Everything that asks no server and trains nothing, in order; all faults at once.

    What reads the base is left out where the base has a fault, a mixture also where the pool has.
    """
    faults = FaultList()
    found: list[Finding] = []

    def sound(*checks: Check) -> bool:
        """Whether checks found no fault. Each is only asked if the one before found none."""
        before = len(faults.found)
        with faults.kept():
            for check in checks:
                found.extend(check(config, inputs))
        return len(faults.found) == before

    base = sound(check_base_of)
    pool = sound(_pool)
    sound(_contamination)
    sound(_suites)
    if base:
        sound(_forged)
        counted = sound(_counted)
        sound(_lengths)
        trainable = sound(_recipe)
        if pool and counted:
            sound(_mixture, *([training_findings] if trainable else []))
        sound(_influence)
        sound(method_findings)
    faults.tell()
    return found


def check_base_of(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Whether base and chat template can be trained, and render every prompt of the suites."""
    prompts = []
    for suite in (*all_suites(inputs), *inputs.practice.values()):
        if inputs.all_objectives[suite.objective].evidence == "likelihood":
            continue  # its texts are read as they stand
        where = f"{suite.objective}/{suite.role}"
        prompts += [(where, prompt) for prompt in suite.prompts]
    return check_base(base_folder(config.base_model), config.template, prompts)


def _asked(
    config: RunConfig,
    inputs: Inputs,
    say: Callable[[str], None],
    runs: Path | None = None,
    meters: Meters = NOT_COUNTED,
) -> list[Finding]:
    """What judge and planner answer, where they are models; known answers that code checks first."""
    faults = FaultList()
    findings: list[Finding] = []
    if config.judge.kind == "llm":
        say("asking the judge about known answers")
    with faults.kept():
        objectives, suites = inputs.all_objectives, inputs.all_suites
        findings += check_judge(config, objectives, suites, runs, meters.judge)
    if isinstance(config.planner, LlmPlannerConfig):
        say("asking the planner's endpoint")
        seen = names_only(config.settings(), inputs.pool)
        chat = ChatModel(config.planner.chat, meter=meters.planner)
        with faults.kept():
            result = check_endpoint(config.planner, seen, chat)
            findings.append(Finding(check="planner", result=result))
    faults.tell()
    return findings


def _pool(config: RunConfig, inputs: Inputs) -> list[Finding]:
    return [check_pool(config, inputs)]


def check_pool(config: RunConfig, inputs: Inputs) -> Finding:
    """Whether the pool can fill a round. Raises UsageError with all that it lacks."""
    faults = FaultList()
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
        text = (
            f"pool: {tokens:,} tokens of quality {quality} or better, limits.max_repeat = {repeat},"
            f" cannot fill budget.tokens_per_round = {wanted:,}; lower it or limits.min_quality"
        )
        faults.add(UsageError(text))
    if empty:
        text = (
            f"pool: no row of {empty} has quality {quality} or better; lower limits.min_quality, "
            "grade the rows anew (`python -m mosaic pool label`), or build a pool without them"
        )
        faults.add(UsageError(text))
    faults.tell()
    served = {dataset for o in config.objectives.values() for dataset in o.datasets}
    general = sorted(set(inputs.pool.datasets) - served)
    named = f"; general data, which no objective names: {', '.join(general)}" if general else ""
    result = f"{rows:,} rows, {tokens:,} tokens after the quality filter{named}"
    return Finding(check="pool", result=result)


def _counted(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Raise UsageError if rows are too long, or were counted with another tokenizer."""
    faults = FaultList()
    pool, allowed = inputs.pool, config.recipe.max_length
    counted = pool.manifest.get("tokenizer")
    longest = pool.longest(config.limits.min_quality)
    if longest > allowed:
        how = "" if counted else "--model DIR, so that long chats are cut, and "
        text = (
            f"pool: a row has {longest:,} tokens, methods.sft.max_length is {allowed:,}; raise it, "
            f"or build the pool again with {how}--max-length {allowed}"
        )
        faults.add(UsageError(text))
    counter = TokenCounter(base_folder(config.base_model), config.template)
    if counted and counted != counter.digest:
        text = (
            "pool: its tokens were counted with another tokenizer or chat template than base_model "
            f"has; build the pool again with {_counted_with(config)}"
        )
        faults.add(UsageError(text))
    faults.tell()
    return []


def _counted_with(config: RunConfig) -> str:
    """The options with which `pool build` counts as this config does."""
    options = f"--model {config.base_model}"
    if config.chat_template:
        options += f" --chat-template {config.chat_template}"
    return options


def all_suites(inputs: Inputs) -> Iterator[Suite]:
    """Every suite of every objective, and every independent one."""
    for roles in inputs.all_suites.values():
        yield from roles.values()


def _suites(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Raise UsageError with all that suites lack for what the config asks of them."""
    judge = build_judge(config)
    kind, objectives = config.judge.kind, config.settings().objectives
    traded = [name for name, objective in config.objectives.items() if objective.datasets]
    faults = FaultList()
    found: list[Finding] = []
    with faults.kept():
        check_floors(objectives, inputs.suites)
    with faults.kept():
        found.append(check_scorable(kind, judge, inputs.all_objectives, inputs.all_suites))
    with faults.kept():
        found.append(check_valid(traded, inputs.suites))
    faults.tell()
    return [*found, sample_size(objectives, inputs.suites)]


def _forged(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Raise UsageError with the prompts that hold a control token of the base."""
    control_token = TokenCounter(base_folder(config.base_model), config.template).control_token
    forged = []
    for suite in [*all_suites(inputs), *inputs.practice.values()]:
        for prompt in suite.prompts:
            token = control_token([prompt.system or "", *prompt.turns])
            if token:
                forged.append(
                    f"{suite.objective}/{suite.role}: the prompt {prompt.id!r} holds {token}"
                )
    if forged:
        shown = "\n  ".join(forged[:MAX_SHOWN])
        if len(forged) > MAX_SHOWN:
            shown += f"\n  and {len(forged) - MAX_SHOWN:,} more"
        raise UsageError(
            "suites: a control token of base_model in a prompt would end a turn or begin another's; "
            f"write it otherwise:\n  {shown}"
        )
    return []


def _lengths(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Raise UsageError if a conversation of a suite does not fit into vLLM's context.

    Answers count with their greatest length.
    """
    if config.generator.kind != "vllm":
        return []
    base, answer = base_folder(config.base_model), config.generator.max_new_tokens
    limit = config.generator.max_model_len or model_length(base)
    if limit is None:
        return []
    prompts: list[Prompt] = []
    for suite in [*all_suites(inputs), *(inputs.practice.values() if config.later_recipes else ())]:
        prompts += suite.prompts
    needs = chat_lengths(load_tokenizer(base, config.template), prompts, answer)
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


def _recipe(config: RunConfig, inputs: Inputs) -> list[Finding]:
    check_recipe(config)
    rank = check_server(config)
    served = "" if rank is None else f", servable with --max-lora-rank {rank}"
    result = f"LoRA r {config.recipe.lora_r}, chat template trainable{served}"
    return [Finding(check="adapter recipe", result=result)]


def _mixture(config: RunConfig, inputs: Inputs) -> list[Finding]:
    total = first_training_set(config, inputs).report.total
    if total.rows == 0:
        raise UsageError(
            "budget.tokens_per_round: not one row of the pools' own mixture fits into "
            f"{config.budget.tokens_per_round:,} tokens; raise it"
        )
    result = (
        f"{total.selected:,} tokens in {total.rows:,} rows; the buckets' shares, rounded down, are "
        f"{total.requested:,}"
    )
    return [Finding(check="dry mixture", result=result)]


def _influence(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """How many steering prompts bring the references that an estimate reads."""
    tool = build_influence(config, inputs)
    if tool is None:
        return []
    told, without = [], []
    for name, made in tool.contrasts(tool.given).items():
        prompts = tool.suites[name].prompts
        told.append(f"{name} {len(made.usable)} of {len(prompts)}")
        if not all(prompt.good and prompt.bad for prompt in prompts):
            without.append(name)
    result = f"steering prompts with reference answers that differ: {', '.join(told)}"
    if without:
        result += (
            f"; where {', '.join(without)} has none, the best and the worst answer of the base and "
            "the calibration are taken"
        )
    return [Finding(check="influence", result=result)]


def _cost(
    config: RunConfig, inputs: Inputs, given: KnownSpeeds, measured: KnownSpeeds | None
) -> list[Finding]:
    """What the run takes, from speeds that are given, measured or assumed."""
    base = base_folder(config.base_model)
    tokenizer = load_tokenizer(base, config.template)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    sizes = suite_sizes(inputs.all_objectives, all_suites(inputs), count)
    known = speeds(config, model_size(base), has_gpu(), given, measured)
    tool = build_influence(config, inputs)
    rows = tool.sample.budget if tool else 0
    practice = practice_sizes(config, inputs, count)
    return estimate(config, sizes, known, rows, practice).findings()


def contaminated(config: RunConfig, inputs: Inputs) -> list[SuiteOverlap]:
    """What of each suite stands in the pool, or in what may be practised on: both are trained.

    Of an independent suite also what stands in the suites that decisions are made on.
    """
    suites: dict[str, dict[str, Sequence[Prompt]]] = {}
    for suite in all_suites(inputs):
        suites.setdefault(suite.objective, {})[suite.role] = suite.prompts
    practice = [prompt for suite in inputs.practice.values() for prompt in suite.prompts]
    asked = [(prompt.id, prompt.turns) for prompt in practice]
    found = contamination(suites, itertools.chain(pool_requests(inputs.pool.path), asked))
    tests: dict[str, dict[str, Sequence[Prompt]]] = {}
    for test in inputs.independent.values():
        tests.setdefault(test.suite.objective, {})[test.suite.role] = test.suite.prompts
    if not tests:
        return found
    rows = []
    for roles in inputs.suites.values():
        for suite in roles.values():
            where = f"{suite.objective} {suite.role}"
            rows += [(f"{where} {prompt.id}", prompt.turns) for prompt in suite.prompts]
    in_suites = {(one.objective, one.role): one for one in contamination(tests, rows)}
    return [one.joined(in_suites.get((one.objective, one.role))) for one in found]


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
        where = advice = ""
        if config.audit_also:
            where = " or in other suites"
            advice = (
                "take prompts of independent suites that stand in other suites out of one of both; "
            )
        raise UsageError(
            f"contamination: suites stand in the pool{where} word for word:\n"
            + "\n".join(lines)
            + f"\n{advice}"
            "import the pool's rows again with --without SUITE_FOLDER, or raise "
            "contamination.max_share.<role>; "
            "`python -m mosaic pool contamination CONFIG --json` names the rows"
        )


def _contamination(config: RunConfig, inputs: Inputs) -> list[Finding]:
    found = contaminated(config, inputs)
    refuse_contaminated(config, found)
    shares = []
    for role in (*ROLES, *inputs.independent):
        worst = max(overlap.share for overlap in found if overlap.role == role)
        shares.append(f"{role} {worst:.1%} (at most {config.contamination.limit(role):.1%})")
    result = f"share of prompts in the pool, worst objective: {', '.join(shares)}"
    return [Finding(check="contamination", result=result)]
