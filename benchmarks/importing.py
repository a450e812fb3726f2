"""Import: seconds and peak memory of 100,000 rows of published shapes, and whether every bad row
is named.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Rows, figure
from mosaic.core.types.base import JsonObject

ROWS, QUICK_ROWS = 100_000, 10_000
# Tulu-3 persona instruction following: 70,397,173 bytes in 29,980 rows (its data set card).
TULU_BYTES = 2_348
BAD_EVERY = 1_000


# What runs in a process of its own, so that its peak memory is its own.
MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.importing import measure
print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
"""


def _words(rng: random.Random) -> list[str]:
    """5,000 words of 2 to 10 letters."""
    words = []
    for _ in range(5_000):
        words.append("".join(rng.choices("abcdefghij", k=rng.randint(2, 10))))
    return words


def _text(rng: random.Random, words: list[str], size: int) -> str:
    """A text of about so many bytes."""
    return " ".join(rng.choices(words, k=max(3, size // 7)))


def write_xguard(path: Path, rows: int, seed: int = 0) -> None:
    """One JSON array of chats of 4 KB on average; one in a thousand has an unknown role."""
    rng = random.Random(seed)
    words = _words(rng)
    with path.open("w") as stream:
        stream.write("[\n")
        for row in range(rows):
            turns = []
            for _ in range(rng.randint(2, 7)):
                asked = _text(rng, words, int(rng.lognormvariate(5.2, 0.5)))
                answered = _text(rng, words, int(rng.lognormvariate(6.2, 0.6)))
                turns.append({"from": "human", "value": asked})
                turns.append({"from": "gpt", "value": answered})
            if row % BAD_EVERY == BAD_EVERY - 1:
                turns[0]["from"] = "narrator"
            stream.write(json.dumps({"conversations": turns}) + (",\n" if row < rows - 1 else "\n"))
        stream.write("]\n")


def write_tulu(path: Path, rows: int, seed: int = 0) -> None:
    """Parquet of single turns with named constraints, as large as the data card says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(seed)
    words = _words(rng)
    names = [
        "length constraints:words",
        "format:bullet list",
        "keywords:include",
        "punctuation:no comma",
    ]
    writer = None
    for start in range(0, rows, 5_000):
        batch = []
        for row in range(start, min(rows, start + 5_000)):
            prompt = _text(rng, words, 300)
            chat = [
                {"content": prompt, "role": "user"},
                {"content": _text(rng, words, 1_650), "role": "assistant"},
            ]
            if row % BAD_EVERY == BAD_EVERY - 1:
                chat[1]["content"] = ""
            constraints = rng.sample(names, rng.randint(1, 3))
            batch.append(
                {"id": f"p{row}", "prompt": prompt, "messages": chat, "constraints": constraints}
            )
        table = pa.Table.from_pylist(batch)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def measure(source: Path, shape: str, out: Path) -> JsonObject:
    """In this process: seconds, peak memory in GB, and the tally."""
    import resource

    from training.data.importers.job import ImportJob
    from training.data.importers.rows import import_rows

    started, cpu = time.monotonic(), time.process_time()
    job = ImportJob(sources=[str(source)], shape=shape, dataset="d", skip_bad=True)
    tally = import_rows(job, out)
    return {
        "seconds": time.monotonic() - started,
        "cpu": time.process_time() - cpu,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
        **tally.data(),
    }


def import_rows(quick: bool) -> Rows:
    """XGuard's shape from one JSON array and Tulu's from Parquet, each in a process of its own."""
    rows = QUICK_ROWS if quick else ROWS
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape, file, writer, out in (
            ("xguard", "chats.json", write_xguard, "chats.jsonl"),
            ("tulu-if", "tulu.parquet", write_tulu, "tulu-rows.parquet"),
        ):
            writer(folder / file, rows)
            command = [sys.executable, "-c", MEASURE, str(folder / file), shape, str(folder / out)]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            done = json.loads(ended.stdout)
            bad = rows // BAD_EVERY
            # The JSON array opens with a line of its own.
            line = BAD_EVERY + 1 if shape == "xguard" else BAD_EVERY
            counted = done["bad"] == bad and done["rows"] == rows - bad
            named = counted and done["bad_rows"][0].startswith(f"{folder / file}:{line}: ")
            size = (folder / file).stat().st_size / 1e6
            what = f"{rows:,} rows of shape {shape} ({size:,.0f} MB)"
            figures += [
                figure(f"{what}: seconds", done["seconds"], "s", at_most=20),
                figure(f"{what}: CPU seconds", done["cpu"], "s"),
                figure(f"{what}: peak memory", done["memory"], "GB", at_most=1),
                figure(
                    f"{what}: bad rows all counted, the first at its file:line",
                    int(named),
                    "yes",
                    at_least=1,
                ),
            ]
    return figures
