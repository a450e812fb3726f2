"""Generation by a real vLLM: a run through one server, and conversations in flight. Needs the `vllm` command.

On CPU: `make .venv-vllm/.installed`, then `.venv-vllm/bin/python -m benchmarks vllm_rounds`.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.figures import figure
from eval.generators.base import TransformersGeneratorConfig, VllmGeneratorConfig
from eval.generators.conversations import Ask, Chat, Turn, replay
from eval.generators.draws import AnswerId
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm import VllmGenerator
from eval.generators.vllm_api import generation_settings
from eval.generators.vllm_session import Session
from eval.judges.verifier import VerifierJudge
from eval.scoring import judge_and_score
from eval.statistics import paired_change
from mosaic.app.config import RunConfig, load_config
from mosaic.app.views.report_data import report_data
from mosaic.app.wiring import Inputs, open_inputs
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Prompt, Response, Scored
from mosaic.core.types.runs import GREEDY

NEW_TOKENS = 48
DTYPE = "float32"  # the lab trains in it; in bfloat16 merging an adapter rounds differently from applying it
MAX_TURNS = 8
# Without it vLLM's CPU build takes a share of all memory for its cache, more than a busy machine has free.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


def vllm_rounds(quick: bool) -> list[dict[str, Any]]:
    """A lab run whose answers come from vLLM; its adapters again by transformers; one server against one per round."""
    config = load_config("lab")
    inputs = open_inputs(config)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        rounds = 2 if quick else 5
        settings = {
            **{"generator.kind": "vllm", "generator.memory": "share", "generator.dtype": DTYPE},
            **{
                "generator.max_new_tokens": NEW_TOKENS,
                "rounds": rounds,
                "calibration.repeats": 1 if quick else 3,
            },
        }
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "mosaic", "run", "lab", "--run-dir", str(run), *sets],
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - started
        if done.returncode:
            raise SystemExit(f"the run failed ({done.returncode}): {done.stderr[-2000:]}")
        report = report_data(run)
        starts = done.stderr.count("vLLM: starting the server")
        rows = [
            figure(f"{rounds}-round run of the laboratory on vLLM", seconds / 60, "minutes"),
            figure(
                f"rounds measured of {rounds}",
                sum(1 for r in report["rounds"] if r["plan"]),
                "",
                at_least=rounds,
            ),
            figure("server starts in it, memory: share", starts, "", at_most=1),
        ]
        adapters = [Store(run).path(r["adapter"]) for r in report["rounds"] if r["adapter"]]
        rows += _side_by_side(config, inputs, adapters, Path(folder), 4 if quick else 1)
    return rows


def _side_by_side(
    config: RunConfig, inputs: Inputs, adapters: list[Path], folder: Path, every: int
) -> list[dict[str, Any]]:
    """The same evaluations by one server, by one server each, and by transformers."""
    base = Path(config.base_model)
    suites = {o: roles["selection"].prompts[::every] for o, roles in inputs.suites.items()}
    prompts = [p for each in suites.values() for p in each]
    seconds: dict[str, float] = {}
    answers: dict[str, list[list[Response]]] = {}
    memories: tuple[Literal["share", "stop"], ...] = ("share", "stop")
    for memory in memories:
        settings = VllmGeneratorConfig(memory=memory, dtype=DTYPE, max_new_tokens=NEW_TOKENS)
        vllm = VllmGenerator(base, settings, config.methods.sft.lora_r, folder / memory)
        started = time.monotonic()
        answers[memory] = []
        for adapter in adapters:
            answers[memory].append(vllm.generate(prompts, adapter))
            vllm.release()
        vllm.close()
        seconds[memory] = time.monotonic() - started
    plain = TransformersGenerator(
        base, TransformersGeneratorConfig(dtype=DTYPE, max_new_tokens=NEW_TOKENS)
    )
    expected = [plain.generate(prompts, adapter) for adapter in adapters]
    same = [
        a == b
        for ours, theirs in zip(answers["share"], expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.answers, other.answers, strict=True)
    ]
    rows = [
        figure(
            f"same greedy answers as transformers, of {len(same)}",
            sum(same) / len(same),
            "share",
            at_least=0.95,
        )
    ]
    for objective in inputs.objectives:
        changes = [
            _paired(inputs, objective, suites[objective], ours, theirs)
            for ours, theirs in zip(answers["share"], expected, strict=True)
        ]
        worst = max(changes, key=lambda c: abs(c[0]))
        rows.append(
            figure(f"{objective}: largest difference of a selection mean", worst[0], "of 1-5")
        )
        rows.append(
            figure(
                f"{objective}: least p-value of a paired difference",
                min(c[1] for c in changes),
                "",
                at_least=0.05,
            )
        )
    ratio = seconds["share"] / seconds["stop"]
    goal = 0.6 if len(adapters) >= 5 else None
    rows += [
        figure(
            f"{len(adapters)} evaluation rounds of {len(prompts)} prompts, one server",
            seconds["share"],
            "s",
        ),
        figure("the same, a server per round", seconds["stop"], "s"),
        figure("one server against one per round", ratio, "x", at_most=goal),
    ]
    return rows


def _paired(
    inputs: Inputs,
    objective: str,
    prompts: list[Prompt],
    ours: list[Response],
    theirs: list[Response],
) -> tuple[float, float]:
    """(difference of means, p-value) of one adapter's scores by two generators, paired by prompt."""
    wanted = {p.id for p in prompts}
    suite = inputs.suites[objective]["selection"]
    part = _Part(suite.objective, prompts)

    def scored(responses: Sequence[Response]) -> list[Scored]:
        own = [r for r in responses if r.id in wanted]
        return judge_and_score(inputs.objectives[objective], part, own, VerifierJudge())[1]

    return paired_change(scored(theirs), scored(ours), 0) or (0.0, 1.0)


class _Part:
    """Some prompts of a suite."""

    def __init__(self, objective: str, prompts: list[Prompt]) -> None:
        self.objective = objective
        self.prompts = prompts


def vllm_in_flight(quick: bool) -> list[dict[str, Any]]:
    """Chats of unequal length on one server: each at its own pace, against all waiting for the slowest of each turn.

    Every answer has a fixed length: mostly 6 tokens, now and then 90. The lab's own answers are so short that a request
    costs more than its decoding, which no model of a useful size does.
    """
    config = load_config("lab")
    count, repeats = (24, 3) if quick else (32, 5)
    settings = VllmGeneratorConfig(memory="share", dtype=DTYPE)
    walls: dict[str, list[float]] = {"in flight": [], "barriers": []}
    turns = 0
    with tempfile.TemporaryDirectory() as folder:
        generator = VllmGenerator(
            Path(config.base_model), settings, config.methods.sft.lora_r, Path(folder)
        )

        async def measure(chats: list[Prompt], barriers: bool) -> float:
            async with Session(generator, None) as session:

                async def ask(wanted: AnswerId, chat: Chat) -> Turn:
                    tokens = _answer_tokens(wanted.prompt, len(chat) // 2)
                    body = {
                        **generation_settings(tokens, generator.stops, GREEDY, None),
                        "ignore_eos": True,
                        "stop_token_ids": [],
                        "messages": chat,
                    }
                    answer = await session.send("/chat/completions", body, wanted.prompt)
                    return Turn(
                        answer["choices"][0]["message"]["content"].strip(), "length", tokens
                    )

                started = time.monotonic()
                if barriers:
                    await _with_barriers(chats, ask)
                else:
                    await replay(chats, ask, settings.concurrency)
                return time.monotonic() - started

        try:
            asyncio.run(measure(_chats(config, 8, 0), False))  # warm
            for repeat in range(repeats):
                for barriers in (False, True) if repeat % 2 else (True, False):
                    # Other texts each time, so that none finds the other's prefixes in the cache.
                    chats = _chats(config, count, 1 + 2 * repeat + barriers)
                    turns = sum(len(c.turns) for c in chats)
                    walls["barriers" if barriers else "in flight"].append(
                        asyncio.run(measure(chats, barriers))
                    )
        finally:
            generator.close()
    medians = {name: statistics.median(values) for name, values in walls.items()}
    return [
        figure(
            f"{count} chats, {turns} turns in flight, median of {repeats}",
            medians["in flight"],
            "s",
        ),
        figure("the same with turn barriers", medians["barriers"], "s"),
        figure("speed-up", medians["barriers"] / medians["in flight"], "x", at_least=1.3),
    ]


def _answer_tokens(chat: str, turn: int) -> int:
    """The length of one answer: the same in every measurement."""
    return 90 if random.Random(f"{chat} {turn}").random() < 0.2 else 6


def _chats(config: RunConfig, count: int, variant: int) -> list[Prompt]:
    """Chats of unequal length (always the same lengths), their turns drawn from the steering suites by `variant`."""
    suites = open_inputs(config).suites
    texts = [
        turn for roles in suites.values() for p in roles["steering"].prompts for turn in p.turns
    ]
    draw = random.Random(variant)
    return [
        Prompt(id=f"c{i}", turns=draw.sample(texts, 1 + (i * 5) % MAX_TURNS), slice="s", weight=1)
        for i in range(count)
    ]


async def _with_barriers(prompts: Sequence[Prompt], ask: Ask) -> list[list[Turn]]:
    """All chats' first turns, then all second turns, and so on."""
    chats: list[list[dict[str, str]]] = [[] for _ in prompts]
    turns: list[list[Turn]] = [[] for _ in prompts]
    for number in range(max(len(p.turns) for p in prompts)):
        open_ = [i for i, p in enumerate(prompts) if number < len(p.turns)]
        for i in open_:
            chats[i].append({"role": "user", "content": prompts[i].turns[number]})
        asked = [ask(AnswerId(prompts[i].id, 0, number), list(chats[i])) for i in open_]
        answers = await asyncio.gather(*asked)
        for i, answer in zip(open_, answers, strict=True):
            turns[i].append(answer)
            chats[i].append({"role": "assistant", "content": answer.text})
    return turns
