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

from eval.rendering.probe import turn_shape
from eval.rendering.render import Chat, ChatError
from eval.rendering.turns import TurnEncoder
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
    """The contrast of every prompt that has one.

    Conversations become tokens as they do for training, ends of turns included. Raises UsageError
    for a chat template that cannot be trained with.
    """
    encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
    usable, dropped = [], {}
    for prompt in prompts:
        try:
            usable.append(_contrast(encoder, prompt))
        except _NoContrast as reason:
            dropped[prompt.id] = str(reason)
    return Contrasts(usable, dropped)


class _NoContrast(Exception):
    """A prompt has no contrast; the text says why."""


def _contrast(encoder: TurnEncoder, prompt: Prompt) -> Contrast:
    """What is read before the first token in which the good and the bad last answer differ."""
    if not prompt.valid:
        raise _NoContrast("the prompt is invalid, and no score counts it")
    if not prompt.good or not prompt.bad:
        raise _NoContrast("no good and bad reference answer")
    if len(prompt.good) != len(prompt.turns):
        raise _NoContrast("the good answer has not one turn for every turn of the prompt")
    chats = [_chat(prompt, prompt.good[-1]), _chat(prompt, prompt.bad[-1])]
    try:
        good, bad = encoder.encode(chats)
    except ChatError as error:
        raise _NoContrast(f"a reference answer cannot be learnt: {error.reason}") from None
    first = _shared(good.ids, bad.ids)
    if first >= min(good.answers[-1].end, bad.answers[-1].end):
        raise _NoContrast("the good answer and the bad one do not differ in any token")
    return Contrast(prompt.id, good.ids[:first], good.ids[first], bad.ids[first])


def _chat(prompt: Prompt, last: str) -> Chat:
    """The conversation with the good answers to all turns but the last."""
    chat: Chat = []
    if prompt.system is not None:
        chat.append({"role": "system", "content": prompt.system})
    answers = [*(prompt.good or [])[:-1], last]
    for turn, answer in zip(prompt.turns, answers, strict=True):
        chat.append({"role": "user", "content": turn})
        chat.append({"role": "assistant", "content": answer})
    return chat


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two conversations begin with alike."""
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
            "no prompt has a good and a bad reference answer, so a steering loss cannot be computed; "
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
