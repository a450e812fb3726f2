"""The model judge: how often it is asked again for what it has already judged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import figure
from benchmarks.judge_server import MODEL, JudgeServer, by_rules
from eval.chat.client import ChatConfig
from eval.judges.base import Judge, LlmJudgeConfig
from eval.judges.llm import LlmJudge
from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Objective
from eval.suite import Suite
from mosaic.app.config import load_config
from mosaic.app.wiring import open_suites
from mosaic.core.errors import StopRequested
from mosaic.core.journal import Journal
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.tables import FILE
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.runs import GREEDY, Sampling
from tools.effects.evaluate import Evaluation, Evaluator
from tools.effects.judge import GoldChecks, RecordedJudge
from tools.effects.verdict_cache import VerdictCache

ASKED = ("safety", "over_refusal")
OWN = "so it is ."


class Recital:
    """A generator that gives each prompt its good or its bad reference answer, by turns, with a word of its own."""

    def generate(
        self, prompts: list[Prompt], adapter: Path | None, sampling: Sampling = GREEDY
    ) -> list[Response]:
        assert sampling.greedy, "a recital draws nothing"
        answers = [
            [f"{a} {OWN}" for a in (p.good if i % 2 else p.bad) or []]
            for i, p in enumerate(prompts)
        ]
        return [
            Response(id=p.id, answers=a, finish_reasons=["stop"] * len(a), n_tokens=len(a))
            for p, a in zip(prompts, answers, strict=True)
        ]

    def log_likelihood(self, texts: list[str], adapter: Path | None) -> list[float | None]:
        return [None for _ in texts]

    def release(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to close."""


class Evaluations:
    """Evaluations of run folders that share one judge server and one cache."""

    def __init__(
        self,
        folder: Path,
        suites: Mapping[str, Mapping[str, Suite]],
        objectives: Mapping[str, Objective],
    ):
        self.folder = folder
        self.suites = suites
        self.objectives = objectives

    def evaluate(
        self, run: str, server: JudgeServer | None, stop_after: int | None = None
    ) -> Evaluation:
        """Evaluate in `<folder>/<run>`; without a server by the verifier. `stop_after` calls a stop is asked for."""
        folder = self.folder / run
        if not (folder / FILE).exists():
            Journal.create(folder, run, {}, 1).close()
        journal = Journal.open(folder)
        journal.acquire()

        def stopping() -> bool:
            return bool(server and stop_after is not None and server.calls >= stop_after)

        steps = Steps(journal, Store(folder), stopping)
        cache = VerdictCache(self.folder / "judge-cache")
        judge: Judge = VerifierJudge()
        if server:
            chat = ChatConfig(base_url=server.url, model=MODEL)
            llm = LlmJudge(LlmJudgeConfig(chat=chat, revision="1", concurrency=8))
            known = {name: list(roles.values()) for name, roles in self.suites.items()}
            judge = RecordedJudge(
                llm, steps, cache, GoldChecks(llm, self.objectives, known, "resume", "check")
            )
        try:
            evaluator = Evaluator(
                steps, Recital(), judge, self.objectives, self.suites, {"base": "recital"}
            )
            return evaluator.evaluate(None, ["steering", "selection"])
        finally:
            cache.close()
            journal.close()


def judge_cache(quick: bool) -> list[dict[str, Any]]:
    """Calls of a resumed and of a repeated evaluation, in the same run and in another one, at a server that counts."""
    everything, all_suites = open_suites(load_config("lab"))
    objectives = {name: everything[name] for name in ASKED}
    suites: dict[str, dict[str, Suite]] = {name: dict(all_suites[name]) for name in ASKED}
    if quick:
        suites = {
            o: {r: Suite(s.objective, s.role, s.prompts[::4], s.digest) for r, s in roles.items()}
            for o, roles in suites.items()
        }
    flat = [s for roles in suites.values() for s in roles.values()]
    prompts = sum(
        len(roles[r].prompts) for roles in suites.values() for r in ("steering", "selection")
    )
    with tempfile.TemporaryDirectory() as name, JudgeServer(by_rules(flat)) as server:
        world = Evaluations(Path(name), suites, objectives)
        half = prompts // 2
        try:
            world.evaluate("one", server, stop_after=half)
        except StopRequested:
            before = server.calls
        else:
            raise RuntimeError("the evaluation was to be stopped in its middle")
        started = time.monotonic()
        first = world.evaluate("one", server)
        seconds = time.monotonic() - started
        after = server.calls
        world.evaluate("one", server)
        repeated = server.calls - after
        started = time.monotonic()
        second = world.evaluate("two", server)
        copying = time.monotonic() - started
        other_run = server.calls - after - repeated
        (world.folder / "judge-cache" / "verdicts.sqlite").unlink()
        world.evaluate("two", server)
        alone = server.calls - after - repeated - other_run
        verified = world.evaluate("verified", None)
        again = _asked_again(server)
    same = first.scores() == second.scores() == verified.scores()
    return [
        figure("conversations judged", prompts, "conversations"),
        figure(
            "judge calls of the first evaluation, stopped in its middle, and its resumption",
            after,
            "calls",
        ),
        figure("of these before the stop", before, "calls"),
        figure("verdicts asked for twice, known answers aside", again, "verdicts", at_most=0),
        figure("judge calls of the same evaluation again, same run", repeated, "calls", at_most=0),
        figure("judge calls of the same evaluation in another run", other_run, "calls", at_most=0),
        figure("judge calls of that run once the cache is deleted", alone, "calls", at_most=0),
        figure(
            "scores equal to the verifier's, whose rules the server applies",
            float(same),
            "1 is yes",
            at_least=1,
        ),
        figure("seconds of the resumed evaluation", seconds, "s"),
        figure("seconds of the evaluation out of the cache", copying, "s"),
    ]


def _asked_again(server: JudgeServer) -> int:
    """Requests about the generator's answers that were sent more than once. Known answers are asked in every batch on
    purpose and are told by the word that they lack."""
    sent = [body["messages"][1]["content"] for body in server.bodies]
    questions = [text for text in sent if OWN in text]
    return len(questions) - len(set(questions))
