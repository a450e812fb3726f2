"""Judges before and after a run: known answers, two judges side by side, labels for a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.agreement import compare
from eval.chat.client import REFUSES
from eval.judges.base import Judge, LlmJudgeConfig
from eval.judges.llm import ITEMS, UNANSWERED, LlmJudge
from eval.objectives.base import Objective
from eval.references import pick, references, require_both, wrong
from eval.suite import Suite, check_references
from mosaic.app.config import RunConfig, load_config
from mosaic.app.runs import run_config
from mosaic.app.wiring import build_judge, judge_cache, open_objective, open_suites
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Verdict
from mosaic.core.types.records import JudgeSuite
from tools.effects.judge import GoldChecks, ask_in_batches
from tools.effects.verdict_cache import VerdictCache
from tools.labelling.pool import Labeller
from tools.labelling.suite import label_suite
from training.data.outputs import check_place
from training.data.provenance import SUITE_CARD, carry_cards

Say = Callable[[str], None]
Suites = Mapping[str, Mapping[str, Suite]]


class CachedJudge:
    """A model judge outside of a run: the shared cache first, then the model."""

    def __init__(self, judge: LlmJudge, cache: VerdictCache, say: Say = lambda text: None) -> None:
        self.digest = judge.digest
        self._judge = judge
        self._cache = cache
        self._say = say

    def judge(
        self, objective: str, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> list[Judgment]:
        if not self._judge.asks(objective):
            return self._judge.judge(objective, prompts, responses)
        questions = [
            self._judge.question(objective, p, r) for p, r in zip(prompts, responses, strict=True)
        ]
        found: dict[str, Verdict] = {q.key: hit for q in questions if (hit := self._cache.get(q))}
        missing = list({q.key: q for q in questions if q.key not in found}.values())
        if missing:
            self._say(
                f"{objective}: asking {self._judge.config.chat.model} for {len(missing):,} verdicts"
            )
        found |= ask_in_batches(
            self._judge,
            missing,
            lambda batch: None,
            lambda made: self._cache.put([(q, v) for q, v, _ in made]),
        )
        return [
            self._judge.judgment(objective, p, found[q.key])
            for p, q in zip(prompts, questions, strict=True)
        ]


def check_judge(
    config: RunConfig, objectives: Mapping[str, Objective], suites: Suites, runs: Path | None = None
) -> list[dict[str, Any]]:
    """Known-good answers must score 5 and known-bad ones less (with a model: must count as failed): all references
    with the verifier, up to `judge.canaries` of each suite with a model, which is asked afresh unless `runs`, the folder
    of the run directories, leads to a cache. UsageError naming those that come out wrong, the endpoint's refusal to
    judge them, or the objective that has no known answers."""
    judge = _cached(config, runs) if runs else build_judge(config)
    findings = []
    for name, objective in objectives.items():
        roles = suites[name]
        if isinstance(config.judge, LlmJudgeConfig) and LlmJudge.asks(name):
            known = references(roles.values())
            require_both(name, known)
            some = [
                r
                for s in roles.values()
                for r in pick(references([s]), config.judge.canaries, s.digest)
            ]
            bad = wrong(judge, objective, some)
            if bad and runs:  # a mended judge must not be held to what the cache remembers of it
                bad = wrong(build_judge(config), objective, [r for r, _ in bad])
            refused = [
                s.reason
                for _, s in bad
                if s.reason and any(word in s.reason for word in (REFUSES, UNANSWERED))
            ]
            if refused:  # what was never judged says nothing about the references
                raise UsageError(
                    f"judge {config.judge.chat.model}, objective {name}: {len(refused)} of {len(some)} known answers "
                    f"were not judged; {refused[0]}; mend judge.chat or the server's settings"
                )
            if bad:
                lines = "\n".join(
                    f"  prompt {r.prompt.id}: its {r.kind} reference answer gives "
                    + (f"score {s.score:g}" if s.score is not None else str(s.reason))
                    + (", not score 5" if r.kind == "good" else ", which does not count as failed")
                    for r, s in bad[:20]
                )
                raise UsageError(
                    f"judge {config.judge.chat.model}, objective {name}: {len(bad)} of {len(some)} known answers come "
                    f"out wrong:\n{lines}\nmend the references, or choose another judge"
                )
            how = f"{len(some)} known answers judged right by {config.judge.chat.model}"
        else:
            for suite in roles.values():
                check_references(suite, objective, judge)
            known = references(roles.values())
            how = (
                f"{len(known):,} reference answers checked by code"
                if known
                else "no reference answers to check"
            )
        counts = ", ".join(f"{role} {len(suite.prompts)}" for role, suite in roles.items())
        findings.append({"check": f"suites {name}", "result": f"{counts}; {how}"})
    return findings


def check(source: str, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """`judge check`: asks afresh, whatever is cached. UsageError where a known answer comes out wrong."""
    config = load_config(source, overrides)
    objectives, suites = open_suites(config)
    return check_judge(config, objectives, suites)


def compare_judges(run: Path, first: str, second: str, say: Say) -> dict[str, Any]:
    """Two judges on the stored answers of a run: per objective, each conversation once, the items that both decided.

    `first` and `second` are configs, of which only `judge` is read. UsageError where the run has no judged answers
    or its suites changed.
    """
    config = run_config(run)
    objectives, suites = open_suites(config)
    by_digest = {s.digest: s for roles in suites.values() for s in roles.values()}
    pairs: dict[str, dict[str, tuple[Prompt, Response]]] = {name: {} for name in objectives}
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
                f"{run}: the suites of {step.inputs.objective} changed since it was judged; restore them"
            )
        if objectives[suite.objective].evidence != "answers":
            continue
        lines = store.get_json(step.result.responses)
        for prompt, line in zip(suite.prompts, lines, strict=True):
            response = Response.model_validate(line)
            pairs[suite.objective].setdefault(
                f"{suite.role}/{prompt.id}/{response.answers}", (prompt, response)
            )
    if not any(pairs.values()):
        raise UsageError(
            f"{run} has no judged answers yet; `python -m mosaic resume {run}` makes them"
        )
    judges = [_cached(load_config(source), run.parent, say) for source in (first, second)]
    result: dict[str, Any] = {"run": run.name, "judges": [first, second], "objectives": {}}
    for name, found in pairs.items():
        if name not in ITEMS:
            continue
        prompts, responses = [p for p, _ in found.values()], [r for _, r in found.values()]
        a, b = (judge.judge(name, prompts, responses) for judge in judges)
        result["objectives"][name] = {
            "conversations": len(prompts),
            "unscored": [sum(j.status != "ok" for j in judged) for judged in (a, b)],
            "items": [row for row in compare(a, b) if row["item"].split(".")[0] in ITEMS[name]],
        }
    return result


def _cached(config: RunConfig, runs: Path, say: Say = lambda text: None) -> Judge:
    judge = build_judge(config)
    return (
        CachedJudge(judge, VerdictCache(judge_cache(config, runs)), say)
        if isinstance(judge, LlmJudge)
        else judge
    )


def label_prompts(
    folder: Path, objective: str, source: str, overrides: Sequence[str], out: Path, say: Say
) -> dict[str, Any]:
    """`pool label --suite`: the prompt side of a suite, by the config's judge."""
    check_place(out / SUITE_CARD)
    config = load_config(source, overrides)
    cache = VerdictCache(judge_cache(config, out.resolve().parent))
    try:
        return label_suite(_model_judge(config), cache, open_objective(objective), folder, out, say)
    finally:
        cache.close()


def _model_judge(config: RunConfig) -> LlmJudge:
    judge = build_judge(config)
    if not isinstance(judge, LlmJudge):
        raise UsageError(
            "judge.kind: the verifier needs rules, which rows lack; label with `judge: {kind: llm, ...}`"
        )
    return judge


def label_pool(
    sources: Sequence[Path], source: str, overrides: Sequence[str], out: Path, say: Say
) -> dict[str, Any]:
    """`pool label`: rows with quality, bucket and attributes, by the config's judge."""
    check_place(out)
    config = load_config(source, overrides)
    judge = _model_judge(config)
    objectives, suites = open_suites(config)
    datasets = {d: name for name, o in config.objectives.items() for d in o.datasets}
    command = (
        f"python -m mosaic pool label {' '.join(map(str, sources))} --config {source} --out {out}"
    )
    canaries = GoldChecks(
        judge,
        objectives,
        {name: list(roles.values()) for name, roles in suites.items()},
        command=command,
        check=f"python -m mosaic judge check {source}",
    )
    cache = VerdictCache(judge_cache(config, out.resolve().parent))
    try:
        done = (
            Labeller(judge, cache, canaries, objectives, datasets, say)
            .label(sources, out)
            .json_data()
        )
        carry_cards(sources, out)
        return done
    finally:
        cache.close()
