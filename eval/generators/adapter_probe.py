"""The canary: is it really this adapter that answers, and really the base where no adapter is asked?

The server continues fixed prompts greedily, base and adapter in one batch, and says each token's log-probability. PEFT
then reads the same tokens on CPU, with the adapter and without, in the served number format. The server's numbers must be
PEFT's within the rounding of that format. A server that answers with the base, with another adapter, with stale weights
or with another chat template is found by that before a score is used. (An adapter that loads and does nothing:
vllm-project/vllm #48019; base requests answered by an adapter: #48421, #49656.)

What it cannot see: an adapter whose effect on these prompts is smaller than rounding. It says so (`Verdict.distinct`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.generators.conversations import Chat
from mosaic.core.errors import BoundaryError

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
"""Mean absolute difference of log-probabilities, in nats, that two implementations may show in this number format."""
TIE = 10
"""A greedy token may lie so many tolerances under PEFT's best one: rounding decides between near ties."""

Found = Literal["base", "other", "adapter", "rendering"]


class ProbeError(BoundaryError):
    """The server does not answer with the model that it was asked for. `found` says what it seems to be instead.

    `base`: the base answers for the adapter (missing, or without effect). `other`: neither it nor the base (swapped or
    stale). `adapter`: base requests are not answered by the base. `rendering`: another chat template or tokenizer.
    """

    def __init__(self, message: str, found: Found) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class Served:
    """What the server did with one prompt: token ids of prompt and continuation, log-probability (nats) per new token."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Read:
    """The same continuation read by PEFT: log-probability of each token, and of the best one in its place (nats)."""

    logprobs: list[float]
    best: list[float]


@dataclass(frozen=True)
class Verdict:
    """Mean absolute differences in nats: server to PEFT, and PEFT's adapter to its base; whether the latter is visible."""

    error: float
    gap: float
    distinct: bool


def judge(
    served: Sequence[Served], own: Sequence[Read], base: Sequence[Read], tolerance: float, name: str
) -> Verdict:
    """Compare an adapter's answers with PEFT's reading of them with (`own`) and without (`base`) the adapter. ProbeError."""
    told = np.array([v for s in served for v in s.logprobs])
    expected = np.array([v for r in own for v in r.logprobs])
    without = np.array([v for r in base for v in r.logprobs])
    best = np.array([v for r in own for v in r.best])
    error, gap = float(np.abs(told - expected).mean()), float(np.abs(expected - without).mean())
    to_base = float(np.abs(told - without).mean())
    numbers = f"{error:.3f} nats from PEFT's, tolerance {tolerance:g}"
    if error > tolerance and to_base <= tolerance:
        raise ProbeError(
            f"{name}: the server answers with the base model instead ({numbers}); nothing was scored",
            "base",
        )
    if error > tolerance:
        raise ProbeError(
            f"{name}: the server answers with other weights than the adapter's ({numbers}); nothing was scored",
            "other",
        )
    if float((best - expected).max()) > TIE * tolerance:
        raise ProbeError(
            f"{name}: the server does not decode greedily; nothing was scored", "other"
        )
    return Verdict(error, gap, gap > 2 * tolerance)


class AdapterProbe:
    """PEFT's own forward of one base model, on CPU: loaded at the first use, kept until `close`."""

    def __init__(self, base_model: Path, dtype: str) -> None:
        self.base_model = base_model
        self.dtype = dtype
        self.tolerance = TOLERANCE[dtype]
        self._last: tuple[list[list[int]], list[Read]] | None = None

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.base_model, local_files_only=True)

    @cached_property
    def _base(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        dtype = getattr(torch, self.dtype)
        return AutoModelForCausalLM.from_pretrained(
            self.base_model, dtype=dtype, local_files_only=True
        ).eval()

    def close(self) -> None:
        """Give the memory of the reference model back."""
        self.__dict__.pop("_base", None)

    def check_base(self, served: Sequence[Served]) -> float:
        """Base requests must be answered by the base. The mean difference in nats; ProbeError."""
        self._check_rendering(served)
        tokens = [s.tokens for s in served]
        # The same base continues the same prompts alike: what was read once need not be read for every check.
        if self._last is None or self._last[0] != tokens:
            self._last = tokens, self._read(self._base, served)
        return self._held_to_base(served, self._last[1])

    def check_adapter(
        self, adapter: Path, name: str, served: Sequence[Served], base_served: Sequence[Served]
    ) -> Verdict:
        """The adapter's answers, and the base's from the same batch. ProbeError, or how well they fit."""
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
        self._held_to_base(base_served, base)
        return judge(served, own, without, self.tolerance, name)

    def _held_to_base(self, served: Sequence[Served], read: Sequence[Read]) -> float:
        told = np.array([v for s in served for v in s.logprobs])
        error = float(np.abs(told - np.array([v for r in read for v in r.logprobs])).mean())
        if error > self.tolerance:
            raise ProbeError(
                f"requests to the base model are not answered by {self.base_model.name} ({error:.3f} nats from its own "
                f"forward, tolerance {self.tolerance:g}): another base, or an adapter answers; nothing was scored",
                "adapter",
            )
        return error

    def _check_rendering(self, served: Sequence[Served]) -> None:
        expected = self.tokenizer.apply_chat_template(
            list(PROMPTS), tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for i, one in enumerate(served):
            if one.prompt != list(expected[i % len(PROMPTS)]):
                raise ProbeError(
                    f"the server renders chats differently from {self.base_model.name}'s own chat template (prompt {i})",
                    "rendering",
                )

    def _read(self, model: Any, served: Sequence[Served]) -> list[Read]:
        import torch

        reads = []
        with torch.inference_mode():
            for one in served:
                ids = torch.tensor([one.prompt + one.tokens])
                logits = model(input_ids=ids).logits[0, len(one.prompt) - 1 : -1].float()
                values = torch.log_softmax(logits, dim=-1)
                chosen = values.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
                reads.append(Read(chosen.tolist(), values.max(dim=-1).values.tolist()))
        return reads
