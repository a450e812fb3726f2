"""Rows bent at random: every answer is in the pool rows as it was, or its row is named or counted."""

import gzip
import json
import re
import tempfile
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.importers.job import ImportJob
from training.data.importers.rows import OFF, import_rows
from training.data.learnable import CUT

LEARNT = [{"train": True}, {"loss": 1}, {"weight": 1.0}, {"mask": False}, {"trainable": "true"}]
SKIPPED = [{"train": False}, {"loss": 0}, {"weight": 0}, {"mask": True}, {"training": "false"}]
SKIPPED += [{"masked": True}, {"Loss": False}, {"is_trainable": 0}, {"learn": False}]
EMPTY = [{"tool_calls": None}, {"images": []}, {"reasoning_content": ""}, {"name": None}]
NAMED = [{"name": "ada"}, {"id": 7}, {"annotations": {"by": ["x"]}}, {"is_synthetic": True}]
BROKEN = [
    {"tool_calls": [{"id": "c"}]},
    {"toolCalls": [{"id": "c"}]},
    {"reasoning_content": "first i think"},
    {"thinking": "hm"},
    {"images": ["a.png"]},
    {"weight": 0.5},
    {"mask": 1},
    {"train": "maybe"},
    {"loss": {"a": 1}},
    {"train": True, "loss": False},
]
ROW_NAMED = [{"source": "web"}, {"metadata": {"lang": "en"}}, {"label": "safe"}, {"score": 0.5}]
ROW_BROKEN = [
    {"tools": [{"name": "f"}]},
    {"tools": '[{"name": "f"}]'},
    {"image": "a.png"},
    {"videos": ["v"]},
    {"label": False},
    {"train": 0},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"history": [["a", "b"]]},
]
TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
).filter(str.strip)


@st.composite
def turn(draw, role):
    """A turn, whether it is learnt, whether its row is bad, and the names that nobody reads."""
    text = draw(TEXT)
    content = draw(st.sampled_from([text, text, [{"type": "text", "text": text}], 3, [], ""]))
    beside = st.sampled_from([{}, {}, *LEARNT, *SKIPPED, *EMPTY, *NAMED, *BROKEN])
    own = draw(beside) if role == "assistant" else {}
    return {
        "turn": {"role": role, "content": content, **own},
        "text": text,
        "learn": own not in SKIPPED,
        "bad": own in BROKEN or content in (3, [], ""),
        "unread": f"messages[].{next(iter(own))}" if own in NAMED else None,
    }


@st.composite
def bent_row(draw):
    roles = draw(
        st.sampled_from(["ua", "uaua", "sua", "uau", "uauau", "uaa", "au", "u", "usa", "uasua"])
    )
    words = {"u": "user", "a": "assistant", "s": "system"}
    turns = [draw(turn(words[role])) for role in roles]
    own = draw(st.sampled_from([{}, {}, {}, *ROW_NAMED, *ROW_BROKEN]))
    return {"turns": turns, "own": own, "bad": own in ROW_BROKEN or any(t["bad"] for t in turns)}


def packed(folder, how, rows):
    """The rows in a file of some kind."""
    lines = [json.dumps(row) for row in rows]
    text = {
        "lines": "\n".join(lines),
        "marks": "\n".join("\ufeff" + line for line in lines),
        "array": "[\n" + ",\n".join(lines) + "\n]",
        "wrapped": '{"data": [\n' + ",\n".join(lines) + "\n]}",
        "spread": "\n".join(json.dumps(row, indent=1) for row in rows),
        "gz": "\n".join(lines),
        "zst": "\n".join(lines),
    }[how].encode()
    if how == "gz":
        path = folder / "rows.jsonl.gz"
        path.write_bytes(gzip.compress(text))
    elif how == "zst":
        path = folder / "rows.jsonl.zst"
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(text)
    else:
        path = folder / ("rows.json" if how in ("array", "wrapped", "spread") else "rows.jsonl")
        path.write_bytes(text)
    return path


@settings(max_examples=150, deadline=None)
@given(
    bent=st.lists(bent_row(), min_size=1, max_size=6),
    how=st.sampled_from(["lines", "marks", "array", "wrapped", "spread", "gz", "zst"]),
)
def test_every_answer_is_taken_as_it_was_or_its_row_is_named(bent, how):
    good = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    rows = [{"id": "good", **good}]
    for number, row in enumerate(bent):
        rows.append({"id": number, "messages": [t["turn"] for t in row["turns"]], **row["own"]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = packed(folder, how, rows)
        job = ImportJob(sources=[str(source)], shape="chat", dataset="d", skip_bad=True)
        tally = import_rows(job, folder / "out.jsonl")
        taken = {
            r["id"]: r for r in map(json.loads, (folder / "out.jsonl").read_text().split("\n")[:-1])
        }
    assert tally.read == len(rows)
    assert tally.bad == len(tally.shown) == len(rows) - len(taken)
    assert all(re.search(r"rows\.jsonl?(\.\w+)?:\d+: \w", line) for line in tally.shown)
    cut = off = 0
    for number, row in enumerate(bent):
        if f"d-{number}" not in taken:
            continue
        assert not row["bad"]
        turns = row["turns"]
        kept = taken[f"d-{number}"]["messages"]
        learnt = [n for n, t in enumerate(turns) if t["turn"]["role"] == "assistant" and t["learn"]]
        assert len(kept) == learnt[-1] + 1
        for message, meant in zip(kept, turns, strict=False):
            assert message["content"] == meant["text"]
            assert message.get("learn", True) == meant["learn"]
            off += not meant["learn"]
        cut += len(turns) - len(kept)
        unread = {t["unread"] for t in turns} | {n for n in row["own"] if row["own"] in ROW_NAMED}
        for field in unread - {None}:
            assert tally.notes[f"rows with a field {field!r}, which is not read"] > 0
    assert (tally.notes[CUT], tally.notes[OFF]) == (cut, off)
