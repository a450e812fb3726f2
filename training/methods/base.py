"""The seam of training: a job in, an adapter out. Light to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import Field

from mosaic.core.types.base import FrozenModel

Progress = Callable[[dict[str, Any]], None]


class SftConfig(FrozenModel):
    """Supervised fine-tuning of a LoRA adapter. `batch_size` is in rows; `report_to` is passed to TRL; every
    `save_every` steps a checkpoint is written from which an interrupted training continues."""

    kind: Literal["sft"] = "sft"
    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    lora_r: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    max_length: int = Field(default=4096, ge=8)
    packing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    report_to: str = "none"
    max_steps: int | None = Field(default=None, ge=1)
    save_every: int | None = Field(default=None, ge=1)


class TrainJob(FrozenModel):
    """What one training needs: folders and files by path, the base by digest. `out` must not exist; checkpoints live
    in `work`."""

    base_model: str
    base_digest: str
    training_set: str
    config: SftConfig
    seed: int
    out: str
    work: str


class TrainResult(FrozenModel):
    """`seconds` run from the trainer's construction to the saved adapter, `train_seconds` over the steps alone."""

    adapter: str
    tokens: int
    supervised: int
    steps: int
    loss: float
    seconds: float
    train_seconds: float
    real_token_share: float


class Trainer(Protocol):
    def __call__(
        self, job: TrainJob, progress: Progress | None = None, stopping: Callable[[], bool] = ...
    ) -> TrainResult: ...
