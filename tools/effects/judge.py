"""Verdicts of a judge that is asked: from the journal, from the cache that runs share, or from the model.

Every verdict is a step of its own in the run's journal, wherever it came from, so that a run folder stands alone and
nothing is asked twice. New ones are asked in batches; answers with known verdicts go before each batch, and where too
few come out right the run is held before a verdict of that batch is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eval.chat.client import ChatUnavailable
from eval.judges.llm import LlmJudge, Made, Question
from eval.objectives.base import Objective
from eval.references import pick, references, require_both, wrong
from eval.suite import Suite
from mosaic.core.errors import PausedError, StopRequested
from mosaic.core.rows import Calls, SmallStep
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Verdict
from mosaic.core.types.records import (
    AskVerdict,
    ChargeCalls,
    CheckGold,
    GoldChecked,
    GoldCheckedEvent,
    VerdictFiled,
)
from tools.effects.model_calls import charge_attempts, charge_calls
from tools.effects.verdict_cache import VerdictCache

BATCH = 256
FLUSH = 64
FLUSH_SECONDS = 1.0

Progress = Callable[[str, int, int], None]


@dataclass
class Spent:
    """Requests and charged tokens of some questions to a judge."""

    requests: int = 0
    tokens: int = 0


class _Counted:
    """A model judge that adds up what its verdicts cost."""

    def __init__(self, judge: LlmJudge, spent: Spent) -> None:
        self.digest = judge.digest
        self._judge = judge
        self._spent = spent

    def judge(
        self, objective: str, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        questions = [
            self._judge.question(objective, p, r) for p, r in zip(prompts, responses, strict=True)
        ]
        found: dict[str, Verdict] = {}
        for some in self._judge.ask_all(list({q.key: q for q in questions}.values())):
            for question, verdict, _ in some:
                found[question.key] = verdict
                self._spent.requests += verdict.attempts
                self._spent.tokens += verdict.charged
        return [
            self._judge.judgment(objective, p, found[q.key])
            for p, q in zip(prompts, questions, strict=True)
        ]


class GoldChecks:
    """Known answers for a judge. A reply that is no verdict counts as wrong."""

    def __init__(
        self,
        judge: LlmJudge,
        objectives: Mapping[str, Objective],
        suites: Mapping[str, Iterable[Suite]],
        command: str,
        check: str,
    ) -> None:
        """`command` continues what is held, `check` checks the judge."""
        self.judge = judge
        self.objectives = objectives
        self.known = {name: references(suites[name]) for name in objectives if name in suites}
        self.command = command
        self.check = check

    def most(self, objective: str) -> int:
        """How many of them go before a batch."""
        return min(self.judge.config.canaries, len(self.known.get(objective, [])))

    def ask(self, objective: str, batch: str, spent: Spent | None = None) -> dict[str, Any]:
        """Ask some of them, chosen by the batch's digest; `spent` is added to as verdicts are made. PausedError
        where the agreement is too low, UsageError where the suites of the objective have no references."""
        config = self.judge.config
        some = pick(self.known.get(objective, []), config.canaries, batch)
        require_both(objective, some)
        bad = wrong(_Counted(self.judge, spent or Spent()), self.objectives[objective], some)
        agreement = 1 - len(bad) / len(some)
        if agreement < config.agreement:
            names = ", ".join(f"{r.prompt.id} ({r.kind})" for r, _ in bad[:5])
            raise PausedError(
                f"judge of {objective}: {len(some) - len(bad)} of {len(some)} known answers came out right "
                f"({agreement:.0%}), at least {config.agreement:.0%} must; wrong: {names}; "
                f"look at the judge with `{self.check}`, then: {self.command}"
            )
        return {"objective": objective, "asked": len(some), "agreement": round(agreement, 4)}


def ask_in_batches(
    judge: LlmJudge,
    questions: Sequence[Question],
    before: Callable[[str], None],
    keep: Callable[[Sequence[Made]], None],
    progress: Callable[[int], None] = lambda done: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Verdict]:
    """Ask the model about each question, `before(digest of the batch)` first; hand verdicts to `keep` soon after they
    are made. What was made before an outage is kept before the error leaves; after a stop the rest is missing."""
    found: dict[str, Verdict] = {}
    for start in range(0, len(questions), BATCH):
        if stopping():
            break
        batch = questions[start : start + BATCH]
        before(digest_of([q.key for q in batch]))
        waiting: list[Made] = []
        last = time.monotonic()
        try:
            for made in judge.ask_all(batch, stopping):
                waiting += made
                found |= {question.key: verdict for question, verdict, _ in made}
                if waiting and (len(waiting) >= FLUSH or time.monotonic() - last > FLUSH_SECONDS):
                    done, waiting = waiting, []
                    keep(done)
                    last = time.monotonic()
                    progress(len(found))
        finally:
            if waiting:
                keep(waiting)
        progress(len(found))
    return found


class RecordedJudge:
    """A model judge inside a run: journal first, then the shared cache, then the model."""

    def __init__(
        self,
        judge: LlmJudge,
        steps: Steps,
        cache: VerdictCache,
        gold: GoldChecks,
        progress: Progress | None = None,
    ) -> None:
        self.digest = judge.digest
        self._judge = judge
        self._steps = steps
        self._cache = cache
        self._gold = gold
        self._progress = progress

    def at(self, steps: Steps) -> RecordedJudge:
        """The same judge, filing its verdicts in another place of the run."""
        return RecordedJudge(self._judge, steps, self._cache, self._gold, self._progress)

    def judge(
        self, objective: str, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """One judgment per prompt. Raises ChatUnavailable and PausedError with nothing lost that was made."""
        if not self._judge.asks(objective):
            return self._judge.judge(objective, prompts, responses)
        questions = [
            self._judge.question(objective, p, r) for p, r in zip(prompts, responses, strict=True)
        ]
        found = self._verdicts(objective, questions)
        return [
            self._judge.judgment(objective, p, found[q.key])
            for p, q in zip(prompts, questions, strict=True)
        ]

    def _verdicts(self, objective: str, questions: Sequence[Question]) -> dict[str, Verdict]:
        unique = {q.key: q for q in questions}
        found: dict[str, Verdict] = {}
        hits: list[Made] = []
        for key, question in unique.items():
            step = self._steps.journal.find(_inputs(question))
            if step:
                found[key] = step.result.verdict
            elif hit := self._cache.get(question):
                found[key] = hit
                hits.append((question, hit, 0.0))
        if hits:
            self._record(hits, "cache")
        missing = [q for key, q in unique.items() if key not in found]

        def before(batch: str) -> None:
            self._check_gold(objective, batch)

        def keep(made: Sequence[Made]) -> None:
            # The journal first: what the run has paid for is its own, whatever becomes of the cache.
            self._record(made, "model")
            self._cache.put([(q, v) for q, v, _ in made])

        def progress(done: int) -> None:
            if self._progress:
                self._progress(f"judging {objective}", done, len(missing))

        started = time.monotonic()
        try:
            found |= ask_in_batches(
                self._judge, missing, before, keep, progress, self._steps.stopping
            )
        except ChatUnavailable as error:
            whose = ChargeCalls(
                who="judge",
                run=self._steps.journal.run,
                number=0,
                objective=objective,
                known=False,
            )
            charge_attempts(self._steps, whose, error.attempts, time.monotonic() - started)
            raise
        if len(found) < len(unique):
            raise StopRequested(
                f"stopped while judging; continue: python -m mosaic resume {self._steps.journal.folder}"
            )
        return found

    def _check_gold(self, objective: str, batch: str) -> None:
        """Ask the gold checks of one batch, once; what a held judge has cost is charged too."""
        journal = self._steps.journal
        spent, started = Spent(), time.monotonic()

        def effect() -> Outcome[GoldChecked]:
            found = self._gold.ask(objective, batch, spent)
            result = GoldChecked(**found, attempts=spent.requests, charged=spent.tokens)
            calls = [Calls("judge", requests=spent.requests, tokens=spent.tokens)]
            return Outcome(result, [GoldCheckedEvent(**result.json_data())], calls=calls)

        try:
            self._steps.run(CheckGold(judge=self.digest, objective=objective, batch=batch), effect)
        except PausedError:
            whose = ChargeCalls(
                who="judge",
                run=journal.run,
                number=0,
                objective=objective,
                batch=batch,
                known=True,
            )
            took = time.monotonic() - started
            charge_calls(self._steps, whose, spent.requests, spent.tokens, took)
            raise

    def _record(self, made: Sequence[Made], source: Literal["model", "cache"]) -> None:
        items = []
        for question, verdict, seconds in made:
            result = VerdictFiled(verdict=verdict, source=source)
            items.append(SmallStep(_inputs(question), result, round(seconds, 4)))
        self._steps.record(items, [_calls([verdict for _, verdict, _ in made], source)])


def _calls(verdicts: Sequence[Verdict], source: Literal["model", "cache"]) -> Calls:
    """What some verdicts took: nothing, if another run had paid for them."""
    if source == "cache":
        return Calls("judge", cached=len(verdicts))
    requests = sum(v.attempts for v in verdicts)
    tokens = sum(v.charged for v in verdicts)
    return Calls("judge", answers=len(verdicts), requests=requests, tokens=tokens)


def _inputs(question: Question) -> AskVerdict:
    named = question.inputs
    return AskVerdict(
        judge=named["judge"], prompt=named["prompt"], conversation=named["conversation"]
    )
