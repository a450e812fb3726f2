"""Training at a realistic size on a GPU: random weights of an 8B shape, log-normal chats."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.figures import CannotRun, Rows, figure
from mosaic.app.config_file import load_config
from mosaic.core.store import file_digest
from mosaic.core.types.runs import BASE, TRAINING_SET, SftRecipe, TrainJob, Workplace
from training.data.pool import Pool
from training.methods.sft import train
from training.models.adapter import model_digest
from training.models.chat_template import tokenise
from training.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

# Layers, width, feed-forward width, heads, key-value heads, vocabulary: those of Llama 3.1 8B, and
# small ones.
LARGE = (32, 4096, 14_336, 32, 8, 128_256)
SMALL = (2, 256, 688, 4, 4, 1_024)


def _model(folder: Path, shape: tuple[int, ...], dtype: str) -> None:
    """A model folder with random weights and the laboratory's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, forward, heads, shared, words = shape
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=forward,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=words,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    for path in Path(load_config("lab").base_model).iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copy(path, folder)


def _chats(tokens: int, base: Path) -> pa.Table:
    """A training set: turns of the laboratory, strung together into chats of log-normal length."""
    import pyarrow as pa

    pool = Pool.open(Path(load_config("lab").pool))
    chats = pool.rows(np.arange(2_000))["messages"].to_pylist()
    texts = []
    for chat in chats:
        texts += [message["content"] for message in chat if message["role"] != "system"]
    lengths = np.random.default_rng(0).lognormal(3.0, 0.8, tokens).clip(2, 120).astype(int)
    tokenizer = load_tokenizer(base)
    rows = []
    total, place = 0, 0
    for number, length in enumerate(lengths):
        if total >= tokens:
            break
        chat = []
        for turn in range(2 * length):
            role = "assistant" if turn % 2 else "user"
            chat.append({"role": role, "content": texts[(place + turn) % len(texts)]})
        place += 2 * length
        count = len(tokenise(tokenizer, [chat])[0][0])
        if count > 4096:
            continue
        total += count
        rows.append({"id": f"r{number}", "messages": chat, "n_tokens": count, "weight": 1.0})
    return pa.Table.from_pylist(rows)


def gpu_sft(quick: bool) -> Rows:
    """Tokens per second, peak memory and the share of time outside the optimiser's steps.

    `quick` is a small shape, which runs anywhere and says nothing about a model of 8B parameters.
    """
    import pyarrow.parquet as pq
    import torch

    gpu = torch.cuda.is_available()
    if not (gpu or quick):
        raise CannotRun("it needs a GPU; --quick tries the path on a small shape without one")
    dtype = "bfloat16" if gpu else "float32"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "model"
        _model(base, SMALL if quick else LARGE, dtype)
        pq.write_table(_chats(20_000 if quick else 1_000_000, base), folder / "set.parquet")
        config = SftRecipe(batch_size=8, dtype=dtype, gradient_checkpointing=not quick, lora_r=16)
        job = TrainJob(
            recipe=config,
            inputs={BASE: model_digest(base), TRAINING_SET: file_digest(folder / "set.parquet")},
            seed=1,
        )
        place = Workplace(
            paths={BASE: str(base), TRAINING_SET: str(folder / "set.parquet")},
            out=str(folder / "adapter"),
            work=str(folder / "work"),
        )
        started = time.monotonic()
        result = train(job, place)
        seconds = time.monotonic() - started
    outside = 1 - result.train_seconds / seconds
    rows = [
        figure(f"tokens trained in {result.steps} steps", result.tokens, "tokens"),
        figure("speed", result.tokens / result.train_seconds, "tokens/s"),
        figure("share of the training's time outside its steps", outside, "share"),
    ]
    if gpu:
        rows.append(figure("peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB"))
    return rows
