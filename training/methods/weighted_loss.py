"""The loss of supervised fine-tuning with a weight per row.

    loss of a step = sum_i w_i L_i / sum_i w_i n_i

L_i is the summed token loss of row i, n_i its number of supervised tokens, and w_i one over the
number of windows its chat was cut into. Two rows with L = (6, 9), n = (3, 6), w = (1, 1/3):
(6 + 3) / (3 + 2) = 1.8. With all weights 1 this is TRL's own loss.

Both sums run over all micro-batches of an optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from training.models.chat_template import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput
    from trl import SFTTrainer

    Row = dict[str, list[int] | float]
    Batch = dict[str, torch.Tensor]


class WeightCollator:
    """TRL's collator, with the rows' weights carried beside the batch."""

    def __init__(self, collator: Callable[[list[Row]], Batch]) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> Batch:
        import torch

        weights = [row.pop("weight") for row in rows]
        return {**self.collator(rows), "weight": torch.tensor(weights, dtype=torch.float32)}


def weighted_trainer() -> type[SFTTrainer]:
    """TRL's `SFTTrainer` with the weighted loss. A function, since importing TRL takes seconds."""
    import torch
    from trl import SFTTrainer

    class WeightedSFTTrainer(SFTTrainer):
        """Divides weighted token losses by weighted supervised tokens."""

        def _get_num_items_in_batch(
            self, batch_samples: Sequence[Batch], device: torch.device
        ) -> torch.Tensor | int | None:
            """sum_i w_i n_i over the micro-batches of one optimiser step."""
            if not batch_samples or "weight" not in batch_samples[0]:
                return super()._get_num_items_in_batch(batch_samples, device)
            total = torch.zeros(())
            for batch in batch_samples:
                supervised = batch["labels"][:, 1:].ne(IGNORED).sum(dim=1)
                total = total + (batch["weight"] * supervised).sum()
            return total.to(device)

        def compute_loss(
            self,
            model: PreTrainedModel,
            inputs: Batch,
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> torch.Tensor | tuple[torch.Tensor, CausalLMOutput]:
            """sum_i w_i L_i over the step's total."""
            weight = inputs.pop("weight", None)
            if weight is None or bool((weight == 1).all()):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
            outputs = model(**inputs, **routed, use_cache=False, fused_lm_head=True)
            token_losses = -outputs.log_probs
            total = num_items_in_batch
            if total is None:
                total = (weight[:, None] * outputs.label_mask).sum()
            loss = (weight[:, None] * token_losses).sum() / total
            if self.aux_loss_enabled:
                auxiliary = self.router_aux_loss_coef * outputs.aux_loss
                loss = loss + auxiliary / self.current_gradient_accumulation_steps
            return loss

    return WeightedSFTTrainer
