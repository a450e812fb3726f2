"""Direct preference optimisation: TRL's `DPOTrainer` on pairs, from an adapter or from the base.

    loss = -log sigmoid(beta (log pi/pi_ref (chosen) - log pi/pi_ref (rejected)))
           + sft_weight * mean over the chosen answers' tokens of -log pi

(arXiv 2305.18290, equation 7; the second part, which is 0 by default, after arXiv 2404.19733.) The
policy begins as the adapter of the stage before, or as a fresh one; the reference is where it began,
and does not move. Its log-likelihoods are computed once before training. Only the model's own words
count, in conversations of several turns those of every turn. No pair is truncated or dropped.

With a chosen answer that became 1.0 more likely than in the reference and a rejected one 1.0 less,
beta 0.1 gives a loss of -log sigmoid(0.2) = 0.598; it begins at log 2 = 0.693.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic.core.errors import UsageError
from mosaic.core.types.runs import (
    BASE,
    PAIRS,
    DpoRecipe,
    TrainJob,
    TrainResult,
    Workplace,
)
from training.methods import hf, sft
from training.methods.base import Progress, Stopping, never
from training.methods.batches import by_length, positions
from training.methods.checkpoints import last_checkpoint
from training.methods.failures import classify_failure
from training.methods.log_ratios import log_likelihoods
from training.methods.preference_rows import TokenisedPair, read_pairs, tokenised_pairs
from training.methods.sft import check_recipe as check_recipe
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import DPOTrainer

RECIPE = DpoRecipe
REFERENCE = "ref"


def train(
    job: TrainJob, place: Workplace, progress: Progress | None = None, stopping: Stopping = never
) -> TrainResult:
    """Train one adapter and save it at `place.out`.

    Continues from the last complete checkpoint of this job under `place.work`, if there is one.
    When `stopping` says so, a checkpoint is written and StopRequested raised.

    Raises UsageError for unusable input, TrainingError if the training breaks, and
    OSError(ENOSPC) if the disk is full.
    """
    with classify_failure(Path(place.work)):
        return _train(job, place, progress, stopping)


def _train(
    job: TrainJob, place: Workplace, progress: Progress | None, stopping: Stopping
) -> TrainResult:
    from transformers import set_seed

    hf.quiet()
    base, recipe = Path(place.paths[BASE]), job.recipe
    assert isinstance(recipe, DpoRecipe)
    template = sft.template_of(job, place)
    check_recipe(base, recipe, template)
    tokenizer = load_tokenizer(base, template)
    rows = read_pairs(Path(place.paths[PAIRS]))
    if not rows:
        raise UsageError("preference pairs to train on are missing")
    pairs = tokenised_pairs(rows, tokenizer, recipe.max_length)
    out = Path(place.out)
    if out.exists():
        raise UsageError(f"{out} exists already; an adapter is written to a new folder")

    set_seed(job.seed)
    lengths = [pair.tokens for pair in pairs]
    batches = _batches(lengths, recipe, job.seed)
    model = hf.load_model(base, recipe.dtype, hf.loading_of(recipe))
    model = hf.continued(model, job, place)
    references = _references(model, pairs)
    watch = hf.watching_callback(job, progress, stopping)
    steps = math.ceil(len(batches) / recipe.gradient_accumulation)
    started = time.monotonic()
    order = [number for batch in batches for number in batch]
    data = [_example(pairs[number], references[number]) for number in order]
    trainer = make_trainer(job, place, model, tokenizer, data, steps, watch)
    output = trainer.train(resume_from_checkpoint=last_checkpoint(job, Path(place.work)))
    loss = hf.finish(trainer, watch, float(output.training_loss))
    hf.save_adapter(trainer, job, out)
    return TrainResult(
        adapter=str(out),
        tokens=sum(lengths[number] for number in order),
        supervised=sum(pairs[number].supervised for number in order),
        steps=int(trainer.state.global_step),
        loss=loss,
        seconds=time.monotonic() - started,
        train_seconds=float(output.metrics["train_runtime"]),
        real_token_share=_real_share(batches, pairs),
    )


def _batches(lengths: list[int], recipe: DpoRecipe, seed: int) -> list[list[int]]:
    """The micro-batches of the whole training, in numbers of pairs."""
    seeds = [seed + epoch for epoch in range(recipe.epochs)]
    batches = by_length(lengths, recipe.batch_size, seeds)
    if recipe.max_steps is not None:
        batches = batches[: recipe.max_steps * recipe.gradient_accumulation]
    return batches


def _real_share(batches: Sequence[Sequence[int]], pairs: Sequence[TokenisedPair]) -> float:
    """Tokens over batch positions: both answers of a batch's pairs are padded to one width."""
    rows, lengths = [], []
    for pair in pairs:
        lengths += [len(pair.chosen), len(pair.rejected)]
    for batch in batches:
        rows.append([side for number in batch for side in (2 * number, 2 * number + 1)])
    real = sum(lengths[row] for batch in rows for row in batch)
    return real / positions(rows, lengths)


def _references(
    model: PreTrainedModel, pairs: Sequence[TokenisedPair]
) -> list[tuple[float, float]]:
    """Log-likelihoods of (chosen, rejected) where the training begins."""
    ids, masks = [], []
    for pair in pairs:
        ids += [pair.chosen, pair.rejected]
        masks += [pair.chosen_mask, pair.rejected_mask]
    found = log_likelihoods(model, ids, masks)
    return list(zip(found[::2], found[1::2], strict=True))


def _example(pair: TokenisedPair, reference: tuple[float, float]) -> dict[str, object]:
    return {
        "chosen_ids": pair.chosen,
        "chosen_mask": pair.chosen_mask,
        "rejected_ids": pair.rejected,
        "rejected_mask": pair.rejected_mask,
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }


class PairCollator:
    """Pairs as TRL's trainer takes them: all chosen conversations, then all rejected ones.

    TRL's own collator counts everything after the prompt as the model's words. Between the answers
    of a conversation there are a user's, so the masks come with the pairs.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        import torch

        ids, masks = [], []
        for side in ("chosen", "rejected"):
            ids += [example[f"{side}_ids"] for example in examples]
            masks += [example[f"{side}_mask"] for example in examples]
        shape = (len(ids), max(len(row) for row in ids))
        tokens = torch.zeros(shape, dtype=torch.long)
        real, own = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for place, (row, mask) in enumerate(zip(ids, masks, strict=True)):
            tokens[place, : len(row)] = torch.tensor(row)
            real[place, : len(row)] = 1
            own[place, : len(mask)] = torch.tensor(mask)
        batch = {"input_ids": tokens, "attention_mask": real, "completion_mask": own}
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            batch[name] = torch.tensor([example[name] for example in examples])
        return batch


def make_trainer(
    job: TrainJob,
    place: Workplace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: list[dict[str, object]],
    steps: int,
    callback: TrainerCallback,
) -> DPOTrainer:
    """TRL's trainer for a job; `data` are the pairs of all epochs in training order.

    TRL adds a second adapter as the reference. It is not needed, and a checkpoint that holds two
    adapters is not read back as it was written: it is removed again.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    recipe = job.recipe
    assert isinstance(recipe, DpoRecipe)

    class PairTrainer(DPOTrainer):
        """Takes pairs as they are: they are tokenised already."""

        def _prepare_dataset(self, dataset: Dataset, *rest: object) -> Dataset:
            return dataset

    settings = DPOConfig(
        **hf.arguments(job, place, steps),
        num_train_epochs=1,
        max_steps=-1,
        train_sampling_strategy="sequential",
        max_length=None,
        beta=recipe.beta,
        loss_type=["sigmoid", "sft"] if recipe.sft_weight else ["sigmoid"],
        loss_weights=[1.0, recipe.sft_weight] if recipe.sft_weight else None,
        # Experts and routers are frozen, so their balance is left alone.
        router_aux_loss_coef=0.0,
    )
    fresh = None if job.start_from else hf.lora(Path(place.paths[BASE]), recipe)
    with hf.trackers(recipe.report_to):
        trainer = PairTrainer(
            model=model,
            args=settings,
            data_collator=PairCollator(),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            peft_config=fresh,
            callbacks=[callback],
        )
    if REFERENCE in trainer.model.peft_config:
        trainer.model.delete_adapter(REFERENCE)
    trainer.precompute_ref_logps = True  # they come with the pairs
    hf.silence(trainer)
    return trainer
