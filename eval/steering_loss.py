"""A loss that follows the score of an objective: how much a model prefers good answers to bad ones.

For a prompt with the reference answers `good` and `bad`, let the model read the conversation up to
the last turn, with the good answers to all turns before, and let p be its probabilities for the
first token in which the two last answers differ:

    loss = log(1 + exp(-(log p(good) - log p(bad))))      0.69 for a model that is undecided

The loss of a suite is the mean over its prompts. It is differentiable, so that a gradient can say
what the scores of a handful of prompts cannot; the references are never trained on. Over whole
answers the same loss follows the score less well, and the likelihood of good answers alone least.

A prompt without references has none. `judged_references` makes some of answers that were judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mosaic.core.types.evaluation import Prompt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 64


@dataclass(frozen=True)
class Contrast:
    """What the model reads, as token ids, and the two tokens of which one comes next."""

    prompt: str
    context: list[int]
    good: int
    bad: int


@dataclass(frozen=True)
class Contrasts:
    """The contrasts of a suite, and the ids of the prompts that give none, with the reason."""

    usable: list[Contrast]
    dropped: dict[str, str]


def contrasts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Contrasts:
    """The contrast of every prompt that has one."""
    usable, dropped = [], {}
    for prompt in prompts:
        if not prompt.good or not prompt.bad:
            dropped[prompt.id] = "no good and bad reference answer"
            continue
        context = _context(tokenizer, prompt)
        good, bad = _answer(tokenizer, prompt.good[-1]), _answer(tokenizer, prompt.bad[-1])
        shared = _shared(good, bad)
        if shared == min(len(good), len(bad)):
            dropped[prompt.id] = "the good answer and the bad one do not differ in any token"
            continue
        context = [*context, *good[:shared]]
        usable.append(Contrast(prompt.id, context, good[shared], bad[shared]))
    return Contrasts(usable, dropped)


def _context(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The conversation up to the last answer, as tokens."""
    chat = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
    earlier = (prompt.good or [])[: len(prompt.turns) - 1]
    for number, turn in enumerate(prompt.turns):
        chat.append({"role": "user", "content": turn})
        if number < len(earlier):
            chat.append({"role": "assistant", "content": earlier[number]})
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of an answer, up to the end of its turn."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers begin with alike."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def mean_loss(model: PreTrainedModel, made: Sequence[Contrast]) -> Tensor:
    """The mean loss over contrasts, a scalar with its gradient.

    ValueError without any contrast: a suite without references has no steering loss.
    """
    import torch

    if not made:
        raise ValueError(
            "no prompt has a good and a bad reference answer, so there is no steering loss; "
            "add `good` and `bad` to steering.jsonl"
        )
    parts = [torch.nn.functional.softplus(-margins) for margins in _margins(model, made)]
    return torch.cat(parts).mean()


def _margins(model: PreTrainedModel, made: Sequence[Contrast]) -> Iterator[Tensor]:
    """log p(good) - log p(bad), in batches of contexts of similar length."""
    import torch

    order = sorted(made, key=lambda one: len(one.context))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        longest = max(len(one.context) for one in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long, device=model.device)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(batch):
            ids[row, : len(one.context)] = torch.tensor(one.context)
            mask[row, : len(one.context)] = 1
        logits = model(input_ids=ids, attention_mask=mask).logits
        rows = torch.arange(len(batch), device=model.device)
        last = logits[rows, mask.sum(dim=1) - 1].float()
        good = torch.tensor([one.good for one in batch], device=model.device)
        bad = torch.tensor([one.bad for one in batch], device=model.device)
        # The difference of log-probabilities is that of logits.
        yield last[rows, good] - last[rows, bad]


Judged = Mapping[str, tuple[Sequence[str], float]]


def judged_references(prompts: Sequence[Prompt], trials: Sequence[Judged]) -> list[Prompt]:
    """The prompts, those without references with the best and the worst answer that was judged.

    Each trial maps a prompt's id to its answers, one per turn, and their score. Of equal scores the
    earliest trial's counts. A prompt whose answers all score alike keeps none. Whoever calls this
    fixes the result once per run: a loss whose references change cannot be compared.
    """
    made = []
    for prompt in prompts:
        found = [trial[prompt.id] for trial in trials if prompt.id in trial]
        if (prompt.good and prompt.bad) or not found:
            made.append(prompt)
            continue
        best = max(found, key=lambda one: one[1])
        worst = min(found, key=lambda one: one[1])
        if best[1] > worst[1]:
            known = {"good": list(best[0]), "bad": list(worst[0])}
            prompt = prompt.model_copy(update=known)
        made.append(prompt)
    return made
