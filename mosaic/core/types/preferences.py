"""What is known of the answers that a stage drew: the pairs they made, the levels they were given."""

from __future__ import annotations

from pydantic import Field

from mosaic.core.types.base import FrozenModel


class PairYield(FrozenModel):
    """How often answers agreed under two objectives.

    Of `prompts` prompts that both apply to, `consistent` gave two answers of which one is better
    under both.
    """

    objectives: tuple[str, str]
    prompts: int = Field(ge=0)
    consistent: int = Field(ge=0)


class PairReport(FrozenModel):
    """What became of practice prompts that were sampled.

    `pairs` of the `prompts` gave a pair to train on; `unpaid` more cost too much. Answers are left out that the length limit cut
    (`cut`) or that some objective could not score (`unscored`), whole prompts whose answers cannot
    be rendered for training (`unlearnable`, by reason). `opposed` are pairs of objectives that never
    apply to one prompt, so that no pair can agree on both. Tokens: `sampled` as answers, `trained`
    on, both answers of each pair and all epochs counted.
    """

    prompts: int = Field(ge=0)
    answers: int = Field(ge=0)
    pairs: int = Field(ge=0)
    unpaid: int = Field(default=0, ge=0)
    cut: int = Field(default=0, ge=0)
    unscored: int = Field(default=0, ge=0)
    unlearnable: dict[str, int] = {}
    yields: list[PairYield] = []
    opposed: list[tuple[str, str]] = []
    slices: dict[str, int] = Field(default={}, description="objective/slice -> pairs")
    sampled: int = Field(ge=0)
    trained: int = Field(ge=0)

    @property
    def share(self) -> float:
        """Pairs per prompt, 0-1; 0 without prompts."""
        return self.pairs / self.prompts if self.prompts else 0.0


class JudgedReport(FrozenModel):
    """What became of practice prompts whose answers were judged for a reward model.

    `answers` were drawn, `pool_rows` came from the pool with their qualities; `levels` counts what
    both were given, objective -> level -> answers. What is left out is counted as in `PairReport`.
    """

    prompts: int = Field(ge=0)
    answers: int = Field(ge=0)
    cut: int = Field(default=0, ge=0)
    unscored: int = Field(default=0, ge=0)
    unlearnable: dict[str, int] = {}
    pool_rows: int = Field(default=0, ge=0)
    levels: dict[str, dict[int, int]] = {}
    sampled: int = Field(ge=0)


class HeadReport(FrozenModel):
    """One objective of a reward model: the levels it tells apart, and how well on held-out answers."""

    objective: str
    classes: list[int]
    held_out: int
    balanced_accuracy: float | None = None
    calibration_error: float | None = None


class LevelReport(FrozenModel):
    """What a stage that trains for stated wishes did.

    `left_out` are objectives that the reward model cannot tell, with the reason. `warm_rows` judged
    answers were learned from below their levels, then `chats` prompts with drawn wishes were
    rewarded. Tokens: `reward_model`, `warm` and `policy` are trained on, all epochs counted,
    `policy_sampled` drawn by the policy. `wish` is stated wherever the adapter is measured. `doubts` are
    sentences about what its levels may not be.
    """

    judged: JudgedReport
    heads: list[HeadReport] = []
    left_out: dict[str, str] = {}
    warm_rows: int = 0
    chats: int = 0
    reward_model: int = 0
    warm: int = 0
    policy: int = 0
    policy_sampled: int = 0
    wish: dict[str, int] = {}
    doubts: list[str] = Field(default=[], exclude_if=lambda doubts: not doubts)
