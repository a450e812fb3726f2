"""What a run takes: tokens trained, generated and judged, calls, and roughly hours, from speeds that are said aloud.

Tokens of training are exact (the budget); everything else is an estimate. Speeds are given on the command line, measured
(training, by `validate --full`), or assumed from the size of the model. Assumptions, all for one device:

* Training a LoRA with gradient checkpointing takes 6 operations per parameter and token; a data-centre GPU sustains 1e14
  of them per second in bfloat16, two CPU cores 2.5e10.
* Generation in batches: 2e13 (GPU) or 5e9 (CPU) divided by parameters, in tokens per second; reading is ten times as fast.
* An answer is half as long as `max_new_tokens` allows.
* A verdict reads 1,200 tokens of instructions and the conversation, writes 200, and takes 4 seconds; `concurrency` of
  them run at once. Instruction following is judged by code.
* A planner that is a model makes 6 calls a round, each reads 8,000 tokens, writes 600, and takes 20 seconds.
* A vLLM server takes 90 seconds to start; with `memory: stop` it starts for every evaluation, at `base_url` never.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from eval.judges.verdicts import BATCH
from mosaic.app.config import RunConfig
from mosaic.core.types.evaluation import Prompt

TRAINING = {"gpu": 1e14 / 6, "cpu": 2.5e10 / 6}
GENERATION = {"gpu": 2e13, "cpu": 5e9}
READING = 10
ANSWER = 0.5
VERDICT = {"read": 1200, "write": 200, "seconds": 4.0}
PLANNING = {"calls": 6, "read": 8000, "write": 600, "seconds": 20.0}
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
    """Speeds in use, and where each is from: `given`, `measured`, `assumed`; None where nothing is known."""

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


@dataclass(frozen=True)
class Estimate:
    """Tokens, calls and hours of a whole run; hours are None where a speed is unknown."""

    data: dict[str, dict[str, Any]]

    def findings(self) -> list[dict[str, Any]]:
        """Rows for `validate`."""
        named = {
            name: {k: v for k, v in part.items() if k != "text"} for name, part in self.data.items()
        }
        return [
            {
                "check": "cost" if name == "run" else f"cost of {name}",
                "result": self.data[name]["text"],
                **part,
            }
            for name, part in named.items()
        ]


def model_size(base: Path) -> int | None:
    """Parameters of a model folder, from the headers of its safetensors files; None where it has none."""
    total = 0
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        total += sum(
            prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
        )
    return total or None


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def loads(
    suites: Mapping[str, Mapping[str, Sequence[Prompt]]], count: Callable[[str], int]
) -> list[Load]:
    """Sizes of suites (objective -> role -> prompts); `count` is tokens of a text."""
    return [
        Load(
            objective,
            role,
            len(prompts),
            sum(len(p.turns) for p in prompts),
            sum(count(text) for p in prompts for text in (*p.turns, p.system or "")),
        )
        for objective, roles in suites.items()
        for role, prompts in roles.items()
    ]


def speeds(
    config: RunConfig, size: int | None, gpu: bool, given: Given, measured: Given | None = None
) -> Speeds:
    """What is given, else measured, else assumed from the size of the model and whether there is a GPU."""
    device = "gpu" if gpu else "cpu"
    judge = config.judge.json_data()
    assumed = Given(
        TRAINING[device] / size if size else None,
        GENERATION[device] / size if size else None,
        judge.get("concurrency", 16) / VERDICT["seconds"],
    )
    found: dict[str, float | None] = {}
    origin: dict[str, str] = {}
    for name in ("training", "generation", "judge"):
        for word, source in (("given", given), ("measured", measured), ("assumed", assumed)):
            value = getattr(source, name, None)
            if value is not None:
                found[name], origin[name] = value, word
                break
    return Speeds(found.get("training"), found.get("generation"), found.get("judge"), origin)


def estimate(config: RunConfig, suites: Sequence[Load], speed: Speeds) -> Estimate:
    """What the run of a config takes, all rounds, calibration and audit included."""
    models = 1 + config.calibration.repeats + config.rounds
    times = {"steering": models, "selection": models, "audit": 2}
    generator, planner = config.generator.json_data(), config.planner.json_data()
    answer = ANSWER * generator["max_new_tokens"]
    written = sum(times[s.role] * s.turns * answer for s in suites)
    read = sum(times[s.role] * s.tokens for s in suites)
    starts = 0
    if generator["kind"] == "vllm" and not generator["base_url"]:
        starts = models + 2 if generator["memory"] == "stop" else 1
    parts: dict[str, dict[str, Any]] = {"training": _training(config, speed)}
    parts["generation"] = _part(
        f"{models} models answer steering and selection, 2 answer audit: {written:,.0f} tokens",
        _over(written + read / READING, speed.generation),
        "tokens/s",
        speed,
        "generation",
        SERVER_START * starts,
        tokens=round(written),
    )
    if config.judge.json_data()["kind"] == "llm":
        parts["judge"] = _judge(config, suites, times, answer, speed)
    if planner["kind"] == "llm":
        calls = config.rounds * min(PLANNING["calls"], planner["max_calls"])
        tokens = calls * (PLANNING["read"] + PLANNING["write"])
        hours = calls * PLANNING["seconds"] / 3600
        most = f"at most {planner['max_calls']} calls and {planner['max_tokens']:,} tokens a round"
        text = f"{calls:,.0f} calls, {tokens:,.0f} tokens, {_hours(hours)} ({most})"
        parts["planner"] = {
            "text": text,
            "hours": hours,
            "calls": round(calls),
            "tokens": round(tokens),
        }
    known = [p["hours"] for p in parts.values()]
    whole = None if None in known else sum(known)
    parts["run"] = {"text": "about " + _hours(whole), "hours": whole}
    return Estimate(parts)


def _training(config: RunConfig, speed: Speeds) -> dict[str, Any]:
    count = config.rounds + config.calibration.repeats
    text = (
        f"{count} trainings of {config.tokens_per_round:,} tokens, {config.tokens_total:,} in all"
    )
    seconds = _over(config.tokens_total, speed.training)
    return _part(text, seconds, "tokens/s", speed, "training", tokens=config.tokens_total)


def _judge(
    config: RunConfig,
    suites: Sequence[Load],
    times: Mapping[str, int],
    answer: float,
    speed: Speeds,
) -> dict[str, Any]:
    judged = [s for s in suites if s.objective != BY_CODE]
    batches = sum(times[s.role] * -(-s.prompts // BATCH) for s in judged)
    gold_checks = config.judge.json_data().get("gold_checks", 0) * batches
    calls = sum(times[s.role] * s.prompts for s in judged) + gold_checks
    talk = sum(times[s.role] * (s.tokens + s.turns * answer) for s in judged)
    read, written = calls * VERDICT["read"] + talk, calls * VERDICT["write"]
    text = f"{calls:,} calls, {read:,.0f} tokens read, {written:,.0f} written"
    tokens = {"calls": calls, "tokens_read": round(read), "tokens_written": round(written)}
    return _part(text, _over(calls, speed.judge), "calls/s", speed, "judge", **tokens)


def _over(amount: float, speed: float | None) -> float | None:
    return None if speed is None else amount / speed


def _part(
    text: str,
    seconds: float | None,
    unit: str,
    speed: Speeds,
    name: str,
    extra: float = 0.0,
    **numbers: int,
) -> dict[str, Any]:
    value = getattr(speed, name)
    if seconds is None:
        return {"text": f"{text}; hours unknown, give --{name}-speed", "hours": None, **numbers}
    hours = (seconds + extra) / 3600
    pace = f"at {value:,.0f} {unit} ({speed.origin[name]})"
    return {"text": f"{text}; {_hours(hours)} {pace}", "hours": hours, "speed": value, **numbers}


def _hours(hours: float | None) -> str:
    if hours is None:
        return "an unknown time"
    if hours >= 1:
        return f"{hours:,.1f} hours"
    minutes = round(60 * hours)
    return f"{minutes} minutes" if minutes > 1 else "a minute"
