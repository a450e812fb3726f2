"""The model judge: how often it is asked again for what it has already judged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import Rows, figure
from benchmarks.judge_server import MODEL, JudgeServer, by_rules
from eval.chat.client import ChatConfig
from eval.generators.base import TextLikelihood
from eval.judges.base import LlmJudgeConfig
from eval.judges.llm import LlmJudge
from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Objective
from eval.suite import Suite
from mosaic.app.config_file import load_config
from mosaic.app.wiring import open_suites
from mosaic.core.errors import StopRequested
from mosaic.core.journal import Journal
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.tables import FILE
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.inputs import InputDigests, RunRecord
from mosaic.core.types.runs import GREEDY, Sampling
from tools.effects.evaluate import (
    Evaluation,
    Evaluator,
    GeneratorIdentity,
    PlainJudge,
    RunJudge,
)
from tools.effects.judge import GoldChecks, RecordedJudge
from tools.effects.verdict_cache import VerdictCache

ASKED = ("safety", "over_refusal")
OWN = "so it is ."
RECORD = RunRecord(run={}, inputs=InputDigests(pool="", base_model="", suites={}, judge=""))


class Recital:
    """Answers with the good and the bad reference by turns, and adds a word of its own."""

    def generate(
        self, prompts: Sequence[Prompt], adapter: Path | None, sampling: Sampling = GREEDY
    ) -> list[Response]:
        assert sampling.greedy, "a recital draws nothing"
        responses = []
        for number, prompt in enumerate(prompts):
            reference = (prompt.good if number % 2 else prompt.bad) or []
            answers = [f"{answer} {OWN}" for answer in reference]
            response = Response(
                id=prompt.id,
                answers=answers,
                finish_reasons=["stop"] * len(answers),
                n_tokens=len(answers),
            )
            responses.append(response)
        return responses

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[TextLikelihood]:
        raise AssertionError("no objective of these suites reads likelihoods")

    def release(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to close."""


class Evaluations:
    """Evaluations in run folders that share one judge server and one cache."""

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
        """Evaluate in `<folder>/<run>`, without a server by the verifier.

        After `stop_after` calls the evaluation is asked to stop.
        """
        folder = self.folder / run
        if not (folder / FILE).exists():
            Journal.create(folder, run, RECORD, 1).close()
        journal = Journal.open(folder)
        journal.acquire()

        def stopping() -> bool:
            return bool(server and stop_after is not None and server.calls >= stop_after)

        steps = Steps(journal, Store(folder), stopping)
        cache = VerdictCache(self.folder / "judge-cache")
        judge: RunJudge = PlainJudge(VerifierJudge())
        if server:
            chat = ChatConfig(base_url=server.url, model=MODEL)
            llm = LlmJudge(LlmJudgeConfig(chat=chat, revision="1", concurrency=8))
            known = {name: list(roles.values()) for name, roles in self.suites.items()}
            judge = RecordedJudge(
                llm, steps, cache, GoldChecks(llm, self.objectives, known, "resume", "check")
            )
        try:
            identity = GeneratorIdentity(base="recital", settings={})
            evaluator = Evaluator(Recital(), judge, self.objectives, self.suites, identity)
            return evaluator.evaluate(steps, None, ["steering", "selection"])
        finally:
            cache.close()
            journal.close()


def judge_cache(quick: bool) -> Rows:
    """Judge calls of a resumed and of a repeated evaluation, in the same run and in another."""
    everything, all_suites = open_suites(load_config("lab"))
    objectives = {name: everything[name] for name in ASKED}
    suites: dict[str, dict[str, Suite]] = {name: dict(all_suites[name]) for name in ASKED}
    flat: list[Suite] = []
    prompts = 0
    for roles in suites.values():
        for role, suite in roles.items():
            if quick:
                roles[role] = replace(suite, prompts=suite.prompts[::4])
            flat.append(roles[role])
        prompts += len(roles["steering"].prompts) + len(roles["selection"].prompts)
    with tempfile.TemporaryDirectory() as name, JudgeServer(by_rules(objectives, flat)) as server:
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
    """Requests about the generator's answers that were sent more than once.

    Known answers are sent with every batch on purpose; they lack the word that the generator's
    answers have.
    """
    sent = [body["messages"][1]["content"] for body in server.bodies]
    questions = [text for text in sent if OWN in text]
    return len(questions) - len(set(questions))
