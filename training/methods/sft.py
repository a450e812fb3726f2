"""Supervised fine-tuning: TRL's `SFTTrainer`, loss on assistant tokens only.

Rows are tokenised once and batched by length over the whole set; the seed shuffles the batches.
No row is truncated or dropped: what the pool counted is what is trained, or it is an error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_folder import check_base_model
from mosaic.core.errors import UsageError
from mosaic.core.types.runs import (
    BASE,
    TEMPLATE,
    TRAINING_SET,
    LoraRecipe,
    SftRecipe,
    TrainJob,
    TrainResult,
    Workplace,
)
from training.methods import hf
from training.methods.base import Progress, Stopping, never
from training.methods.batches import by_length, positions
from training.methods.checkpoints import last_checkpoint
from training.methods.failures import classify_failure
from training.methods.weighted_loss import WeightCollator, weighted_trainer
from training.models.chat_template import IGNORED, ChatError, check_template, tokenise
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTTrainer


RECIPE = SftRecipe


@dataclass(frozen=True)
class TokenisedRows:
    """A training set as the trainer sees it, row by row."""

    ids: list[list[int]]
    labels: list[list[int]]
    weights: list[float]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]

    @property
    def supervised(self) -> list[int]:
        """Tokens of each row that the loss looks at."""
        return [len(row) - row.count(IGNORED) for row in self.labels]


def check_recipe(base: Path, recipe: LoraRecipe, template: Path | None = None) -> None:
    """Check that a base model can be trained by a recipe.

    `template` is a file that replaces the base's chat template. Raises UsageError if the folder is
    not a known model, the tracker of `report_to` is not known, or an assistant's turns cannot be
    told apart exactly in what the chat template makes of a chat.
    """
    check_base_model(base)
    hf.check_base(base, recipe)
    tokenizer = load_tokenizer(base, template)
    hf.check_tokens(base, tokenizer)
    check_template(base, tokenizer)


def template_of(job: TrainJob, place: Workplace) -> Path | None:
    """The file that replaces the base's chat template, if the job names one."""
    return Path(place.paths[TEMPLATE]) if TEMPLATE in job.inputs else None


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
    template = template_of(job, place)
    check_recipe(base, recipe, template)
    tokenizer = load_tokenizer(base, template)
    rows = read_rows(Path(place.paths[TRAINING_SET]), tokenizer, recipe)
    lengths = rows.lengths

    set_seed(job.seed)
    batches = _batches(lengths, recipe, job.seed)
    out = Path(place.out)
    if out.exists():
        raise UsageError(f"{out} exists already; an adapter is written to a new folder")
    dataset = _dataset(rows, batches, recipe)
    model = hf.load_model(base, recipe.dtype, hf.loading_of(recipe))
    model = hf.continued(model, job, place)

    watch = hf.watching_callback(job, progress, stopping)
    steps = None if recipe.packing else math.ceil(len(batches) / recipe.gradient_accumulation)
    started = time.monotonic()
    trainer = make_trainer(job, place, model, tokenizer, dataset, steps, watch)
    output = trainer.train(resume_from_checkpoint=last_checkpoint(job, Path(place.work)))
    loss = hf.finish(trainer, watch, float(output.training_loss))
    hf.save_adapter(trainer, job, out)
    seconds = time.monotonic() - started

    batched = [row for batch in batches for row in batch]
    trained = list(range(len(lengths))) * recipe.epochs if recipe.packing else batched
    supervised = rows.supervised
    real_tokens = sum(lengths[row] for row in batched)
    return TrainResult(
        adapter=str(out),
        tokens=sum(lengths[row] for row in trained),
        supervised=sum(supervised[row] for row in trained),
        steps=int(trainer.state.global_step),
        loss=loss,
        seconds=seconds,
        train_seconds=float(output.metrics["train_runtime"]),
        real_token_share=real_tokens / positions(batches, lengths),
    )


def read_rows(path: Path, tokenizer: PreTrainedTokenizerBase, recipe: LoraRecipe) -> TokenisedRows:
    """Read and tokenise a training set.

    Raises UsageError if it is empty, if a chat cannot be rendered, if a row's tokens are not what
    the pool counted, are more than `max_length` or none of the assistant's, and if rows to be
    packed have weights.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        table = file.read(columns=["id", "messages", "n_tokens", "weight"], use_threads=False)
    if table.num_rows == 0:
        raise UsageError("the training set is empty: no row fits the plan and the budget")
    identifiers = table["id"].to_pylist()
    try:
        ids, labels = tokenise(tokenizer, table["messages"].to_pylist())
    except ChatError as error:
        raise UsageError(
            f"training set row {error.position} ({identifiers[error.position]}): the chat template "
            f"or tokenizer of base_model refuses its messages: {error.reason}; build the pool "
            "again without this row, or mend the template"
        ) from None
    rows = TokenisedRows(ids, labels, table["weight"].to_pylist())
    _check_rows(rows, identifiers, table["n_tokens"].to_pylist(), recipe.max_length)
    if recipe.packing and any(weight != 1 for weight in rows.weights):
        raise UsageError(
            "methods.sft.packing: packed rows cannot carry weights other than 1 (windows of long "
            "chats); turn packing off, or build the pool from chats that fit in max_length"
        )
    return rows


def _check_rows(
    rows: TokenisedRows, identifiers: Sequence[str], counted: Sequence[int], max_length: int
) -> None:
    """Raise UsageError for the first row whose tokens are not what the pool promised."""
    supervised = rows.supervised
    for number, (identifier, tokens) in enumerate(zip(identifiers, counted, strict=True)):
        where = f"training set row {number} ({identifier})"
        length = len(rows.ids[number])
        if tokens != length:
            raise UsageError(
                f"{where}: the pool counted {tokens} tokens, the trainer sees {length}; "
                "rebuild the pool with this base model"
            )
        if length > max_length:
            raise UsageError(
                f"{where} has {length} tokens, methods.sft.max_length is {max_length}; "
                "rebuild the pool with that --max-length"
            )
        if supervised[number] == 0:
            raise UsageError(
                f"{where} has no assistant token to learn from; build the pool again without it"
            )


def _batches(lengths: list[int], recipe: LoraRecipe, seed: int) -> list[list[int]]:
    """The micro-batches of the whole training; of one epoch with packing, where TRL makes them."""
    epochs = 1 if recipe.packing else recipe.epochs
    batches = by_length(lengths, recipe.batch_size, [seed + epoch for epoch in range(epochs)])
    if recipe.max_steps is not None:
        batches = batches[: recipe.max_steps * recipe.gradient_accumulation]
    return batches


def _dataset(rows: TokenisedRows, batches: list[list[int]], recipe: LoraRecipe) -> Dataset:
    """The rows in the order in which they are trained; in their own order with packing."""
    from datasets import Dataset

    if recipe.packing:
        return Dataset.from_dict({"input_ids": rows.ids, "labels": rows.labels})
    order = [row for batch in batches for row in batch]
    return Dataset.from_dict(
        {
            "input_ids": [rows.ids[row] for row in order],
            "labels": [rows.labels[row] for row in order],
            "weight": [rows.weights[row] for row in order],
        }
    )


def make_trainer(
    job: TrainJob,
    place: Workplace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    steps: int | None,
    callback: TrainerCallback,
) -> SFTTrainer:
    """TRL's trainer for a job.

    Without packing the data set holds the rows of all epochs in training order, with a `weight`
    each, and `steps` are the optimiser steps they make. With packing TRL packs, shuffles and
    counts; `steps` is None.
    """
    from trl import SFTConfig

    recipe = job.recipe
    if recipe.packing:
        order: dict[str, object] = {
            "num_train_epochs": recipe.epochs,
            "max_steps": recipe.max_steps or -1,
            "train_sampling_strategy": "random",
        }
    else:
        order = {
            "num_train_epochs": 1,
            "max_steps": -1,
            "train_sampling_strategy": "sequential",
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
    settings = SFTConfig(
        **hf.arguments(job, place, steps),
        **order,
        packing=recipe.packing,
        max_length=recipe.max_length,
        # Experts and routers are frozen, so their balance is left alone.
        router_aux_loss_coef=0.0,
    )
    fresh = None if job.start_from else hf.lora(Path(place.paths[BASE]), recipe)
    with hf.trackers(recipe.report_to):
        trainer = weighted_trainer()(
            model=model,
            args=settings,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=fresh,
            callbacks=[callback],
        )
    hf.silence(trainer)
    if not recipe.packing:
        trainer.data_collator = WeightCollator(trainer.data_collator)
    return trainer
