"""Training: how full the batches are, and what our trainer adds to a bare TRL script."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.figures import Rows, figure
from mosaic.app.config import RunConfig
from mosaic.app.config_file import load_config
from mosaic.core.store import file_digest
from mosaic.core.types.base import JsonObject
from mosaic.core.types.data import Mixture
from mosaic.core.types.runs import BASE, TRAINING_SET, TrainJob, Workplace
from training.data.curate import curate, write_training_set
from training.data.pool import Pool
from training.methods.batches import by_length
from training.methods.sft import train
from training.models.adapter import model_digest
from training.models.chat_template import tokenise
from training.models.tokenizer import load_tokenizer


def _share(lengths: list[int], batch_size: int) -> float:
    """Real tokens over positions in batches by length, where rows are as wide as the longest."""
    positions = 0
    for batch in by_length(lengths, batch_size, [1]):
        positions += len(batch) * max(lengths[row] for row in batch)
    return sum(lengths) / positions


def _lab_set(folder: Path, tokens: int) -> tuple[RunConfig, Path, list[int]]:
    """The config of the laboratory, a training set of its pool, and the lengths of its rows."""
    from agent.weights import proportions

    config = load_config("lab")
    pool = Pool.open(Path(config.pool))
    ratios, buckets = proportions(pool.stock(4))
    curated = curate(pool, Mixture(ratios=ratios, bucket_weights=buckets, budget=tokens, seed=1))
    path = folder / "set.parquet"
    write_training_set(pool, curated, path)
    return config, path, curated.n_tokens.tolist()


def _packed(lengths: list[int], max_length: int, batch_size: int) -> tuple[float, float]:
    """Real tokens over the positions of TRL's packed batches, and over packed rows of full length.

    A packed batch is one sequence.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    disable_progress_bar()
    chats = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    rows = pack_dataset(chats, max_length, "bfd").to_list()
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    positions = 0
    for start in range(0, len(rows), batch_size):
        positions += collator(rows[start : start + batch_size])["input_ids"].numel()
    tokens = sum(lengths)
    return tokens / positions, tokens / (len(rows) * max_length)


def packing(quick: bool) -> Rows:
    """Real tokens over token positions: batched by length as on CPU, and packed by TRL as where
    packing is on.
    """
    with tempfile.TemporaryDirectory() as folder:
        config, _, lengths = _lab_set(Path(folder), 10_000)
    drawn = np.random.default_rng(0).lognormal(5.5, 0.9, 2_000 if quick else 20_000)
    chats = np.clip(drawn, 8, 4096).astype(int)
    lab, random = _share(lengths, config.methods.sft.batch_size), _share(chats.tolist(), 8)
    what = "real tokens over positions"
    return [
        figure(f"{what}, the laboratory", lab, "share", at_least=0.95),
        figure(f"{what}, log-normal chats, batches of 8", random, "share", at_least=0.95),
        *_packed_figures("the laboratory", lengths, config.methods.sft.max_length),
        *_packed_figures("log-normal chats", chats.tolist(), 4096),
    ]


def _packed_figures(what: str, lengths: list[int], max_length: int) -> Rows:
    positions, rows = _packed(lengths, max_length, 4)
    return [
        figure(f"real tokens over positions, {what}, packed", positions, "share", at_least=0.98),
        figure(f"tokens over packed rows of {max_length}, {what}", rows, "share"),
    ]


def _bare(job: TrainJob, base: Path, rows: list[JsonObject], folder: Path) -> float:
    """Seconds per step of a plain TRL script on the same rows, batches of the same size in the
    same order.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    config = job.recipe
    arguments = SFTConfig(
        output_dir=str(folder / "bare"),
        learning_rate=config.learning_rate,
        num_train_epochs=1,
        per_device_train_batch_size=config.batch_size,
        train_sampling_strategy="sequential",
        max_length=config.max_length,
        assistant_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(base),
        peft_config=LoraConfig(
            r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear"
        ),
    )
    trainer.remove_callback(PrinterCallback)
    output = trainer.train()
    return output.metrics["train_runtime"] / trainer.state.global_step


def sft_step(quick: bool) -> Rows:
    """Our seconds per step over those of a bare TRL script: the median of interleaved pairs."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, path, _ = _lab_set(folder, 4_000 if quick else 10_000)
        base = Path(config.base_model)
        table = pq.read_table(path)
        chats = table["messages"].to_pylist()
        ids, _ = tokenise(load_tokenizer(base), chats)
        seeds = [1 + epoch for epoch in range(config.methods.sft.epochs)]
        lengths = [len(row) for row in ids]
        rows = []
        for batch in by_length(lengths, config.methods.sft.batch_size, seeds):
            rows += [{"messages": chats[row]} for row in batch]
        ratios, ours, theirs = [], [], []
        for repeat in range(3 if quick else 7):
            job = TrainJob(
                recipe=config.methods.sft,
                inputs={BASE: model_digest(base), TRAINING_SET: file_digest(path)},
                seed=1,
            )
            place = Workplace(
                paths={BASE: str(base), TRAINING_SET: str(path)},
                out=str(folder / f"adapter{repeat}"),
                work=str(folder / f"work{repeat}"),
            )
            result = train(job, place)
            ours.append(result.train_seconds / result.steps)
            theirs.append(_bare(job, base, rows, folder))
            ratios.append(ours[-1] / theirs[-1])
    return [
        figure("step time over a bare TRL script", statistics.median(ratios), "x", at_most=1.05),
        figure("milliseconds per step, ours", 1000 * statistics.median(ours), "ms"),
        figure("milliseconds per step, bare TRL", 1000 * statistics.median(theirs), "ms"),
    ]
