"""The real controller with fast stand-ins for training and generation, for tests that run it thousands of times.

Everything but the model is real: pool, curation, planner, constraints, approval, graph, journal, store, judge. The
stand-ins' results are pure functions of their inputs, and each call leaves a line in a ledger outside of the run
directory: the witness for what really ran.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from agent.approval import Approver
from agent.context import RunContext
from agent.graph import run as run_graph
from eval.generators.base import TextLikelihood
from eval.reward_model import CARD, HeadCard, RewardModelCard
from mosaic.app import runs
from mosaic.app.bases import base_folder
from mosaic.app.config import RunConfig
from mosaic.app.config_file import load_config
from mosaic.app.wiring import (
    Inputs,
    Reporting,
    build_context,
    generator_identity,
    open_inputs,
    run_digests,
)
from mosaic.core.journal import Journal
from mosaic.core.types.base import digest_of
from mosaic.core.types.data import JudgedAnswer
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.runs import (
    BASE,
    GREEDY,
    JUDGED_ANSWERS,
    PAIRS,
    START,
    TRAINING_SET,
    WISHED_CHATS,
    Sampling,
    TrainJob,
    TrainResult,
    Workplace,
)
from tools.effects.evaluate import Evaluator
from tools.executors.inline import InlineHandle
from training.methods.base import Progress, Stopping
from training.methods.level_reward import SCALE, measure
from training.methods.reward_model import head_cards
from training.models.adapter import CONFIG, WEIGHTS, adapter_bytes

SETTINGS = (
    "name=standin",
    "rounds=4",
    "calibration.repeats=1",
    "budget.tokens_per_round=4000",
    "planner.kind=random",
    "methods.sft.epochs=1",
)


# Methods after the mixture's, for `StandIn.make`; their objectives need practice prompts.
PREFERENCES = (
    "methods.dpo.n=4",
    "method_shares.sft=0.5",
    "method_shares.dpo=0.5",
    "evaluate_stages=true",
)
ALL_METHODS = (
    *PREFERENCES,
    "methods.rl.max_new_tokens=8",
    "methods.rl.judged_share=0.7",
    "methods.rl.warm_share=0.1",
    "methods.rl.graded.benign=over_refusal",
    "method_shares.sft=0.3",
    "method_shares.dpo=0.3",
    "method_shares.rl=0.4",
)


@dataclass(frozen=True)
class Witness:
    """An append-only ledger of effects, flushed line by line."""

    path: Path

    def note(self, what: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, (what + "\n").encode())
        os.close(descriptor)

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


# What a job trains on.
FILES = (TRAINING_SET, PAIRS, JUDGED_ANSWERS, WISHED_CHATS)


class StandInExecutor:
    """An adapter whose bytes are the digest of what it was trained on."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness

    def submit(
        self, job: TrainJob, place: Workplace, progress: Progress | None = None
    ) -> InlineHandle:
        return InlineHandle(job, place, progress)

    def wait(self, handles: Sequence[InlineHandle], stopping: Stopping) -> list[TrainResult]:
        return [self._train(handle.work, handle.place) for handle in handles]

    def _train(self, job: TrainJob, place: Workplace) -> TrainResult:
        import pyarrow.parquet as pq

        data = next(Path(place.paths[name]) for name in FILES if name in job.inputs)
        start = (Path(place.paths[START]) / WEIGHTS).read_text() if job.start_from else None
        content = hashlib.sha256(data.read_bytes()).hexdigest()
        seed = digest_of([content, job.seed, start] if start else [content, job.seed])
        out = Path(place.out)
        out.mkdir(parents=True)
        (out / WEIGHTS).write_text(seed)
        (out / CONFIG).write_text("{}")
        sampled = 0
        if WISHED_CHATS in job.inputs or JUDGED_ANSWERS in job.inputs:
            lines = data.read_text().splitlines()
            tokens, sampled = len(lines), len(lines) if WISHED_CHATS in job.inputs else 0
        else:
            columns = ["chosen_tokens", "rejected_tokens"] if PAIRS in job.inputs else ["n_tokens"]
            table = pq.read_table(data, columns=columns)
            tokens = job.recipe.epochs * sum(sum(table[name].to_pylist()) for name in columns)
        if JUDGED_ANSWERS in job.inputs:
            levels = [JudgedAnswer.model_validate_json(line).levels for line in lines]
            heads, left_out = head_cards(levels)
            known = {"dtype": job.recipe.dtype, "max_length": job.recipe.max_length}
            card = RewardModelCard(base=job.inputs[BASE], heads=heads, left_out=left_out, **known)
            (out / CARD).write_text(json.dumps(card.json_data()))
            # Every level is as likely for one of two reference answers as for the other; but the last.
            scale = measure([_alike(heads, 0.4), _alike(heads, 0.6)])
            (out / SCALE).write_text(json.dumps(scale.json_data()))
        self.witness.note(f"train {seed}")
        return TrainResult(
            adapter=place.out, tokens=tokens, supervised=tokens, steps=1, loss=1.0, seconds=0.0, train_seconds=0.0,
            real_token_share=1.0, sampled=sampled,
        )  # fmt: skip


def _alike(heads: Sequence[HeadCard], last: float) -> dict[str, dict[int, float]]:
    """Probabilities of an answer's levels: `last` for the highest and the lowest, else equal."""
    found = {}
    for head in heads:
        inner = head.classes[1:-1]
        found[head.objective] = {
            **dict.fromkeys(inner, 0.1),
            head.classes[0]: 1 - last - 0.1 * len(inner),
            head.classes[-1]: last,
        }
    return found


class StandInGenerator:
    """Answers with a prompt's good or bad reference, by a hash of prompt and adapter."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness

    def generate(
        self, prompts: Sequence[Prompt], adapter: Path | None, sampling: Sampling = GREEDY
    ) -> list[Response]:
        name = (adapter / WEIGHTS).read_text() if adapter else "base"
        self.witness.note(f"generate {name} {digest_of([p.id for p in prompts])}")
        if sampling.greedy:
            return [self._answer(p, name) for p in prompts]
        draws = [f"{name} {sampling.seed} {sample}" for sample in range(sampling.n)]
        return [self._drawn(p, draw) for p in prompts for draw in draws]

    def _drawn(self, prompt: Prompt, name: str) -> Response:
        """An answer that may follow the prompt's constraint too, so that two objectives can agree."""
        response = self._answer(prompt, name)
        ends = [
            c["params"]["end_phrase"] for c in prompt.constraints if "end_phrase" in c["params"]
        ]
        if not ends or response.answers != prompt.good:
            return response
        *before, last = response.answers
        return response.model_copy(update={"answers": [*before, f"{last} {ends[0]}"]})

    def _answer(self, prompt: Prompt, name: str) -> Response:
        luck = int(hashlib.sha256(f"{name} {prompt.id}".encode()).hexdigest()[:4], 16)
        answers = list((prompt.good if luck % 3 else prompt.bad) or [""])
        answers += answers[-1:] * (len(prompt.turns) - len(answers))
        return Response(
            id=prompt.id,
            answers=answers,
            finish_reasons=["stop"] * len(answers),
            n_tokens=len(answers),
        )

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[TextLikelihood]:
        raise AssertionError("no objective of these runs reads likelihoods")

    def release(self) -> None:
        """Nothing to give back."""

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class StandIn:
    """A config over trimmed laboratory suites, opened once and shared by every run."""

    config: RunConfig
    inputs: Inputs
    approver: Approver | None = None

    @classmethod
    def make(
        cls,
        *overrides: str,
        per_slice: int = 10,
        objectives: tuple[str, ...] = ("over_refusal", "safety"),
    ) -> StandIn:
        # What a controller imports and works out when it starts is done here, once, so that forked children start at
        # once: of 2.7 s of CPU that one took, 2.4 s were this.
        for name in (
            "langgraph.graph",
            "langgraph.checkpoint.sqlite",
            "langgraph.checkpoint.serde.jsonplus",
        ):
            importlib.import_module(name)
        config = load_config("lab", [*SETTINGS, *overrides])
        kept = {name: o for name, o in config.objectives.items() if name in objectives}
        config = config.model_copy(update={"objectives": kept})
        inputs = open_inputs(config)
        generator_identity(config, inputs.base_digest)
        adapter_bytes(base_folder(config.base_model), config.recipe)
        suites = {
            name: {
                role: replace(suite, prompts=_some(suite.prompts, per_slice))
                for role, suite in roles.items()
            }
            for name, roles in inputs.suites.items()
        }
        return cls(config, replace(inputs, suites=suites))

    def create(self, folder: Path) -> None:
        runs.create(folder, self.config, run_digests(self.config, self.inputs))

    def context(self, folder: Path, journal: Journal, witness: Witness) -> RunContext:
        """The real context with the stand-ins in place of trainer and generator."""
        context = build_context(self.config, folder, journal, self.inputs, Reporting())
        old = context.evaluator
        context.evaluator = Evaluator(
            StandInGenerator(witness),
            old.judge,
            old.objectives,
            old.suites,
            old.identity,
            independent=old.independent,
        )
        if context.practice is not None:
            context.practice.evaluator = context.evaluator
        executor = StandInExecutor(witness)
        context.trainer = replace(context.trainer, executor=executor, adapter_bytes=0)
        if self.approver:
            context.approver = self.approver
        return context

    def run(self, folder: Path, witness: Witness, wait: Callable[[], None] | None = None) -> None:
        """One start of the controller, as `resume` does it."""
        journal = Journal.open(folder)
        try:
            journal.acquire()
            context = self.context(folder, journal, witness)
            context.steps.store.sweep()
            run_graph(context, folder, wait)
        finally:
            journal.close()


def _some(prompts: list[Prompt], per_slice: int) -> list[Prompt]:
    counts: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        counts[prompt.slice] = counts.get(prompt.slice, 0) + 1
        if counts[prompt.slice] <= per_slice:
            kept.append(prompt)
    return kept


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal between a run that was interrupted and one that was not.

    Steps with their results, events, ledger; the clock of a round is left out. So is the order in
    which trainings of several trials ended that ran at once.
    """
    journal = Journal.open(folder)
    try:
        run = journal.run
        steps = [(row.kind, row.state, row.result) for row in journal.rows()]
        events: list[tuple[int, object]] = []
        for together, found in groupby(journal.events(), key=lambda event: event.kind == "trained"):
            group = list(found)
            if together:
                group.sort(key=lambda event: event.place.trial)
            events += [(event.place.round, event.record.json_data()) for event in group]
        whole = json.dumps({"steps": steps, "events": events, "ledger": journal.ledger()})
        return json.loads(whole.replace(run, "RUN"))
    finally:
        journal.close()
