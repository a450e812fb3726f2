"""A small training set, orders to train on it, and models that know a handful of words."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.store import file_digest
from mosaic.core.types.runs import (
    BASE,
    PAIRS,
    START,
    TRAINING_SET,
    DpoRecipe,
    SftRecipe,
    TrainJob,
    Workplace,
)
from training.methods.preference_rows import PreferenceRow, write_pairs
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
def pair_order(tiny_model, tmp_path):
    """A function that writes preference pairs of `CHATS` and returns the order to train on them.

    The answer is preferred to a longer one. `n_tokens` is what each chosen conversation is said to
    have.
    """
    tokenizer = load_tokenizer(tiny_model)
    rows = []
    for number, (asked, answer) in enumerate(CHATS):
        sides = {"prompt": [asked]}
        worse = {**answer, "content": f"{answer['content']} keep it in a dry cabinet ."}
        for side, message in (("chosen", answer), ("rejected", worse)):
            (ids,), _ = tokenise(tokenizer, [[asked, message]])
            sides |= {side: [message], f"{side}_tokens": len(ids)}
        rows.append(PreferenceRow(id=f"p{number}", slice="o/s", gap=1.0, **sides))

    def make(
        out="adapter", n_tokens=None, seed=1, base=tiny_model, start=None, pairs=rows, **recipe
    ):
        path = tmp_path / f"{out}.pairs.parquet"
        if n_tokens:
            pairs = [replace(r, chosen_tokens=n) for r, n in zip(pairs, n_tokens, strict=True)]
        write_pairs(pairs, path)
        paths = {BASE: str(base), PAIRS: str(path)}
        if start:
            paths[START] = str(start)
        job = TrainJob(
            recipe=DpoRecipe(**{**SMALL, **recipe}),
            inputs={BASE: model_digest(base), PAIRS: file_digest(path)},
            start_from="1" * 64 if start else None,
            seed=seed,
        )
        place = Workplace(paths=paths, out=str(tmp_path / out), work=str(tmp_path / f"{out}.work"))
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


@pytest.fixture(scope="session")
def word_model(tmp_path_factory):
    """A function that makes a model folder of these words, each a token of its own.

    The model is random, and wide enough to give all tokens any probabilities. The first word stands
    for everything else.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from mosaic.lab.pretrain import SPECIAL, TEMPLATE, save

    def make(words):
        vocabulary = {token: number for number, token in enumerate([*SPECIAL, *words])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(list(SPECIAL))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>", unk_token=words[0]
        )
        tokenizer.chat_template = TEMPLATE
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=vocabulary["<|end|>"],
            pad_token_id=vocabulary["<|pad|>"],
            initializer_range=0.2,
        )
        folder = tmp_path_factory.mktemp("words")
        save(LlamaForCausalLM(config), tokenizer, folder)
        return folder

    return make
