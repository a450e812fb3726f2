"""What a run takes: tokens trained, generated and judged, calls, and roughly hours.

Tokens of training are exact (the budget); everything else is an estimate from speeds that are said
aloud. Speeds are given on the command line, measured (training, by `validate --full`), or assumed
from the size of the model. Assumptions, all for one device:

* Training a LoRA with gradient checkpointing takes 6 operations per parameter and token; a
  data-centre GPU sustains 1e14 of them per second in bfloat16, two CPU cores 2.5e10.
* Generation in batches: 2e13 (GPU) or 5e9 (CPU) divided by parameters, in tokens per second;
  reading is ten times as fast.
* An answer is half as long as `max_new_tokens` allows.
* A verdict reads 1,200 tokens of instructions and the conversation, writes 200, and takes 4
  seconds; `concurrency` of them run at once. Instruction following is judged by code.
* A planner that is a model makes 6 calls a round, each reads 8,000 tokens, writes 600, and takes 20
  seconds.
* A vLLM server takes 90 seconds to start; with `memory: stop` it starts for every evaluation, at
  `base_url` never.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypedDict

from agent.planners.base import LlmPlannerConfig
from eval.generators.base import VllmGeneratorConfig
from eval.judges.base import LlmJudgeConfig
from eval.judges.verdicts import BATCH
from mosaic.app.config import RunConfig
from mosaic.core.types.evaluation import Prompt

TRAINING = {"gpu": 1e14 / 6, "cpu": 2.5e10 / 6}
GENERATION = {"gpu": 2e13, "cpu": 5e9}
READING = 10
ANSWER = 0.5
VERDICT_READ, VERDICT_WRITE, VERDICT_SECONDS = 1200, 200, 4.0
VERIFIER_CONCURRENCY = 16  # only said: a verifier's speed is not used
PLANNING_CALLS, PLANNING_SECONDS = 6, 20.0
PLANNING_READ, PLANNING_WRITE = 8000, 600
SERVER_START = 90.0
BY_CODE = "instruction_following"


@dataclass(frozen=True)
class Given:
    """Speeds somebody knows: tokens per second, tokens per second, calls per second."""

    training: float | None = None
    generation: float | None = None
    judge: float | None = None


@dataclass(frozen=True)
class Speeds:
    """Speeds in use, None if nothing is known; `origin` is speed -> given, measured or assumed."""

    training: float | None
    generation: float | None
    judge: float | None
    origin: Mapping[str, str]


@dataclass(frozen=True)
class Load:
    """One suite: prompts, user turns and request tokens in it."""

    objective: str
    role: str
    prompts: int
    turns: int
    tokens: int


class Part(TypedDict, total=False):
    """What one part of a run takes. `text` says it; `hours` is None if a speed is unknown."""

    text: str
    hours: float | None
    speed: float | None
    tokens: int
    calls: int
    tokens_read: int
    tokens_written: int


@dataclass(frozen=True)
class Estimate:
    """What a whole run takes, by part: training, generation, judge, planner, and the run."""

    data: dict[str, Part]

    def findings(self) -> list[dict[str, object]]:
        """Rows for `validate`: the text as the result, the figures beside it."""
        rows = []
        for name, part in self.data.items():
            check = "cost" if name == "run" else f"cost of {name}"
            row: dict[str, object] = {"check": check, "result": part["text"], **part}
            del row["text"]
            rows.append(row)
        return rows


def model_size(base: Path) -> int | None:
    """Parameters of a model folder, from the headers of its safetensors files; None without any.

    A file begins with the length of its header, eight bytes, and the header in JSON
    (github.com/huggingface/safetensors, "Format").
    """
    total = 0
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                total += prod(entry["shape"])
    return total or None


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def loads(
    suites: Mapping[str, Mapping[str, Sequence[Prompt]]], count: Callable[[str], int]
) -> list[Load]:
    """Sizes of suites (objective -> role -> prompts); `count` is tokens of a text."""
    found = []
    for objective, roles in suites.items():
        for role, prompts in roles.items():
            turns = tokens = 0
            for prompt in prompts:
                turns += len(prompt.turns)
                for text in (*prompt.turns, prompt.system or ""):
                    tokens += count(text)
            found.append(Load(objective, role, len(prompts), turns, tokens))
    return found


def speeds(
    config: RunConfig, size: int | None, gpu: bool, given: Given, measured: Given | None = None
) -> Speeds:
    """What is given, else measured, else assumed from the size of the model and the device."""
    device = "gpu" if gpu else "cpu"
    concurrency = VERIFIER_CONCURRENCY
    if isinstance(config.judge, LlmJudgeConfig):
        concurrency = config.judge.concurrency
    assumed = Given(
        TRAINING[device] / size if size else None,
        GENERATION[device] / size if size else None,
        concurrency / VERDICT_SECONDS,
    )
    known = measured or Given()
    origin: dict[str, str] = {}

    def first(name: str, *sources: float | None) -> float | None:
        for word, value in zip(("given", "measured", "assumed"), sources, strict=True):
            if value is not None:
                origin[name] = word
                return value
        return None

    return Speeds(
        first("training", given.training, known.training, assumed.training),
        first("generation", given.generation, known.generation, assumed.generation),
        first("judge", given.judge, known.judge, assumed.judge),
        origin,
    )


def estimate(config: RunConfig, suites: Sequence[Load], speed: Speeds) -> Estimate:
    """What the run of a config takes, all rounds, calibration and audit included."""
    parts = {"training": _training(config, speed), "generation": _generation(config, suites, speed)}
    if isinstance(config.judge, LlmJudgeConfig):
        parts["judge"] = _judge(config, config.judge, suites, speed)
    if isinstance(config.planner, LlmPlannerConfig):
        parts["planner"] = _planner(config.rounds, config.planner)
    whole: float | None = 0.0
    for part in parts.values():
        hours = part["hours"]
        whole = None if whole is None or hours is None else whole + hours
    parts["run"] = {"text": "about " + _hours(whole), "hours": whole}
    return Estimate(parts)


def _models(config: RunConfig) -> int:
    """How many models answer steering and selection: the base, the repeats, one a round."""
    return 1 + config.calibration.repeats + config.rounds


def _times(config: RunConfig) -> dict[str, int]:
    """How often the suites of each role are answered. Audit: by the base and the chosen model."""
    models = _models(config)
    return {"steering": models, "selection": models, "audit": 2}


def _answer(config: RunConfig) -> float:
    """Tokens of one answer."""
    return ANSWER * config.generator.max_new_tokens


def _training(config: RunConfig, speed: Speeds) -> Part:
    count = config.rounds + config.calibration.repeats
    text = (
        f"{count} trainings of {config.tokens_per_round:,} tokens, {config.tokens_total:,} in all"
    )
    part = _timed("training", text, config.tokens_total, speed.training, "tokens/s", speed)
    part["tokens"] = config.tokens_total
    return part


def _generation(config: RunConfig, suites: Sequence[Load], speed: Speeds) -> Part:
    times, answer, models = _times(config), _answer(config), _models(config)
    written = sum(times[s.role] * s.turns * answer for s in suites)
    read = sum(times[s.role] * s.tokens for s in suites)
    starts = 0
    generator = config.generator
    if isinstance(generator, VllmGeneratorConfig) and not generator.base_url:
        starts = models + 2 if generator.memory == "stop" else 1
    text = f"{models} models answer steering and selection, 2 answer audit: {written:,.0f} tokens"
    amount = written + read / READING
    extra = SERVER_START * starts
    part = _timed("generation", text, amount, speed.generation, "tokens/s", speed, extra)
    part["tokens"] = round(written)
    return part


def _judge(config: RunConfig, judge: LlmJudgeConfig, suites: Sequence[Load], speed: Speeds) -> Part:
    times, answer = _times(config), _answer(config)
    calls, talk = 0, 0.0
    for suite in suites:
        if suite.objective == BY_CODE:
            continue
        batches = -(-suite.prompts // BATCH)
        calls += times[suite.role] * (suite.prompts + judge.gold_checks * batches)
        talk += times[suite.role] * (suite.tokens + suite.turns * answer)
    read, written = calls * VERDICT_READ + talk, calls * VERDICT_WRITE
    text = f"{calls:,} calls, {read:,.0f} tokens read, {written:,.0f} written"
    part = _timed("judge", text, calls, speed.judge, "calls/s", speed)
    part["calls"] = calls
    part["tokens_read"] = round(read)
    part["tokens_written"] = round(written)
    return part


def _planner(rounds: int, planner: LlmPlannerConfig) -> Part:
    calls = rounds * min(PLANNING_CALLS, planner.max_calls)
    tokens = calls * (PLANNING_READ + PLANNING_WRITE)
    hours = calls * PLANNING_SECONDS / 3600
    most = f"at most {planner.max_calls} calls and {planner.max_tokens:,} tokens a round"
    text = f"{calls:,.0f} calls, {tokens:,.0f} tokens, {_hours(hours)} ({most})"
    return {"text": text, "hours": hours, "calls": calls, "tokens": tokens}


def _timed(
    name: str,
    text: str,
    amount: float,
    value: float | None,
    unit: str,
    speed: Speeds,
    extra: float = 0.0,
) -> Part:
    """A part with its hours: `amount` of something at a speed, and `extra` seconds."""
    if value is None:
        return {"text": f"{text}; hours unknown, give --{name}-speed", "hours": None}
    hours = (amount / value + extra) / 3600
    pace = f"at {value:,.0f} {unit} ({speed.origin[name]})"
    return {"text": f"{text}; {_hours(hours)} {pace}", "hours": hours, "speed": value}


def _hours(hours: float | None) -> str:
    """Hours in words.

    >>> _hours(1.25), _hours(0.5), _hours(0.001)
    ('1.2 hours', '30 minutes', 'a minute')
    """
    if hours is None:
        return "an unknown time"
    if hours >= 1:
        return f"{hours:,.1f} hours"
    minutes = round(60 * hours)
    return f"{minutes} minutes" if minutes > 1 else "a minute"
