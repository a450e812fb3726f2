"""Verdicts of a judge that is asked: from the journal, from the cache that runs share, or from the
model.

Every verdict is a step of its own in the run's journal, wherever it came from, so that a run folder
stands alone and nothing is asked twice. New ones are asked in batches; gold checks go before each
batch, and if too few of them come out right the run is held before a verdict of that batch is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from eval.chat.client import ChatUnavailable
from eval.judges.base import ModelJudge
from eval.judges.verdicts import (
    JudgeCost,
    Question,
    Source,
    VerdictEntry,
    VerdictStore,
    answer,
)
from eval.objectives.base import Objective
from eval.references import Reference, pick, require_both, wrong
from eval.starter import known_answers
from eval.suite import Suite
from mosaic.core.errors import PausedError, StopRequested
from mosaic.core.rows import Calls, SmallStep
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.calls import Exchange
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Verdict
from mosaic.core.types.events import GoldCheckedEvent
from mosaic.core.types.records import AskVerdict, ChargeCalls, CheckGold, GoldChecked, VerdictFiled
from tools.effects.model_calls import charge_attempts, charge_calls
from tools.effects.transcripts import file_exchanges
from tools.effects.verdict_cache import VerdictCache

Progress = Callable[[str, int, int], None]


class _CountedJudge:
    """A model judge that adds up what its verdicts cost, and keeps what was said."""

    def __init__(self, judge: ModelJudge, cost: JudgeCost) -> None:
        self.digest = judge.digest
        self.exchanges: list[Exchange] = []
        self._judge = judge
        self._cost = cost
        self._ask = partial(judge.ask_afresh, count=self._count)

    def _count(self, entry: VerdictEntry) -> None:
        self._cost.add(entry.verdict)
        if entry.exchange is not None:
            self.exchanges.append(entry.exchange)

    def judge(
        self, objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        return self._judge.judge_with(self._ask, objective, prompts, responses)


class GoldChecks:
    """Answers with known verdicts, to check a judge by.

    A reply that is not a verdict counts as wrong.
    """

    def __init__(
        self,
        judge: ModelJudge,
        objectives: Mapping[str, Objective],
        suites: Mapping[str, Iterable[Suite]],
        command: str,
        check: str,
    ) -> None:
        """`command` continues what is held, `check` checks the judge."""
        self.judge = judge
        self.objectives = objectives
        self.known: dict[str, list[Reference]] = {}
        for name in objectives:
            if name in suites:
                self.known[name], _ = known_answers(name, suites[name])
        self.command = command
        self.check = check

    def most(self, objective: str) -> int:
        """How many of them go before a batch."""
        return min(self.judge.config.gold_checks, len(self.known.get(objective, [])))

    def ask(
        self,
        objective: str,
        batch: str,
        cost: JudgeCost,
        file: Callable[[Sequence[Exchange]], str] = lambda exchanges: "",
    ) -> GoldChecked:
        """Ask some of them, chosen by the batch's digest; `cost` is added to as verdicts are made.

        `file` files what was asked and said, whatever comes of it, and says under which digest.
        PausedError if the agreement is too low, UsageError if the suites of the objective have no
        references.
        """
        config = self.judge.config
        some = pick(self.known.get(objective, []), config.gold_checks, batch)
        require_both(objective, some)
        judge = _CountedJudge(self.judge, cost)
        try:
            bad = wrong(judge, self.objectives[objective], some)
        finally:
            exchanges = file(judge.exchanges)
        agreement = 1 - len(bad) / len(some)
        if agreement < config.agreement:
            names = ", ".join(f"{r.prompt.id} ({r.kind})" for r, _ in bad[:5])
            raise PausedError(
                f"judge of {objective}: {len(some) - len(bad)} of {len(some)} known answers came out right "
                f"({agreement:.0%}), at least {config.agreement:.0%} must; wrong: {names}; "
                f"look at the judge with `{self.check}`, then: {self.command}"
            )
        return GoldChecked(
            objective=objective,
            asked=len(some),
            agreement=round(agreement, 4),
            attempts=cost.requests,
            charged=cost.tokens,
            exchanges=exchanges,
        )


class _JournalVerdicts:
    """The verdicts of one run, each a step of its own."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def get(self, question: Question) -> Verdict | None:
        step = self._steps.journal.find(_inputs(question))
        return step.result.verdict if step else None

    def keep(self, entries: Sequence[VerdictEntry], source: Source) -> None:
        made = [entry.exchange for entry in entries if entry.exchange is not None]
        exchanges = file_exchanges(self._steps.store, made)
        items = []
        for question, verdict, seconds, exchange in entries:
            filed = VerdictFiled(
                verdict=verdict, source=source, exchanges=exchanges if exchange else ""
            )
            items.append(SmallStep(_inputs(question), filed, round(seconds, 4)))
        self._steps.record(items, [_calls([entry.verdict for entry in entries], source)])


def _calls(verdicts: Sequence[Verdict], source: Source) -> Calls:
    """What some verdicts took: nothing, if another run had paid for them."""
    if source == "cache":
        return Calls("judge", cached=len(verdicts))
    requests = sum(v.attempts for v in verdicts)
    tokens = sum(v.charged for v in verdicts)
    return Calls("judge", answers=len(verdicts), requests=requests, tokens=tokens)


class RecordedJudge:
    """A model judge inside a run: journal first, then the shared cache, then the model."""

    def __init__(
        self,
        judge: ModelJudge,
        steps: Steps,
        cache: VerdictCache,
        gold_checks: GoldChecks,
        progress: Progress | None = None,
    ) -> None:
        self.digest = judge.digest
        self._judge = judge
        self._steps = steps
        self._cache = cache
        # The journal first: what the run has paid for is its own, whatever becomes of the cache.
        self._stores: list[VerdictStore] = [_JournalVerdicts(steps), cache]
        self._gold_checks = gold_checks
        self._progress = progress

    def at(self, steps: Steps) -> RecordedJudge:
        """The same judge, filing its verdicts in another place of the run."""
        return RecordedJudge(self._judge, steps, self._cache, self._gold_checks, self._progress)

    def judge(
        self, objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """One judgment per prompt.

        Raises ChatUnavailable and PausedError, with nothing lost that was made.
        """
        return self._judge.judge_with(
            partial(self._verdicts, objective.name), objective, prompts, responses
        )

    def _verdicts(self, objective: str, questions: Sequence[Question]) -> Mapping[str, Verdict]:
        def progress(done: int, missing: int) -> None:
            if self._progress:
                self._progress(f"judging {objective}", done, missing)

        started = time.monotonic()
        try:
            answers = answer(
                questions,
                self._judge,
                self._stores,
                before_batch=partial(self._check_gold, objective),
                progress=progress,
                stopping=self._steps.stopping,
            )
        except ChatUnavailable as error:
            whose = self._charge(objective, known=False)
            charge_attempts(self._steps, whose, error.attempts, time.monotonic() - started)
            raise
        if any(q.key not in answers.verdicts for q in questions):
            raise StopRequested(
                f"stopped while judging; continue: python -m mosaic resume {self._steps.journal.folder}"
            )
        return answers.verdicts

    def _check_gold(self, objective: str, batch: str) -> None:
        """The gold checks before a batch, as a step.

        What they cost is filed even if they hold the run.
        """
        inputs = CheckGold(judge=self.digest, objective=objective, batch=batch)
        cost, started = JudgeCost(), time.monotonic()
        filed: list[str] = []

        def file(exchanges: Sequence[Exchange]) -> str:
            filed.append(file_exchanges(self._steps.store, exchanges))
            return filed[-1]

        def effect() -> Outcome[GoldChecked]:
            checked = self._gold_checks.ask(objective, batch, cost, file)
            event = GoldCheckedEvent.model_validate(checked.model_dump(exclude={"exchanges"}))
            calls = [Calls("judge", requests=cost.requests, tokens=cost.tokens)]
            return Outcome(checked, [event], calls=calls)

        try:
            self._steps.run(inputs, effect)
        except PausedError:
            whose = self._charge(objective, known=True, batch=batch)
            seconds = time.monotonic() - started
            exchanges = filed[-1] if filed else ""
            charge_calls(self._steps, whose, cost.requests, cost.tokens, seconds, exchanges)
            raise

    def _charge(self, objective: str, known: bool, batch: str | None = None) -> ChargeCalls:
        """Inputs of a charge on this run; `known` says whether known answers were asked about."""
        return ChargeCalls(
            who="judge",
            run=self._steps.journal.run,
            number=0,
            objective=objective,
            batch=batch,
            known=known,
        )


def _inputs(question: Question) -> AskVerdict:
    named = question.inputs
    return AskVerdict(
        judge=named["judge"], prompt=named["prompt"], conversation=named["conversation"]
    )
