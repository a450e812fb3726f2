"""The adapter probe: is it really this adapter that answers, and really the base for base requests?

The server continues fixed prompts greedily, base and adapter in one batch, and reports each token's
log-probability. PEFT then reads the same tokens on CPU, with the adapter and without, in the served
number format. The server's numbers must be PEFT's within the rounding of that format. A server that
answers with the base, with another adapter, with stale weights or with another chat template is
found in this way before a score is used. (An adapter that loads and does nothing: vllm-project/vllm
#48019; base requests answered by an adapter: #48421, #49656.)

The probe cannot see an adapter whose effect on these prompts is smaller than rounding.
`ProbeResult.distinct` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from eval.generators.conversations import Chat
from eval.model_folder import read_json
from eval.model_kind import has_experts
from eval.model_loading import PLAIN, Loading, load_base
from eval.rendering.render import ChatError, texts_of
from eval.rendering.tokenizer import load_tokenizer
from mosaic.core.errors import BoundaryError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS: tuple[Chat, ...] = (
    [{"role": "user", "content": "How do I store bread?"}],
    [{"role": "user", "content": "Tell me a short story about an old river."}],
    [{"role": "user", "content": "Please add one, two and three."}],
    [{"role": "user", "content": "Write two lines about the sea, in capital letters."}],
    [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Who are you?"}],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello, how can I help?"},
        {"role": "user", "content": "What can you do?"},
    ],
)
TOKENS = 12
TOLERANCE = {"float32": 0.01, "float16": 0.03, "bfloat16": 0.08}
"""Mean absolute difference in nats that two implementations may show in this number format."""
EXPERTS = 3
"""Times the tolerance of a mixture of experts: rounding sends some tokens to another expert."""
TIE = 10
"""How many tolerances a greedy token may lie under PEFT's best one: rounding decides near ties."""

Mismatch = Literal["base", "other", "adapter", "rendering"]
Values = npt.NDArray[np.float64]


class ProbeError(BoundaryError):
    """The server does not answer with the model that it was asked for.

    `mismatch` says what it seems to be instead.

    `base`: the base answers for the adapter (missing, or without effect). `other`: neither it nor
    the base (swapped or stale). `adapter`: base requests are not answered by the base. `rendering`:
    another chat template or tokenizer.
    """

    def __init__(self, message: str, mismatch: Mismatch) -> None:
        super().__init__(message)
        self.mismatch = mismatch


@dataclass(frozen=True)
class Continuation:
    """What the server made of one prompt.

    Token ids of prompt and continuation, and the log-probability (nats) of each new token.
    """

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Reading:
    """The same continuation read by PEFT.

    Log-probabilities (nats) of each token, and of the best token in its place.
    """

    logprobs: list[float]
    best: list[float]


@dataclass(frozen=True)
class ProbeResult:
    """Mean absolute differences in nats, of a server that passed.

    `error` is the server's distance from PEFT, `gap` the distance of PEFT's adapter from its base.
    `distinct` says whether that gap is large enough to be seen.
    """

    error: float
    gap: float
    distinct: bool


def compare(
    served: Sequence[Continuation],
    own: Sequence[Reading],
    base: Sequence[Reading],
    tolerance: float,
    name: str,
) -> ProbeResult:
    """Compare an adapter's answers with PEFT's reading of them.

    `own` is the reading with the adapter, `base` the one without.

    Raises ProbeError if the answers are not the adapter's. With three tokens of log-probability
    -1.0, -2.0 and -3.0 by the server, and -1.1, -2.0 and -2.9 by PEFT, the error is (0.1 + 0 + 0.1)
    / 3 = 0.067 nats.

    >>> served = [Continuation([1], [2, 3, 4], [-1.0, -2.0, -3.0])]
    >>> own = [Reading([-1.1, -2.0, -2.9], best=[-1.1, -2.0, -2.9])]
    >>> base = [Reading([-2.0, -3.0, -4.0], best=[-1.0, -1.0, -1.0])]
    >>> result = compare(served, own, base, tolerance=0.08, name="a")
    >>> round(result.error, 3), round(result.gap, 3), result.distinct
    (0.067, 1.0, True)
    """
    told = _logprobs(served)
    expected = _logprobs(own)
    without = _logprobs(base)
    best = np.array([value for reading in own for value in reading.best])
    error, gap = _distance(told, expected), _distance(expected, without)
    numbers = f"{error:.3f} nats from PEFT's, tolerance {tolerance:g}"
    if error > tolerance and _distance(told, without) <= tolerance:
        raise ProbeError(
            f"{name}: the server answers with the base model instead ({numbers}); "
            "nothing was scored",
            "base",
        )
    if error > tolerance:
        raise ProbeError(
            f"{name}: the server answers with other weights than the adapter's ({numbers}); "
            "nothing was scored",
            "other",
        )
    if float((best - expected).max()) > TIE * tolerance:
        raise ProbeError(
            f"{name}: the server does not decode greedily; nothing was scored", "other"
        )
    return ProbeResult(error, gap, gap > 2 * tolerance)


def _logprobs(rows: Sequence[Continuation] | Sequence[Reading]) -> Values:
    return np.array([value for row in rows for value in row.logprobs])


def _distance(first: Values, second: Values) -> float:
    """Mean absolute difference."""
    return float(np.abs(first - second).mean())


class AdapterProbe:
    """PEFT's own forward pass of one base model, on CPU: loaded at first use, kept until `close`."""

    def __init__(
        self,
        base_model: Path,
        dtype: str,
        template: Path | None = None,
        loading: Loading = PLAIN,
    ) -> None:
        self.base_model = base_model
        self.template = template
        self.dtype = dtype
        # Its forward pass is on a CPU, where not every attention runs.
        self.loading = replace(loading, attention=None)
        self.tolerance = TOLERANCE[dtype]
        if has_experts(read_json(base_model / "config.json") or {}):
            self.tolerance *= EXPERTS
        self._last_base: tuple[list[list[int]], list[Reading]] | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.base_model, self.template)

    @cached_property
    def prompts(self) -> list[tuple[Chat, list[int]]]:
        """The probe's chats that the chat template takes, each with its token ids.

        Raises BoundaryError if it refuses all of them.
        """
        rendered = []
        for chat in PROMPTS:
            try:
                (text,) = texts_of(self.tokenizer, [chat], answer_next=True)
            except ChatError:
                continue  # such as a system message under a template that refuses them
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            rendered.append((chat, list(ids)))
        if not rendered:
            raise BoundaryError(
                f"the chat template of {self.base_model} renders none of the adapter probe's "
                f"chats, such as {PROMPTS[0]}; mend it, or name another by chat_template"
            )
        return rendered

    @cached_property
    def _base(self) -> PreTrainedModel:
        from transformers.utils import logging

        logging.disable_progress_bar()
        return load_base(self.base_model, self.dtype, self.loading, device="cpu").eval()

    def close(self) -> None:
        """Give the memory of the reference model back."""
        self.__dict__.pop("_base", None)

    def check_base(self, served: Sequence[Continuation]) -> float:
        """The mean difference in nats of the server's base from ours.

        ProbeError if it is not the base that answers.
        """
        self._check_rendering(served)
        tokens = [s.tokens for s in served]
        # The same base continues the same prompts alike: what was read once need not be read for
        # every check.
        if self._last_base is None or self._last_base[0] != tokens:
            self._last_base = tokens, self._read(self._base, served)
        return self._require_base(served, self._last_base[1])

    def check_adapter(
        self,
        adapter: Path,
        name: str,
        served: Sequence[Continuation],
        base_served: Sequence[Continuation],
    ) -> ProbeResult:
        """How well the answers of an adapter, and of the base in the same batch, fit PEFT's.

        ProbeError if they do not.
        """
        from peft import PeftModel

        self._check_rendering([*served, *base_served])
        model = PeftModel.from_pretrained(self._base, adapter, autocast_adapter_dtype=False).eval()
        try:
            own = self._read(model, served)
            with model.disable_adapter():
                without = self._read(model, served)
                base = self._read(model, base_served)
        finally:
            self.__dict__["_base"] = model.unload()
        self._require_base(base_served, base)
        return compare(served, own, without, self.tolerance, name)

    def _require_base(self, served: Sequence[Continuation], readings: Sequence[Reading]) -> float:
        error = _distance(_logprobs(served), _logprobs(readings))
        if error > self.tolerance:
            raise ProbeError(
                f"requests to the base model are not answered by {self.base_model.name} "
                f"({error:.3f} nats from its own forward pass, tolerance {self.tolerance:g}): "
                "another base, or an adapter answers; nothing was scored",
                "adapter",
            )
        return error

    def _check_rendering(self, served: Sequence[Continuation]) -> None:
        expected = [ids for _, ids in self.prompts]
        for i, one in enumerate(served):
            if one.prompt != expected[i % len(expected)]:
                raise ProbeError(
                    "the server renders chats differently from "
                    f"{self.base_model.name}'s own chat template (prompt {i})",
                    "rendering",
                )

    def _read(self, model: PreTrainedModel, served: Sequence[Continuation]) -> list[Reading]:
        """The log-probabilities that `model` gives to each continuation."""
        import torch

        readings = []
        with torch.inference_mode():
            for one in served:
                ids = torch.tensor([one.prompt + one.tokens])
                logits = model(input_ids=ids).logits[0, len(one.prompt) - 1 : -1].float()
                values = torch.log_softmax(logits, dim=-1)
                chosen = values.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
                readings.append(Reading(chosen.tolist(), values.max(dim=-1).values.tolist()))
        return readings
