"""How often the controller reads again what it has in hand: plans, observations, recorded rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from agent.graph import run as run_graph
from benchmarks.durability import memory
from benchmarks.figures import Rows, figure
from benchmarks.standins import StandIn, Witness
from mosaic.core.journal import Journal
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.evaluation import Response
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import RoundClosed
from mosaic.core.types.runs import Observation

ROUNDS = 3
# The round in which the interrupted run dies, while its adapter is measured.
DIES_IN = 2

M = TypeVar("M", bound=FrozenModel)
Name = Callable[[M], str]


class Interrupted(Exception):
    """Stands for a kill."""


class Counts:
    """What one start of the controller validated from JSON, each counted by its name."""

    def __init__(self) -> None:
        self.plans: Counter[str] = Counter()
        self.observations: Counter[str] = Counter()
        self.rounds: Counter[str] = Counter()


def reads(quick: bool) -> Rows:
    """Validations of plans and observations and reads of recorded rounds, in three rounds.

    First in a run without a stop, then in one that dies in its second round and is resumed: it
    plans rounds 1 and 2 before, and takes up round 2 and plans round 3 after.
    """
    standin = StandIn.make(f"rounds={ROUNDS}", per_slice=2 if quick else 10)
    with memory() as name:
        folder = Path(name)
        standin.create(folder / "whole")
        whole = _start(standin, folder / "whole")
        standin.create(folder / "killed")
        before = _start(standin, folder / "killed", dies_in=DIES_IN)
        after = _start(standin, folder / "killed")
    return [
        *_rows("in one start", whole, ROUNDS),
        *_rows("before a kill", before, DIES_IN),
        *_rows("after the resume", after, ROUNDS - DIES_IN + 1),
    ]


def _rows(when: str, counts: Counts, rounds: int) -> Rows:
    """The figures of one start, which went through so many rounds."""
    plans, observations = counts.plans, counts.observations
    return [
        figure(f"{when}: validations of plans", plans.total() / rounds, "a round", at_most=1),
        figure(f"{when}: validations of the same plan", _most(plans), "times", at_most=1),
        figure(
            f"{when}: validations of observations",
            observations.total() / rounds,
            "a round",
            at_most=1,
        ),
        figure(
            f"{when}: validations of the same observation", _most(observations), "times", at_most=1
        ),
        figure(f"{when}: reads of the same round", _most(counts.rounds), "times", at_most=1),
    ]


def _most(counter: Counter[str]) -> int:
    return max(counter.values(), default=0)


def _start(standin: StandIn, folder: Path, dies_in: int | None = None) -> Counts:
    """What one start of the controller validated, to its end or to the round in which it dies."""
    witness = Witness(folder.with_suffix(".witness"))
    journal = Journal.open(folder)
    try:
        journal.acquire()
        with counting() as counts:
            context = standin.context(folder, journal, witness)
            generator = context.evaluator.generator
            generate = generator.generate

            def answers(*values: Any) -> list[Response]:
                if len(context.state.rounds) == dies_in:
                    raise Interrupted
                return generate(*values)

            with patch.object(generator, "generate", answers), suppress(Interrupted):
                run_graph(context, folder)
        closed = len(context.state.rounds)
        if closed != (dies_in or ROUNDS + 1):
            raise RuntimeError(f"the run ended with {closed} rounds")
    finally:
        journal.close()
    return counts


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is validated from JSON while inside."""
    counts = Counts()
    with ExitStack() as stack:
        for model, counter, name in (
            (ActionPlan, counts.plans, lambda plan: plan.content_digest),
            (Observation, counts.observations, lambda seen: seen.content_digest),
            (RoundClosed, counts.rounds, lambda closed: str(closed.round.round)),
        ):
            for method in ("model_validate", "model_validate_json"):
                stack.enter_context(
                    patch.object(model, method, _counted(model, method, counter, name))
                )
        yield counts


def _counted(model: type[M], method: str, counter: Counter[str], name: Name[M]) -> Callable[..., M]:
    """The validating method, which leaves the name of what it validated."""
    validate = getattr(model, method)

    def counted(*values: object, **named: object) -> M:
        made: M = validate(*values, **named)
        counter[name(made)] += 1
        return made

    return counted
