"""Supervised fine-tuning: TRL's `SFTTrainer` with a fresh PEFT LoRA, loss on assistant tokens only.

Loss of a step = sum of w_i x token losses over sum of w_i x supervised tokens, w_i being the row's weight (one over
the number of windows of its chat); with all weights 1 it is TRL's own. Rows are tokenised once, batched by length over
the whole set, and the batches shuffled by the seed: on CPU packing is slower. No row is truncated or dropped: what the
pool counted is what is trained, or it is an error.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eval.model_folder import check_model_folder
from mosaic.core.errors import StopRequested, TrainingError, UsageError
from mosaic.core.types.runs import BASE, TRAINING_SET, SftRecipe, TrainJob, TrainResult, Workplace
from training.methods.base import Progress, Stopping, never
from training.methods.failures import classify_failure
from training.models.adapter import canonicalise

MANIFEST = "MANIFEST.json"


def check_recipe(base: Path, config: SftRecipe) -> None:
    """UsageError where the base cannot be trained this way: no chat template, one without generation markers, or one
    whose markers leave out the end of the turn, so that the model would never learn to stop."""
    from transformers import AutoConfig
    from transformers.integrations import get_reporting_integration_callbacks

    check_model_folder(base)
    with _readable(f"base_model: {base}: its config.json is of no known model"):
        AutoConfig.from_pretrained(base, local_files_only=True)
    tokenizer = load_tokenizer(base)
    try:
        get_reporting_integration_callbacks(config.report_to)
    except ValueError as error:
        raise UsageError(f"methods.sft.report_to: {config.report_to!r}: {error}") from None
    if not re.search(r"\{%-?\s*generation\b", tokenizer.chat_template):
        raise UsageError(
            f"base_model: the chat template of {base} has no {{% generation %}} markers, so assistant tokens cannot be "
            "told apart; add them around the assistant's text and its end-of-turn token"
        )
    answer = "yes"
    ids, labels = tokenise(
        tokenizer, [[{"role": "user", "content": "no"}, {"role": "assistant", "content": answer}]]
    )
    learned = tokenizer.decode([i for i, t in zip(ids[0], labels[0], strict=True) if t != -100])
    if learned.strip() == answer:
        raise UsageError(
            f"base_model: the {{% generation %}} markers of {base} end before the end-of-turn token, so the model would "
            "not learn to stop; move the closing marker behind it"
        )


def load_tokenizer(base: Path) -> Any:
    """The tokenizer of a model folder. UsageError without a chat template or with remote code."""
    from transformers import AutoTokenizer

    check_model_folder(base)
    with _readable(f"{base}: its tokenizer files are missing or damaged"):
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    if not tokenizer.chat_template:
        raise UsageError(f"{base}: the tokenizer has no chat template, so chats cannot be rendered")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """UsageError where files of a model cannot be read, with the first line of the reason."""
    try:
        yield
    except (
        Exception
    ) as error:  # tokenizers raises nothing narrower, transformers whatever a damaged file leads to
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(f"{what}: {first}") from None


def tokenise(
    tokenizer: Any, chats: list[list[dict[str, str]]]
) -> tuple[list[list[int]], list[list[int]]]:
    """(input ids, labels) per chat; labels are -100 outside assistant turns."""
    encoded = tokenizer.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = [list(row) for row in encoded["input_ids"]]
    masks = encoded["assistant_masks"]
    labels = [
        [t if m else -100 for t, m in zip(row, mask, strict=True)]
        for row, mask in zip(ids, masks, strict=True)
    ]
    return ids, labels


def by_length(lengths: list[int], batch_size: int, seeds: list[int]) -> list[list[int]]:
    """Row numbers in batches of similar length, for one epoch per seed, which shuffles its batches. Ties keep row order.

    Rows that fill no batch come last, those of all epochs together, so that every batch but the last is full.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    full = len(order) - len(order) % batch_size
    batches = [order[start : start + batch_size] for start in range(0, full, batch_size)]
    shuffled = [
        batches[i] for seed in seeds for i in np.random.default_rng(seed).permutation(len(batches))
    ]
    rest = order[full:] * len(seeds)
    return shuffled + [
        rest[start : start + batch_size] for start in range(0, len(rest), batch_size)
    ]


def train(
    job: TrainJob, place: Workplace, progress: Progress | None = None, stopping: Stopping = never
) -> TrainResult:
    """Train one adapter and save it at `place.out`, from the last complete checkpoint under `place.work` if there is one.

    UsageError for unusable input, TrainingError where training breaks, OSError(ENOSPC) where the disk is full. When
    `stopping` says so, a checkpoint is written and StopRequested raised.
    """
    with classify_failure(Path(place.work)):
        return _train(job, place, progress, stopping)


def _train(
    job: TrainJob, place: Workplace, progress: Progress | None, stopping: Stopping
) -> TrainResult:
    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    # transformers and peft warn about each other's use of a renamed flag; nobody here can act on it.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    base, config = Path(place.paths[BASE]), job.recipe
    check_recipe(base, config)
    with pq.ParquetFile(place.paths[TRAINING_SET]) as file:
        table = file.read(columns=["id", "messages", "n_tokens", "weight"], use_threads=False)
    if table.num_rows == 0:
        raise UsageError("the training set is empty: no row fits the plan and the budget")
    tokenizer = load_tokenizer(base)
    ids, labels = tokenise(tokenizer, table["messages"].to_pylist())
    weights = table["weight"].to_pylist()
    lengths = [len(row) for row in ids]
    _check_lengths(table, lengths, labels, config)
    if config.packing and any(w != 1 for w in weights):
        raise UsageError(
            "methods.sft.packing: packed rows cannot carry weights other than 1 (windows of long chats)"
        )

    set_seed(job.seed)
    epochs = 1 if config.packing else config.epochs
    batches = by_length(lengths, config.batch_size, [job.seed + epoch for epoch in range(epochs)])
    if config.max_steps is not None:
        batches = batches[: config.max_steps * config.gradient_accumulation]
    order = list(range(len(ids))) if config.packing else [i for batch in batches for i in batch]
    columns = {"input_ids": [ids[i] for i in order], "labels": [labels[i] for i in order]}
    if not config.packing:
        columns["weight"] = [weights[i] for i in order]
    dataset = Dataset.from_dict(columns)
    out = Path(place.out)
    if out.exists():
        raise UsageError(f"{out} exists already; an adapter is written to a new folder")
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=getattr(torch, config.dtype), local_files_only=True
    )

    class Watch(TrainerCallback):
        """Passes progress on, stops on a loss that is no number, and where someone asks for it."""

        stopped = False

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any
        ) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(loss):
                raise _no_number(f"the loss is {loss} at step {state.global_step}")
            if progress and loss is not None:
                progress({"step": state.global_step, "steps": state.max_steps, "loss": loss})

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if progress and state.global_step % 10:
                progress({"step": state.global_step, "steps": state.max_steps})
            if config.save_every and state.global_step % config.save_every == 0:
                control.should_save = control.should_log = True
            if stopping() and state.global_step < state.max_steps:
                self.stopped = control.should_save = control.should_training_stop = True

        def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            _checksum(Path(args.output_dir) / f"checkpoint-{state.global_step}", job)

    watch = Watch()
    started = time.monotonic()
    steps = None if config.packing else math.ceil(len(batches) / config.gradient_accumulation)
    trainer = _trainer(job, place, model, tokenizer, dataset, steps, watch)
    output = trainer.train(resume_from_checkpoint=last_checkpoint(job, Path(place.work)))
    if watch.stopped:
        raise StopRequested(
            f"training stopped at step {trainer.state.global_step}; a checkpoint is kept"
        )
    broken = [
        name
        for name, p in trainer.model.named_parameters()
        if p.requires_grad and not bool(p.isfinite().all())
    ]
    if broken:
        raise _no_number(f"{broken[0]} is no number after training")
    # The mean of what was logged, which a checkpoint keeps; the trainer's own mean forgets the time before a resume.
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    loss = float(np.mean(losses)) if losses else float(output.training_loss)
    if not math.isfinite(loss):
        raise _no_number(f"the loss is {loss}")
    trainer.model.save_pretrained(out)
    canonicalise(out, job.inputs[BASE])
    seconds = time.monotonic() - started
    used = (
        [i for b in batches for i in b]
        if not config.packing
        else list(range(len(ids))) * config.epochs
    )
    positions = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    return TrainResult(
        adapter=str(out),
        tokens=sum(lengths[i] for i in used),
        supervised=sum(t != -100 for i in used for t in labels[i]),
        steps=int(trainer.state.global_step),
        loss=loss,
        seconds=seconds,
        train_seconds=float(output.metrics["train_runtime"]),
        real_token_share=sum(lengths[i] for b in batches for i in b) / positions,
    )


def _no_number(what: str) -> TrainingError:
    return TrainingError(f"training: {what}; lower methods.sft.learning_rate", "nan_loss")


def _files(checkpoint: Path) -> dict[str, str]:
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        str(p.relative_to(checkpoint)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def _checksum(checkpoint: Path, job: TrainJob) -> None:
    """Write a checkpoint's manifest, last: a checkpoint without one was interrupted and is never loaded."""
    temporary = checkpoint / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps({"job": job.content_digest, "files": _files(checkpoint)}))
    temporary.rename(checkpoint / MANIFEST)


def last_checkpoint(job: TrainJob, work: Path) -> str | None:
    """The newest complete checkpoint of this very job; what is broken or of another job is removed.

    Only our own checkpoints are loaded, and only after each file matched the manifest (transformers reads them with
    `weights_only`).
    """
    found = sorted(
        work.glob("checkpoint-*"),
        key=lambda p: int(p.name.rpartition("-")[2]),
        reverse=True,
    )
    for checkpoint in found:
        try:
            manifest = json.loads((checkpoint / MANIFEST).read_text())
            if manifest == {"job": job.content_digest, "files": _files(checkpoint)}:
                return str(checkpoint)
        except (OSError, ValueError):
            pass
        shutil.rmtree(checkpoint)
    return None


def _trainer(
    job: TrainJob,
    place: Workplace,
    model: Any,
    tokenizer: Any,
    dataset: Any,
    steps: int | None,
    callback: Any,
) -> Any:
    import torch
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig

    config = job.recipe
    gpu = torch.cuda.is_available()
    arguments = SFTConfig(
        output_dir=place.work,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.scheduler,
        warmup_steps=math.ceil(config.warmup_ratio * steps) if steps else config.warmup_ratio,
        num_train_epochs=config.epochs if config.packing else 1,
        max_steps=(config.max_steps or -1) if config.packing else -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=config.dtype == "bfloat16",
        use_cpu=not gpu,
        seed=job.seed,
        data_seed=job.seed,
        train_sampling_strategy="random" if config.packing else "sequential",
        packing=config.packing,
        max_length=config.max_length,
        dataset_kwargs=None if config.packing else {"skip_prepare_dataset": True},
        remove_unused_columns=False,
        report_to=config.report_to,
        save_strategy="no",  # `Watch` asks for checkpoints
        save_total_limit=2,
        logging_steps=1 if steps is None or steps < 50 else 10,
        logging_nan_inf_filter=False,  # its default replaces a loss that is no number by the mean so far
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
    )
    peft = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        trainer = _weighted_trainer()(
            model=model,
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=peft,
            callbacks=[callback],
        )
    except ValueError as error:
        if config.report_to not in str(error):
            raise
        raise UsageError(f"methods.sft.report_to: {config.report_to!r}: {error}") from None
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not config.packing:
        trainer.data_collator = _Weigher(trainer.data_collator)
    return trainer


class _Weigher:
    """TRL's collator, with the rows' weights carried beside."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        weights = [row.pop("weight") for row in rows]
        return {**self.collator(rows), "weight": torch.tensor(weights, dtype=torch.float32)}


def _weighted_trainer() -> Any:
    from trl import SFTTrainer

    class WeightedSFTTrainer(SFTTrainer):
        """Divides weighted token losses by weighted supervised tokens, over all batches of one optimiser step."""

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
            if not batch_samples or "weight" not in batch_samples[0]:
                return super()._get_num_items_in_batch(batch_samples, device)
            counts = [b["weight"] * b["labels"][:, 1:].ne(-100).sum(dim=1) for b in batch_samples]
            return sum(c.sum() for c in counts).to(device)

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            weight = inputs.pop("weight", None)
            if weight is None or bool((weight == 1).all()):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
            outputs = model(**inputs, **routed, use_cache=False, fused_lm_head=True)
            losses = -outputs.log_probs
            total = num_items_in_batch
            if total is None:
                total = (weight[:, None] * outputs.label_mask).sum()
            loss = (weight[:, None] * losses).sum() / total
            if self.aux_loss_enabled:
                loss = (
                    loss
                    + self.router_aux_loss_coef
                    * outputs.aux_loss
                    / self.current_gradient_accumulation_steps
                )
            return loss

    return WeightedSFTTrainer


def _check_lengths(
    table: Any, lengths: list[int], labels: list[list[int]], config: SftRecipe
) -> None:
    for row, (identifier, counted, length) in enumerate(
        zip(table["id"].to_pylist(), table["n_tokens"].to_pylist(), lengths, strict=True)
    ):
        if counted != length:
            raise UsageError(
                f"training set row {row} ({identifier}): the pool counted {counted} tokens, the trainer sees {length}; "
                "rebuild the pool with this base model"
            )
        if length > config.max_length:
            raise UsageError(
                f"training set row {row} ({identifier}) has {length} tokens, methods.sft.max_length is {config.max_length}; "
                "rebuild the pool with that --max-length"
            )
        if all(t == -100 for t in labels[row]):
            raise UsageError(
                f"training set row {row} ({identifier}) has no assistant token to learn from"
            )
