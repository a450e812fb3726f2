"""The seam of generation: prompts in, the model's own answers out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field, field_validator

from eval.chat.config import VARIABLE, plain_url
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.runs import GREEDY, Sampling


class TextLikelihood(NamedTuple):
    """How likely a model finds a text.

    `mean` is the mean natural log-likelihood per token, `tokens` how many tokens that mean is over:
    all of the text but the first, which is given.
    """

    mean: float
    tokens: int


class Generator(Protocol):
    """Answers with one base model, with or without an adapter."""

    def generate(
        self, prompts: Sequence[Prompt], adapter: Path | None, sampling: Sampling = GREEDY
    ) -> list[Response]:
        """`sampling.n` responses per prompt: all of the first prompt, then all of the second ...

        In a prompt of several turns each response is a conversation of its own: turn k is asked
        with the answers that this conversation gave to turns 1 to k-1.
        """
        ...

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[TextLikelihood]:
        """The likelihood of each text, as it stands: no chat template is applied.

        Raises UsageError for a text of a single token, and for one that does not fit the model.
        """
        ...

    def release(self) -> None:
        """One evaluation is over: memory that training may need is given back.

        The next call takes it again.
        """
        ...

    def close(self) -> None:
        """The run is over: servers end, and files that only served them go. May be called twice."""
        ...


@runtime_checkable
class SharedGenerator(Generator, Protocol):
    """A generator that answers several callers at once, and keeps what it drew for them.

    Whoever is interrupted before answers are filed asks again, and gets them without drawing.
    """

    def filed(self) -> None:
        """All answers that were handed out are filed: they need not be kept any longer."""
        ...

    @property
    def seconds(self) -> float | None:
        """How long this thread's last answers took to draw, waiting left out; None if unknown."""
        ...


class TransformersGeneratorConfig(FrozenModel):
    """Decoding by transformers, in this process or in workers of the executor.

    `max_new_tokens` counts per answer.
    """

    kind: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"


class VllmGeneratorConfig(FrozenModel):
    """Decoding by a `vllm serve` of the run's own, or by one at `base_url` (see docs/vllm.md).

    `memory` says what happens between evaluations: `stop` ends the server, since training needs its
    memory; `share` keeps one through the run. `concurrency` is how many conversations are in
    flight. `max_new_tokens` counts per answer. `start_seconds` is how long a start may take.
    `api_key_env` names the variable that holds the key of `base_url`.
    """

    kind: Literal["vllm"] = "vllm"
    memory: Literal["stop", "share"] = "stop"
    base_url: str | None = Field(default=None, pattern=r"^https?://[^/]+/v1$")
    api_key_env: str = Field(default="VLLM_API_KEY", pattern=VARIABLE)
    concurrency: int = Field(default=256, ge=1, le=1000)
    max_new_tokens: int = Field(default=64, ge=1)
    max_model_len: int | None = Field(default=None, ge=16)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    start_seconds: float = Field(default=900, gt=0)

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        return url if url is None else plain_url(url)


GeneratorConfig = Annotated[
    TransformersGeneratorConfig | VllmGeneratorConfig, Field(discriminator="kind")
]
