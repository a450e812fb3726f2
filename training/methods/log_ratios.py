"""How likely a model finds conversations: the summed log-likelihood of its own words.

An implicit reward is the difference of two of them (direct preference optimisation,
arXiv 2305.18290, equation 5 without the term of the prompt alone):

    r(x, y) = beta (log pi(y|x) - log pi_ref(y|x))

With beta 0.1 and log-likelihoods -12 and -14 the reward is 0.2. The reference against itself has 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.methods.batches import by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 16


def log_likelihoods(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]
) -> list[float]:
    """Summed natural log-likelihood of the tokens that a mask marks, one number per sequence.

    Tokens of the prompt and padding add nothing. The model is left in evaluation mode.
    """
    import torch

    model.eval()
    device = next(model.parameters()).device
    found = [0.0] * len(ids)
    for rows in by_length([len(row) for row in ids], BATCH, [0]):
        width = max(len(ids[row]) for row in rows)
        tokens = torch.zeros((len(rows), width), dtype=torch.long)
        real, own = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for place, row in enumerate(rows):
            tokens[place, : len(ids[row])] = torch.tensor(ids[row])
            real[place, : len(ids[row])] = 1
            own[place, : len(masks[row])] = torch.tensor(masks[row])
        tokens, real, own = tokens.to(device), real.to(device), own.to(device)
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=real, use_cache=False).logits
        logs = logits[:, :-1].float().log_softmax(dim=-1)
        each = logs.gather(2, tokens[:, 1:, None])[:, :, 0]
        sums = (each * own[:, 1:]).sum(dim=1)
        for place, row in enumerate(rows):
            found[row] = float(sums[place])
    return found
