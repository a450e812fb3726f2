"""What is known of preference pairs: how many practice prompts gave one, and of which objectives."""

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
