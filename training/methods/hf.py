"""What every method that trains with transformers, PEFT and TRL shares.

Quiet libraries, the LoRA, the arguments that no method chooses for itself, the callback that
watches a training, and what is checked when it has ended.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.model_folder import read_json, vocabulary_size, without_rows
from eval.model_loading import PLAIN, Loading, check_attention, check_quantisation, load_base
from mosaic.core.errors import StopRequested, TrainingError, UsageError
from mosaic.core.types.runs import BASE, START, LoraRecipe, TrainJob, Workplace
from training.methods.base import Progress, Stopping
from training.methods.checkpoints import write_manifest
from training.models.adapter import canonicalise
from training.models.lora_layout import lora_config, lora_layout
from training.models.tokenizer import readable

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

PROGRESS_EVERY = 10
FEW_STEPS = 50


def quiet() -> None:
    """Silence progress bars, and one warning that nobody here can act on."""
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    # transformers and peft warn about each other's use of a renamed flag.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


def check_base(base: Path, recipe: LoraRecipe) -> None:
    """Check that a recipe's LoRA can be put on the base, and that the experiment tracker is known.

    Raises UsageError.
    """
    from transformers import AutoConfig
    from transformers.integrations import get_reporting_integration_callbacks

    with readable(f"base_model: {base}: its config.json does not describe a known model"):
        AutoConfig.from_pretrained(base, local_files_only=True)
    with trackers(recipe.report_to):
        for callback in get_reporting_integration_callbacks(recipe.report_to):
            callback()  # a tracker that is not installed says so when its callback is made
    check_quantisation(base, loading_of(recipe))
    check_attention(base, recipe.attn_implementation)
    lora_layout(base, recipe.lora_r, recipe.target_modules)


def check_tokens(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError if a token of the tokenizer, as it is loaded, has no row in the embedding.

    Of a tokenizer without a fast form the files alone do not tell.
    """
    rows = vocabulary_size(read_json(base / "config.json") or {})
    fault = without_rows(tokenizer.get_vocab(), rows) if rows else None
    if fault:
        raise UsageError(f"base_model: {base}: {fault}")


def loading_of(recipe: LoraRecipe) -> Loading:
    """How a recipe wants its base loaded, for training and for answers."""
    return Loading(recipe.attn_implementation, recipe.load_in_4bit)


@contextmanager
def trackers(report_to: str) -> Iterator[None]:
    """Turn transformers' complaint about an unknown or missing tracker into a UsageError."""
    try:
        yield
    except (ValueError, RuntimeError, ImportError) as error:
        # `comet_ml` is comet-ml in what it says of itself.
        said = str(error).lower().replace("-", "").replace("_", "")
        if report_to.lower().replace("_", "") not in said:
            raise
        raise UsageError(f"methods.sft.report_to: {report_to!r}: {error}") from None


def load_model(base: Path, dtype: str, loading: Loading = PLAIN) -> PreTrainedModel:
    """The frozen base in `dtype` (a name such as float32), from local files only."""
    return load_base(base, dtype, loading)


def continued(model: PreTrainedModel, job: TrainJob, place: Workplace) -> PreTrainedModel:
    """The base with the adapter that goes on being trained; as it is for a job that starts afresh."""
    from peft import PeftModel

    if job.start_from is None:
        return model
    started = PeftModel.from_pretrained(model, place.paths[START], is_trainable=True)
    # Filed adapters name their base by digest; PEFT looks for its vocabulary when it saves.
    started.peft_config["default"].base_model_name_or_path = place.paths[BASE]
    return started


def lora(base: Path, recipe: LoraRecipe) -> LoraConfig:
    """The recipe's LoRA of a base: its layers are named in full."""
    targets = lora_layout(base, recipe.lora_r, recipe.target_modules).targets
    return lora_config(recipe.lora_r, targets, recipe.lora_alpha, recipe.lora_dropout)


def arguments(job: TrainJob, place: Workplace, steps: int | None) -> dict[str, object]:
    """The `TrainingArguments` that do not depend on the method.

    `steps` are the optimiser steps to come, or None if only the trainer can count them.
    """
    import torch

    recipe = job.recipe
    gpu = torch.cuda.is_available()
    warmup = math.ceil(recipe.warmup_ratio * steps) if steps else recipe.warmup_ratio
    return {
        "output_dir": place.work,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "lr_scheduler_type": recipe.scheduler,
        "warmup_steps": warmup,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "bf16": recipe.dtype == "bfloat16",
        "use_cpu": not gpu,
        "seed": job.seed,
        "data_seed": job.seed,
        "remove_unused_columns": False,
        "report_to": recipe.report_to,
        "save_strategy": "no",  # the watching callback asks for checkpoints
        "save_total_limit": 2,
        "logging_steps": 1 if steps is None or steps < FEW_STEPS else PROGRESS_EVERY,
        "logging_nan_inf_filter": False,  # its default hides a loss of NaN behind the mean so far
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
    }


def watching_callback(
    job: TrainJob, progress: Progress | None, stopping: Stopping
) -> TrainerCallback:
    """A callback that passes progress on, asks for checkpoints and seals them.

    It raises TrainingError (`nan_loss`) as soon as a logged loss is not finite. When `stopping`
    says so it asks for a last checkpoint and ends the training; its `stopped` is then true.
    """
    from transformers import TrainerCallback

    save_every = job.recipe.save_every

    class Watch(TrainerCallback):
        stopped = False

        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            logs: dict[str, float] | None = None,
            **rest: object,
        ) -> None:
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            if not math.isfinite(loss):
                raise not_finite(f"the loss is {loss} at step {state.global_step}")
            if progress:
                progress({"step": state.global_step, "steps": state.max_steps, "loss": loss})

        def on_step_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **rest: object,
        ) -> None:
            step = state.global_step
            if progress and step % PROGRESS_EVERY:
                progress({"step": step, "steps": state.max_steps})
            if save_every and step % save_every == 0:
                control.should_save = control.should_log = True
            if stopping() and step < state.max_steps:
                self.stopped = control.should_save = control.should_training_stop = True

        def on_save(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            **rest: object,
        ) -> None:
            write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}", job)

    return Watch()


def silence(trainer: Trainer) -> None:
    """Remove the callbacks that print."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


def not_finite(what: str) -> TrainingError:
    """The failure of a training whose numbers overflowed."""
    return TrainingError(f"training: {what}; lower methods.sft.learning_rate", "nan_loss")


def finish(trainer: Trainer, watch: TrainerCallback, training_loss: float) -> float:
    """The mean loss of a training that has ended well.

    Raises StopRequested if it was asked to stop, TrainingError (`nan_loss`) if a trained weight or
    the loss is not finite. The mean is over what was logged, which a checkpoint keeps: the
    trainer's own `training_loss` forgets what came before a resume.
    """
    if watch.stopped:
        raise StopRequested(
            f"training stopped at step {trainer.state.global_step}; a checkpoint is kept"
        )
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise not_finite(f"{name} is not finite after training")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    loss = float(np.mean(losses)) if losses else training_loss
    if not math.isfinite(loss):
        raise not_finite(f"the loss is {loss}")
    return loss


def save_adapter(trainer: Trainer, job: TrainJob, out: Path) -> None:
    """Write the trained adapter to `out` in its canonical form."""
    trainer.model.save_pretrained(out)
    canonicalise(out, job.inputs[BASE])
