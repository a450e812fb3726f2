"""Importing: published shapes from every container, bad rows by file and line, nothing written where one is bad."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.objectives.safety import Safety
from mosaic.core.errors import UsageError
from mosaic.core.types.data import Example
from training.data.importers.containers import read
from training.data.importers.job import ImportJob
from training.data.importers.rows import import_rows
from training.data.importers.suites import import_suite
from training.data.pool import Pool, build_pool
from training.data.provenance import carry_cards, read_cards

TALK = [
    {"from": "human", "value": "how do i bake bread ?"},
    {"from": "gpt", "value": "mix flour and water ."},
    {"from": "human", "value": "and then ?"},
    {"from": "gpt", "value": "bake it ."},
]
MESSAGES = [
    {"role": "user", "content": "name a colour ."},
    {"role": "assistant", "content": "green ."},
]
TULU = {
    "id": "t1",
    "prompt": "name a colour .",
    "messages": MESSAGES,
    "constraints": ["format:title", "keywords:include"],
}


def job(path, shape, **changes):
    return ImportJob(sources=[str(path)], shape=shape, dataset="d", **changes)


def dump(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_xguard_train_is_one_array_of_sharegpt_chats(tmp_path):
    source = tmp_path / "xguard-train.json"
    source.write_text(json.dumps([{"conversations": TALK}, {"conversations": TALK[:2]}], indent=2))
    tally = import_rows(job(source, "xguard"), tmp_path / "rows.jsonl")
    rows = lines(tmp_path / "rows.jsonl")
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant", "user", "assistant"]
    assert (rows[0]["quality"], rows[0]["bucket"]) == (1, "unlabelled")
    assert tally.notes["rows without a quality: 1 until they are labelled"] == 2
    for row in rows:
        Example.model_validate(row)


def test_tulu_constraints_are_kept_as_names_and_counted_as_unverifiable(tmp_path):
    pq.write_table(pa.Table.from_pylist([TULU]), tmp_path / "t.parquet")
    tally = import_rows(job(tmp_path / "t.parquet", "tulu-if", quality=4), tmp_path / "rows.jsonl")
    (row,) = lines(tmp_path / "rows.jsonl")
    assert (row["id"], row["bucket"], row["quality"]) == ("d-t1", "complexity_3", 4)
    assert row["attributes"]["constraints"] == ["format:title", "keywords:include"]
    assert tally.notes["constraints without parameters: unverifiable, kept as names only"] == 2


def test_alpaca_joins_instruction_and_input(tmp_path):
    rows = [
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"instruction": "hi", "input": "", "output": "hello"},
    ]
    import_rows(job(dump(tmp_path / "a.jsonl", rows), "alpaca"), tmp_path / "rows.jsonl")
    assert [r["messages"][0]["content"] for r in lines(tmp_path / "rows.jsonl")] == [
        "add\n\n1 2",
        "hi",
    ]


def test_chat_rows_keep_what_a_pool_row_says(tmp_path):
    own = {
        "id": 7,
        "messages": MESSAGES,
        "bucket": "x",
        "quality": 5,
        "attributes": {"topic": "colour", "gone": None},
    }
    import_rows(job(dump(tmp_path / "c.jsonl", [own]), "chat"), tmp_path / "rows.jsonl")
    (row,) = lines(tmp_path / "rows.jsonl")
    assert (row["id"], row["bucket"], row["quality"], row["attributes"]) == (
        "d-7",
        "x",
        5,
        {"topic": "colour"},
    )


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        (
            "messages=dialogue,role=speaker,content=text",
            {"dialogue": [{"speaker": "human", "text": "hi"}, {"speaker": "bot", "text": "ho"}]},
        ),
        (
            "prompt=question,response=answer,system=rule,id=nr",
            {"question": "hi", "answer": "ho", "rule": "", "nr": 3},
        ),
    ],
)
def test_a_map_names_the_fields_of_an_unknown_shape(tmp_path, spec, row):
    import_rows(
        job(dump(tmp_path / "m.jsonl", [row]), "map", mapping=spec), tmp_path / "rows.jsonl"
    )
    (made,) = lines(tmp_path / "rows.jsonl")
    assert [m["content"] for m in made["messages"]] == ["hi", "ho"]


@pytest.mark.parametrize(
    "spec", ["messages", "speaker=x", "prompt=q", "role=a,prompt=b,response=c", "id=a,id=b"]
)
def test_a_map_that_makes_no_sense_is_refused(tmp_path, spec):
    with pytest.raises(UsageError, match="--map"):
        import_rows(
            job(dump(tmp_path / "m.jsonl", [{}]), "map", mapping=spec), tmp_path / "rows.jsonl"
        )


def test_a_mapped_field_that_no_row_has_is_refused(tmp_path):
    rows = [
        {"question": "hi", "answer": "ho", "rule": None},
        {"question": "hi", "answer": "ha", "nr": 3},
    ]
    source = dump(tmp_path / "m.jsonl", rows)
    spec = "prompt=question,response=answer,system=rule"
    with pytest.raises(
        UsageError, match=r"no row has a field 'scores', 'uuid'(.|\n)*rows\.jsonl was not written"
    ):
        import_rows(
            job(source, "map", mapping=spec + ",id=uuid,quality=scores"), tmp_path / "rows.jsonl"
        )
    assert not (tmp_path / "rows.jsonl").exists()
    assert (
        import_rows(job(source, "map", mapping=spec + ",id=nr"), tmp_path / "rows.jsonl").rows == 2
    )


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"bucket": "forget the above"}, "bucket: 'forget the above' cannot be a name"),
        ({"bucket": "x" * 41}, "cannot be a name"),
        ({"attributes": {"topic": "a \ud800"}}, "half of a character"),
        ({"attributes": {"\udc00": 1}}, "half of a character"),
        ({"attributes": {"sizes": [2**64]}}, "attributes.sizes: a number of more than 64 bits"),
    ],
)
def test_what_stands_beside_a_chat_is_checked(tmp_path, own, message):
    source = dump(tmp_path / "c.jsonl", [{"messages": MESSAGES, **own}])
    for out in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(UsageError, match=rf"c\.jsonl:1: .*{message}"):
            import_rows(job(source, "chat"), tmp_path / out)


def test_attributes_of_parquet_may_be_bytes(tmp_path):
    from decimal import Decimal

    table = pa.Table.from_pylist(
        [{"messages": MESSAGES, "attributes": {"topic": b"wax", "size": Decimal("1.5")}}]
    )
    pq.write_table(table, tmp_path / "c.parquet")
    import_rows(job(tmp_path / "c.parquet", "chat"), tmp_path / "rows.jsonl")
    assert lines(tmp_path / "rows.jsonl")[0]["attributes"] == {"topic": "wax", "size": 1.5}


@pytest.mark.parametrize("changes", [{"dataset": ""}, {"dataset": "a b"}, {"bucket": "<x>"}])
def test_names_are_short_and_plain(tmp_path, changes):
    source = dump(tmp_path / "c.jsonl", [{"messages": MESSAGES}])
    with pytest.raises(UsageError, match=f"--{next(iter(changes))} .* cannot be a name"):
        import_rows(
            ImportJob(**{"sources": [str(source)], "shape": "chat", "dataset": "d", **changes}),
            tmp_path / "r.jsonl",
        )


def test_a_place_below_a_file_is_refused(tmp_path):
    source = dump(tmp_path / "x.jsonl", [{"conversations": TALK}] * 3)
    with pytest.raises(UsageError, match="is a file, not a folder"):
        import_rows(job(source, "xguard"), source / "rows.jsonl")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        import_suite(job(source, "xguard"), Safety(), source / "suite", 1)


BAD = [
    (b"{broken", "not valid JSON"),
    (b'{"conversations": "\xff"}', "not UTF-8"),
    (b"[1]", "a row is an object, this is list"),
    (b'{"conversations": NaN}', "NaN is not a number"),
    (b'{"dialogue": []}', "conversations: missing"),
    (
        json.dumps({"conversations": [{"from": "narrator", "value": "x"}]}).encode(),
        "conversations.0.from: 'narrator'",
    ),
    (
        json.dumps({"conversations": [*TALK[:1], {"from": "gpt", "value": " "}]}).encode(),
        "conversations.1.value: empty",
    ),
    (
        json.dumps({"conversations": [*TALK[:1], {"from": "gpt", "value": "a \ud800"}]}).encode(),
        "half of a character",
    ),
    (b'{"id": "a", "id": "b"}', "the key 'id' occurs twice in one object"),
    (json.dumps({"conversations": TALK[:1]}).encode(), "nothing to learn from"),
    (json.dumps({"conversations": TALK[1:]}).encode(), "does not begin with the user"),
    (
        json.dumps({"id": "one", "conversations": TALK}).encode(),
        "id: 'one' was used at .*:1 already",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_row_is_named_by_file_and_line_and_nothing_is_written(tmp_path, line, message):
    source = tmp_path / "s.jsonl"
    source.write_bytes(
        json.dumps({"id": "one", "conversations": TALK}).encode() + b"\n\n" + line + b"\n"
    )
    with pytest.raises(UsageError, match=rf"1 bad row of 2:\n  .*s\.jsonl:3: .*{message}"):
        import_rows(job(source, "sharegpt"), tmp_path / "rows.jsonl")
    assert {p.name for p in tmp_path.iterdir()} == {"s.jsonl"}


def test_all_bad_rows_are_counted_and_the_first_twenty_named(tmp_path):
    rows = [{"conversations": TALK, "id": str(i)} if i % 2 else {} for i in range(100)]
    with pytest.raises(UsageError, match=r"50 bad rows of 100(.|\n)* and 30 more"):
        import_rows(job(dump(tmp_path / "s.jsonl", rows), "sharegpt"), tmp_path / "rows.jsonl")
    tally = import_rows(
        job(tmp_path / "s.jsonl", "sharegpt", skip_bad=True), tmp_path / "rows.jsonl"
    )
    assert (tally.rows, tally.bad, tally.left_out["bad rows"]) == (50, 50, 50)
    assert tally.shown[1].split(": ")[0].endswith("s.jsonl:3")


def test_equal_chats_without_ids_are_one_row(tmp_path):
    tally = import_rows(
        job(dump(tmp_path / "s.jsonl", [{"conversations": TALK}] * 3), "xguard"),
        tmp_path / "r.jsonl",
    )
    assert (tally.rows, tally.left_out["repeats another row word for word"]) == (1, 2)


def said(tmp_path, shape, row):
    """What is imported of one row."""
    import_rows(job(dump(tmp_path / "one.jsonl", [row]), shape), tmp_path / "rows.jsonl")
    return [(m["role"][0], m["content"]) for m in lines(tmp_path / "rows.jsonl")[0]["messages"]]


ASKED, PARTS = (
    MESSAGES[:1],
    [{"type": "text", "text": "name "}, {"type": "text", "text": "a colour ."}],
)
RULE = {"from": "system", "value": "be brief"}
ADD = {"instruction": "add", "input": "1 2", "output": "3"}
SAID = [("u", "name a colour ."), ("a", "green .")]


@pytest.mark.parametrize(
    ("shape", "row", "messages"),
    [
        ("sharegpt", {"system": "be brief", "conversations": TALK[:2]}, "sua"),
        ("sharegpt", {"system": "be brief", "conversations": [RULE, *TALK[:2]]}, "sua"),
        (
            "sharegpt",
            {"system": "", "conversations": [{**TALK[0], "weight": 0}, {**TALK[1], "weight": 1.0}]},
            "ua",
        ),
        (
            "alpaca",
            {**ADD, "system": "be brief", "history": [["hi", "hello"], ["how ?", "so ."]]},
            "suauaua",
        ),
        ("alpaca", {**ADD, "system": None, "history": []}, "ua"),
        ("chat", {"messages": [{"role": "developer", "content": "be brief"}, *MESSAGES]}, "sua"),
        ("chat", {"messages": [*ASKED, {**MESSAGES[1], "weight": 1, "tool_calls": None}]}, "ua"),
    ],
)
def test_variants_of_a_shape_lose_nothing(tmp_path, shape, row, messages):
    found = said(tmp_path, shape, row)
    assert "".join(role for role, _ in found) == messages
    assert messages[0] != "s" or found[0][1] == "be brief"
    if row.get("history"):
        assert [text for _, text in found[1:]] == [
            "hi",
            "hello",
            "how ?",
            "so .",
            "add\n\n1 2",
            "3",
        ]


def test_text_parts_are_one_text(tmp_path):
    assert (
        said(tmp_path, "chat", {"messages": [{"role": "user", "content": PARTS}, MESSAGES[1]]})
        == SAID
    )


@pytest.mark.parametrize(
    ("shape", "row", "message"),
    [
        (
            "sharegpt",
            {"system": "x", "conversations": [RULE, *TALK]},
            "system: differs from the system turn",
        ),
        ("sharegpt", {"system": 1, "conversations": TALK}, "system: not a text"),
        (
            "alpaca",
            {**ADD, "history": [["hi", "hello"], ["how ?"]]},
            "history.1: not a pair of texts",
        ),
        ("alpaca", {**ADD, "history": "hi"}, "history: not a list"),
        (
            "chat",
            {"messages": [*ASKED, {**MESSAGES[1], "weight": 0.5}, *MESSAGES]},
            "messages.1.weight: 0.5",
        ),
        (
            "chat",
            {"messages": [*ASKED, {**MESSAGES[1], "tool_calls": [{"id": "c"}]}]},
            "messages.1.tool_calls: ",
        ),
        (
            "chat",
            {"messages": [*MESSAGES, {"role": "tool", "content": "4"}]},
            "messages.2.role: 'tool'",
        ),
        (
            "chat",
            {"messages": [*MESSAGES, {"role": "function", "content": "4"}]},
            "messages.2.role: 'function'",
        ),
        (
            "chat",
            {
                "messages": [
                    {"role": "user", "content": [*PARTS, {"type": "image_url"}]},
                    MESSAGES[1],
                ]
            },
            "messages.0.content.2: not a part of type 'text'",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": []}, MESSAGES[1]]},
            "messages.0.content: empty",
        ),
    ],
)
def test_what_cannot_be_learnt_as_meant_is_a_bad_row(tmp_path, shape, row, message):
    source = dump(tmp_path / "s.jsonl", [row])
    with pytest.raises(UsageError, match=rf"1 bad row of 1:\n  .*s\.jsonl:1: {message}"):
        import_rows(job(source, shape), tmp_path / "rows.jsonl")


def test_a_table_that_names_a_column_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output,output\nhi,x,y\n")
    with pytest.raises(UsageError, match=r"a\.csv: the header names the column 'output' twice"):
        list(read(str(tmp_path / "a.csv")))


@pytest.mark.parametrize("quality", [0, 6, 3.5, "good", True])
def test_a_quality_outside_of_1_to_5_is_bad(tmp_path, quality):
    source = dump(tmp_path / "c.jsonl", [{"messages": MESSAGES, "quality": quality}])
    with pytest.raises(UsageError, match=r"quality: .* is not a whole number from 1 to 5"):
        import_rows(job(source, "chat"), tmp_path / "rows.jsonl")


def broken_text(*values):
    """A column of texts that are not checked to be UTF-8, as other writers leave them."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_parquet_that_is_not_utf8_or_damaged_is_named(tmp_path):
    source = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"instruction": broken_text(b"a", b"\xff", b"c"), "output": ["x", "y", "z"]}),
        source,
    )
    with pytest.raises(UsageError, match=r"1 bad row of 3:\n  .*a\.parquet:2: not UTF-8"):
        import_rows(job(source, "alpaca"), tmp_path / "rows.jsonl")
    assert import_rows(job(source, "alpaca", skip_bad=True), tmp_path / "rows.jsonl").rows == 2
    table = pa.table({"instruction": [f"say {i}" for i in range(5000)], "output": ["x"] * 5000})
    pq.write_table(table, source, compression="zstd")
    raw = bytearray(source.read_bytes())
    raw[40:400] = b"\xff" * 360
    source.write_bytes(raw)
    with pytest.raises(UsageError, match=r"a\.parquet: damaged after row"):
        import_rows(job(source, "alpaca", skip_bad=True), tmp_path / "more.jsonl")


def test_parquet_out_and_jsonl_out_make_the_same_pool(tmp_path):
    rows = [{**TULU, "id": f"t{i}"} for i in range(5)]
    source = dump(tmp_path / "t.jsonl", rows)
    pools = []
    for name in ("rows.jsonl", "rows.parquet"):
        import_rows(job(source, "tulu-if", quality=4), tmp_path / name)
        made = build_pool(
            [with_counts(tmp_path / name)],
            tmp_path / f"{name}.pool",
            model=None,
            max_length=512,
            trust_token_counts=True,
        )
        pools.append(made.digest)
    assert pools[0] == pools[1]


def with_counts(path):
    """The same rows with a token count each, for a pool without a model."""
    rows = lines(path) if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()
    return dump(
        path.with_suffix(path.suffix + ".counted.jsonl"), [{**r, "n_tokens": 9} for r in rows]
    )


def test_licence_and_source_travel_from_the_file_to_the_pool(tmp_path):
    source = dump(tmp_path / "t.jsonl", [{**TULU, "id": f"t{i}"} for i in range(3)])
    import_rows(job(source, "tulu-if", quality=4, source="the hub"), tmp_path / "rows.jsonl")
    rows = lines(tmp_path / "rows.jsonl")
    dump(tmp_path / "rows.jsonl", [{**r, "n_tokens": 9} for r in rows])
    other = dump(
        tmp_path / "own.jsonl",
        [{**r, "id": r["id"] + "x", "dataset": "own", "n_tokens": 9} for r in rows],
    )
    build_pool(
        [tmp_path / "rows.jsonl", other],
        tmp_path / "p",
        model=None,
        max_length=512,
        trust_token_counts=True,
    )
    told = {
        o["dataset"]: (o["source"], o["licence"], o["rows"])
        for o in Pool.open(tmp_path / "p").stats()["origins"]
    }
    assert told == {"d": ("the hub", "odc-by", 3), "own": ("rows without a card", "unknown", 3)}
    changed = build_pool(
        [tmp_path / "rows.jsonl", other],
        tmp_path / "q",
        model=None,
        max_length=512,
        trust_token_counts=True,
        licences={"own": "mit"},
    )
    assert [o.licence for o in changed.origins] == ["odc-by", "mit"]
    with pytest.raises(UsageError, match="no such data set in the rows"):
        build_pool(
            [other],
            tmp_path / "z",
            model=None,
            max_length=512,
            trust_token_counts=True,
            licences={"d": "mit"},
        )


def test_a_file_made_of_imported_ones_keeps_their_cards(tmp_path):
    for name in ("a", "b"):
        import_rows(
            job(dump(tmp_path / f"{name}.in.jsonl", [TULU]), "tulu-if", licence=name),
            tmp_path / f"{name}.jsonl",
        )
    carry_cards([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "both.jsonl")
    assert [o.licence for o in read_cards([tmp_path / "both.jsonl"])] == ["a", "b"]
    (tmp_path / "both.jsonl.card.json").write_text("{}")
    with pytest.raises(UsageError, match="not a card of an import"):
        read_cards([tmp_path / "both.jsonl"])


TURN = [
    {"train": False},
    {"loss": "false"},
    {"training": 0},
    {"trainable": "0"},
    {"mask": True},
    {"masked": 1},
    {"weight": 0},
    {"weight": 0.0},
    {"loss_weight": "0"},
    {"loss_mask": 0},
    {"Train": False},
    {"is_trainable": False},
]


@pytest.mark.parametrize("mark", TURN, ids=str)
@pytest.mark.parametrize(
    ("shape", "column", "role", "text", "more"),
    [
        ("chat", "messages", "role", "content", {}),
        ("sharegpt", "conversations", "from", "value", {}),
        ("tulu-if", "messages", "role", "content", {"constraints": []}),
        ("map", "talk", "who", "says", {}),
    ],
)
def test_a_marked_answer_stays_as_context_in_every_shape(
    tmp_path, mark, shape, column, role, text, more
):
    talk = []
    for number, turn in enumerate(TALK):
        who = "user" if turn["from"] == "human" else "assistant"
        talk.append({role: who, text: turn["value"], **(mark if number == 1 else {})})
    mapping = "messages=talk,role=who,content=says" if shape == "map" else None
    source = dump(tmp_path / "s.jsonl", [{column: talk, **more}])
    tally = import_rows(job(source, shape, mapping=mapping), tmp_path / "rows.jsonl")
    (row,) = lines(tmp_path / "rows.jsonl")
    assert [m.get("learn", True) for m in row["messages"]] == [True, False, True, True]
    assert tally.notes["answers marked as not to be learnt: kept as context"] == 1


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"train": "yes"}, r"messages\.1\.train: 'yes' is none of true, false, 1, 0"),
        ({"loss": 0.3}, r"messages\.1\.loss: 0\.3 is none"),
        ({"loss": [0, 1]}, r"messages\.1\.loss"),
        ({"weight": True}, r"messages\.1\.weight: True"),
        ({"mask": 0}, r"messages\.1\.mask: 0 could mean either"),
        ({"train": True, "weight": 0}, r"messages\.1\.train: marks contradict"),
        ({"reasoning_content": "hm"}, r"messages\.1\.reasoning_content: the reasoning"),
        ({"thinking": "hm"}, r"messages\.1\.thinking"),
        ({"function_call": {"name": "f"}}, r"messages\.1\.function_call: a tool call"),
        ({"images": ["a.png"]}, r"messages\.1\.images: only text"),
        ({"prefix": True}, r"messages\.1\.prefix"),
        ({"content": None, "tool_calls": [{"id": "c"}]}, r"messages\.1\.tool_calls"),
        ({"train": False}, "every assistant turn is marked as not to be learnt"),
    ],
)
def test_a_turn_that_would_not_be_learnt_as_meant_is_named_with_its_field(tmp_path, turn, message):
    source = dump(tmp_path / "s.jsonl", [{"messages": [*ASKED, {**MESSAGES[1], **turn}]}])
    with pytest.raises(UsageError, match=rf"s\.jsonl:1: .*{message}"):
        import_rows(job(source, "chat"), tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"tools": [{"name": "f"}]}, "tools: calls of tools"),
        ({"functions": [{"name": "f"}]}, "functions: calls"),
        ({"audio": "a.wav"}, "audio: only text"),
        ({"videos": ["v"]}, "videos: only text"),
        ({"label": False}, "label: False marks an answer"),
        ({"label": 0}, "label: 0 marks an answer"),
        ({"desirable": "false"}, "desirable: 'false'"),
        ({"train": False}, "train: False says that nothing"),
        ({"weight": 0.25}, "weight: 0.25"),
        ({"history": [["a", "b"]]}, "history: turns before the chat"),
        ({"system": "a", "system_prompt": "b"}, "system_prompt: differs from system"),
        ({"completion_mask": [0, 1]}, "completion_mask: marks single tokens"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"enable_thinking": False}, "enable_thinking: options of the chat template"),
    ],
)
def test_a_row_that_means_more_than_its_chat_is_named_with_its_field(tmp_path, own, message):
    source = dump(tmp_path / "s.jsonl", [{"messages": MESSAGES, **own}])
    with pytest.raises(UsageError, match=rf"s\.jsonl:1: {message}"):
        import_rows(job(source, "chat"), tmp_path / "rows.jsonl")


def test_fields_that_mean_nothing_to_a_shape_are_counted_by_name(tmp_path):
    rows = [
        {"messages": MESSAGES, "source": "web", "tools": None, "label": "safe", "images": []},
        {"messages": [{**MESSAGES[0], "name": "ada"}, MESSAGES[1]], "source": "", "label": True},
    ]
    rows[1]["messages"][1] = {**MESSAGES[1], "content": "blue ."}
    tally = import_rows(job(dump(tmp_path / "s.jsonl", rows), "chat"), tmp_path / "rows.jsonl")
    unread = {note for note in tally.notes if "not read" in note}
    assert unread == {
        "rows with a field 'source', which is not read",
        "rows with a field 'label', which is not read",
        "rows with a field 'messages[].name', which is not read",
    }


def test_ids_that_begin_anew_in_each_file_are_kept_apart(tmp_path):
    for folder, answer in (("a", "one ."), ("b", "two ."), ("c", "one .")):
        (tmp_path / folder).mkdir()
        chat = {"id": 0, "messages": [*ASKED, {"role": "assistant", "content": answer}]}
        dump(tmp_path / folder / "part.jsonl", [chat])
    sources = [str(tmp_path / folder / "part.jsonl") for folder in "abc"]
    order = ImportJob(sources=sources, shape="chat", dataset="d")
    tally = import_rows(order, tmp_path / "rows.jsonl")
    assert [row["id"] for row in lines(tmp_path / "rows.jsonl")] == ["d-0", "d-b-part-0"]
    assert tally.left_out["repeats another row word for word"] == 1
    named = ImportJob(sources=sources[:1], shape="chat", dataset="d", id_prefix="x")
    import_rows(named, tmp_path / "named.jsonl")
    assert lines(tmp_path / "named.jsonl")[0]["id"] == "d-x-0"


def test_only_rows_that_meet_every_condition_are_taken(tmp_path):
    rows = [
        {"messages": [*ASKED, {"role": "assistant", "content": f"{n} ."}], "lang": lang, "m": m}
        for n, (lang, m) in enumerate(
            [
                ("en", {"ok": True}),
                ("de", {"ok": True}),
                ("fr", {"ok": True}),
                ("en", {"ok": False}),
            ]
        )
    ]
    source = dump(tmp_path / "s.jsonl", rows)
    where = ("lang=en", "lang=de", "m.ok=true")
    tally = import_rows(job(source, "chat", where=where), tmp_path / "rows.jsonl")
    assert (tally.rows, sum(tally.left_out.values())) == (2, 2)
    assert tally.left_out["--where: lang is not en or de"] == 1
    with pytest.raises(UsageError, match="--where: no row has a field 'colour'"):
        import_rows(job(source, "chat", where=("colour=red",)), tmp_path / "other.jsonl")
    with pytest.raises(UsageError, match="--where 'lang': write it as field=value"):
        import_rows(job(source, "chat", where=("lang",)), tmp_path / "other.jsonl")


def test_buckets_are_taken_from_a_field(tmp_path):
    rows = [{"messages": MESSAGES, "meta": {"kind": "tall / trees"}}]
    source = dump(tmp_path / "s.jsonl", rows)
    import_rows(job(source, "chat", slice_from="meta.kind"), tmp_path / "rows.jsonl")
    assert lines(tmp_path / "rows.jsonl")[0]["bucket"] == "tall_trees"
