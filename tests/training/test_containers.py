"""Every container gives the same rows; what cannot be read is named by its place."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.core.errors import UsageError
from training.data.importers.containers import read
from training.data.importers.reading import BadRow, Unread


def dump(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_every_container_gives_the_same_rows(tmp_path):
    import datasets

    rows = [{"prompt": f"say {i}\nnow", "category": "c"} for i in range(5)]
    dump(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    dump(tmp_path / "lines.json", rows)
    with (tmp_path / "c.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "category"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "disk")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(
        tmp_path / "splits"
    )
    for name in ("a.jsonl", "b.json", "lines.json", "c.csv", "d.parquet", "disk", "splits"):
        assert [row for _, row in read(str(tmp_path / name))] == rows, name
    assert next(iter(read(str(tmp_path / "c.csv"))))[0].endswith("c.csv:2")
    assert [place for place, _ in read(str(tmp_path / "c.csv"))][1].endswith("c.csv:4")
    with pytest.raises(UsageError, match="no split 'test'; it has train"):
        list(read(str(tmp_path / "splits"), split="test"))


def test_a_large_array_streams_and_keeps_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.importers.json_rows.BUFFER", 64)
    rows = [{"n": i, "text": "x" * (i % 90), "list": [i, {"deep": "[}"}]} for i in range(200)]
    text = json.dumps(rows, indent=1)
    (tmp_path / "a.json").write_text(text)
    found = list(read(str(tmp_path / "a.json")))
    assert [row for _, row in found] == rows
    for number in (0, 1, 100, 199):
        line = (
            next(i for i, t in enumerate(text.splitlines(), start=2) if t == f'  "n": {number},')
            - 2
        )
        assert found[number][0].endswith(f"a.json:{line}")
    (tmp_path / "b.json").write_text(json.dumps(rows)[:-40])
    *_, (place, last) = read(str(tmp_path / "b.json"))
    assert isinstance(last, BadRow)
    assert place.endswith("b.json:1")


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        ('[{"n": 1}] [{"n": 2}]', 1, "nothing more is expected here, not '['"),
        ('[{"n": 1}]\ngarbage', 1, "nothing more is expected here, not 'g'"),
        ('[{"n": 1} {"n": 2}]', 1, "a comma or the array's end is expected here, not '{'"),
        ('[{"n": 1},, {"n": 2}]', 1, "what follows cannot be read"),
        ('[, {"n": 1}]', 0, "what follows cannot be read"),
        ('[{"n": 1},]', 1, "what follows cannot be read"),
        ('[{"n": 1},', 1, "the array has no end"),
    ],
)
def test_only_a_whole_array_is_read_to_its_end(tmp_path, text, rows, reason):
    (tmp_path / "a.json").write_text(text)
    *good, (_, last) = read(str(tmp_path / "a.json"))
    assert len(good) == rows
    assert reason in last.reason


@pytest.mark.parametrize("text", ["[]", " [ ] \n", '[{"n": 1}]\n', '[\n{"n": 1}\n,{"n": 1}]'])
def test_an_array_may_have_white_space_and_a_byte_order_mark(tmp_path, text):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.json").write_text(text, encoding=encoding)
        assert [row for _, row in read(str(tmp_path / "a.json"))] == json.loads(text)


def test_a_blank_line_of_a_table_and_a_byte_order_mark_of_lines_are_passed_over(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\n\nhi\n\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "hi"}\n', encoding="utf-8-sig")
    (tmp_path / "c.json").write_text('{"prompt": "hi"}\n', encoding="utf-8-sig")
    for name in ("a.csv", "b.jsonl", "c.json"):
        assert [row for _, row in read(str(tmp_path / name))] == [{"prompt": "hi"}]


def test_a_datasets_folder_with_a_script_or_a_cut_file_is_refused(tmp_path):
    import datasets

    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit\n")
    datasets.Dataset.from_list([{"n": i} for i in range(999)]).save_to_disk(tmp_path / "cut")
    (arrow,) = (tmp_path / "cut").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:200])
    for name in ("scripted", "cut"):
        with pytest.raises(UsageError, match=name):
            list(read(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", "no such file"),
        ("hub:owner/name", "hub:owner/name@REVISION"),
        ("hub:owner/name@0123abc", "cannot load it(.|\n)*HF_HUB_OFFLINE"),
    ],
)
def test_a_source_that_cannot_be_read_says_what_to_do(source, message):
    with pytest.raises(UsageError, match=message):
        list(read(source))


CHAT_ROWS = [{"id": n, "text": f"row {n}"} for n in range(3)]


def test_packed_files_give_the_same_rows(tmp_path):
    plain = "".join(json.dumps(row) + "\n" for row in CHAT_ROWS).encode()
    table = b"id,text\n0,row 0\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(table))
    for name, data in (("a.jsonl.zst", plain), ("a.json.zst", json.dumps(CHAT_ROWS).encode())):
        with pa.CompressedOutputStream(str(tmp_path / name), "zstd") as stream:
            stream.write(data)
    for name in ("a.jsonl.gz", "a.jsonl.zst", "a.json.zst"):
        assert [row for _, row in read(str(tmp_path / name))] == CHAT_ROWS
    assert [row for _, row in read(str(tmp_path / "b.csv.gz"))] == [{"id": "0", "text": "row 0"}]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_packed_file_that_is_cut_short_is_refused(tmp_path, ending):
    path = tmp_path / f"a.jsonl.{ending}"
    with pa.CompressedOutputStream(str(path), {"gz": "gzip", "zst": "zstd"}[ending]) as stream:
        for number in range(20_000):
            stream.write(json.dumps({"id": number, "x": hash(str(number))}).encode() + b"\n")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UsageError, match="cannot be unpacked"):
        list(read(str(path)))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"data": [{"a": 1}, {"a": 2}]}', [1, 2]),
        ('{\n "instructions": [\n  {"a": 1},\n  {"a": 2}\n ]\n}\n', [1, 2]),
        ('{"conversations": [{"a": 1, "messages": []}]}', [1]),
        ('{"a": 1,\n "b": [{"c": 2}]}\n', [1]),
        ('{"a": 1,\n "b": 1}\n{\n"a": 2}\n', [1, 2]),
        ('\ufeff{"a": 1}\n\ufeff{"a": 2}\n\ufeff', [1, 2]),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_objects_may_lie_over_lines_or_wrap_the_rows(tmp_path, text, rows, ending):
    (tmp_path / f"a.{ending}").write_text(text)
    assert [row["a"] for _, row in read(str(tmp_path / f"a.{ending}"))] == rows


def test_a_chat_that_is_the_only_row_of_its_file_wraps_nothing(tmp_path):
    chat = {"conversations": [{"from": "human", "value": "hi"}]}
    (tmp_path / "a.json").write_text(json.dumps(chat, indent=2))
    assert [row for _, row in read(str(tmp_path / "a.json"))] == [chat]


def test_what_stands_beside_wrapped_rows_is_named_and_each_row_has_its_line(tmp_path):
    text = '{"version": "1.1",\n "data": [\n  {"a": 1},\n  {"a": 2}]}'
    (tmp_path / "a.json").write_text(text)
    (_, beside), *rows = read(str(tmp_path / "a.json"))
    assert beside == Unread("the field 'version' beside 'data' is not read")
    assert [place.rpartition(":")[2] for place, _ in rows] == ["3", "4"]


def test_an_object_over_several_lines_that_is_broken_is_one_bad_row(tmp_path):
    (tmp_path / "a.json").write_text('{\n "a": 1,\n "b": oops\n}\n')
    ((place, row),) = read(str(tmp_path / "a.json"))
    assert place.endswith("a.json:1")
    assert "line 3" in row.reason


def test_one_broken_line_leaves_the_others(tmp_path):
    (tmp_path / "a.json").write_text('{"a": \n{"a": 2}\n{"a": 3}\n')
    (_, broken), *others = read(str(tmp_path / "a.json"))
    assert isinstance(broken, BadRow)
    assert [row for _, row in others] == [{"a": 2}, {"a": 3}]


def test_an_empty_cell_is_absent_and_a_second_header_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffa,b\n1,\n\ufeffa,b\n2,x\n")
    rows = [row for _, row in read(str(tmp_path / "a.csv"))]
    assert rows[0] == {"a": "1", "b": None}
    assert rows[1] == BadRow("the header again, as in files that were joined")
    assert rows[2] == {"a": "2", "b": "x"}


def json_column(values):
    return pa.array([json.dumps(value) for value in values], pa.json_())


def test_json_of_arrow_is_decoded_wherever_it_stands(tmp_path):
    values = ["plain", [{"type": "text", "text": "part"}], None, {"n": 1}]
    flat = json_column(values)
    offsets = pa.array([0, 1, 2, 3, 4], pa.int32())
    table = pa.table(
        {
            "flat": flat,
            "list": pa.ListArray.from_arrays(offsets, flat),
            "struct": pa.StructArray.from_arrays([flat], ["inside"]),
            "plain": ['"as it is"'] * 4,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    with (
        pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        rows = [row for _, row in read(str(tmp_path / name))]
        assert [row["flat"] for row in rows] == values
        assert [row["list"] for row in rows] == [[value] for value in values]
        assert [row["struct"]["inside"] for row in rows] == values
        assert {row["plain"] for row in rows} == {'"as it is"'}


def test_what_datasets_writes_for_mixed_values_is_read_as_it_was(tmp_path):
    import datasets

    mixed = ["a text", [{"type": "text", "text": "part"}]]
    lines = [json.dumps({"m": [{"content": one}], "n": {"k": one}}) for one in mixed]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    loaded = datasets.load_dataset(str(tmp_path / "data"), split="train")
    loaded.to_parquet(str(tmp_path / "m.parquet"))
    loaded.save_to_disk(str(tmp_path / "disk"))
    for source in ("data", "disk", "m.parquet"):
        rows = [row for _, row in read(str(tmp_path / source))]
        assert [row["m"][0]["content"] for row in rows] == mixed
        assert [row["n"]["k"] for row in rows] == mixed
