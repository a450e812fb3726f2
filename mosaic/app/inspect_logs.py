"""The evaluations of a run as logs of Inspect, so that `inspect view` opens them.

A log per model, objective and suite role, or independent suite: the conversations with their scores, labels and the
items that the judge answered. `inspect_ai` itself writes and reads them (extra `inspect`). The logs
hold what models wrote under attack, and say so in their metadata.

    round-02_safety_audit.eval      the model of round 2 on the audit suite of `safety`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.state import RunState
from eval.statistics import summarise
from eval.suite import read_prompts
from mosaic import __version__
from mosaic.app.config import RunConfig
from mosaic.app.extras import needs
from mosaic.app.runs import config_of
from mosaic.app.views.report_data import load
from mosaic.core.errors import UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Score, Scored
from mosaic.core.types.records import Generate, JudgeSuite
from mosaic.core.types.runs import Trial
from tools.effects.evaluate import BOOTSTRAP_SEED, wishing

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ChatMessage

NOTICE = (
    "Holds what models wrote under attack, and the attacks: harmful text may stand in it. Written by "
    "MOSAIC from the journal of a run; scores are means from 1 to 5, higher is better."
)


@dataclass(frozen=True)
class Evaluated:
    """One model on one suite, as filed. `model` is `base`, `round-02` or `calibration-1`.

    `prompts` state the levels of `wish`, if there are any.
    """

    model: str
    objective: str
    role: str
    judge: str
    at: float
    prompts: dict[str, Prompt]
    responses: list[Response]
    judgments: dict[str, Judgment]
    scored: dict[str, Scored]
    wish: dict[str, int]

    @property
    def score(self) -> Score:
        return summarise(list(self.scored.values()), BOOTSTRAP_SEED)


def write_inspect(folder: Path, out: Path) -> list[Path]:
    """Write the logs of a run into the folder `out`, and return their paths.

    Objectives without answers, such as those that read likelihoods, have no log. Raises UsageError
    if `out` exists, `inspect_ai` is not installed, a suite changed since it was answered, or nothing
    was answered yet.
    """
    needs("inspect_ai", "inspect")
    from inspect_ai.log import write_eval_log

    if out.exists():
        raise UsageError(f"--out {out} exists; name a new folder")
    found = list(evaluations(folder))
    if not found:
        raise UsageError(f"{folder}: no suite was answered and judged yet")
    out.mkdir(parents=True)
    written = [out / f"{name}.eval" for name in log_names(found)]
    for path, evaluated in zip(written, found, strict=True):
        write_eval_log(log_of(folder.name, evaluated), str(path))
    return written


def log_names(found: Sequence[Evaluated]) -> list[str]:
    """What each log is called. One that was judged again, or asked for other levels, has a number."""
    names: list[str] = []
    for one in found:
        plain = f"{one.model}_{one.objective}_{one.role}"
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain}_{number}"
        names.append(name)
    return names


# -- what a run evaluated --------------------------------------------------------------------------


def evaluations(folder: Path) -> Iterator[Evaluated]:
    """Everything that a run evaluated and has answers to, in order."""
    journal, state = load(folder)
    try:
        config, recorded = config_of(journal), journal.recorded.inputs.suites
        roles = {}
        for objective, digests in recorded.items():
            for name, digest in digests.items():
                roles[objective, digest] = name
        tests = {suite: name for name, suite in journal.recorded.inputs.independent.items()}
        owners = answered_by(journal)
        names, store = model_names(state), Store(folder)
        for step in journal.steps(JudgeSuite):
            inputs, files = step.inputs, step.result
            objective = inputs.objective
            role = roles.get((objective, inputs.suite)) or tests.get(inputs.suite)
            models = owners.get((inputs.suite, *inputs.responses), [])
            if role is None or not models:
                continue  # judged before a change of the suite, or read without answers
            asked = _prompts(config, objective, role, inputs.suite)
            responses = [Response.model_validate(line) for line in store.get_json(files.responses)]
            judgments = [Judgment.model_validate(line) for line in store.get_json(files.judgments)]
            scored = [Scored.model_validate(line) for line in store.get_json(files.scored)]
            for adapter, wish in models:
                model = "base"
                if adapter is not None:
                    model = names.get(adapter, f"adapter-{adapter[:12]}")
                yield Evaluated(
                    model=model,
                    objective=objective,
                    role=role,
                    judge=inputs.judge,
                    at=_time_of(journal, step.place.round),
                    prompts={prompt.id: prompt for prompt in wishing(asked, wish)},
                    responses=responses,
                    judgments={judgment.id: judgment for judgment in judgments},
                    scored={one.id: one for one in scored},
                    wish=wish,
                )
    finally:
        journal.close()


def answered_by(journal: Journal) -> dict[tuple[str, ...], list[tuple[str | None, dict[str, int]]]]:
    """(suite, answers by shard) -> every model that gave them: its adapter, and the wish it was told.

    Models that answer alike share what is filed, and the judgment of it.
    """
    shards: dict[tuple[str, str | None, str], dict[tuple[int, int], str]] = {}
    wishes = {}
    for made in journal.steps(Generate):
        inputs = made.inputs
        model = (inputs.suite, inputs.adapter, digest_of(inputs.wish))
        shards.setdefault(model, {})[inputs.shard] = made.result.responses
        wishes[model] = inputs.wish
    owners: dict[tuple[str, ...], list[tuple[str | None, dict[str, int]]]] = {}
    for model, answers in shards.items():
        suite, adapter, _ = model
        key = (suite, *(digest for _, digest in sorted(answers.items())))
        owners.setdefault(key, []).append((adapter, wishes[model]))
    return owners


def model_names(state: RunState) -> dict[str, str]:
    """Digest of an adapter -> what people call its model."""
    names: dict[str, str] = {}
    for round_ in state.rounds:
        name = f"round-{round_.round:02d}"
        for number, trial in enumerate(round_.trials, start=1):
            _name_all(names, [trial], f"{name}-{number}" if len(round_.trials) > 1 else name)
    calibration = state.calibration.trials if state.calibration else []
    for number, trial in enumerate(calibration, start=1):
        _name_all(names, [trial], f"calibration-{number}")
    for number, look in enumerate(state.looks, start=1):
        _name_all(names, [look], f"look-{number}")
    return names


def _name_all(names: dict[str, str], trials: list[Trial], name: str) -> None:
    """Name the adapters of trials that are not named yet: a stage by its method, the last as such."""
    for trial in trials:
        if trial.adapter is not None:
            names.setdefault(trial.adapter.digest, name)
        for stage in trial.stages:
            if stage.adapter is not None:
                names.setdefault(stage.adapter.digest, f"{name}-{stage.method}")


def _prompts(config: RunConfig, objective: str, role: str, digest: str) -> list[Prompt]:
    if role in config.audit_also:
        suite, file = Path(config.audit_also[role]), "audit"
    else:
        suite, file = Path(config.objectives[objective].suite), role
    prompts, found = read_prompts(suite, file)
    if found != digest:
        raise UsageError(f"{suite}/{file}.jsonl changed since it was answered; restore it")
    return prompts


def _time_of(journal: Journal, round_: int) -> float:
    """Wall time of the last event of a round, in seconds since 1970; before any, of the run."""
    events = journal.events(round_) or journal.events()
    return events[-1].at if events else (journal.folder / "journal.sqlite").stat().st_mtime


# -- as Inspect has them ---------------------------------------------------------------------------


def log_of(run: str, evaluated: Evaluated) -> EvalLog:
    """One evaluation as a log that is complete: spec, results, samples."""
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )

    task = f"{evaluated.objective}_{evaluated.role}"
    model = f"mosaic/{run}-{evaluated.model}"
    identity = digest_of([run, evaluated.model, task, evaluated.at])
    created = datetime.fromtimestamp(evaluated.at, UTC).isoformat(timespec="seconds")
    score = evaluated.score
    figures = {"mean": score.mean, "low": score.low, "high": score.high}
    metrics = {}
    for name, value in figures.items():
        if value is not None:
            metrics[name] = EvalMetric(name=name, value=value)
    found = EvalScore(
        name=evaluated.objective,
        scorer=evaluated.objective,
        scored_samples=score.n_scored,
        unscored_samples=score.n_unscored,
        metrics=metrics,
    )
    samples = [_sample(evaluated, response, model) for response in evaluated.responses]
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity[:22],
            run_id=digest_of(run)[:22],
            task_id=identity[22:44],
            created=created,
            task=task,
            dataset=EvalDataset(
                name=task, samples=len(samples), sample_ids=[sample.id for sample in samples]
            ),
            model=model,
            config=EvalConfig(epochs=1),
            packages={"mosaic-curation": __version__},
            metadata={
                "notice": NOTICE,
                "run": run,
                "judge": evaluated.judge,
                "wish": evaluated.wish,
            },
            tags=["mosaic", evaluated.role],
        ),
        results=EvalResults(
            total_samples=len(samples), completed_samples=len(samples), scores=[found]
        ),
        stats=EvalStats(started_at=created, completed_at=created),
        samples=samples,
    )


def _sample(evaluated: Evaluated, response: Response, model: str) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput, ModelUsage
    from inspect_ai.scorer import Score as InspectScore

    prompt = evaluated.prompts[response.id]
    judgment, scored = evaluated.judgments[response.id], evaluated.scored[response.id]
    last = response.answers[-1] if response.answers else ""
    details = {
        "label": scored.label,
        "items": judgment.items,
        "need": scored.need,
        "failed": scored.failed,
        "valid": scored.valid,
    }
    if scored.score is None:
        reason = scored.reason or judgment.reason or "not scored"
        score = InspectScore.unscored(reason=reason, answer=last, metadata=details)
    else:
        score = InspectScore(value=scored.score, answer=last, metadata=details)
    messages = _messages(prompt, response)
    ended = response.finish_reasons[-1] if response.finish_reasons else "stop"
    usage = ModelUsage(output_tokens=response.n_tokens, total_tokens=response.n_tokens)
    output = ModelOutput.from_content(
        model, last, stop_reason="max_tokens" if ended == "length" else "stop"
    )
    output.usage = usage
    return EvalSample(
        id=response.id,
        epoch=1,
        input=messages[: 2 if prompt.system else 1],
        target="",
        messages=messages,
        output=output,
        scores={evaluated.objective: score},
        metadata={"slice": scored.slice or prompt.slice, "weight": prompt.weight},
        model_usage={model: usage},
    )


def _messages(prompt: Prompt, response: Response) -> list[ChatMessage]:
    """The whole conversation, with ids that are the same in every export."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    messages: list[ChatMessage] = []
    if prompt.system:
        messages.append(ChatMessageSystem(content=prompt.system, id=f"{prompt.id}-system"))
    for turn, asked in enumerate(prompt.turns):
        messages.append(ChatMessageUser(content=asked, id=f"{prompt.id}-{turn}-user"))
        if turn < len(response.answers):
            said = response.answers[turn]
            messages.append(ChatMessageAssistant(content=said, id=f"{prompt.id}-{turn}-answer"))
    return messages
