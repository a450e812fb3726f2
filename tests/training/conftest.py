"""A small training set, and orders to train on it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.store import file_digest
from mosaic.core.types.runs import BASE, TRAINING_SET, SftRecipe, TrainJob, Workplace
from training.models.adapter import model_digest
from training.models.chat_template import tokenise
from training.models.tokenizer import load_tokenizer
from training.worker import Order

CHATS = [
    [
        {"role": "user", "content": f"how do i store the bread {i} ?"},
        {"role": "assistant", "content": "keep it dry ." * (1 + i % 4)},
    ]
    for i in range(12)
]
SMALL = {"learning_rate": 1e-3, "batch_size": 4, "lora_r": 4, "max_length": 128}


@pytest.fixture
def chats():
    return CHATS


@pytest.fixture
def order(tiny_model, tmp_path):
    """A function that writes a training set of `CHATS` and returns the order to train on it."""
    ids, _ = tokenise(load_tokenizer(tiny_model), CHATS)

    def make(out="adapter", weights=None, n_tokens=None, seed=1, base=tiny_model, **recipe):
        path = tmp_path / f"{out}.parquet"
        table = {
            "id": [f"r{i}" for i in range(len(CHATS))],
            "messages": CHATS,
            "n_tokens": n_tokens or [len(row) for row in ids],
            "weight": weights or [1.0] * len(CHATS),
        }
        pq.write_table(pa.table(table), path)
        job = TrainJob(
            recipe=SftRecipe(**{**SMALL, **recipe}),
            inputs={BASE: model_digest(base), TRAINING_SET: file_digest(path)},
            seed=seed,
        )
        place = Workplace(
            paths={BASE: str(base), TRAINING_SET: str(path)},
            out=str(tmp_path / out),
            work=str(tmp_path / f"{out}.work"),
        )
        return Order(job=job, place=place)

    return make


@pytest.fixture
def changed_template(tiny_model, tmp_path):
    """A function that copies the tiny model with its chat template changed by a function."""
    import shutil

    def copy(change):
        base = tmp_path / "changed"
        shutil.copytree(tiny_model, base)
        path = base / "chat_template.jinja"
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before, before
        return base

    return copy
