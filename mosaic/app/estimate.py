"""What a run takes: tokens trained, generated and judged, calls, and roughly hours.

Tokens of training are exact (the budget); everything else is an estimate, from speeds that are said
aloud. Speeds are given on the command line, measured (training, by `validate --full`), or assumed
from the size of the model. Assumptions, all for one device:

* Training a LoRA with gradient checkpointing takes 6 operations per parameter and token. A
  data-centre GPU sustains 1e14 of them per second in bfloat16, two CPU cores 2.5e10.
* Generation in batches: 2e13 (GPU) or 5e9 (CPU) divided by parameters, in tokens per second.
  Reading is ten times as fast.
* An answer is half as long as `max_new_tokens` allows.
* A verdict reads 1,200 tokens of instructions and the conversation, writes 200, and takes 4
  seconds; `concurrency` of them run at once. What code checks takes no call.
* Money is what these tokens cost by the `prices` of judge and planner.
* A planner that is a model makes 6 calls a round. Each reads 8,000 tokens, writes 600, and takes 20
  seconds.
* An estimate of influence passes three times over its rows and twice over the steering prompts, a
  pass as fast as training. There is one per round, and one more for the second calibration repeat.
* A method that draws answers to practice prompts goes on until its tokens are used; half of the
  prompts give a pair. What is drawn is read at the speed of generation, and paid by the budget.
* A vLLM server takes 90 seconds to start. With `memory: stop` it starts for every evaluation, at
  `base_url` never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from agent.planners.base import LlmPlannerConfig
from agent.state import INFLUENCE_REPEATS
from eval.chat.metering import Tokens
from eval.chat.prices import MILLION, Prices
from eval.generators.base import VllmGeneratorConfig
from eval.judges.base import LlmJudgeConfig
from eval.judges.verdicts import BATCH
from eval.model_weights import model_shapes
from eval.objectives.base import Objective, by_code
from eval.suite import Suite
from mosaic.app.config import RunConfig
from mosaic.app.shapes import Finding
from mosaic.core.types.recipes import RlRecipe
from mosaic.core.types.runs import DpoRecipe
from tools.effects.wishes import DRAWN
from training.influence.estimate import PROMPT_PASSES, ROW_PASSES

TRAINING = {"gpu": 1e14 / 6, "cpu": 2.5e10 / 6}
GENERATION = {"gpu": 2e13, "cpu": 5e9}
READING = 10
ANSWER = 0.5
SERVER_START = 90.0
# The base, the static mixture and the chosen round.
AUDITED = 3
# Levels that an adapter is asked for at audit beside the one of its wish, at most.
OTHER_LEVELS = 4
# Tokens and seconds of one verdict; verdicts at once if the judge does not say.
VERDICT_READ, VERDICT_WRITTEN, VERDICT_SECONDS, VERDICTS_AT_ONCE = 1200, 200, 4.0, 16
# Share of practice prompts that give a pair.
PAIRED = 0.5
# Calls of a planning round; tokens and seconds of one.
PLAN_CALLS, PLAN_READ, PLAN_WRITTEN, PLAN_SECONDS = 6, 8000, 600, 20.0


@dataclass(frozen=True)
class KnownSpeeds:
    """Speeds somebody knows: tokens trained and generated per second, judge calls per second."""

    training: float | None = None
    generation: float | None = None
    judge: float | None = None


@dataclass(frozen=True)
class Speed:
    """A speed in use, and whether it is `given`, `measured` or `assumed`."""

    value: float
    origin: str


Speeds = Mapping[str, Speed]
"""Speeds by what they are of: training, generation, judge. Unknown ones are left out."""


@dataclass(frozen=True)
class SuiteSize:
    """One suite: prompts, turns to answer and tokens to read in it, and whether a judge is asked."""

    role: str
    prompts: int
    turns: int
    tokens: int
    judged: bool


@dataclass(frozen=True)
class PracticeSize:
    """A practice prompt: turns to answer, tokens to read, and objectives that ask a judge."""

    turns: int
    tokens: int
    judged: int


@dataclass(frozen=True)
class Practised:
    """What the methods that draw answers take over the whole run."""

    prompts: float = 0.0
    answers: float = 0.0
    drawn: float = 0.0
    read: float = 0.0
    judged: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run takes, by part; the part `run` is the whole."""

    parts: Mapping[str, Finding]

    def findings(self) -> list[Finding]:
        """Lines for `validate`."""
        return list(self.parts.values())


def model_size(base: Path) -> int | None:
    """Parameters of a model folder, from the headers of its safetensors files.

    None if it has none.
    """
    return sum(prod(shape) for shape in model_shapes(base).values()) or None


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def suite_sizes(
    objectives: Mapping[str, Objective], suites: Iterable[Suite], count: Callable[[str], int]
) -> list[SuiteSize]:
    """Sizes of suites; `count` gives the tokens of a text."""
    sizes = []
    for suite in suites:
        turns = tokens = 0
        objective = objectives[suite.objective]
        for prompt in suite.prompts:
            if objective.evidence == "answers":  # other texts are only read
                turns += len(prompt.turns)
            tokens += count(prompt.system or "")
            tokens += sum(count(text) for text in prompt.turns)
        judged = not by_code(objective)
        sizes.append(SuiteSize(suite.role, len(suite.prompts), turns, tokens, judged))
    return sizes


def speeds(
    config: RunConfig,
    size: int | None,
    gpu: bool,
    given: KnownSpeeds,
    measured: KnownSpeeds | None = None,
) -> Speeds:
    """What is given, or else measured, or else assumed from the model's size and the device."""
    device = "gpu" if gpu else "cpu"
    at_once = VERDICTS_AT_ONCE
    if isinstance(config.judge, LlmJudgeConfig):
        at_once = config.judge.concurrency
    assumed = KnownSpeeds(
        TRAINING[device] / size if size else None,
        GENERATION[device] / size if size else None,
        at_once / VERDICT_SECONDS,
    )
    sources = {"given": given, "measured": measured or KnownSpeeds(), "assumed": assumed}
    known: dict[str, Speed] = {}
    for name in ("training", "generation", "judge"):
        for origin, source in sources.items():
            value = getattr(source, name)
            if value is not None:
                known[name] = Speed(value, origin)
                break
    return known


def practised(config: RunConfig, prompts: Sequence[PracticeSize]) -> Practised:
    """What is drawn and judged for practice by plans of the config's own shares, all trials together."""
    total = Practised()
    trials = config.trained_trials
    for method, recipe in config.later_recipes.items():
        stage = config.default_shares[method] * config.tokens_per_round
        if not prompts or not stage or not isinstance(recipe, DpoRecipe | RlRecipe):
            continue
        turns = sum(p.turns for p in prompts) / len(prompts)
        tokens = sum(p.tokens for p in prompts) / len(prompts)
        answer = turns * _answer_tokens(config)
        if isinstance(recipe, RlRecipe):
            total = _with_policy(total, recipe, trials * stage, tokens)
            stage *= recipe.judged_share * (DRAWN if recipe.graded else 1.0)
            learned = recipe.reward_model.epochs * recipe.n * (tokens + answer)
        else:
            learned = PAIRED * 2 * recipe.epochs * (tokens + answer)
        each = recipe.n * answer + learned
        asked = trials * min(len(prompts), stage / each)
        answers = asked * recipe.n
        judged = answers * sum(p.judged for p in prompts) / len(prompts)
        total = Practised(
            total.prompts + asked,
            total.answers + answers,
            total.drawn + answers * answer,
            total.read + asked * tokens,
            total.judged + judged,
        )
    return total


def _with_policy(total: Practised, recipe: RlRecipe, stage: float, tokens: float) -> Practised:
    """With the answers that a policy draws while it is trained: nobody judges them."""
    answer = ANSWER * recipe.max_new_tokens
    left = stage * (1 - recipe.judged_share - recipe.warm_share)
    answers = left / (tokens + 2 * recipe.max_new_tokens)
    return replace(
        total,
        answers=total.answers + answers,
        drawn=total.drawn + answers * answer,
        read=total.read + answers * tokens,
    )


def estimate(
    config: RunConfig,
    suites: Sequence[SuiteSize],
    known: Speeds,
    influence_rows: int = 0,
    practice: Sequence[PracticeSize] = (),
) -> Estimate:
    """What the run of a config takes, all rounds, calibration and audit included.

    `influence_rows` are the tokens of the rows that influence is estimated from.
    """
    drawn = practised(config, practice)
    parts = {
        "training": _training(config, known, drawn),
        "generation": _generation(config, suites, known),
    }
    if config.later_recipes:
        parts["practice"] = _practice(drawn, known)
    if config.influence is not None:
        parts["influence"] = _influence(config, suites, known, influence_rows)
    if isinstance(config.judge, LlmJudgeConfig):
        parts["judge"] = _judge(config, config.judge, suites, known, drawn)
    if isinstance(config.planner, LlmPlannerConfig):
        parts["planner"] = _planner(config, config.planner)
    whole: float | None = 0.0
    for part in parts.values():
        whole = None if whole is None or part.hours is None else whole + part.hours
    parts["run"] = _whole(config, parts, whole)
    return Estimate(parts)


def _whole(config: RunConfig, parts: Mapping[str, Finding], hours: float | None) -> Finding:
    """The line of the whole run: hours, and money if a price is known."""
    text = "about " + _hours(hours)
    priced = [part.money for part in parts.values() if part.money is not None]
    if not priced:
        return Finding(check="cost", result=text, hours=hours)
    money, limit = round(sum(priced), 6), config.budget.money
    text += f", and about {money:,.2f} in money"
    if limit is not None:
        enough = "within" if money <= limit else "MORE THAN"
        text += f", {enough} budget.money = {limit:g}"
    return Finding(check="cost", result=text, hours=hours, money=money)


def _models(config: RunConfig) -> int:
    """Models that are evaluated on steering and selection: base, calibration, rounds, experts."""
    return 1 + config.trained_trials + _experts(config)


def _experts(config: RunConfig) -> int:
    """Experts that looks are added up of."""
    summed = config.settings().summed
    return summed if summed > 1 else 0


def _looks(config: RunConfig) -> int:
    """Looks before all rounds, which are evaluated on steering alone."""
    return config.rounds * config.fidelity.looks if config.fidelity else 0


def _looks_text(config: RunConfig) -> str:
    settings = config.settings()
    if _experts(config):
        each = settings.cost_of_experts // _experts(config)
        return (
            f"{_experts(config)} experts of {each:,}, of which {_looks(config)} looks are added up"
        )
    return f"{_looks(config)} looks of {settings.cost_of_look:,}"


def _times(config: RunConfig, suite: SuiteSize) -> int:
    """How often a suite is answered: audit and independent ones by base, static and chosen, others by all.

    An adapter that was trained for levels answers audit once more for each other level.
    Steering also between the methods of a trial, if the config asks for it.
    """
    if suite.role not in ("steering", "selection"):
        levels = suite.role == "audit" and config.default_shares.get("rl")
        return AUDITED + (OTHER_LEVELS if levels else 0)
    between = 0
    if config.evaluate_stages and suite.role == "steering":
        methods = sum(share > 0 for share in config.default_shares.values())
        between = max(0, methods - 1) * (_models(config) - 1)
    looks = _looks(config) if suite.role == "steering" else 0
    return _models(config) + between + looks


def _answer_tokens(config: RunConfig) -> float:
    return ANSWER * config.generator.max_new_tokens


def _training(config: RunConfig, known: Speeds, drawn: Practised) -> Finding:
    count = config.trained_trials
    text = f"{count} trainings of {config.tokens_per_round:,} tokens"
    if config.fidelity is not None:
        text += f"; {_looks_text(config)}"
    text += f", {config.tokens_total:,} in all"
    pace = _Pace("training", "tokens/s", known.get("training"), "--training-speed")
    if drawn.drawn:
        text += f", of which about {drawn.drawn:,.0f} are drawn as answers"
    return pace.part(text, config.tokens_total - drawn.drawn, tokens=config.tokens_total)


def _practice(drawn: Practised, known: Speeds) -> Finding:
    """Answers to practice prompts; a plan may give their methods another share."""
    text = f"about {drawn.answers:,.0f} answers to {drawn.prompts:,.0f} practice prompts"
    pace = _Pace("practice", "tokens/s", known.get("generation"), "--generation-speed")
    return pace.part(text, drawn.drawn + drawn.read / READING, tokens=round(drawn.drawn))


def _generation(config: RunConfig, suites: Sequence[SuiteSize], known: Speeds) -> Finding:
    models = _models(config)
    written = read = 0.0
    for suite in suites:
        times = _times(config, suite)
        written += times * suite.turns * _answer_tokens(config)
        read += times * suite.tokens
    starts = 0
    generator = config.generator
    if isinstance(generator, VllmGeneratorConfig) and not generator.base_url:
        starts = models + _looks(config) + AUDITED if generator.memory == "stop" else 1
    looks = f"{_looks(config)} looks answer steering, " if _looks(config) else ""
    tests = " and independent suites" if config.audit_also else ""
    text = (
        f"{models} models answer steering and selection, {looks}{AUDITED} answer audit{tests}: "
        f"{written:,.0f} tokens"
    )
    pace = _Pace("generation", "tokens/s", known.get("generation"), "--generation-speed")
    amount = written + read / READING
    return pace.part(text, amount, SERVER_START * starts, tokens=round(written))


def _influence(config: RunConfig, suites: Sequence[SuiteSize], known: Speeds, rows: int) -> Finding:
    """Gradients for the influence of buckets; the budget of training tokens does not pay for them."""
    steering = sum(suite.tokens for suite in suites if suite.role == "steering")
    each = ROW_PASSES * rows + PROMPT_PASSES * steering
    around_first = min(config.calibration.repeats, INFLUENCE_REPEATS)
    count = around_first + config.rounds - 1
    text = f"{count} estimates of about {each:,} tokens, none of them from the budget"
    pace = _Pace("influence", "tokens/s", known.get("training"), "--training-speed")
    return pace.part(text, count * each, tokens=count * each)


def _judge(
    config: RunConfig,
    judge: LlmJudgeConfig,
    suites: Sequence[SuiteSize],
    known: Speeds,
    drawn: Practised,
) -> Finding:
    calls = round(drawn.judged)
    talk = drawn.judged * (drawn.drawn + drawn.read) / max(1.0, drawn.answers)
    for suite in suites:
        if not suite.judged:
            continue
        times = _times(config, suite)
        batches = -(-suite.prompts // BATCH)
        calls += times * (suite.prompts + judge.gold_checks * batches)
        talk += times * (suite.tokens + suite.turns * _answer_tokens(config))
    read, written = calls * VERDICT_READ + talk, calls * VERDICT_WRITTEN
    text = f"{calls:,} calls, {read:,.0f} tokens read, {written:,.0f} written"
    text += _limit_text("judge_tokens", read + written, config.budget.judge_tokens)
    tokens = Tokens(round(read), round(written))
    pace = _Pace("judge", "calls/s", known.get("judge"), "--judge-speed")
    found = pace.part(
        text, calls, calls=calls, tokens_read=round(read), tokens_written=round(written)
    )
    return _priced(found, judge.prices, tokens)


def _planner(config: RunConfig, planner: LlmPlannerConfig) -> Finding:
    # One more call hands in each further plan of a round.
    calls = config.rounds * min(PLAN_CALLS + config.candidates - 1, planner.max_calls)
    tokens = calls * (PLAN_READ + PLAN_WRITTEN)
    hours = calls * PLAN_SECONDS / 3600
    most = f"at most {planner.max_calls} calls and {planner.max_tokens:,} tokens a round"
    text = f"{calls:,.0f} calls, {tokens:,.0f} tokens, {_hours(hours)} ({most})"
    text += _limit_text("planner_tokens", tokens, config.budget.planner_tokens)
    found = Finding(
        check="cost of planner", result=text, hours=hours, calls=round(calls), tokens=round(tokens)
    )
    return _priced(found, planner.prices, Tokens(calls * PLAN_READ, calls * PLAN_WRITTEN))


def _limit_text(name: str, tokens: float, limit: int | None) -> str:
    """How an estimate stands to a limit on tokens, "" if there is none."""
    if limit is None:
        return ""
    enough = "within" if tokens <= limit else "MORE THAN"
    return f"; {enough} budget.{name} = {limit:,}"


def _priced(found: Finding, prices: Prices | None, tokens: Tokens) -> Finding:
    """A line with what its tokens cost, if the prices are known."""
    if prices is None:
        return found
    money = prices.cost(tokens) / MILLION
    result = f"{found.result}; about {money:,.2f} in money"
    return Finding.model_validate({**found.json_data(), "result": result, "money": money})


@dataclass(frozen=True)
class _Pace:
    """How fast one part goes, if that is known; `flag` gives its speed on the command line."""

    name: str
    unit: str
    speed: Speed | None
    flag: str

    def part(self, text: str, amount: float, extra: float = 0.0, **numbers: int) -> Finding:
        """The line of this part: `amount` at its speed, and `extra` seconds."""
        check = f"cost of {self.name}"
        if self.speed is None:
            unknown = f"{text}; hours unknown, give {self.flag}"
            fields = {"check": check, "result": unknown, "hours": None}
            return Finding.model_validate({**fields, **numbers})
        hours = (amount / self.speed.value + extra) / 3600
        pace = f"at {self.speed.value:,.0f} {self.unit} ({self.speed.origin})"
        result = f"{text}; {_hours(hours)} {pace}"
        known = {"check": check, "result": result, "hours": hours, "speed": self.speed.value}
        return Finding.model_validate({**known, **numbers})


def _hours(hours: float | None) -> str:
    if hours is None:
        return "an unknown time"
    if hours >= 1:
        return f"{hours:,.1f} hours"
    minutes = round(60 * hours)
    return f"{minutes} minutes" if minutes > 1 else "a minute"
