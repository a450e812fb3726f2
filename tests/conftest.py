"""What all tests share: one thread, no hub, no network but loopback, and a tiny real model."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")

import json
import socket
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


TEXTS = [
    "how do i store the bread ?",
    "keep it in a dry cabinet .",
    "tell me a story of the old river and the bridge .",
    "the bridge is old and green .",
    "please add one , two and three .",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Llama of two layers with its own tokenizer and chat template, random weights, as a model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mosaic.lab.pretrain import make_tokenizer, save

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = make_tokenizer(TEXTS)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    save(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def make_rows(count=60, datasets=("a", "b"), buckets=("x", "y", "z")):
    """Pool rows as plain data: two data sets of three buckets, qualities 1-5, text, list and number attributes."""
    rows = []
    for dataset in datasets:
        for i in range(count):
            rows.append(
                {
                    "id": f"{dataset}{i:04d}",
                    "dataset": dataset,
                    "bucket": buckets[i % len(buckets)],
                    "messages": [
                        {"role": "user", "content": f"how do i store the bread {i} ?"},
                        {
                            "role": "assistant",
                            "content": "keep it in a dry cabinet ." * (1 + i % 3),
                        },
                    ],
                    "quality": 1 + i % 5,
                    "attributes": {
                        "topic": f"t{i % 4}",
                        "tags": [f"g{i % 2}", f"h{i % 7}"],
                        "size": i % 10,
                    },
                    "n_tokens": 10 + (i * 7) % 23,
                }
            )
    return rows


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def small_pool(tmp_path_factory):
    from training.data.pool import build_pool

    folder = tmp_path_factory.mktemp("pool")
    source = write_jsonl(folder / "rows.jsonl", make_rows())
    return build_pool(
        [source], folder / "pool", model=None, max_length=512, trust_token_counts=True
    )


@pytest.fixture
def rows():
    return make_rows


@pytest.fixture
def jsonl():
    return write_jsonl


@pytest.fixture
def new_journal():
    """Makes the journal of a run without inputs in a folder, held by this process."""
    from mosaic.core.journal import Journal
    from mosaic.core.types.inputs import InputDigests, RunRecord

    made = []

    def make(folder: Path, cap: int = 1000, config=None):
        inputs = InputDigests(pool="", base_model="", suites={}, judge="")
        record = RunRecord(run=config or {}, inputs=inputs)
        journal = Journal.create(folder, "run", record, cap)
        made.append(journal)
        journal.acquire()
        return journal

    yield make
    for journal in made:
        journal.close()
