"""Tokenised rows in batches, their loss, and labels drawn from the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.models.chat_template import IGNORED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length, padded on the right; all tensors are (sequences, tokens).

    `rows` are their numbers among all rows. `supervised` marks the positions whose next token the
    loss counts, `labels` is that token. `reach` marks every position that the loss depends on: those
    up to the last supervised one, since a model does not look ahead.
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor
    labels: Tensor
    supervised: Tensor
    reach: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """How many sequences, and how many tokens each has with its padding."""
        sequences, tokens = self.ids.shape
        return sequences, tokens


def batches(
    ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], size: int, device: object = "cpu"
) -> Iterator[Batch]:
    """All rows, shortest first, at most `size` in a batch.

    `labels` are -100 where the loss looks away, as the trainer has them: a label stands at its own
    token, and is moved to the position that predicts it.
    """
    order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), row))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield _batch(rows, [ids[row] for row in rows], [labels[row] for row in rows], device)


def _batch(
    rows: list[int],
    ids: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    device: object,
) -> Batch:
    import torch

    shape = (len(rows), max(len(row) for row in ids))
    padded = torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for number, (row, wanted) in enumerate(zip(ids, labels, strict=True)):
        padded[number, : len(row)] = torch.tensor(row)
        targets[number, : len(row) - 1] = torch.tensor(wanted[1:])
        mask[number, : len(row)] = 1
    supervised = targets != IGNORED
    # From the right: has a supervised position come yet?
    reach = supervised.flip(1).cumsum(dim=1).flip(1) > 0
    return Batch(
        rows,
        padded.to(device),
        mask.to(device),
        targets.to(device),
        supervised.to(device),
        reach.to(device),
    )


def logits_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What the model says of every next token, shape (sequences, tokens, vocabulary)."""
    return model(input_ids=batch.ids, attention_mask=batch.mask).logits.float()


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of all token losses, in nats; labels of -100 are passed over."""
    import torch

    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum"
    )


def drawn_labels(logits: Tensor, batch: Batch, seed: int) -> Tensor:
    """Labels drawn from the model at the supervised positions, -100 elsewhere.

    A row's draw follows from the seed and its number, not from the batch that it is in.
    """
    import torch

    drawn = torch.full_like(batch.labels, IGNORED)
    for place, row in enumerate(batch.rows):
        where = batch.supervised[place].nonzero()[:, 0]
        if len(where) == 0:
            continue
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63)
        probabilities = torch.softmax(logits.detach()[place, where], dim=-1).cpu()
        labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        drawn[place, where] = labels.to(drawn.device)
    return drawn
