"""How answers are drawn at a temperature above 0, so that the same call draws the same answers.

Each answer has a seed of its own, which does not depend on what else is asked in the same call or
batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic.core.types.base import canonical_json
from mosaic.core.types.runs import Sampling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AnswerId:
    """Which answer is asked for: the prompt's id, its sample and its turn, both from 0."""

    prompt: str
    sample: int
    turn: int

    def seed(self, sampling: Sampling) -> int:
        """A number from 0 to 2**63 - 1 that follows from `sampling.seed` and this id alone.

        >>> few = Sampling(temperature=1, seed=7)
        >>> many = Sampling(temperature=1, seed=7, n=4)
        >>> first, second = AnswerId("p1", sample=0, turn=0), AnswerId("p1", sample=1, turn=0)
        >>> first.seed(few) == first.seed(many), first.seed(many) == second.seed(many)
        (True, False)
        """
        text = canonical_json([sampling.seed, self.prompt, self.sample, self.turn])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row, drawn from softmax(logits / temperature) cut off at the nucleus `top_p`.

    Nucleus sampling: Holtzman et al., arXiv 1904.09751.

    `logits` is rows x vocabulary; `uniforms` holds one number from [0, 1) per row. The nucleus is
    the smallest set of most likely tokens whose probabilities sum to at least `top_p`. Returns
    token ids, one per row.

    Three tokens of probability 0.5, 0.3 and 0.2: at top_p 0.6 the nucleus is the first two, whose
    mass is 0.8. The uniform number 0.7 is 0.56 of that mass, which is beyond the first token (0.5)
    and within the second (0.5 to 0.8).

    >>> import torch
    >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> draw_tokens(logits, torch.tensor([0.7]), temperature=1.0, top_p=0.6).tolist()
    [1]
    >>> draw_tokens(logits, torch.tensor([0.6]), temperature=1.0, top_p=0.6).tolist()
    [0]
    """
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    # Stable, so that equally likely tokens are taken in the order of the vocabulary.
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(dim=-1) - ordered
    in_nucleus = mass_before < top_p
    in_nucleus[:, 0] = True
    mass = (ordered * in_nucleus).cumsum(dim=-1)
    wanted = uniforms.to(mass.device, mass.dtype)[:, None] * mass[:, -1:]
    last = in_nucleus.sum(dim=-1, keepdim=True) - 1
    rank = (mass <= wanted).sum(dim=-1, keepdim=True).minimum(last)
    return tokens.gather(1, rank)[:, 0]


class DrawnTokens:
    """A logits processor for `transformers` that leaves greedy decoding one token per row: the drawn one.

    Row i draws its k-th token with the k-th number of a generator that is seeded by `seeds[i]`.
    """

    def __init__(
        self, seeds: Sequence[int], prompt_length: int, max_new_tokens: int, sampling: Sampling
    ) -> None:
        import torch

        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.rand(max_new_tokens, generator=generator))
        self._uniforms = torch.stack(rows)
        self._prompt_length = prompt_length
        self._sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        step = input_ids.shape[1] - self._prompt_length
        drawn = draw_tokens(
            scores, self._uniforms[:, step], self._sampling.temperature, self._sampling.top_p
        )
        one_left = torch.full_like(scores, float("-inf"))
        return one_left.scatter(1, drawn[:, None], 0.0)
