"""What a field means holds wherever it stands: in parts, in suites, and if an option asks about it."""

import json

import pytest

from eval.objectives.safety import Safety
from mosaic.core.errors import UsageError
from training.data.importers.job import ImportJob
from training.data.importers.rows import import_rows
from training.data.importers.suites import import_suite
from training.data.pool import build_pool

ASK = {"role": "user", "content": "how do i bake bread ?"}
ANSWER = {"role": "assistant", "content": "mix flour and water ."}
CHAT = [ASK, ANSWER]


def imported(tmp_path, rows, **options):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ImportJob(sources=[str(source)], shape="chat", dataset="d", **options)
    return import_rows(job, tmp_path / "out.jsonl")


def suite(tmp_path, rows):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ImportJob(sources=[str(source)], shape="chat", dataset="d")
    return import_suite(job, Safety(), tmp_path / "suite", 10)


def parts(**beside):
    return {"role": "assistant", "content": [{"type": "text", "text": "mix .", **beside}]}


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"train": False}, {"where": ["train=false"]}, "train: False says that nothing"),
        ({"label": 0}, {"where": ["label=0"]}, "label: 0 marks an answer"),
        ({"kto_tag": False}, {}, "kto_tag: False marks an answer"),
        ({"tools": {"name": "x"}}, {"where": ["tools.name=x"]}, "tools: calls of tools"),
        ({"images": "a.png"}, {"slice_from": "images"}, "images: only text is trained"),
        ({"messages": [ASK, {**ANSWER, "label": False}]}, {}, "messages.1.label: False marks"),
        ({"messages": [ASK, parts(train=False)]}, {}, "content.0.train: marks a part of a turn"),
        ({"messages": [ASK, parts(thinking="hm")]}, {}, "content.0.thinking: the reasoning"),
    ],
)
def test_a_mark_is_heeded_wherever_it_stands(tmp_path, row, options, message):
    with pytest.raises(UsageError, match=message):
        imported(tmp_path, [{"messages": CHAT, **row}], **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_what_stands_in_a_part_is_counted(tmp_path):
    tally = imported(tmp_path, [{"messages": [ASK, parts(cache="short")]}])
    assert tally.notes["rows with a field 'content[].cache', which is not read"] == 1


def test_a_class_that_is_asked_about_is_no_unread_field(tmp_path):
    rows = [{"messages": CHAT, "label": "safe"}, {"messages": CHAT, "label": "unsafe"}]
    tally = imported(tmp_path, rows, where=["label=safe"])
    assert tally.rows == 1
    assert not any("not read" in note for note in tally.notes)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([*CHAT, {"role": "system", "content": "be brief ."}, ASK], "system message comes after"),
        ([ANSWER, ASK], "does not begin with the user"),
    ],
)
def test_a_recorded_chat_that_cannot_be_replayed_is_a_bad_row(tmp_path, messages, message):
    with pytest.raises(UsageError, match=message):
        suite(tmp_path, [{"messages": messages}])


def test_fields_that_a_suite_does_not_read_are_counted(tmp_path):
    rows = []
    for number in range(3):
        asked = {"role": "user", "content": f"bake loaf {number} .", "name": "ada"}
        rows.append({"messages": [asked, ANSWER], "label": False, "train": True})
    tally = suite(tmp_path, rows)
    for name in ("messages[].name", "label", "train"):
        assert tally.notes[f"rows with a field {name!r}, which is not read"] == 3


def test_requests_under_other_system_messages_are_other_prompts(tmp_path):
    systems = [{"role": "system", "content": f"you are baker {n} ."} for n in range(3)]
    tally = suite(tmp_path, [{"messages": [system, ASK]} for system in systems])
    assert tally.rows == 3


def pool_row(name, messages, **beside):
    labels = {"id": name, "dataset": "d", "bucket": "b", "quality": 5}
    return {**labels, "messages": messages, **beside}


def test_all_token_counts_that_cannot_be_trusted_are_named(tmp_path, jsonl):
    rows = [
        pool_row("a", CHAT),
        pool_row("b", [*CHAT, ASK], n_tokens=20),
        pool_row("c", CHAT, n_tokens=10**12),
    ]
    with pytest.raises(UsageError) as refused:
        build_pool(
            [jsonl(tmp_path / "rows.jsonl", rows)],
            tmp_path / "pool",
            model=None,
            max_length=64,
            trust_token_counts=True,
        )
    said = str(refused.value)
    assert said.startswith("3 bad rows")
    assert "n_tokens is missing" in said
    assert "messages.2: a turn after the last answer" in said
    assert "is more than" in said


def test_a_request_marked_to_be_learnt_is_refused_by_a_build(tmp_path, jsonl, tiny_model):
    row = pool_row("a", [{**ASK, "learn": True}, ANSWER])
    with pytest.raises(UsageError, match=r"messages\.0\.learn: a turn of the user"):
        build_pool(
            [jsonl(tmp_path / "rows.jsonl", [row])],
            tmp_path / "pool",
            model=tiny_model,
            max_length=64,
            trust_token_counts=False,
        )


def test_categories_that_share_a_short_name_are_counted(tmp_path):
    rows = []
    for kind in ("a/b", "a b", "a/b", "c"):
        rows.append({"messages": [{**ASK, "content": f"{kind} ?"}, ANSWER], "kind": kind})
    tally = imported(tmp_path, rows, slice_from="kind")
    assert tally.notes["rows in the slice a_b, though other rows of it are 'a/b'"] == 1


def test_conditions_that_leave_nothing_say_so(tmp_path):
    with pytest.raises(UsageError, match="no usable row in them\n  1: --where: kind is not b"):
        imported(tmp_path, [{"messages": CHAT, "kind": "a"}], where=["kind=b"])


def test_of_several_splits_in_one_object_the_one_to_train_on_is_read(tmp_path):
    source = tmp_path / "rows.json"
    held_out = [{"messages": [{**ASK, "content": "held out ?"}, ANSWER]}] * 3
    source.write_text(json.dumps({"test": held_out, "train": [{"messages": CHAT}]}))
    job = ImportJob(sources=[str(source)], shape="chat", dataset="d")
    tally = import_rows(job, tmp_path / "out.jsonl")
    assert "held out" not in (tmp_path / "out.jsonl").read_text()
    assert any("'test' beside 'train' is not read (3 entries)" in note for note in tally.notes)
