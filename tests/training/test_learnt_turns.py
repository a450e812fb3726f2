"""Answers that are context only: marked in the data, kept in the chat, and without labels."""

import numpy as np
import pytest

from mosaic.core.errors import UsageError
from training.data.importers.job import ImportJob
from training.data.importers.rows import import_rows
from training.data.pool import build_pool
from training.data.windows import windows
from training.models.chat_template import IGNORED, tokenise
from training.models.tokenizer import TokenCounter, load_tokenizer

CHAT = [
    {"role": "user", "content": "how do i store the bread ?"},
    {"role": "assistant", "content": "throw it away ."},
    {"role": "user", "content": "and now ?"},
    {"role": "assistant", "content": "keep it dry ."},
]
MARKED = [CHAT[0], {**CHAT[1], "learn": False}, *CHAT[2:]]


def pool_row(messages, **changes):
    row = {"id": "r", "dataset": "d", "bucket": "x", "quality": 5, "messages": messages}
    return {**row, **changes}


def learnt_text(tokenizer, ids, labels):
    return tokenizer.decode([t for t, label in zip(ids, labels, strict=True) if label != IGNORED])


def test_a_marked_answer_is_context_without_labels(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    (plain, marked), (all_on, some_on) = tokenise(tokenizer, [CHAT, MARKED])
    assert plain == marked
    assert "throw" in learnt_text(tokenizer, plain, all_on)
    assert "throw" not in learnt_text(tokenizer, marked, some_on)
    assert "keep it dry ." in learnt_text(tokenizer, marked, some_on)
    still = [label for label in some_on if label != IGNORED]
    assert still == [label for label in all_on if label != IGNORED][-len(still) :]


def test_marks_go_from_a_file_to_the_labels(tiny_model, tmp_path, jsonl):
    source = jsonl(
        tmp_path / "s.jsonl",
        [
            {"id": 1, "messages": [CHAT[0], {**CHAT[1], "train": False}, *CHAT[2:]]},
            {"id": 2, "messages": CHAT},
        ],
    )
    for name in ("rows.jsonl", "rows.parquet"):
        out = tmp_path / name
        import_rows(
            ImportJob(sources=[str(source)], shape="chat", dataset="d", quality=5, bucket="x"), out
        )
        folder = tmp_path / f"pool-{name}"
        pool = build_pool([out], folder, model=tiny_model, max_length=512)
        table = pool.rows(np.arange(2))
        chats = {row["id"]: row["messages"] for row in table.to_pylist()}
        tokenizer = load_tokenizer(tiny_model)
        ids, labels = tokenise(tokenizer, [chats["d-1"], chats["d-2"]])
        assert ids[0] == ids[1]
        assert "throw" not in learnt_text(tokenizer, ids[0], labels[0])
        assert "throw" in learnt_text(tokenizer, ids[1], labels[1])


def test_a_pool_without_marks_is_stored_as_before(tmp_path, jsonl):
    source = jsonl(tmp_path / "s.jsonl", [pool_row(CHAT, n_tokens=9)])
    pool = build_pool([source], tmp_path / "p", model=None, max_length=99, trust_token_counts=True)
    fields = pool.rows(np.array([0])).schema.field("messages").type.value_type
    assert [fields.field(i).name for i in range(fields.num_fields)] == ["role", "content"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([CHAT[0], {**CHAT[1], "learn": False}], "every assistant turn is marked"),
        ([{**CHAT[0], "learn": False}, CHAT[1]], "messages.0.learn: only turns of the assistant"),
        ([CHAT[0], {**CHAT[1], "learn": "no"}], "messages.1.learn"),
        ([CHAT[0], {**CHAT[1], "train": False}], "messages.1.train: Extra inputs"),
        (
            [CHAT[0], CHAT[1], {"role": "system", "content": "x"}, *CHAT],
            "system message comes after",
        ),
    ],
)
def test_pool_rows_with_marks_that_make_no_sense_are_named(tmp_path, jsonl, messages, message):
    source = jsonl(tmp_path / "s.jsonl", [pool_row(CHAT, n_tokens=9), pool_row(messages, id="b")])
    with pytest.raises(UsageError, match=rf"s\.jsonl:2: .*{message}"):
        build_pool([source], tmp_path / "p", model=None, max_length=99, trust_token_counts=True)


def test_all_bad_rows_of_a_pool_are_named_at_once(tmp_path, jsonl):
    bad = [pool_row(CHAT[:1], id=str(n), n_tokens=3) for n in range(25)]
    source = jsonl(tmp_path / "s.jsonl", bad)
    with pytest.raises(UsageError, match=r"25 bad rows:\n(.|\n)*:20: (.|\n)* and 5 more"):
        build_pool([source], tmp_path / "p", model=None, max_length=99, trust_token_counts=True)


def test_turns_after_the_last_learnt_answer_are_cut_and_not_charged(tiny_model, tmp_path, jsonl):
    after = {"role": "user", "content": "tell me a story of the old river " * 5}
    off = {**CHAT[1], "learn": False}
    rows = [pool_row([*CHAT, after], id="a"), pool_row([*CHAT, after, off], id="b")]
    rows.append(pool_row(CHAT, id="c"))
    pool = build_pool(
        [jsonl(tmp_path / "s.jsonl", rows)], tmp_path / "p", model=tiny_model, max_length=512
    )
    assert pool.stats()["turns_cut"] == 3
    assert len(set(pool.column("n_tokens").tolist())) == 1


def test_windows_without_a_learnt_answer_are_left_out(tiny_model):
    counter = TokenCounter(tiny_model)
    off = {**CHAT[1], "learn": False}
    chat = [CHAT[0], CHAT[3], *[CHAT[0], off] * 8, CHAT[0], CHAT[3], CHAT[2], off]
    limit = 3 * counter([CHAT])[0] // 2
    kept, left_out = windows(chat, limit, counter)
    assert kept
    said = sum(message["role"] == "assistant" for messages, _ in kept for message in messages)
    assert left_out == len(chat) // 2 - said > 0
    for messages, tokens in kept:
        assert messages[-1] == CHAT[3]
        assert tokens == counter([messages])[0] <= limit
