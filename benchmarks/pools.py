"""Pools larger than memory: texts fetched from any place, and a pool built of many short chats."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures import Row, Rows, figure, not_measured
from benchmarks.memory import peak_memory
from training.data.pool_format import MESSAGES
from training.data.texts import TextsWriter, read_texts

# A set of a million tokens, in chats of two hundred.
CHOSEN = 5000
SIZES = (100_000, 1_000_000, 10_000_000)
QUICK_SIZES = (100_000, 1_000_000)
PIECE = 100_000
ROOT = Path(__file__).parents[1]
DRAWS = 5
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Fetch = Callable[[np.ndarray], pa.Table]


def words(count: int) -> list[str]:
    """Made-up words of one to four syllables."""
    generator = np.random.default_rng(1)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en")]
    made: dict[str, None] = {}
    while len(made) < count:
        picked = generator.integers(0, len(syllables), int(generator.integers(1, 5)))
        made["".join(syllables[number] for number in picked)] = None
    return list(made)


def chats(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Questions and answers of 5 to 25, and 20 to 80 words, common ones more often."""
    generator = np.random.default_rng(seed)
    known = np.array(words(8000))
    for _ in range(count):
        lengths = generator.integers((5, 20), (26, 81))
        ranks = np.minimum(generator.zipf(1.3, lengths.sum()) - 1, len(known) - 1)
        said = known[ranks].tolist()
        yield " ".join(said[: lengths[0]]), " ".join(said[lengths[0] :])


def text_table(seed: int) -> pa.Table:
    """The texts of `PIECE` short chats, as a pool holds them."""
    rows = []
    for question, answer in chats(PIECE, seed):
        rows.append(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        )
    ids = [f"chat-{seed}-{number}" for number in range(PIECE)]
    return pa.table({"id": ids, "messages": pa.array(rows, MESSAGES)})


def pool_texts(quick: bool) -> Rows:
    """CPU seconds to fetch chosen texts, by size of the pool; Lance and Parquet beside that.

    Lance (`pip install pylance`, 217 MB) is not used by this project, only compared with.
    """
    table = text_table(0)
    figures: Rows = []
    ours: dict[int, float] = {}
    for size in QUICK_SIZES if quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.arrow"
            writer = TextsWriter(path, MESSAGES)
            for _ in range(size // PIECE):
                writer.write(table)
            writer.close()
            ours[size] = _fetching(size, lambda rows, path=path: read_texts(path, rows))
            what = f"CPU seconds to fetch {CHOSEN:,} texts of {size:,}"
            figures.append(figure(what, ours[size], "s"))
            figures.append(figure(f"bytes a row, {size:,} rows", path.stat().st_size / size, "B"))
    # Chosen rows of a small pool share blocks, so the smallest does not measure growth.
    largest, ten_times_less = max(ours), max(ours) // 10
    grown = ours[largest] / ours[ten_times_less]
    figures.append(figure("the last over that of ten times less rows", grown, "x", at_most=1.5))
    figures += _parquet(table, 1_000_000)
    figures += _lance(table, largest, ours[largest])
    return figures


def _fetching(size: int, fetch: Fetch) -> float:
    """The median CPU seconds of a fetch, of several draws of rows."""
    seconds = []
    for draw in range(DRAWS):
        rows = np.sort(np.random.default_rng(draw).choice(size, CHOSEN, replace=False))
        started = time.process_time()
        assert fetch(rows).num_rows == CHOSEN
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def _parquet(table: pa.Table, size: int) -> Rows:
    """Row groups of 8,192 rows, as pools were before, and of 64."""
    figures: Rows = []
    for group in (8192, 64):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
                for _ in range(size // PIECE):
                    writer.write_table(table, row_group_size=group)
            seconds = _fetching(size, lambda rows, path=path: _from_groups(path, rows))
        what = f"CPU seconds of Parquet in groups of {group:,}, {size:,} rows"
        figures.append(figure(what, seconds, "s"))
    return figures


def _from_groups(path: Path, rows: np.ndarray) -> pa.Table:
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    groups = np.searchsorted(starts, rows, side="right") - 1
    parts = []
    for group in np.unique(groups):
        inside = rows[groups == group] - starts[group]
        parts.append(file.read_row_group(int(group), use_threads=False).take(pa.array(inside)))
    return pa.concat_tables(parts)


def _lance(table: pa.Table, size: int, ours: float) -> Rows:
    try:
        import lance
    except ImportError:
        return [not_measured("Lance is not installed here (pip install pylance)")]
    with tempfile.TemporaryDirectory() as folder:
        pieces = (batch for _ in range(size // PIECE) for batch in table.to_batches())
        reader = pa.RecordBatchReader.from_batches(table.schema, pieces)
        lance.write_dataset(reader, folder + "/set")
        seconds = _fetching(size, lambda rows: lance.dataset(folder + "/set").take(rows))
    return [
        figure(f"CPU seconds of Lance, {size:,} rows", seconds, "s"),
        figure("our fetch over Lance's take", ours / seconds, "x", at_most=2),
    ]


def tokenizer_folder(folder: Path) -> Path:
    """A byte-level BPE of 8,000 tokens with ChatML, as a model folder without weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((text for pair in chats(5000, 3) for text in pair), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def write_source(path: Path, rows: int) -> None:
    """Short chats as a JSONL file of pool rows."""
    with path.open("w", encoding="utf-8") as stream:
        for number, (question, answer) in enumerate(chats(rows, 2)):
            row = {
                "id": f"chat-{number}",
                "dataset": ("guard", "benign", "tasks")[number % 3],
                "bucket": f"b{number % 5}",
                "quality": 1 + number % 5,
                "attributes": {"topic": f"t{number % 30}", "tags": [f"g{number % 50}", "all"]},
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ],
            }
            stream.write(json.dumps(row) + "\n")


IN_PROCESS = """
import json, sys
from pathlib import Path
from benchmarks.pools import building, encoding
if __name__ == "__main__":
    source, model, out, processes = sys.argv[1:]
    if int(processes):
        found = building(Path(source), Path(model), Path(out), int(processes))
    else:
        found = encoding(Path(source), Path(model))
    print(json.dumps(found))
"""


def building(source: Path, model: Path, out: Path, processes: int) -> dict[str, float]:
    """Seconds, CPU seconds with those of children, and peak memory of this process, of a build.

    What it takes to import libraries is not counted: it does not grow with the pool.
    """
    from training.data.build import BuildOptions, build
    from training.data.counting import SCHEMA

    options = BuildOptions(max_length=4096, model=model, processes=processes)
    options.counter()
    SCHEMA.empty_table()  # pyarrow imports pandas for the first one
    clocks = _clocks()
    build([source], out, options)
    return _since(clocks)


def encoding(source: Path, model: Path) -> dict[str, float]:
    """The same of the least that has to be done: the template, and `encode_batch`."""
    from training.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    backend = tokenizer.backend_tokenizer
    chats_ = [json.loads(line)["messages"] for line in source.open(encoding="utf-8")]
    clocks = _clocks()
    for start in range(0, len(chats_), 512):
        texts = tokenizer.apply_chat_template(chats_[start : start + 512], tokenize=False)
        for encoded in backend.encode_batch(texts, add_special_tokens=False):
            len(encoded)
    return _since(clocks)


def _clocks() -> tuple[float, float]:
    return time.monotonic(), _cpu()


def _cpu() -> float:
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    return used


def _since(clocks: tuple[float, float]) -> dict[str, float]:
    return {
        "seconds": time.monotonic() - clocks[0],
        "cpu": _cpu() - clocks[1],
        "memory": peak_memory(),
    }


def pool_build(quick: bool) -> Rows:
    """CPU of `pool build` over the least that has to be done, memory by size, and two processes."""
    small, large = (10_000, 20_000) if quick else (100_000, 1_000_000)
    figures: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer_folder(folder / "model")
        for rows in (small, large):
            write_source(folder / f"{rows}.jsonl", rows)
        least = _measured(folder, small, 0)
        one = _measured(folder, small, 1)
        many = _measured(folder, large, 1)
        two = _measured(folder, large, 2)
    figures.append(figure(f"CPU seconds of encode_batch, {small:,} rows", least["cpu"], "s"))
    figures.append(figure(f"CPU seconds of pool build, {small:,} rows", one["cpu"], "s"))
    over = one["cpu"] / least["cpu"]
    figures.append(figure("pool build over encode_batch with its template", over, "x", at_most=1.3))
    # Of few rows the start of processes, some seconds, is most.
    figures.append(figure(f"seconds with one process, {large:,} rows", many["seconds"], "s"))
    figures.append(figure(f"seconds with two processes, {large:,} rows", two["seconds"], "s"))
    faster = many["seconds"] / two["seconds"]
    figures.append(figure("two processes over one", faster, "x", at_least=1.8))
    figures.append(figure(f"peak memory, {small:,} rows", one["memory"], "GB"))
    figures.append(figure(f"peak memory, {large:,} rows", many["memory"], "GB", at_most=1))
    grown = (many["memory"] - one["memory"]) * 1024**3 / (large - small)
    figures.append(figure("bytes of memory a row more", grown, "B"))
    figures.append(figure(f"CPU seconds of pool build, {large:,} rows", many["cpu"], "s"))
    return figures


def _measured(folder: Path, rows: int, processes: int) -> dict[str, float]:
    """A build in a process of its own; with 0 processes what has to be done at least."""
    script = folder / "measure.py"
    script.write_text(IN_PROCESS)
    out = folder / f"pool-{rows}-{processes}"
    words_ = [str(folder / f"{rows}.jsonl"), str(folder / "model"), str(out), str(processes)]
    done = subprocess.run(
        [sys.executable, str(script), *words_],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found
