"""Several runs side by side: audit scores, what differs between them, plans, cost and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agent.state import RunState
from eval.statistics import paired_interval
from mosaic.app.config import RunConfig
from mosaic.app.config_file import differences
from mosaic.app.runs import config_of
from mosaic.app.shapes import Report, State
from mosaic.app.views.report_data import load, report_of
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.evaluation import Difference, Score, Scored
from mosaic.core.types.inputs import InputDigests
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import Generate, JudgeSuite, MeasureLikelihood
from tools.effects.evaluate import BOOTSTRAP_SEED

AUDIT = "audit"


class RunColumn(FrozenModel):
    """One run. Scores are by objective, of the audit; empty while it is closed.

    `independent` are those of the chosen round on the suites of `audit_also`, by name.
    `started` and `seconds` are wall time: since 1970, and from the first event to the last.
    """

    run: str
    folder: str
    state: State
    planner: str
    seed: int
    rounds: int
    chosen: int | None
    base: dict[str, Score]
    static: dict[str, Score]
    scores: dict[str, Score]
    independent: dict[str, Score] = {}
    plan: ActionPlan | None
    hypervolume: float | None
    tokens: int
    money: float | None
    started: float | None
    seconds: float | None


class RunPair(FrozenModel):
    """The chosen round of one run less that of the first, on equal prompts.

    `changes` is by objective, and by independent suite of both runs. `apart` says of the others why
    they cannot be compared.
    """

    first: str
    other: str
    changes: dict[str, Difference]
    apart: dict[str, str]
    config: list[str]


class RunComparison(FrozenModel):
    """`compare --json`: the runs in the order in which they were named, each against the first.

    `independent` names the suites of `audit_also` of any of them.
    """

    objectives: list[str]
    independent: list[str] = []
    runs: list[RunColumn]
    pairs: list[RunPair]


class OpenedRun:
    """A run that was read, with what its chosen round was scored on the audit suites."""

    def __init__(self, folder: Path) -> None:
        journal, state = load(folder)
        try:
            self.folder = folder
            self.report: Report = report_of(journal, state)
            self.config: RunConfig = config_of(journal)
            self.record = journal.recorded.inputs
            self.measured = _measured(state, self.config, self.record)
            self.answers = _answers(journal, state, self.measured)
            self.started, self.seconds = clock_of(journal)
        finally:
            journal.close()

    def column(self) -> RunColumn:
        report, audit = self.report, self.report.audit
        chosen = None
        if report.chosen is not None:
            chosen = report.rounds[report.chosen].plan
        money = report.spending.get("money")
        return RunColumn(
            run=report.run,
            folder=str(self.folder),
            state=report.state,
            planner=report.planner,
            seed=self.config.seed,
            rounds=sum(1 for round_ in report.rounds if round_.plan),
            chosen=report.chosen,
            base=audit.base if audit else {},
            static=audit.static if audit else {},
            scores=audit.chosen if audit else {},
            independent=_independent(report),
            plan=chosen,
            hypervolume=report.hypervolume[-1] if report.hypervolume else None,
            tokens=report.budget.spent,
            money=money.used if money else None,
            started=self.started,
            seconds=self.seconds,
        )


def compare(folders: Sequence[Path]) -> RunComparison:
    """Runs side by side. Raises UsageError for fewer than two, or one that is named twice."""
    if len(folders) < 2:
        raise UsageError("compare takes two runs or more; `python -m mosaic report` shows one")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("compare: a run is named twice")
    opened = [OpenedRun(folder) for folder in folders]
    names: dict[str, None] = {}
    tests: dict[str, None] = {}
    for one in opened:
        names |= dict.fromkeys(one.report.objectives)
        tests |= dict.fromkeys(_independent(one.report))
    first, *others = opened
    return RunComparison(
        objectives=list(names),
        independent=list(tests),
        runs=[one.column() for one in opened],
        pairs=[_pair(first, other) for other in others],
    )


def clock_of(journal: Journal) -> tuple[float | None, float | None]:
    """When a run's first event happened, in seconds since 1970, and how long after it the last."""
    first, last = journal.events(before=2), journal.events(newest=1)
    if not first or not last:
        return None, None
    return first[0].at, last[-1].at - first[0].at


def _pair(first: OpenedRun, other: OpenedRun) -> RunPair:
    changes, apart = {}, {}
    for name in first.measured:
        kinds = [name in one.config.objectives for one in (first, other)]
        if name not in other.measured or kinds[0] != kinds[1]:
            continue
        reason = why_apart(first, other, name)
        found = None
        if not reason:
            before, after = first.answers[name], other.answers[name]
            found = paired_interval(before, after, BOOTSTRAP_SEED)
            reason = "no prompt was scored in both"
        if found is not None:
            changes[name] = found
        else:
            apart[name] = reason
    told = differences(first.config.json_data(), other.config.json_data())
    same = _same_places(first, other)
    return RunPair(
        first=first.report.run,
        other=other.report.run,
        changes=changes,
        apart=apart,
        config=[line for line in told if line.partition(":")[0] not in same],
    )


def _same_places(first: OpenedRun, other: OpenedRun) -> set[str]:
    """Paths of the config that name the same bytes in two folders; and the name of a run."""
    same = {"name"}
    ours, theirs = first.record, other.record
    if ours.base_model == theirs.base_model:
        same.add("base_model")
    if ours.pool == theirs.pool:
        same.add("pool")
    for objective, digests in ours.suites.items():
        if theirs.suites.get(objective) == digests:
            same.add(f"objectives.{objective}.suite")
    for name, digest in ours.independent.items():
        if theirs.independent.get(name) == digest:
            same.add(f"audit_also.{name}")
    return same


def why_apart(first: OpenedRun, other: OpenedRun, name: str) -> str:
    """Why an objective or independent suite of two runs cannot be compared prompt by prompt, or ""."""
    if first.config.seed != other.config.seed:
        return f"the seeds differ: {first.config.seed} and {other.config.seed}"
    for one in (first, other):
        if name not in one.answers:
            return f"{one.report.run} has no audit of a chosen round"
    ours, theirs = first.measured[name], other.measured[name]
    if ours.suite != theirs.suite:
        told = "independent" if name in first.config.audit_also else "audit"
        return f"the {told} suites differ"
    if first.record.judge != other.record.judge:
        return "the judges differ"
    rules = [one.record.objectives.get(one.measured[name].objective) for one in (first, other)]
    same = ours.objective == theirs.objective and rules[0] == rules[1]
    return "" if same else "the rules of scoring differ"


class _Suite(NamedTuple):
    """Digest of a suite that was opened at the end, and the objective that judged it."""

    suite: str
    objective: str


def _measured(state: RunState, config: RunConfig, record: InputDigests) -> dict[str, _Suite]:
    """The audit suites by objective, then the independent suites that were opened, by name."""
    found = {name: _Suite(record.suites[name][AUDIT], name) for name in config.objectives}
    for name, scores in (state.audit.independent if state.audit else {}).items():
        if name in record.independent:
            found[name] = _Suite(record.independent[name], scores.objective)
    return found


def _independent(report: Report) -> dict[str, Score]:
    """What the chosen round was scored on independent suites."""
    tests = report.audit.independent if report.audit else {}
    return {name: test.chosen for name, test in tests.items() if test.chosen is not None}


def _answers(
    journal: Journal, state: RunState, measured: Mapping[str, _Suite]
) -> dict[str, list[Scored]]:
    """Scored answers of the chosen round, by objective or independent suite; empty without one."""
    if state.audit is None or state.audit.chosen is None:
        return {}
    chosen = state.rounds[state.audit.chosen]
    adapter = chosen.adapter
    generated = journal.steps(Generate)
    likelihoods = journal.steps(MeasureLikelihood)
    judged = journal.steps(JudgeSuite)
    store = Store(journal.folder)
    found = {}
    for name, (suite, objective) in measured.items():
        shards = []
        for step in generated:
            asked = step.inputs
            if (asked.suite, asked.adapter, asked.wish) == (suite, adapter, chosen.trial.wish):
                shards.append((step.inputs.shard, step.result.responses))
        responses = [digest for _, digest in sorted(shards)]
        for reading in likelihoods:
            if reading.inputs.suite == suite and reading.inputs.adapter in (None, adapter):
                responses.append(reading.result.responses)
        for judgment in judged:
            inputs = judgment.inputs
            if inputs.objective == objective and inputs.responses == responses:
                lines = store.get_json(judgment.result.scored)
                found[name] = [Scored.model_validate(line) for line in lines]
    return found
