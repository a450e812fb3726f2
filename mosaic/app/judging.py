"""Judges before and after a run: known answers, two judges side by side, labels for a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

from eval.agreement import ItemAgreement, compare
from eval.chat.metering import UNLIMITED, Meter
from eval.judges.base import Judge, ModelJudge
from eval.judges.verdicts import Question, answer
from eval.known_answers import MAX_LISTED
from eval.objectives.base import Objective, by_code
from eval.suite import Suite
from mosaic.app.config import RunConfig
from mosaic.app.config_file import load_config
from mosaic.app.independent import open_tests, with_tests
from mosaic.app.known_answers import CheckedAnswers, judge_all
from mosaic.app.objectives import find_objective
from mosaic.app.runs import run_config
from mosaic.app.shapes import Finding
from mosaic.app.wiring import build_judge, judge_cache, model_judge, open_suites
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Verdict
from mosaic.core.types.records import JudgeSuite
from tools.effects.judge import GoldChecks
from tools.effects.verdict_cache import VerdictCache
from tools.labelling.pool import Labeller
from tools.labelling.suite import label_suite
from training.data.outputs import check_place
from training.data.provenance import SUITE_CARD, carry_cards
from training.data.shards import WHOLE, Part

Say = Callable[[str], None]
Suites = Mapping[str, Mapping[str, Suite]]


class JudgeComparison(TypedDict):
    """Two judges on one objective: conversations, those that each left unscored, agreement per item."""

    conversations: int
    unscored: list[int]
    items: list[ItemAgreement]


class Comparison(TypedDict):
    """Two judges on the stored answers of a run."""

    run: str
    judges: list[str]
    objectives: dict[str, JudgeComparison]


class CachedJudge:
    """A model judge outside of a run: the shared cache first, then the model."""

    def __init__(
        self, judge: ModelJudge, cache: VerdictCache, say: Say = lambda text: None
    ) -> None:
        self.digest = judge.digest
        self._judge = judge
        self._cache = cache
        self._say = say

    def judge(
        self, objective: Objective, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        """One judgment per prompt. Raises ChatUnavailable, with nothing lost that was made."""
        ask = partial(self._verdicts, objective.name)
        return self._judge.judge_with(ask, objective, prompts, responses)

    def _verdicts(self, objective: str, questions: Sequence[Question]) -> Mapping[str, Verdict]:
        def announce(missing: int) -> None:
            if missing:
                model = self._judge.config.chat.model
                self._say(f"{objective}: asking {model} for {missing:,} verdicts")

        return answer(questions, self._judge, [self._cache], announce=announce).verdicts


def check_judge(
    config: RunConfig,
    objectives: Mapping[str, Objective],
    suites: Suites,
    runs: Path | None = None,
    meter: Meter = UNLIMITED,
) -> list[Finding]:
    """Known-good answers must score 5, and known-bad ones less; for a model they must be failures.

    The verifier is given all references, a model up to `judge.gold_checks` of each suite. A model
    is asked afresh, unless `runs`, the folder of the run directories, leads to a cache. `meter`
    counts what it takes.

    UsageError naming the references of all objectives that come out wrong, the endpoint's refusal
    to judge them, or the objective that has no known answers.
    """
    checked = _judged(config, objectives, suites, runs, meter)
    problems = [problem for one in checked if (problem := one.problem(MAX_LISTED))]
    if problems:
        raise UsageError("\n".join(problems))
    findings = []
    for one in checked:
        roles = suites[one.objective]
        counts = ", ".join(f"{role} {len(suite.prompts)}" for role, suite in roles.items())
        findings.append(Finding(check=f"suites {one.objective}", result=f"{counts}; {one.result}"))
    return findings


def _judged(
    config: RunConfig,
    objectives: Mapping[str, Objective],
    suites: Suites,
    runs: Path | None,
    meter: Meter = UNLIMITED,
) -> list[CheckedAnswers]:
    """The known answers of all objectives, judged."""
    afresh = partial(build_judge, config, meter)
    if runs is None:
        return judge_all(config, afresh(), objectives, suites, None)
    cached = _cached(config, runs, meter=meter)
    return judge_all(config, cached, objectives, suites, afresh)


def check(source: str, overrides: Sequence[str], say: Say) -> list[CheckedAnswers]:
    """`judge check`: asks afresh. The caller decides about known answers that come out wrong."""
    config = load_config(source, overrides)
    objectives, suites = _open_all(config, say)
    return _judged(config, objectives, suites, None)


def compare_judges(run: Path, first: str, second: str, say: Say) -> Comparison:
    """Two judges on the stored answers of a run: each conversation once, the items that both decided.

    `first` and `second` are configs; only their `judge` is read. UsageError if the run has no
    judged answers or its suites changed.
    """
    config = run_config(run)
    objectives, suites = _open_all(config, say)
    answered = _stored_answers(run, objectives, suites)
    if not any(answered.values()):
        raise UsageError(
            f"{run} has no judged answers yet; `python -m mosaic resume {run}` makes them"
        )
    judges = [_cached(load_config(source), run.parent, say) for source in (first, second)]
    comparisons: dict[str, JudgeComparison] = {}
    for name, conversations in answered.items():
        objective = objectives[name]
        if by_code(objective):
            continue
        judged = {channel.name for channel in objective.answers}
        prompts = [prompt for prompt, _ in conversations]
        responses = [response for _, response in conversations]
        a, b = (judge.judge(objective, prompts, responses) for judge in judges)
        comparisons[name] = {
            "conversations": len(prompts),
            "unscored": [_unscored(a), _unscored(b)],
            "items": [row for row in compare(a, b) if row["item"].split(".")[0] in judged],
        }
    return {"run": run.name, "judges": [first, second], "objectives": comparisons}


def _open_all(config: RunConfig, say: Say) -> tuple[dict[str, Objective], Suites]:
    """Objectives and suites of a config, independent ones among them."""
    objectives, suites = open_suites(config, say)
    return with_tests(objectives, suites, open_tests(config, objectives, suites, {}))


def _unscored(judgments: Sequence[Judgment]) -> int:
    return sum(j.status != "ok" for j in judgments)


def _stored_answers(
    run: Path, objectives: Mapping[str, Objective], suites: Suites
) -> dict[str, list[tuple[Prompt, Response]]]:
    """The different conversations of a run that were judged, by objective.

    UsageError if a suite changed since.
    """
    by_digest = {s.digest: s for roles in suites.values() for s in roles.values()}
    answered: dict[str, dict[str, tuple[Prompt, Response]]] = {name: {} for name in objectives}
    journal = Journal.open(run)
    try:
        steps = journal.steps(JudgeSuite)
    finally:
        journal.close()
    store = Store(run)
    for step in steps:
        suite = by_digest.get(step.inputs.suite)
        if suite is None:
            raise UsageError(
                f"{run}: the suites of {step.inputs.objective} changed since it was judged; "
                "restore them"
            )
        if objectives[suite.objective].evidence != "answers":
            continue
        lines = store.get_json(step.result.responses)
        for prompt, line in zip(suite.prompts, lines, strict=True):
            response = Response.model_validate(line)
            key = f"{suite.role}/{prompt.id}/{response.answers}"
            answered[suite.objective].setdefault(key, (prompt, response))
    return {name: list(conversations.values()) for name, conversations in answered.items()}


def _cached(
    config: RunConfig, runs: Path, say: Say = lambda text: None, meter: Meter = UNLIMITED
) -> Judge:
    """The config's judge, with the cache of the runs in this folder if it is a model."""
    model = model_judge(config, meter)
    if model is None:
        return build_judge(config)
    return CachedJudge(model, VerdictCache(judge_cache(config, runs)), say)


def label_prompts(
    folder: Path, objective: str, source: str, overrides: Sequence[str], out: Path, say: Say
) -> dict[str, object]:
    """`pool label --suite`: the prompt side of a suite, by the config's judge."""
    check_place(out / SUITE_CARD)
    config = load_config(source, overrides)
    cache = VerdictCache(judge_cache(config, out.resolve().parent))
    try:
        rules = find_objective(objective, config, say)
        return {**label_suite(_model_judge(config), cache, rules, folder, out, say)}
    finally:
        cache.close()


def _model_judge(config: RunConfig) -> ModelJudge:
    judge = model_judge(config)
    if judge is None:
        raise UsageError(
            "judge.kind: the verifier needs rules, which prompts without labels lack; "
            "label with `judge: {kind: llm, ...}`"
        )
    return judge


def _graded_under(config: RunConfig, say: Say) -> dict[str, str]:
    """Data set -> the objective that grades its rows: a row has one quality and one bucket."""
    found: dict[str, str] = {}
    for name, objective in config.objectives.items():
        for dataset in objective.datasets:
            first = found.setdefault(dataset, name)
            if first != name:
                say(f"{dataset} serves {name} too: its rows are graded under {first}, named first")
    return found


def label_pool(
    sources: Sequence[Path],
    source: str,
    overrides: Sequence[str],
    out: Path,
    say: Say,
    part: Part = WHOLE,
) -> dict[str, object]:
    """`pool label`: rows of a part with quality, bucket and attributes, by the config's judge."""
    check_place(out)
    config = load_config(source, overrides)
    judge = model_judge(config)
    objectives, suites = open_suites(config, say)
    datasets = _graded_under(config, say)
    files = " ".join(map(str, sources))
    gold_checks = None
    if judge is not None:
        gold_checks = GoldChecks(
            judge,
            objectives,
            {name: list(roles.values()) for name, roles in suites.items()},
            command=f"python -m mosaic pool label {files} --config {source} --out {out}",
            check=f"python -m mosaic judge check {source}",
        )
    cache = VerdictCache(judge_cache(config, out.resolve().parent))
    try:
        labeller = Labeller(judge, cache, gold_checks, objectives, datasets, say, part)
        done = labeller.label(sources, out).json_data()
        carry_cards(sources, out)
        return done
    finally:
        cache.close()
