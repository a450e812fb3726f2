"""Forget nothing: the objective `kind: retention`, measured by the likelihood of held-out text.

    {kind: retention, suite: suites/held-out, floor: 4.5}

Each prompt of the suite is one text, its only turn. Its loss, the mean negative natural
log-likelihood per token, is compared with the loss that the base model has on the same text. Half a
nat per token more is the whole scale (`score_of`). The scale is fixed, so that scores of different
runs can be compared. The base scores 5 everywhere. A text that became more likely does not make up
for one that became less likely: each is scored by itself, and the score of a suite is their mean.

Nothing is generated and nothing is judged. Both losses are read from the generator (see
`Generator.log_likelihood`); the base's are measured once in a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from eval.objectives.base import (
    Channel,
    Channels,
    Constraints,
    Line,
    Malformed,
    Side,
    Unchecked,
    attribute_slice,
    need,
    slice_of_line,
    unscored,
)
from eval.objectives.config import RetentionConfig
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Prompt, Response, Scored
from prompts.load import Prompt as PromptFile

VERSION = 1
# Nats per token above the base's loss at which a text scores 1.
WHOLE_SCALE = 0.5
LOWEST = -1e9


class RetentionObjective:
    """5 where a text is as likely as to the base, 1 where it costs half a nat per token more."""

    evidence: Literal["answers", "likelihood"] = "likelihood"
    answers: tuple[Channel, ...] = ()
    request: tuple[Channel, ...] = ()
    fields: Mapping[str, object] = {
        "slice": Annotated[str, Field(min_length=1)],
        "log_likelihood": Annotated[float, Field(le=0)],
        "base": Annotated[float, Field(le=0)],
        "tokens": Annotated[int, Field(ge=1)],
    }

    def __init__(self, name: str, config: RetentionConfig | None = None) -> None:
        self.name = name
        self.config = config or RetentionConfig()
        self.rules = digest_of(["retention", VERSION, WHOLE_SCALE, self.config.slice_from])

    def words(self, side: Side) -> PromptFile:
        raise ValueError(f"{self.name} is measured by code: no model is asked")

    def stored(self, prompt: Prompt, items: Channels) -> dict[str, object]:
        return {"items": dict(items)}

    def labels(self, prompt: Prompt) -> tuple[str, int, int]:
        """The slice, weight 1, valid. Malformed unless the prompt is one text and nothing else."""
        if len(prompt.turns) != 1 or prompt.system is not None:
            raise Malformed("turns: a held-out text is one turn without a system prompt")
        if not prompt.turns[0].strip():
            raise Malformed("turns.0 is blank: it needs a text to read")
        return attribute_slice(prompt, self.config.slice_from), 1, 1

    def prompt_side(
        self, prompt_items: Channels, turns: int, constraints: Constraints
    ) -> tuple[str, int, int]:
        """See `Objective`. Malformed if the slice is an attribute, which items do not tell."""
        if self.config.slice_from is not None:
            raise Malformed(f"the slice of {self.name} is the attribute {self.config.slice_from}")
        return "all", 1, 1

    def check(self, prompt: Prompt, response: Response) -> dict[str, object]:
        raise Unchecked(f"{self.name} reads the likelihood of texts, not answers")

    def score(self, line: Line) -> Scored:
        """Label and score of `{"id", "slice", "log_likelihood", "base", "tokens"}`.

        Both are mean natural log-likelihoods per token. `tokens` is how many they are over.
        """
        try:
            slice_ = slice_of_line(line)
            own = _log_likelihood(line, "log_likelihood")
            base = _log_likelihood(line, "base")
            tokens = line.get("tokens")
            if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
                raise Malformed(f"tokens is {tokens!r}, not an integer of at least 1")
        except Malformed as error:
            return unscored(line, str(error))
        score = score_of(loss=-own, base_loss=-base)
        return Scored(
            id=str(line["id"]),
            status="ok",
            slice=slice_,
            weight=1,
            label={"loss": round(-own, 4), "base_loss": round(-base, 4), "tokens": tokens},
            score=score,
            need=need(score, 1, 1),
            failed=score < 3,
        )

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        """Nothing to count: the labels are measurements."""
        return {}


def score_of(loss: float, base_loss: float) -> float:
    """5 - 4 x max(0, loss - base loss) / 0.5 nats per token, from 1 to 5.

    A base loss of 2 nats per token, and an eighth more, a quarter more, a whole nat more, less:

    >>> score_of(2.125, 2.0), score_of(2.25, 2.0), score_of(3.0, 2.0), score_of(1.5, 2.0)
    (4.0, 3.0, 1.0, 5.0)
    """
    forgotten = max(0.0, loss - base_loss)
    return max(1.0, 5 - 4 * forgotten / WHOLE_SCALE)


def _log_likelihood(line: Line, field: str) -> float:
    value = line.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not LOWEST <= value <= 0:
        raise Malformed(f"{field} is {value!r}, not a finite number of at most 0")
    return float(value)
