"""What the nodes of a run share: its tools, its settings, and what it has come to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.approval import Approver
from agent.planners.base import Planner
from agent.settings import Settings
from agent.state import RunState, fold
from mosaic.core.steps import Steps
from mosaic.core.types.base import canonical_json, canonical_object
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation, Round
from tools.effects.evaluate import Evaluator
from tools.effects.influence import InfluenceTool
from tools.effects.practice import PracticeTool
from tools.effects.train import TrainTool
from training.data.pool import Pool


def silent(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Approval:
    """The proof that plans of a round may run: made where a decision is journalled, and nowhere
    else. `plans` are digests."""

    round: int
    request: str
    plans: tuple[str, ...]


@dataclass(frozen=True)
class FiledRound:
    """A round, its canonical JSON, and the round that a restart would read from it."""

    round: Round
    text: str
    reread: Round

    @classmethod
    def of(cls, round_: Round) -> FiledRound:
        text = canonical_json(round_.json_data())
        return cls(round_, text, Round.model_validate_json(text))

    def stands_for(self, round_: Round) -> bool:
        """Whether a round is the one that was encoded, in every field."""
        return all(getattr(self.round, n) == getattr(round_, n) for n in Round.model_fields)


@dataclass
class RunContext:
    """Everything a node may touch. Built in one place, `mosaic.app.wiring`.

    `experiment` is the digest of base, recipe, generator, judge and suites: what an approval takes
    for granted. With `pause` the run pauses, rather than fails, if the planner fails and nobody
    plans instead. Without `influence` none is estimated; without
    `practice` no stage draws answers. The journal is folded once; what is
    recorded later is added to `state`.
    """

    steps: Steps
    pool: Pool
    evaluator: Evaluator
    trainer: TrainTool
    planner: Planner
    fallback: Planner | None
    approver: Approver
    settings: Settings
    experiment: str
    pause: bool = False
    influence: InfluenceTool | None = None
    practice: PracticeTool | None = None
    notify: Callable[[str], None] = silent
    state: RunState = field(init=False)
    approval: Approval | None = None
    _started: dict[int, float] = field(default_factory=dict)
    _plans: dict[str, ActionPlan] = field(default_factory=dict)
    _observations: dict[str, Observation] = field(default_factory=dict)
    _rounds: dict[int, FiledRound] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = fold(self.steps.journal, [o.name for o in self.settings.traded])

    @property
    def run(self) -> str:
        return self.steps.journal.run

    def budget_left(self) -> int:
        """Training tokens that are neither spent nor reserved."""
        cap, held, spent = self.steps.journal.ledger()
        return cap - held - spent

    def begin(self, round_: int) -> Steps:
        """The steps of a round; its clock runs from the first call."""
        self._started.setdefault(round_, time.monotonic())
        return self.steps.at(round_)

    def seconds(self, round_: int) -> float:
        """Seconds since this controller began a round."""
        return time.monotonic() - self._started[round_]

    # -- objects that are handed on beside their digests -------------------------------------------

    def file_plan(self, plan: ActionPlan) -> str:
        """File a plan and keep it at hand as it was filed; its digest.

        What is at hand has the order of keys that a restart would read.
        """
        text = canonical_json(plan.json_data())
        digest = self.steps.store.put_bytes(text.encode())
        self._plans[digest] = ActionPlan.model_validate_json(text)
        return digest

    def plan(self, digest: str) -> ActionPlan:
        """A filed plan: read from the store once."""
        if digest not in self._plans:
            self._plans[digest] = ActionPlan.model_validate(self.steps.store.get_json(digest))
        return self._plans[digest]

    def file_observation(self, observation: Observation) -> str:
        """File an observation and keep it at hand as it was filed; its digest.

        Each round of the history is encoded once, and again only if a later one dominates it.
        """
        history = [self._filed(round_) for round_ in observation.history]
        fields = {}
        for name, value in observation.model_dump(mode="json", exclude={"history"}).items():
            fields[name] = canonical_json(value)
        texts = ",".join(filed.text for filed in history)
        whole = canonical_object({**fields, "history": f"[{texts}]"})
        digest = self.steps.store.put_bytes(whole.encode())
        alone = Observation.model_validate_json(canonical_object({**fields, "history": "[]"}))
        reread = [filed.reread for filed in history]
        self._observations = {digest: alone.model_copy(update={"history": reread})}
        return digest

    def _filed(self, round_: Round) -> FiledRound:
        """A round of the history as it is filed, encoded once for as long as it stays the same."""
        known = self._rounds.get(round_.round)
        if known is None or not known.stands_for(round_):
            known = self._rounds[round_.round] = FiledRound.of(round_)
        return known

    def observation(self, digest: str, feedback: list[Violation]) -> Observation:
        """A filed observation with what the planner was told since: read from the store once."""
        if digest not in self._observations:
            data = self.steps.store.get_json(digest)
            self._observations = {digest: Observation.model_validate(data)}
        return self._observations[digest].model_copy(update={"feedback": feedback})
